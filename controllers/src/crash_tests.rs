//! Controllers that die between any two actions: what comes next knows only what is stored, and comes to the same end.
//!
//! One life of a cluster with something for every controller is played to its end, with a kubelet that does what it is
//! told and users that change their minds. For each action that isn't the last of its plan it is played again from there,
//! by controllers that know of no plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Failure, Kind, Memories, Pass, Pod, Question};
use serde_json::{Value, json};

use crate::table_tests::{CLUSTER, decide, keys, objects, start};

/// Rounds over all keys until nothing is left to do.
const ROUNDS_MAX: usize = 200;
/// What is left between two things that users do.
const BETWEEN: Duration = Duration::from_hours(25);
/// Longer than what controllers wait for before they act, where that isn't hours; and how often: who has waited and acted tells of it
/// when they look again.
const LATER: Duration = Duration::from_secs(60);
const LATERS: usize = 2;

/// How actions of a plan that are to be done at once follow each other.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    First,
    Last,
}

/// One life of the cluster.
struct Play {
    simulation: Simulation,
    order: Order,
    /// One node is dead.
    silent: bool,
    /// What the autoscaled are told to bear.
    load: i64,
    /// What each controller remembers: gone when it dies.
    memories: BTreeMap<&'static str, Memories>,
    /// Clusters as they were left by controllers that died before the last action of a plan, and who did what last; none: it
    /// isn't asked.
    deaths: Option<Vec<(String, Simulation)>>,
    /// Who has done something.
    acted: BTreeSet<&'static str>,
}

/// The single actions of a plan, in order.
fn single(actions: Vec<Action>, order: Order) -> Vec<Action> {
    let flat = |action| match action {
        Action::Concurrent(mut several) | Action::SlowStart(mut several) => {
            if order == Order::Last {
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
    )
}

impl Play {
    /// Performs plans until there are none.
    fn work(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut idle = true;
            for (name, keys) in keys(&self.simulation) {
                for key in keys {
                    let (actions, asked) = self.decide(name, &key);
                    idle &= !asked;
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
                        // After the last one nothing is lost.
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

    /// A controller's decision, with the server's answers to what it asks before; and whether what it asked for has changed
    /// anything.
    fn decide(&mut self, name: &'static str, key: &ObjectKey) -> (Vec<Action>, bool) {
        self.simulation.memories = self.memories.get(name).cloned().unwrap_or_default();
        self.simulation.pass = Pass::default();
        let mut changed = false;
        loop {
            let plan = decide(name, &self.simulation, key);
            if plan.questions.is_empty() {
                self.memories.entry(name).or_default().set(key, plan.memory);
                return (plan.actions, changed);
            }
            self.simulation.pass.carried = plan.memory;
            for question in plan.questions {
                let answer = self.answer(&question);
                if let (Question::Put(path, object), Ok(_)) = (&question, &answer) {
                    changed = true;
                    self.acted.insert(name);
                    if let Some(deaths) = &mut self.deaths {
                        deaths.push((format!("{name} {key}: PUT {path} {object}"), self.simulation.clone()));
                    }
                }
                let (verb, resource, reason) = ("get", String::new(), String::new());
                let failure = |message| Failure { verb, resource, code: 404, reason, message };
                self.simulation.pass.answered(question, answer.map(Arc::new).map_err(failure));
            }
        }
    }

    /// What a server says to a question.
    fn answer(&mut self, question: &Question) -> Result<Value, String> {
        let (Question::Get(path) | Question::Put(path, _)) = question;
        let rest = path.strip_prefix("/apis/").unwrap_or_default();
        let parts: Vec<&str> = rest.split(['/', '?']).collect();
        match (question, &parts[..]) {
            (Question::Get(_), ["apps", "v1"]) => {
                Ok(json!({"resources": [{"name": "deployments", "kind": "Deployment"}]}))
            }
            (Question::Get(_), [""]) if path.starts_with("/api/v1/namespaces/a/pods?") => {
                let pods = self.simulation.view.list::<Pod>("a").map(machinery_client::value_of);
                Ok(json!({"items": pods.collect::<Vec<_>>()}))
            }
            (Question::Get(_), ["external.metrics.k8s.io", ..]) => {
                Ok(json!({"items": [{"metricName": "load", "value": self.load.to_string()}]}))
            }
            (_, ["apps", "v1", "namespaces", "a", "deployments", name, "scale"]) => {
                if let Question::Put(_, scale) = question {
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
            (Question::Put(_, object), [_, "v2", "namespaces", "a", "horizontalpodautoscalers", name, "status"]) => {
                let kind = self.simulation.kind_of(object);
                let update = Action::Update { kind, object: object.clone(), subresource: Some("status") };
                let problems = self.simulation.apply(vec![update].into());
                assert_eq!(problems, Vec::<String>::new(), "{path}");
                self.object("autoscaling/v2", "HorizontalPodAutoscaler", name).ok_or("it is gone".into())
            }
            _ => Err(format!("nobody serves {path}")),
        }
    }

    /// Pods are placed, run, and end where they are to. Answers whether anything changed.
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

    /// The nodes that live say so.
    fn beat(&mut self) {
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

    /// To rest, and what is due a little later.
    fn settle(&mut self) {
        self.rest();
        for _ in 0..LATERS {
            self.simulation.now = self.simulation.now.checked_add(LATER).expect("a time");
            self.beat();
            self.rest();
        }
    }

    /// Plays on from each death: the end must be this one.
    fn die(&mut self) {
        let wanted = state(&self.simulation);
        for (what, simulation) in self.deaths.replace(Vec::new()).unwrap_or_default() {
            let (memories, acted) = Default::default();
            let Self { order, silent, load, .. } = *self;
            let mut other = Self { simulation, order, silent, load, memories, deaths: None, acted };
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

    /// What a user writes into an object, where it is there.
    fn change(&mut self, api_version: &str, kind: &str, name: &str, patch: &Value) {
        let Some(mut object) = self.object(api_version, kind, name) else { panic!("a/{name} is gone") };
        merge(&mut object, patch);
        self.simulation.write(&self.simulation.kind_of(&object), object);
    }

    /// As a user deletes it.
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

/// What nobody in the table's cluster asks for.
const MORE: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: m2, labels: {topology.kubernetes.io/zone: z, kubernetes.io/hostname: m2}}}
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

/// Plays a cluster's life. Whoever dies in one of its parts comes to the same end of it. Answers who did anything.
fn live(order: Order) -> BTreeSet<&'static str> {
    // Its autoscaler has no metric, and its default window is longer than anybody waits here.
    let table = objects(CLUSTER.trim()).into_iter().filter(|object| object["kind"] != "HorizontalPodAutoscaler");
    let simulation = crate::simulation(start(), table.chain(objects(MORE.trim())));
    let (memories, acted, deaths) = (BTreeMap::new(), BTreeSet::new(), Some(Vec::new()));
    let mut play = Play { simulation, order, silent: false, load: 25, memories, deaths, acted };
    play.beat();
    play.settle();
    play.die();
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
        // A node is heard of no more.
        &|play| play.silent = true,
    ];
    for act in acts {
        play.simulation.now = play.simulation.now.checked_add(BETWEEN).expect("a time");
        act(&mut play);
        play.beat();
        play.settle();
        play.die();
    }
    play.acted
}

/// All that is there, but for what a server draws: uids, versions, names.
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
    // How often: a set of lines shows what differs.
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
        // When it was done: what was lost is done a little later.
        _ if name.ends_with("Time") || name.ends_with("Timestamp") => *value = json!(value.is_null()),
        // A token is for an account of some uid.
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
    let acted = live(Order::First);
    let names = crate::CONTROLLERS.iter().map(|controller| controller.name);
    let idle: Vec<_> = names.filter(|name| !acted.contains(name)).collect();
    assert!(idle.is_empty(), "{idle:?} do nothing");
    live(Order::Last);
}
