//! Creates thousands of objects at once, then deletes half of their namespaces at once, while components die, nodes freeze and
//! messages are lost. The cluster must converge, with time and requests bounded by the number of objects.

use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::UserInfo;
use futures::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, status_code};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};

use crate::checkers::convergence::unmet;
use crate::clock;
use crate::cluster::{CONTROLLERS, Cluster, Pace, SCHEDULER};
use crate::log::log;
use crate::network::{Doom, Link};
use crate::node::NodeCapacity;
use crate::random::Random;
use crate::sabotage::Sabotage;
use crate::workload::template;
use crate::world::World;
use crate::{faults, workload};

/// As many pods as a node's CIDR has addresses for, with some to spare for pods that move.
const CAPACITY: NodeCapacity = NodeCapacity { cpu_millis: 100_000, pods: 200 };
/// Pods of one group with one of each kind of workload: [`group`].
pub(crate) const GROUP: u64 = 50;
const NAMESPACES: u64 = 10;
/// Duration of faults after the creation, and after the deletion.
const FAULTS: Duration = Duration::from_secs(20);
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of convergence after each.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(1800);

/// Result of a run.
pub(crate) struct Crowd {
    pub(crate) violations: Vec<String>,
    pub(crate) log: String,
    /// Objects after convergence, requests served until then, and elapsed cluster time.
    pub(crate) objects: usize,
    pub(crate) requests: u64,
    pub(crate) made: Duration,
    /// The same after half of it was deleted.
    pub(crate) requests_gone: u64,
    pub(crate) gone: Duration,
}

/// Runs it with this number of groups under a seed.
pub(crate) fn crowd(seed: u64, groups: u64) -> Crowd {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(simulate(seed, groups))
}

async fn simulate(seed: u64, groups: u64) -> Crowd {
    let (world, begun) = (Arc::new(World::new(seed, Sabotage::None)), clock::now());
    let cluster = Cluster::with_capacity(seed, world.clone(), Pace::Usual, CAPACITY);
    cluster.start((groups * GROUP * 4 / 3).div_ceil(CAPACITY.pods).max(3)).await;
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&Link::new("user"), user).into();
    let names: Vec<String> = (0..NAMESPACES.min(groups)).map(|number| format!("crowd-{number}")).collect();
    let namespace = |name: &String| {
        (Kind::of::<Namespace>(), json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
    };
    create_all(&api, names.iter().map(namespace).collect()).await;
    let objects = (0..groups).flat_map(|number| group(number, &names)).collect();
    tokio::join!(biased; create_all(&api, objects), inject_faults(&cluster, seed));
    wait_for_convergence(&cluster, seed).await;
    let (made, requests) = (clock::now() - begun, answered(&cluster));
    let objects = world.history.now("/registry/").len();
    let half: Vec<String> = names.iter().step_by(2).cloned().collect();
    let begun = clock::now();
    tokio::join!(biased; delete(&api, &half), inject_faults(&cluster, seed + 1));
    wait_for_convergence(&cluster, seed).await;
    for name in half {
        if world.history.at(&format!("/registry/namespaces/{name}"), u64::MAX).is_some() {
            world.record_violation(format!("the namespace {name} is there"));
        }
    }
    let (gone, requests_gone) = (clock::now() - begun, answered(&cluster) - requests);
    world.history.forget();
    Crowd { violations: world.violations(), log: world.log.take(), objects, requests, made, requests_gone, gone }
}

fn answered(cluster: &Cluster) -> u64 {
    cluster.network.answered.lock().unwrap_or_else(std::sync::PoisonError::into_inner).values().sum()
}

/// One of each kind of workload with its dependents: 50 pods. The first group has a DaemonSet in addition.
fn group(number: u64, namespaces: &[String]) -> Vec<(Kind, Value)> {
    let namespace = &namespaces[usize::try_from(number).unwrap_or(0) % namespaces.len()];
    let even = number.is_multiple_of(2);
    let object = |kind: &str, version: &str, name: &str, spec: Value| {
        let name = format!("{name}-{number}");
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    };
    let workload = |name: &str, restart: &str, spec: Value| {
        let app = format!("{name}-{number}");
        let mut all = json!({"template": template(&app, 10, restart)});
        for (field, value) in spec.as_object().into_iter().flatten() {
            all[field] = value.clone();
        }
        all
    };
    let labels = |name: &str| json!({"matchLabels": {"app": format!("{name}-{number}")}});
    let how = if even { "Parallel" } else { "OrderedReady" };
    let mode = if even { "Indexed" } else { "NonIndexed" };
    let web = json!({"replicas": 20, "selector": labels("web")});
    let db = json!({"replicas": 10, "selector": labels("db"), "serviceName": "db", "podManagementPolicy": how});
    let job = json!({"completions": 12, "parallelism": 12, "completionMode": mode, "backoffLimit": 50});
    let former = json!({"replicas": 5, "selector": {"app": format!("former-{number}")}});
    let service = json!({"selector": {"app": format!("web-{number}")}, "ports": [{"port": 80}]});
    let mut all = vec![
        (Kind::of::<Deployment>(), object("Deployment", "apps/v1", "web", workload("web", "Always", web))),
        (Kind::of::<StatefulSet>(), object("StatefulSet", "apps/v1", "db", workload("db", "Always", db))),
        (Kind::of::<Job>(), object("Job", "batch/v1", "job", workload("job", "Never", job))),
        (
            Kind::of::<ReplicationController>(),
            object("ReplicationController", "v1", "former", workload("former", "Always", former)),
        ),
        (Kind::of::<Service>(), object("Service", "v1", "web", service)),
        (
            Kind::of::<PodDisruptionBudget>(),
            object("PodDisruptionBudget", "policy/v1", "web", json!({"selector": labels("web"), "maxUnavailable": 1})),
        ),
    ];
    for one in ["a", "b", "c"] {
        let pod = template(one, 10, "Always");
        let mut pod = object("Pod", "v1", one, pod["spec"].clone());
        pod["metadata"]["labels"] = json!({"app": one});
        all.push((Kind::of::<Pod>(), pod));
    }
    if number == 0 {
        let agent = json!({"selector": labels("agent")});
        all.push((
            Kind::of::<DaemonSet>(),
            object("DaemonSet", "apps/v1", "agent", workload("agent", "Always", agent)),
        ));
    }
    all
}

/// Creates all objects at once, retrying each.
async fn create_all(api: &ApiClient, objects: Vec<(Kind, Value)>) {
    let one = |(kind, object): (Kind, Value)| async move {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let there = |error: &kube::Error| status_code(error) == 409;
        while api.create::<Value>(&kind, namespace, &object).await.is_err_and(|error| !there(&error)) {
            clock::sleep(Duration::from_millis(500)).await;
        }
    };
    objects.into_iter().map(one).collect::<FuturesUnordered<_>>().collect::<()>().await;
}

async fn delete(api: &ApiClient, namespaces: &[String]) {
    let one = |name: &String| {
        let key = ObjectKey::new("", name.clone());
        async move {
            let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
            let gone = |error: &kube::Error| matches!(status_code(error), 404 | 409);
            let kind = Kind::of::<Namespace>();
            while api.delete::<Value>(&kind, &key, &options).await.is_err_and(|error| !gone(&error)) {
                clock::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    namespaces.iter().map(one).collect::<FuturesUnordered<_>>().collect::<()>().await;
}

/// Faults of all kinds, mostly of nodes, and deaths of the busiest components.
async fn inject_faults(cluster: &Arc<Cluster>, seed: u64) {
    let (random, until) = (Random::new(seed, "crowd"), clock::now() + FAULTS);
    let deaths = async {
        for name in [CONTROLLERS, SCHEDULER, CONTROLLERS] {
            let doom = Doom { writes: random.between(1, 200), done: random.chance(500) };
            if let Some(link) = cluster.link(name) {
                log!(cluster.world, "fault: {name} dies with its writes: {doom:?}");
                link.schedule_death(Some(doom));
            }
            clock::sleep(random.millis(2000, 6000)).await;
        }
        cluster.network.kill_server();
    };
    tokio::join!(biased; deaths, faults::make(cluster.clone(), seed, until));
}

/// Waits for convergence.
async fn wait_for_convergence(cluster: &Arc<Cluster>, seed: u64) {
    let deadline = clock::now() + CONVERGENCE_TIMEOUT;
    let (mut calm, mut settled) = (0, cluster.world.history.revision());
    workload::settle(cluster.clone(), seed).await;
    while calm < 2 {
        clock::sleep(CHECK_INTERVAL).await;
        let before = std::mem::replace(&mut settled, cluster.world.history.revision());
        let mut problems = unmet(&cluster.world.history);
        problems.extend(cluster.stale(before));
        calm = if problems.is_empty() { calm + 1 } else { 0 };
        if let Some(first) = problems.first() {
            log!(cluster.world, "not at rest: {} things, {first}", problems.len());
        }
        if clock::now() > deadline {
            problems.truncate(10);
            return cluster.world.record_violation(format!("never came to rest: {problems:#?}"));
        }
    }
}
