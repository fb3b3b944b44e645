//! Rollouts on healthy nodes while controllers, the scheduler and the API server die, respond late or not at all. Ready
//! pods are never fewer, and desired pods never more, than the strategies allow, as numbers and percentages, while
//! sizes change and broken templates appear. Checked at every revision of the history after the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::UserInfo;
use apiserver_storage::store::Revision;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::checkers::convergence::unmet;
use crate::clock;
use crate::cluster::{CONTROLLERS, Cluster, Pace, SCHEDULER};
use crate::history::{History, KeyChange};
use crate::network::{Doom, Link};
use crate::node::{BROKEN, NodeCapacity};
use crate::random::Random;
use crate::sabotage::Sabotage;
use crate::workload::template;
use crate::world::{Weather, World};

const NODES: i64 = 3;
/// Replicas of a Deployment and a StatefulSet: minimum and maximum.
const REPLICAS: (u64, u64) = (3, 8);
/// Capacity for twice the maximum, for a surge of 100 %.
const CAPACITY: NodeCapacity = NodeCapacity { cpu_millis: 4000, pods: 20 };
const TICK: Duration = Duration::from_millis(200);
/// Duration of faults after a new template, and time limit of the whole.
const FAULTS: Duration = Duration::from_secs(25);
const TIMEOUT: Duration = Duration::from_secs(900);

/// Runs it under a seed. Returns the violations and the log.
pub(crate) fn rollout(seed: u64, sabotage: Sabotage) -> (Vec<String>, String) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, sabotage));
        let cluster = Cluster::with_capacity(seed, world.clone(), Pace::Lenient, CAPACITY);
        if clock::timeout(TIMEOUT, simulate(seed, &cluster)).await.is_err() {
            world.record_violation(format!("never came to rest: {:?}", unmet(&world.history)));
        }
        world.history.forget();
        (world.violations(), world.log.take())
    })
}

async fn simulate(seed: u64, cluster: &Arc<Cluster>) {
    let (random, world) = (Random::new(seed, "rollouts"), cluster.world.clone());
    cluster.start(NODES.unsigned_abs()).await;
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&Link::new("user"), user).into();
    let kinds = [Kind::of::<Deployment>(), Kind::of::<StatefulSet>(), Kind::of::<DaemonSet>()];
    for (kind, object) in kinds.iter().zip(workloads(&random)) {
        while api.create::<Value>(kind, "default", &object).await.is_err() {
            clock::sleep(TICK).await;
        }
    }
    wait_for_convergence(cluster).await;
    let begun = world.history.revision();
    let until = clock::now() + FAULTS;
    let change = async {
        // A broken template is one of the middle, and its successor is good.
        let broken = random.chance(400);
        for number in 0..if broken { 3 } else { 2 } {
            let is_broken = broken && number == 1;
            for kind in &kinds {
                change(&api, kind, (number, is_broken)).await;
            }
            if world.sabotage == Sabotage::UserMeddles {
                violate_strategies(&world.history, &api).await;
            }
            clock::sleep(random.millis(0, 12_000)).await;
            for kind in kinds.iter().filter(|kind| kind.kind != "DaemonSet") {
                if random.chance(400) {
                    let replicas = random.between(REPLICAS.0, REPLICAS.1);
                    patch(&api, kind, &ObjectKey::new("default", "web"), &json!({"spec": {"replicas": replicas}}))
                        .await;
                }
            }
            clock::sleep(random.millis(0, 4_000)).await;
        }
    };
    tokio::join!(biased; change, inject_faults(cluster, &random, until));
    wait_for_convergence(cluster).await;
    for problem in check_history(&world.history, begun) {
        world.record_violation(problem);
    }
}

/// Sets a workload's next template. A StatefulSet gets no broken one: it waits for its broken pod until a user deletes that.
async fn change(api: &ApiClient, kind: &Kind, (number, broken): (u64, bool)) {
    let key = ObjectKey::new("default", "web");
    let broken = broken && kind.kind != "StatefulSet";
    let annotations = json!({"roll": number.to_string(), BROKEN: broken.then_some("true")});
    patch(api, kind, &key, &json!({"spec": {"template": {"metadata": {"annotations": annotations}}}})).await;
}

/// Patches until it succeeds.
async fn patch(api: &ApiClient, kind: &Kind, key: &ObjectKey, patch: &Value) {
    while api.patch::<Value>(kind, key, None, PatchType::Merge, patch).await.is_err() {
        clock::sleep(TICK).await;
    }
}

/// Violates every strategy: deletes serving pods, scales sets up, and creates surplus pods by hand.
async fn violate_strategies(history: &History, api: &ApiClient) {
    let kind = Kind::of::<Pod>();
    for (_, pod) in history.now("/registry/pods/default/") {
        let pod = pod.value();
        let key = ObjectKey::new("default", pod["metadata"]["name"].as_str().unwrap_or_default());
        let mut copy =
            json!({"apiVersion": "v1", "kind": "Pod", "spec": pod["spec"], "metadata": {"generateName": "copy-"}});
        for field in ["labels", "ownerReferences"] {
            copy["metadata"][field] = pod["metadata"][field].clone();
        }
        if pod["metadata"]["labels"]["app"] != "StatefulSet" {
            let _ = api.create::<Value>(&kind, "default", &copy).await;
        }
        let _ = api.delete::<Value>(&kind, &key, &json!({"apiVersion": "v1", "kind": "DeleteOptions"})).await;
    }
    for (_, set) in history.now("/registry/replicasets/default/") {
        let key = ObjectKey::new("default", set.value()["metadata"]["name"].as_str().unwrap_or_default());
        let more = json!({"spec": {"replicas": 2 * REPLICAS.1}});
        let _ = api.patch::<Value>(&Kind::of::<ReplicaSet>(), &key, None, PatchType::Merge, &more).await;
    }
}

/// One of each kind, named `web`, with various strategies.
fn workloads(random: &Random) -> [Value; 3] {
    let pairs = [
        json!({"maxSurge": 1, "maxUnavailable": 0}),
        json!({"maxSurge": 0, "maxUnavailable": 1}),
        json!({"maxSurge": 2, "maxUnavailable": 2}),
        json!({"maxSurge": "25%", "maxUnavailable": "25%"}),
        json!({"maxSurge": "50%", "maxUnavailable": 0}),
        json!({"maxSurge": 0, "maxUnavailable": "40%"}),
        // Both round to 0, which then counts as one unavailable pod.
        json!({"maxSurge": 0, "maxUnavailable": "1%"}),
        json!({"maxSurge": "100%", "maxUnavailable": "100%"}),
    ];
    let rolling = random.pick(&pairs).unwrap_or(&Value::Null);
    let replicas = || random.between(REPLICAS.0, REPLICAS.1);
    let object = |kind: &str, spec: Value| {
        let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": kind}}, "template": template(kind, 50, "Always")}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        object
    };
    let daemons = [
        json!({"maxSurge": 1, "maxUnavailable": 0}),
        json!({"maxSurge": "40%", "maxUnavailable": 0}),
        json!({"maxUnavailable": 1}),
        json!({"maxUnavailable": 2}),
        json!({"maxUnavailable": "34%"}),
    ];
    let of_daemons = random.pick(&daemons).unwrap_or(&Value::Null);
    let how = if random.chance(500) { "Parallel" } else { "OrderedReady" };
    let of_sets = [json!({"maxUnavailable": 1}), json!({"maxUnavailable": 2}), json!({"maxUnavailable": "50%"})];
    let of_set = random.pick(&of_sets).unwrap_or(&Value::Null);
    let strategy = |rolling: &Value| json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    [
        object("Deployment", json!({"replicas": replicas(), "strategy": strategy(rolling)})),
        object(
            "StatefulSet",
            json!({"replicas": replicas(), "serviceName": "web", "podManagementPolicy": how, "updateStrategy": strategy(of_set)}),
        ),
        object("DaemonSet", json!({"updateStrategy": strategy(of_daemons)})),
    ]
}

async fn wait_for_convergence(cluster: &Cluster) {
    let mut calm = 0;
    while calm < 5 {
        clock::sleep(5 * TICK).await;
        let nodes = cluster.world.history.now("/registry/minions/").len();
        let done = unmet(&cluster.world.history).is_empty() && i64::try_from(nodes) == Ok(NODES);
        calm = if done { calm + 1 } else { 0 };
    }
}

/// Faults that don't affect pods.
async fn inject_faults(cluster: &Cluster, random: &Random, until: Instant) {
    let world = &cluster.world;
    let weather = |random: &Random| {
        let level = |most: u64| if random.chance(500) { random.between(1, most) } else { 0 };
        Weather {
            delay_ms: *random.pick(&[1, 3, 10]).unwrap_or(&1),
            slow: level(100),
            slow_watches: 0,
            lost: level(50),
            unanswered: level(50),
            cut: level(30),
            busy: level(100),
            store: level(50),
            server_ms: 0,
        }
    };
    while clock::now() < until {
        world.set_weather(weather(random));
        clock::sleep(random.millis(200, 3000)).await;
        let Some(link) = random.pick(&[CONTROLLERS, CONTROLLERS, SCHEDULER]).and_then(|name| cluster.link(name)) else {
            continue;
        };
        match random.below(6) {
            0 => cluster.network.kill_server(),
            1 => link.dead.cancel(),
            2 | 3 => link.schedule_death(Some(Doom { writes: random.between(1, 6), done: random.chance(500) })),
            4 => cluster.network.pump.break_all(|stream| Arc::ptr_eq(&stream.link, &link)),
            _ => {}
        }
    }
    world.set_weather(Weather::CALM);
    cluster.links().iter().for_each(|link| link.schedule_death(None));
}

/// Objects of these kinds at a revision, and the bounds of a workload whose size changes.
#[derive(Default)]
struct RolloutState {
    objects: BTreeMap<Arc<str>, Value>,
    /// Minimum serving pods by kind: a larger size applies once it has been reached.
    fewest: BTreeMap<&'static str, ServingBound>,
    /// Maximum desired pods of a Deployment's sets: a smaller size applies once it has been reached.
    most: i64,
    /// Earlier desired pods of each ReplicaSet: its controller may not have seen the newer values.
    before: BTreeMap<Arc<str>, Vec<EarlierSize>>,
}

/// Desired pods of a ReplicaSet up to a generation.
struct EarlierSize {
    generation: i64,
    pods: i64,
}

/// The minimum of serving pods, and the largest size of the workload since the minimum was set.
struct ServingBound {
    pods: i64,
    size: i64,
}

/// The serving pods that a size requires.
struct ServingTarget {
    size: i64,
    pods: i64,
    /// The serving pods that its controller doesn't remove any more.
    reached: i64,
    /// The bound until a smaller target is reached.
    meanwhile: i64,
}

/// Violations at all revisions after one at which all was well.
fn check_history(history: &History, begun: Revision) -> Vec<String> {
    let mut state = RolloutState::default();
    for prefix in ["pods", "deployments", "replicasets", "statefulsets", "daemonsets"] {
        for (key, version) in history.below(&format!("/registry/{prefix}/default/"), begun) {
            state.objects.insert(key, version.value().clone());
        }
    }
    // The initial state is good: the bounds start there.
    state.violations(None);
    let mut problems = BTreeMap::new();
    for step in history.changes("/registry/", begun, Revision::MAX) {
        if !state.apply(&step) {
            continue;
        }
        for (rule, problem) in state.violations(Some(&step)) {
            problems.entry(rule).or_insert_with(|| format!("{} at {}: {problem}", step.key, step.revision));
        }
    }
    problems.into_values().collect()
}

/// A number or a percentage of a size, as in a strategy.
fn resolved(value: &Value, of: i64, round_up: bool) -> i64 {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
    percent.map_or(value.as_i64().unwrap_or(0), |percent| (percent * of + if round_up { 99 } else { 0 }) / 100)
}

/// Surge and unavailable pods of a Deployment at its size.
fn strategy_of(deployment: &Value) -> (i64, i64) {
    let (rolling, replicas) = (&deployment["spec"]["strategy"]["rollingUpdate"], number(deployment, "/spec/replicas"));
    let surge = resolved(&rolling["maxSurge"], replicas, true);
    match resolved(&rolling["maxUnavailable"], replicas, false) {
        0 if surge == 0 => (0, 1),
        unavailable => (surge, unavailable),
    }
}

fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

/// Whether the controller has observed the object's current spec.
fn is_observed(object: &Value) -> bool {
    number(object, "/status/observedGeneration") == number(object, "/metadata/generation")
}

/// The ordinal of a StatefulSet's pod.
fn ordinal(pod: &Value) -> i64 {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    name.rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok()).unwrap_or(i64::MAX)
}

fn is_of(pod: &Value, owner: &Value) -> bool {
    pod["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

impl RolloutState {
    fn apply(&mut self, step: &KeyChange) -> bool {
        let ours = ["pods", "deployments", "replicasets", "statefulsets", "daemonsets"];
        if !ours.iter().any(|kind| step.key.starts_with(&format!("/registry/{kind}/default/"))) {
            return false;
        }
        if step.key.starts_with("/registry/replicasets/")
            && let (Some(old), Some(new)) = (&step.old, &step.new)
        {
            self.resized(&step.key, old.value(), new.value());
        }
        match &step.new {
            Some(version) => drop(self.objects.insert(step.key.clone(), version.value().clone())),
            None => drop(self.objects.remove(&step.key)),
        }
        true
    }

    /// Keeps the sizes that a controller may still act on: those since the one that its status has observed, and the previous
    /// one, as a dead controller's last requests arrive after its successor's status.
    fn resized(&mut self, key: &Arc<str>, old: &Value, new: &Value) {
        let before = self.before.entry(key.clone()).or_default();
        let pods = number(old, "/spec/replicas");
        if pods != number(new, "/spec/replicas") {
            before.push(EarlierSize { generation: number(old, "/metadata/generation"), pods });
        }
        let observed = number(new, "/status/observedGeneration");
        let passed = before.iter().take_while(|size| size.generation < observed).count();
        before.drain(..passed.min(before.len().saturating_sub(1)));
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let prefix = format!("/registry/{kind}/");
        self.objects.iter().filter(move |(key, _)| key.starts_with(&prefix)).map(|(_, object)| object)
    }

    fn all(&self, kind: &str) -> Vec<Value> {
        self.of(kind).cloned().collect()
    }

    /// A workload's pods that are not being deleted.
    fn pods(&self, app: &str) -> Vec<&Value> {
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        self.of("pods").filter(|pod| pod["metadata"]["labels"]["app"] == app).filter(stays).collect()
    }

    fn serving(&self, app: &str) -> i64 {
        self.pods(app).into_iter().filter(|pod| ready(pod)).count() as i64
    }

    /// Checks the number of serving pods against the target of the size, which applies once it is reached. Until a
    /// smaller one is reached, `meanwhile` applies.
    fn served(&mut self, kind: &'static str, object: &Value, target: ServingTarget) -> Option<String> {
        let ServingTarget { size, pods, reached, meanwhile } = target;
        let serving = self.serving(kind);
        let fewest = self.fewest.entry(kind).or_insert(ServingBound { pods, size });
        if is_observed(object) && reached >= pods {
            *fewest = ServingBound { pods, size };
        } else if size < fewest.size {
            *fewest = ServingBound { pods: fewest.pods.min(meanwhile), size };
        } else {
            fewest.size = size;
        }
        (serving < fewest.pods).then(|| format!("{serving} pods of the {kind} serve, not {}", fewest.pods))
    }

    /// A smaller size is divided among all sets in proportion, also those of broken pods or of pods to come, like
    /// upstream's. A set's status lags behind its pods: its controller removes the pods that the status counts as
    /// unavailable.
    fn deployment_target(&self, sets: &[Value], size: i64, pods: i64) -> ServingTarget {
        let available = |set: &Value| {
            let known = number(set, "/spec/replicas").min(number(set, "/status/availableReplicas"));
            self.of_set(set, ready).min(known)
        };
        let (serving, desired) =
            (self.serving("Deployment"), sets.iter().map(|set| number(set, "/spec/replicas")).sum());
        let all_serve = i64::try_from(self.pods("Deployment").len()) == Ok(serving) && serving >= desired;
        let reached = sets.iter().map(available).sum();
        ServingTarget { size, pods, reached, meanwhile: if all_serve { pods } else { 0 } }
    }

    /// A smaller size removes the highest ordinals, whichever of the rest serve: all removed ones may have been among the
    /// serving pods that the previous size required.
    fn stateful_target(&self, size: i64, pods: i64) -> ServingTarget {
        let stays = |pod: &&Value| ordinal(pod) < size && ready(pod);
        let reached = self.pods("StatefulSet").into_iter().filter(stays).count() as i64;
        let removed_serve = |before: &ServingBound| before.pods - (before.size - size);
        let meanwhile = self.fewest.get("StatefulSet").map_or(pods, removed_serve);
        ServingTarget { size, pods, reached, meanwhile: meanwhile.min(pods) }
    }

    fn violations(&mut self, step: Option<&KeyChange>) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let sets = self.all("replicasets");
        for deployment in self.all("deployments") {
            let (surge, unavailable) = strategy_of(&deployment);
            let replicas = number(&deployment, "/spec/replicas");
            let target = self.deployment_target(&sets, replicas, replicas - unavailable);
            let served = self.served("Deployment", &deployment, target);
            problems.extend(served.map(|problem| ("deployment", problem)));
            let wanted: i64 = sets.iter().map(|set| number(set, "/spec/replicas")).sum();
            // Until its controller has observed the new size, it writes sets of the previous one.
            let before = if is_observed(&deployment) { self.most.min(wanted) } else { self.most };
            self.most = (replicas + surge).max(before);
            if wanted > self.most {
                problems.push(("surge", format!("{wanted} pods are asked for, {} may be", self.most)));
            }
        }
        for (key, set) in self.objects.iter().filter(|(key, _)| key.starts_with("/registry/replicasets/")) {
            let there = self.of_set(set, |_| true);
            let earlier = self.before.get(key).into_iter().flatten().map(|size| size.pods).max();
            let desired = number(set, "/spec/replicas").max(earlier.unwrap_or(0));
            let made = step.filter(|step| step.old.is_none() && step.key.starts_with("/registry/pods/"));
            let made = made.and_then(|step| step.new.as_ref());
            if there > desired && made.is_some_and(|pod| is_of(pod.value(), set)) {
                problems.push(("replicas", format!("{there} pods of the set's {desired}")));
            }
        }
        for set in self.all("statefulsets") {
            let replicas = number(&set, "/spec/replicas");
            let unavailable = set.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable").unwrap_or(&Value::Null);
            let target = self.stateful_target(replicas, replicas - resolved(unavailable, replicas, false).max(1));
            let served = self.served("StatefulSet", &set, target);
            problems.extend(served.map(|problem| ("stateful", problem)));
        }
        for set in self.of("daemonsets") {
            self.daemons(set, &mut problems);
        }
        problems
    }

    /// A ReplicaSet's pods that are not being deleted and match `is`.
    fn of_set(&self, set: &Value, is: impl Fn(&Value) -> bool) -> i64 {
        self.pods("Deployment").into_iter().filter(|pod| is_of(pod, set) && is(pod)).count() as i64
    }

    fn daemons(&self, set: &Value, problems: &mut Vec<(&'static str, String)>) {
        let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
        let pods = self.pods("DaemonSet");
        let on = |pod: &Value| {
            let terms =
                "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0";
            let term = pod.pointer(terms).and_then(|term| term.pointer("/matchFields/0/values/0"));
            term.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let served: BTreeSet<String> = pods.iter().filter(|pod| ready(pod)).map(|pod| on(pod)).collect();
        let fewest = NODES - resolved(&rolling["maxUnavailable"], NODES, true);
        if (served.len() as i64) < fewest {
            problems.push(("daemons", format!("{served:?} are served by the DaemonSet, not {fewest}")));
        }
        let mut there: BTreeMap<String, i64> = BTreeMap::new();
        pods.iter().for_each(|pod| *there.entry(on(pod)).or_default() += 1);
        let most = 1 + resolved(&rolling["maxSurge"], NODES, true);
        if there.values().any(|count| *count > most) {
            problems.push(("daemons' surge", format!("{there:?}, {most} on each may be")));
        }
    }
}
