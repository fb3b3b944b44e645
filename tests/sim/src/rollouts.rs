//! Rollouts while controllers, the scheduler and the API server die, answer late or not at all, and nodes are well: what
//! serves is never less, and what is asked for never more, than the strategies allow. Judged at every revision, from the
//! history, when it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use apiserver::auth::UserInfo;
use apiserver_storage::store::Revision;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::checkers::convergence::unfinished;
use crate::cluster::{CONTROLLERS, Cluster, Pace, SCHEDULER};
use crate::history::{History, Step};
use crate::network::{Doom, Link};
use crate::random::Random;
use crate::sabotage::Sabotage;
use crate::workload::template;
use crate::world::{Weather, World};

const NODES: i64 = 3;
const REPLICAS: i64 = 4;
const TICK: Duration = Duration::from_millis(200);
/// How long faults are made after a new template, and how long all of it may take.
const FAULTS: Duration = Duration::from_secs(25);
const PATIENCE: Duration = Duration::from_secs(900);

/// Plays it under a seed. Answers what was wrong.
pub(crate) fn rollout(seed: u64, sabotage: Sabotage) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, sabotage));
        let cluster = Cluster::new(seed, world.clone(), Pace::Usual);
        if tokio::time::timeout(PATIENCE, play(seed, &cluster)).await.is_err() {
            world.violated(format!("never came to rest: {:?}", unfinished(&world.history)));
        }
        world.history.forget();
        world.violations()
    })
}

async fn play(seed: u64, cluster: &Arc<Cluster>) {
    let (random, world) = (Random::new(seed, "rollouts"), cluster.world.clone());
    cluster.start(NODES.unsigned_abs()).await;
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&Link::new("user"), user).into();
    let kinds = [Kind::of::<Deployment>(), Kind::of::<StatefulSet>(), Kind::of::<DaemonSet>()];
    for (kind, object) in kinds.iter().zip(workloads(&random)) {
        while api.create::<Value>(kind, "default", &object).await.is_err() {
            tokio::time::sleep(TICK).await;
        }
    }
    rest(cluster).await;
    let begun = world.history.revision();
    let until = Instant::now() + FAULTS;
    let change = async {
        for number in 0..2 {
            let patch = json!({"spec": {"template": {"metadata": {"annotations": {"roll": number.to_string()}}}}});
            for kind in &kinds {
                let key = ObjectKey::new("default", "web");
                while api.patch::<Value>(kind, &key, None, PatchType::Merge, &patch).await.is_err() {
                    tokio::time::sleep(TICK).await;
                }
            }
            if world.sabotage == Sabotage::UserMeddles {
                meddle(&world.history, &api).await;
            }
            tokio::time::sleep(random.millis(0, 12_000)).await;
        }
    };
    tokio::join!(biased; change, trouble(cluster, &random, until));
    rest(cluster).await;
    for problem in judge(&world.history, begun) {
        world.violated(problem);
    }
}

/// What no strategy allows: pods go that serve, sets ask for more, and there are pods that nobody's controller made.
async fn meddle(history: &History, api: &ApiClient) {
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
        let more = json!({"spec": {"replicas": 2 * REPLICAS}});
        let _ = api.patch::<Value>(&Kind::of::<ReplicaSet>(), &key, None, PatchType::Merge, &more).await;
    }
}

/// One of each kind, called `web`, with strategies of all sorts.
fn workloads(random: &Random) -> [Value; 3] {
    let (surge, unavailable) = *random.pick(&[(1, 0), (0, 1), (1, 1), (2, 0), (2, 2)]).unwrap_or(&(1, 0));
    let object = |kind: &str, spec: Value| {
        let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": kind}}, "template": template(kind, 50, "Always")}});
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        object
    };
    let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
    let of_daemons = if random.chance(500) {
        json!({"maxSurge": 1, "maxUnavailable": 0})
    } else {
        json!({"maxUnavailable": random.between(1, 2)})
    };
    let how = if random.chance(500) { "Parallel" } else { "OrderedReady" };
    let of_set = json!({"maxUnavailable": random.between(1, 2)});
    let strategy = |rolling: &Value| json!({"type": "RollingUpdate", "rollingUpdate": rolling});
    [
        object("Deployment", json!({"replicas": REPLICAS, "strategy": strategy(&rolling)})),
        object(
            "StatefulSet",
            json!({"replicas": REPLICAS, "serviceName": "web", "podManagementPolicy": how, "updateStrategy": strategy(&of_set)}),
        ),
        object("DaemonSet", json!({"updateStrategy": strategy(&of_daemons)})),
    ]
}

async fn rest(cluster: &Cluster) {
    let mut calm = 0;
    while calm < 5 {
        tokio::time::sleep(5 * TICK).await;
        let nodes = cluster.world.history.now("/registry/minions/").len();
        let done = unfinished(&cluster.world.history).is_empty() && i64::try_from(nodes) == Ok(NODES);
        calm = if done { calm + 1 } else { 0 };
    }
}

/// Faults that no pod hears of.
async fn trouble(cluster: &Cluster, random: &Random, until: Instant) {
    let world = &cluster.world;
    let weather = |random: &Random| {
        let level = |most: u64| if random.chance(500) { random.between(1, most) } else { 0 };
        Weather {
            delay_ms: *random.pick(&[1, 3, 10]).unwrap_or(&1),
            slow: level(100),
            lost: level(50),
            unanswered: level(50),
            cut: level(30),
            busy: level(100),
            store: level(50),
            server_ms: 0,
        }
    };
    while Instant::now() < until {
        world.set_weather(weather(random));
        tokio::time::sleep(random.millis(200, 3000)).await;
        let Some(link) = random.pick(&[CONTROLLERS, CONTROLLERS, SCHEDULER]).and_then(|name| cluster.link(name)) else {
            continue;
        };
        match random.below(6) {
            0 => cluster.network.kill_server(),
            1 => link.dead.cancel(),
            2 | 3 => link.doom(Some(Doom { writes: random.between(1, 6), done: random.chance(500) })),
            4 => cluster.network.pump.break_all(|stream| Arc::ptr_eq(&stream.link, &link)),
            _ => {}
        }
    }
    world.set_weather(Weather::CALM);
    cluster.links().iter().for_each(|link| link.doom(None));
}

/// What is there at a revision, of those kinds.
struct Shown {
    objects: BTreeMap<Arc<str>, Value>,
}

/// What was wrong at any revision after one at which all was well.
fn judge(history: &History, begun: Revision) -> Vec<String> {
    let mut shown = Shown { objects: BTreeMap::new() };
    for prefix in ["pods", "deployments", "replicasets", "statefulsets", "daemonsets"] {
        for (key, version) in history.below(&format!("/registry/{prefix}/default/"), begun) {
            shown.objects.insert(key, version.value().clone());
        }
    }
    let mut problems = BTreeMap::new();
    for step in history.changes("/registry/", begun, Revision::MAX) {
        if !shown.take(&step) {
            continue;
        }
        for (rule, problem) in shown.wrong(&step) {
            problems.entry(rule).or_insert_with(|| format!("{} at {}: {problem}", step.key, step.revision));
        }
    }
    problems.into_values().collect()
}

fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

impl Shown {
    fn take(&mut self, step: &Step) -> bool {
        let ours = ["pods", "deployments", "replicasets", "statefulsets", "daemonsets"];
        if !ours.iter().any(|kind| step.key.starts_with(&format!("/registry/{kind}/default/"))) {
            return false;
        }
        match &step.new {
            Some(version) => drop(self.objects.insert(step.key.clone(), version.value().clone())),
            None => drop(self.objects.remove(&step.key)),
        }
        true
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let prefix = format!("/registry/{kind}/");
        self.objects.iter().filter(move |(key, _)| key.starts_with(&prefix)).map(|(_, object)| object)
    }

    /// Pods of a workload that are to stay.
    fn pods(&self, app: &str) -> Vec<&Value> {
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        self.of("pods").filter(|pod| pod["metadata"]["labels"]["app"] == app).filter(stays).collect()
    }

    fn serving(&self, app: &str) -> i64 {
        self.pods(app).into_iter().filter(|pod| ready(pod)).count() as i64
    }

    fn wrong(&self, step: &Step) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for deployment in self.of("deployments") {
            let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
            let (fewest, serving) = (REPLICAS - number(rolling, "/maxUnavailable"), self.serving("Deployment"));
            if serving < fewest {
                problems.push(("deployment", format!("{serving} pods of the Deployment serve, not {fewest}")));
            }
            let most = REPLICAS + number(rolling, "/maxSurge");
            let wanted: i64 = self.of("replicasets").map(|set| number(set, "/spec/replicas")).sum();
            if wanted > most {
                problems.push(("surge", format!("{wanted} pods are asked for, {most} may be")));
            }
        }
        for set in self.of("replicasets").filter(|_| step.old.is_none()) {
            let uid = &set["metadata"]["uid"];
            let of_set = |pod: &&&Value| pod["metadata"]["ownerReferences"][0]["uid"] == *uid;
            let there = self.pods("Deployment").iter().filter(of_set).count() as i64;
            if step.key.starts_with("/registry/pods/") && there > number(set, "/spec/replicas") {
                let own = step.new.as_ref().is_some_and(|new| of_set(&&new.value()));
                problems.extend(
                    own.then(|| ("replicas", format!("{there} pods of the set's {}", set["spec"]["replicas"]))),
                );
            }
        }
        for set in self.of("statefulsets") {
            let unavailable = set.pointer("/spec/updateStrategy/rollingUpdate/maxUnavailable").and_then(Value::as_i64);
            let (fewest, serving) = (REPLICAS - unavailable.unwrap_or(1), self.serving("StatefulSet"));
            if serving < fewest {
                problems.push(("stateful", format!("{serving} pods of the StatefulSet serve, not {fewest}")));
            }
        }
        for set in self.of("daemonsets") {
            self.daemons(set, &mut problems);
        }
        problems
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
        let fewest = NODES - number(rolling, "/maxUnavailable");
        if (served.len() as i64) < fewest {
            problems.push(("daemons", format!("{served:?} are served by the DaemonSet, not {fewest}")));
        }
        let mut there: BTreeMap<String, i64> = BTreeMap::new();
        pods.iter().for_each(|pod| *there.entry(on(pod)).or_default() += 1);
        let most = 1 + number(rolling, "/maxSurge");
        if there.values().any(|count| *count > most) {
            problems.push(("daemons' surge", format!("{there:?}, {most} on each may be")));
        }
    }
}
