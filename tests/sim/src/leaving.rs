//! Deletes Jobs with policy `Orphan` as soon as their pod exists: the watch of pods often lags behind that of Jobs, before the deletion and
//! after it.

use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::UserInfo;
use k8s_openapi::api::batch::v1::Job;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::ApiClient;
use serde_json::{Value, json};

use crate::clock;
use crate::cluster::{Cluster, Pace};
use crate::network::Link;
use crate::sabotage::Sabotage;
use crate::workload::template;
use crate::world::{Weather, World};

pub(crate) const JOBS: u64 = 12;
const TICK: Duration = Duration::from_millis(1);
/// Time limit in case of a failure.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Every third message takes up to 1 s, or every third piece of a watch longer than all requests.
const SLOW: [Weather; 2] =
    [Weather { delay_ms: 5, slow: 300, ..Weather::CALM }, Weather { delay_ms: 5, slow_watches: 300, ..Weather::CALM }];

/// Runs it under a seed; returns the checkers' violations, and the number of pods that were orphaned.
pub(crate) fn leaving(seed: u64, sabotage: Sabotage) -> (Vec<String>, usize) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let played = async { clock::timeout(TIMEOUT, simulate(seed, sabotage)).await };
    runtime.block_on(played).expect("it never happens")
}

async fn simulate(seed: u64, sabotage: Sabotage) -> (Vec<String>, usize) {
    let world = Arc::new(World::new(seed, sabotage));
    let cluster = Cluster::new(seed, world.clone(), Pace::Usual);
    cluster.start(1).await;
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&Link::new("user"), user).into();
    for (number, weather) in (0..JOBS).zip(SLOW.into_iter().cycle()) {
        world.set_weather(weather);
        let name = format!("left-{number}");
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"},
            "spec": {"template": template(&name, 100, "Never")}});
        let kind = Kind::of::<Job>();
        while api.create::<Value>(&kind, "default", &job).await.is_err() {
            clock::sleep(TICK).await;
        }
        let prefix = format!("/registry/pods/default/{name}-");
        until(|| !world.history.now(&prefix).is_empty()).await;
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Orphan"});
        let _ = api.delete::<Value>(&kind, &ObjectKey::new("default", &*name), &options).await;
        until(|| world.history.now(&format!("/registry/jobs/default/{name}")).is_empty()).await;
    }
    world.set_weather(Weather::CALM);
    clock::sleep(Duration::from_secs(60)).await;
    let pods = world.history.now("/registry/pods/default/left-");
    let free = |pod: &Value| {
        let metadata = &pod["metadata"];
        metadata["ownerReferences"].is_null() && metadata["finalizers"].is_null()
    };
    world.history.forget();
    (world.violations(), pods.iter().filter(|(_, pod)| free(pod.value())).count())
}

async fn until(is: impl Fn() -> bool) {
    while !is() {
        clock::sleep(TICK).await;
    }
}
