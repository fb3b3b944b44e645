//! One node dies without other faults: measures the time until its endpoints are gone and all replicas are ready again.

use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::UserInfo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use machinery_client::Kind;
use machinery_client::request::ApiClient;
use serde_json::{Value, json};

use crate::clock;
use crate::cluster::{Cluster, Pace};
use crate::network::Link;
use crate::sabotage::Sabotage;
use crate::workload::template;
use crate::world::World;

/// Number of nodes, and of pods on them.
const NODES: u64 = 3;
const REPLICAS: usize = 6;
/// Resolution of the measurement.
const TICK: Duration = Duration::from_millis(20);
/// Time limit in case of a failure.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Times after a node's death.
pub(crate) struct Failover {
    pub(crate) endpoints_gone: Duration,
    pub(crate) pods_back: Duration,
}

/// Runs it under a seed.
pub(crate) fn failover(seed: u64, pace: Pace) -> Failover {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let played = async { clock::timeout(TIMEOUT, simulate(seed, pace)).await };
    runtime.block_on(played).expect("it never happens")
}

async fn simulate(seed: u64, pace: Pace) -> Failover {
    let world = Arc::new(World::new(seed, Sabotage::None));
    let cluster = Cluster::new(seed, world, pace);
    cluster.start(NODES).await;
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&Link::new("user"), user).into();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": "web"}}, "template": template("web", 100, "Always")},
    });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    // Nodes first: otherwise all pods would be on the first one.
    until(|| {
        cluster.world.history.now("/registry/minions/").iter().filter(|(_, node)| ready(node.value())).count() as u64
            == NODES
    })
    .await;
    until_made(&api, &Kind::of::<Deployment>(), &deployment).await;
    until_made(&api, &Kind::of::<Service>(), &service).await;
    until(|| endpoints(&cluster).len() == REPLICAS).await;
    let victim = endpoints(&cluster).into_iter().next().unwrap_or_default();
    cluster.remove_node(&victim);
    let died = clock::now();
    until(|| !endpoints(&cluster).contains(&victim)).await;
    let endpoints_gone = clock::now() - died;
    until(|| endpoints(&cluster).len() == REPLICAS).await;
    Failover { endpoints_gone, pods_back: clock::now() - died }
}

async fn until(is: impl Fn() -> bool) {
    while !is() {
        clock::sleep(TICK).await;
    }
}

async fn until_made(api: &ApiClient, kind: &Kind, object: &Value) {
    while api.create::<Value>(kind, "default", object).await.is_err() {
        clock::sleep(TICK).await;
    }
}

fn ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The nodes of the Service's ready endpoints, with repetitions.
fn endpoints(cluster: &Cluster) -> Vec<String> {
    let slices = cluster.world.history.now("/registry/endpointslices/default/");
    let of_web = slices.iter().map(|(_, slice)| slice.value());
    let of_web = of_web.filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web");
    let all = of_web.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    ready.filter_map(|endpoint| endpoint["nodeName"].as_str().map(str::to_owned)).collect()
}
