//! Crash test of the controllers: after a crash between any two actions, the next run reads only stored state and
//! reaches the same end.
//!
//! One life of a cluster with something for every controller is played to its end, with a simulated kubelet and with
//! users that change objects. For each action that isn't the last of its plan, the life is replayed from there by
//! controllers without memory of the plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Effect, Failure, Kind, Pass, Pod, ReconcilerCache};
use serde_json::{Value, json};

use crate::table_tests::{CLUSTER, decide, keys, objects, start};

/// The maximum number of rounds over all keys until nothing is left to do.
const ROUNDS_MAX: usize = 200;
/// The time between two user actions.
const BETWEEN: Duration = Duration::from_hours(25);
/// Longer than the waits of controllers, except those of hours; and the number of such steps, as a controller that
/// acted after its wait reports it in a later pass.
const LATER: Duration = Duration::from_secs(60);
const LATERS: usize = 2;

/// The order of the actions that a plan performs concurrently.
#[derive(Clone, Copy, PartialEq)]
enum ActionOrder {
    First,
    Last,
}

/// One life of the cluster.
struct Play {
    simulation: Simulation,
    order: ActionOrder,
    /// Whether one node is dead.
    silent: bool,
    /// The load of the autoscaled workloads.
    load: i64,
    /// The memory of each controller: lost in a crash.
    reconciler_cache: BTreeMap<&'static str, ReconcilerCache>,
    /// The cluster after each crash before the last action of a plan, with the action before it; none: crashes are not
    /// recorded.
    deaths: Option<Vec<(String, Simulation)>>,
    /// The controllers that acted.
    acted: BTreeSet<&'static str>,
}

/// The single actions of a plan, in order.
fn single(actions: Vec<Action>, order: ActionOrder) -> Vec<Action> {
    let flat = |action| match action {
        Action::Concurrent(mut several) | Action::SlowStart(mut several) => {
            if order == ActionOrder::Last {
                several.reverse();
            }
            single(several, order)
        }
        Action::Reporting { tried, .. } => single(vec![*tried], order),
        Action::Event(_) => Vec::new(),
        other => vec![other],
    };
    actions.into_iter().flat_map(flat).collect()
}

fn changes(action: &Action) -> bool {
    !matches!(
        action,
        Action::RequireFreshCache { .. }
            | Action::RequireDependents { .. }
            | Action::ExpectNone { .. }
            | Action::ExpectGone { .. }
            | Action::ExpectLive { .. }
    )
}

impl Play {
    /// Performs plans until there are none.
    fn work(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut idle = true;
            for (name, keys) in keys(&self.simulation) {
                for key in keys {
                    let (actions, has_effects) = self.decide(name, &key);
                    idle &= !has_effects;
                    let actions = single(actions, self.order);
                    let last = actions.len();
                    for (at, action) in actions.into_iter().enumerate() {
                        let what = format!("{name} {key}: {} of {last}, {action:?}", at + 1);
                        let changes = changes(&action);
                        assert_eq!(self.simulation.apply(vec![action].into()), Vec::<String>::new(), "{what}");
                        if !changes {
                            continue;
                        }
                        idle = false;
                        self.acted.insert(name);
                        // After the last action nothing is lost.
                        if let Some(deaths) = self.deaths.as_mut().filter(|_| at + 1 < last) {
                            deaths.push((what, self.simulation.clone()));
                        }
                    }
                }
            }
            if idle {
                return;
            }
        }
        panic!("the controllers never come to rest");
    }

    /// A controller's decision, with the server's answers to its effects; and whether an effect changed an object.
    fn decide(&mut self, name: &'static str, key: &ObjectKey) -> (Vec<Action>, bool) {
        self.simulation.reconciler_cache = self.reconciler_cache.get(name).cloned().unwrap_or_default();
        self.simulation.pass = Pass::default();
        let mut changed = false;
        loop {
            let plan = decide(name, &self.simulation, key);
            if plan.effects.is_empty() {
                self.reconciler_cache.entry(name).or_default().set(key, plan.state);
                return (plan.actions, changed);
            }
            self.simulation.pass.scratch = plan.state;
            for effect in plan.effects {
                let answer = self.answer(&effect);
                if let (Effect::Put(path, object), Ok(_)) = (&effect, &answer) {
                    changed = true;
                    self.acted.insert(name);
                    if let Some(deaths) = &mut self.deaths {
                        deaths.push((format!("{name} {key}: PUT {path} {object}"), self.simulation.clone()));
                    }
                }
                let (verb, resource, reason) = ("get", String::new(), String::new());
                let failure = |message| Failure { verb, resource, code: 404, reason, message };
                self.simulation.pass.record(effect, answer.map(Arc::new).map_err(failure));
            }
        }
    }

    /// The server's answer to an effect.
    fn answer(&mut self, effect: &Effect) -> Result<Value, String> {
        let (Effect::Get(path) | Effect::Put(path, _)) = effect;
        let rest = path.strip_prefix("/apis/").unwrap_or_default();
        let parts: Vec<&str> = rest.split(['/', '?']).collect();
        match (effect, &parts[..]) {
            (Effect::Get(_), ["apps", "v1"]) => {
                Ok(json!({"resources": [{"name": "deployments", "kind": "Deployment"}]}))
            }
            (Effect::Get(_), [""]) if path.starts_with("/api/v1/namespaces/a/pods?") => {
                let pods = self.simulation.view.list::<Pod>("a").map(machinery_client::value_of);
                Ok(json!({"items": pods.collect::<Vec<_>>()}))
            }
            (Effect::Get(_), ["external.metrics.k8s.io", ..]) => {
                Ok(json!({"items": [{"metricName": "load", "value": self.load.to_string()}]}))
            }
            (_, ["apps", "v1", "namespaces", "a", "deployments", name, "scale"]) => {
                if let Effect::Put(_, scale) = effect {
                    self.change(
                        "apps/v1",
                        "Deployment",
                        name,
                        &json!({"spec": {"replicas": scale["spec"]["replicas"]}}),
                    );
                }
                let deployment = self.object("apps/v1", "Deployment", name).ok_or("it is gone")?;
                let metadata = &deployment["metadata"];
                Ok(json!({"metadata": {"name": name, "namespace": "a", "resourceVersion": metadata["resourceVersion"]},
                    "spec": {"replicas": deployment["spec"]["replicas"]},
                    "status": {"replicas": deployment["status"]["replicas"], "selector": format!("app={name}")}}))
            }
            (Effect::Put(_, object), [_, "v2", "namespaces", "a", "horizontalpodautoscalers", name, "status"]) => {
                let kind = self.simulation.kind_of(object);
                let update = Action::Update { kind, object: object.clone(), subresource: Some("status") };
                let problems = self.simulation.apply(vec![update].into());
                assert_eq!(problems, Vec::<String>::new(), "{path}");
                self.object("autoscaling/v2", "HorizontalPodAutoscaler", name).ok_or("it is gone".into())
            }
            _ => Err(format!("nobody serves {path}")),
        }
    }

    /// Binds, runs and ends pods. Returns whether anything changed.
    fn kubelet(&mut self) -> bool {
        let kind = Kind::of::<Pod>();
        let pods: Vec<Value> = self.simulation.view.all::<Pod>().map(machinery_client::value_of).collect();
        let mut changed = false;
        for mut pod in pods {
            let own = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
            let own = pod.pointer(&format!("{own}/matchFields/0/values/0")).and_then(Value::as_str);
            let chosen = own.unwrap_or(if self.silent { "m2" } else { "m1" });
            let node = pod["spec"]["nodeName"].as_str().unwrap_or(chosen).to_owned();
            if !["m1", "m2"].contains(&&*node) || (self.silent && node == "m1") {
                continue;
            }
            let job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].is_string();
            let phase = if job { "Succeeded" } else { "Running" };
            if !pod["metadata"]["deletionTimestamp"].is_null() || pod["status"]["phase"] == phase {
                continue;
            }
            pod["spec"]["nodeName"] = json!(node);
            let ready = if job { "False" } else { "True" };
            let since = self.simulation.now;
            pod["status"] = json!({"phase": phase, "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]});
            self.simulation.write(&kind, pod);
            changed = true;
        }
        changed
    }

    /// Heartbeats of the live nodes.
    fn heartbeat(&mut self) {
        let now = self.simulation.now;
        for name in if self.silent { &["m2"][..] } else { &["m1", "m2"] } {
            let node = self.simulation.view.get::<Node>(&ObjectKey::new("", *name)).expect("a node");
            let mut node = machinery_client::value_of(node);
            node["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": now, "lastTransitionTime": now}]);
            self.simulation.write(&Kind::of::<Node>(), node);
        }
    }

    fn rest(&mut self) {
        loop {
            self.work();
            if !self.kubelet() {
                return;
            }
        }
    }

    /// Runs until nothing is left to do, now and a little later.
    fn settle(&mut self) {
        self.rest();
        for _ in 0..LATERS {
            self.simulation.now = self.simulation.now.checked_add(LATER).expect("a time");
            self.heartbeat();
            self.rest();
        }
    }

    /// Replays the rest from each crash: the end must be this one.
    fn replay_crashes(&mut self) {
        let wanted = state(&self.simulation);
        for (what, simulation) in self.deaths.replace(Vec::new()).unwrap_or_default() {
            let (reconciler_cache, acted) = Default::default();
            let Self { order, silent, load, .. } = *self;
            let mut other = Self { simulation, order, silent, load, reconciler_cache, deaths: None, acted };
            other.settle();
            let end = state(&other.simulation);
            let lost: Vec<_> = wanted.difference(&end).collect();
            let more: Vec<_> = end.difference(&wanted).collect();
            assert!(lost.is_empty() && more.is_empty(), "dead after {what}\nlost {lost:#?}\nmore {more:#?}");
        }
    }

    /// An object, with its kind.
    fn object(&self, api_version: &str, kind: &str, name: &str) -> Option<Value> {
        let named = json!({"apiVersion": api_version, "kind": kind});
        let kind = self.simulation.kind_of(&named);
        let mut object = self.simulation.view.object(&kind, &ObjectKey::new("a", name))?.to_value();
        merge(&mut object, &named);
        Some(object)
    }

    /// A user's patch of an object that must exist.
    fn change(&mut self, api_version: &str, kind: &str, name: &str, patch: &Value) {
        let Some(mut object) = self.object(api_version, kind, name) else { panic!("a/{name} is gone") };
        merge(&mut object, patch);
        self.simulation.write(&self.simulation.kind_of(&object), object);
    }

    /// A user's deletion of an object.
    fn delete(&mut self, api_version: &str, kind: &str, name: &str, finalizer: &str) {
        let gone = json!({"metadata": {"deletionTimestamp": self.simulation.now, "finalizers": [finalizer]}});
        self.change(api_version, kind, name, &gone);
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// Objects that the table's cluster lacks.
const MORE: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: coracle-api-servers, namespace: kube-system}
data: {addresses: "192.0.2.9\n"}
---
apiVersion: v1
kind: Node
metadata: {name: m2, labels: {topology.kubernetes.io/zone: z, kubernetes.io/hostname: m2}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: serves, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlJQkVUQ0J1QUlCQURBd01SVXdFd1lEVlFRS0RBeHplWE4wWlcwNmJtOWtaWE14RnpBVkJnTlZCQU1NRG5ONQpjM1JsYlRwdWIyUmxPbTB5TUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFYzFkRm0yZGt4YkRxCnVONnozejhlVDZzam0zU1BuZkFPTkkzTHFRbVBteGNOandxakNhQUF1V1paYTJJeFpxWE9ySlBjVVRucGJ0ZjAKVE5YTVhzNUl4YUFtTUNRR0NTcUdTSWIzRFFFSkRqRVhNQlV3RXdZRFZSMFJCQXd3Q29JQ2JUS0hCTUFBQWdFdwpDZ1lJS29aSXpqMEVBd0lEU0FBd1JRSWdBVHFXSy9BWDZxeDNQT1hyZDNHUmYxaGlNOWgwSzlxWFRCZDJFQjE1Ck1FNENJUURpak9UU0VDQUlZOFpTdldPQ3htdHl5V2V2NnppaGhQTjFPMEcybEFXL1pRPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg==
  signerName: kubernetes.io/kubelet-serving
  usages: [digital signature, server auth]
  username: system:node:m2
  groups: [system:nodes]
---
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: unanswered}
spec: {request: "", signerName: example.com/nobody}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: local}
provisioner: local.coracle.dev
allowVolumeExpansion: true
reclaimPolicy: Delete
volumeBindingMode: Immediate
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: grows, namespace: a}
spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: goes, namespace: a, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/pvc-protection]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: goes, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/pv-protection]}
status: {phase: Available}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: goes, deletionTimestamp: "2025-12-31T23:00:00Z", finalizers: [kubernetes.io/vac-protection]}
driverName: d
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: borne, namespace: a}
spec:
  replicas: 3
  progressDeadlineSeconds: 600
  revisionHistoryLimit: 10
  selector: {matchLabels: {app: borne}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  template: {metadata: {labels: {app: borne}}, spec: {containers: [{name: c, image: i}]}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: borne, namespace: a}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: borne}
  minReplicas: 0
  maxReplicas: 5
  metrics: [{type: External, external: {metric: {name: load}, target: {type: AverageValue, averageValue: "10"}}}]
  behavior:
    scaleUp: {stabilizationWindowSeconds: 0, selectPolicy: Max, policies: [{type: Pods, value: 4, periodSeconds: 15}]}
    scaleDown: {stabilizationWindowSeconds: 30, selectPolicy: Max, policies: [{type: Percent, value: 100, periodSeconds: 15}]}
status: {desiredReplicas: 3, lastScaleTime: "2025-12-31T23:00:00Z"}
"#;

/// Plays the life of a cluster, part by part, and compares the end of each part after each crash. Returns the
/// controllers that acted.
fn play_life(order: ActionOrder) -> BTreeSet<&'static str> {
    // Its autoscaler has no metric, and its default window is longer than the test.
    let table = objects(CLUSTER.trim()).into_iter().filter(|object| object["kind"] != "HorizontalPodAutoscaler");
    let simulation = crate::simulation(start(), table.chain(objects(MORE.trim())));
    let (reconciler_cache, acted, deaths) = (BTreeMap::new(), BTreeSet::new(), Some(Vec::new()));
    let mut play = Play { simulation, order, silent: false, load: 25, reconciler_cache, deaths, acted };
    play.heartbeat();
    play.settle();
    play.replay_crashes();
    let roll = json!({"spec": {"template": {"metadata": {"annotations": {"roll": "1"}}}}});
    let acts: [&dyn Fn(&mut Play); 4] = [
        &|play| {
            play.change("apps/v1", "Deployment", "web", &roll);
            play.change("apps/v1", "StatefulSet", "db", &roll);
            play.change("apps/v1", "DaemonSet", "everywhere", &roll);
            play.change("apps/v1", "ReplicaSet", "alone", &json!({"spec": {"replicas": 3}}));
            play.load = 0;
        },
        &|play| {
            play.change("apps/v1", "Deployment", "web", &json!({"spec": {"replicas": 1}}));
            play.change("apps/v1", "StatefulSet", "db", &json!({"spec": {"replicas": 1}}));
            play.change("v1", "ReplicationController", "former", &json!({"spec": {"replicas": 0}}));
            let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
            play.change("v1", "PersistentVolumeClaim", "grows", &more);
            play.change("batch/v1", "CronJob", "hourly", &json!({"spec": {"suspend": true}}));
            play.load = 45;
        },
        &|play| {
            play.delete("apps/v1", "Deployment", "web", "foregroundDeletion");
            play.delete("apps/v1", "ReplicaSet", "alone", "orphan");
            play.change("v1", "Service", "alone", &json!({"spec": {"selector": {"app": "other"}}}));
            play.load = 12;
        },
        // A node stops its heartbeats.
        &|play| play.silent = true,
    ];
    for act in acts {
        play.simulation.now = play.simulation.now.checked_add(BETWEEN).expect("a time");
        act(&mut play);
        play.heartbeat();
        play.settle();
        play.replay_crashes();
    }
    play.acted
}

/// All objects, without the server's random parts: uids, versions, generated names.
fn state(simulation: &Simulation) -> BTreeSet<String> {
    let view = &simulation.view;
    let mut all = Vec::new();
    for kind in view.kinds() {
        for metadata in view.metadata_of(kind, "") {
            let key = machinery_client::key_of(metadata);
            let mut object = view.object(kind, &key).expect("it is there").to_value();
            object["kind"] = json!(kind.kind);
            plain("", &mut object);
            all.push(object.to_string());
        }
    }
    all.sort();
    // With counts: the difference of two sets of lines is readable.
    let mut counted = BTreeSet::new();
    for (at, line) in all.iter().enumerate() {
        let mut numbered = line.clone();
        let before = all[..at].iter().rev().take_while(|other| *other == line).count();
        write!(numbered, " {before}").expect("a string");
        counted.insert(numbered);
    }
    counted
}

fn plain(name: &str, value: &mut Value) {
    match value {
        _ if ["uid", "resourceVersion", "generation", "observedGeneration", "managedFields"].contains(&name) => {
            *value = Value::Null;
        }
        // Times differ: a lost action is repeated a little later.
        _ if name.ends_with("Time") || name.ends_with("Timestamp") => *value = json!(value.is_null()),
        // A token contains the uid of its account.
        Value::String(text) if name == "token" => text.clear(),
        Value::String(text) => {
            if let Some(uid) = text.find("uid-") {
                text.truncate(uid);
            }
            let kept = text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
            // `generateName`.
            if text.len() - kept >= 5 {
                text.truncate(kept);
            }
        }
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| plain(name, value)),
        Value::Array(items) => {
            items.iter_mut().for_each(|item| plain("", item));
            items.sort_by_key(Value::to_string);
        }
        _ => {}
    }
}

#[test]
fn controllers_that_die_between_two_actions_come_to_the_same_end() {
    let acted = play_life(ActionOrder::First);
    let names = crate::CONTROLLERS.iter().map(|controller| controller.name);
    let idle: Vec<_> = names.filter(|name| !acted.contains(name)).collect();
    assert!(idle.is_empty(), "{idle:?} do nothing");
    play_life(ActionOrder::Last);
}
