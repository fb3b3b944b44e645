//! Users' actions: creates, changes and deletes workloads, services, pods and namespaces; cordons, adds and removes nodes.
//! Requests stay within the cluster's capacity, so that it can converge.

mod grants;
mod kinds;
mod names;
mod terms;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use apiserver_auth::UserInfo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Service};
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, PatchType};
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};

use crate::checkers::autoscaling::{autoscaler, bounds};
use crate::checkers::invariants::{ended, requested_millis};
use crate::checkers::waits::TAINT;
use crate::clock;
use crate::cluster::Cluster;
use crate::log::log;
use crate::network::Link;
use crate::node::NodeCapacity;
use crate::random::Random;
use crate::sabotage::Sabotage;

pub(crate) use grants::{PART, SUM, certificate};
pub(crate) use terms::{POOL, POOL_SIZE};

const NAMESPACES: [&str; 3] = ["default", "red", "blue"];
/// Minimum nodes at the end, and maximum in between.
pub(crate) const NODES_MIN: u64 = 3;
const NODES_MAX: u64 = 5;
/// Maximum wait for pods that tolerate a taint after faults have ended: somewhat longer than they may take.
const LEAVING_MAX: Duration = Duration::from_secs(40);

/// A user with `kubectl`.
struct User {
    cluster: Arc<Cluster>,
    link: Arc<Link>,
    api: ApiClient,
    random: Random,
    made: u64,
    nodes: u64,
    theme: Theme,
}

/// The main topic of a run.
#[derive(Clone, Copy, PartialEq)]
enum Theme {
    Any,
    Volumes,
    Loads,
    Terms,
    Grants,
    Names,
}

/// Performs this number of actions.
pub(crate) async fn run(cluster: Arc<Cluster>, seed: u64, steps: u64) {
    let link = Link::new("user");
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api = cluster.network.client(&link, user).into();
    let random = Random::new(seed, "workload");
    let theme = match seed % 8 {
        0 => Theme::Terms,
        4 => Theme::Grants,
        1 | 5 => Theme::Volumes,
        2 | 6 => Theme::Loads,
        3 if seed % 16 == 11 => Theme::Names,
        _ => Theme::Any,
    };
    let mut user = User { cluster, link, api, random, made: 0, nodes: NODES_MIN, theme };
    for _ in 0..steps {
        clock::sleep(user.random.millis(100, 3000)).await;
        user.step().await;
    }
}

/// Makes everything placeable: to be called after faults, until it succeeds.
pub(crate) async fn settle(cluster: Arc<Cluster>, seed: u64) {
    let link = Link::new("user");
    let user = UserInfo::component("kubernetes-admin", Some("system:masters"));
    let api: ApiClient = cluster.network.client(&link, user).into();
    let random = Random::new(seed, "settle");
    // More than the sum of requests: pods of different sizes leave unusable capacity on each node.
    while (cluster.nodes().len() as u64) < NODES_MAX {
        cluster.add_node(&format!("node-{}", 100 + cluster.nodes().len()));
    }
    // Pods that tolerate their node's taint leave it on their own.
    let leaving = clock::now() + LEAVING_MAX;
    while cluster.world.tolerates() && clock::now() < leaving && cluster.world.violations().is_empty() {
        clock::sleep(Duration::from_secs(1)).await;
    }
    loop {
        let mut left = kinds::settle(&cluster, &api).await + volumes::settle(&cluster, &api).await;
        for (key, node) in cluster.world.history.now("/registry/minions/") {
            let name = key.rsplit('/').next().unwrap_or_default();
            let (kind, key) = (Kind::of::<Node>(), ObjectKey::new("", name));
            if node.value()["spec"]["unschedulable"] == true {
                left += 1;
                let patch = json!({"spec": {"unschedulable": null}});
                let _ = api.patch::<Value>(&kind, &key, None, PatchType::Merge, &patch).await;
            }
            if node.value().to_string().contains(TAINT) {
                left += 1;
                let patch = json!({"spec": {"taints": names::tainted(node.value(), false)}});
                let _ = api.patch::<Value>(&kind, &key, None, PatchType::Merge, &patch).await;
            }
            if !cluster.nodes().iter().any(|there| there == name) {
                left += 1;
                let _ = api.delete::<Value>(&kind, &key, &json!({"apiVersion": "v1", "kind": "DeleteOptions"})).await;
            }
        }
        if left == 0 {
            return;
        }
        clock::sleep(random.millis(500, 1500)).await;
    }
}

pub(crate) fn template(app: &str, cpu: i64, restart: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 3,
            "containers": [{"name": "main", "image": "example/app:1", "resources": {"requests": {"cpu": format!("{cpu}m")}}}],
        },
    })
}

impl User {
    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}-{}", self.made)
    }

    fn namespace(&self) -> &'static str {
        self.random.pick(&NAMESPACES).copied().unwrap_or("default")
    }

    /// A stored object of a kind.
    fn any(&self, prefix: &str) -> Option<(ObjectKey, Value)> {
        self.any_of(prefix, |_| true)
    }

    fn any_of(&self, prefix: &str, which: impl Fn(&Value) -> bool) -> Option<(ObjectKey, Value)> {
        let there = self.cluster.world.history.now(&format!("/registry/{prefix}/"));
        let ours: Vec<_> = there
            .iter()
            .filter(|(_, object)| which(object.value()))
            .filter(|(_, object)| {
                let metadata = &object.value()["metadata"];
                (metadata["namespace"].is_null()
                    || NAMESPACES.iter().any(|namespace| metadata["namespace"] == *namespace))
                    && metadata["name"] != "kubernetes"
            })
            .collect();
        let (_, object) = self.random.pick(&ours)?;
        let metadata = &object.value()["metadata"];
        let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
        Some((ObjectKey::new(part("namespace"), part("name")), object.value().clone()))
    }

    /// Whether this much more fits: all requests must fit on the minimum of nodes, with a reserve for rollouts and for
    /// fragmentation.
    fn fits_capacity(&self, pods: i64, millis: i64) -> bool {
        let now = |prefix: &str| self.cluster.world.history.now(&format!("/registry/{prefix}/"));
        let (mut all_pods, mut all_millis) = (pods, pods * millis);
        let mut add = |count: i64, template: &Value| {
            all_pods += count;
            all_millis += count * requested_millis(template);
        };
        for (_, deployment) in now("deployments") {
            let spec = &deployment.value()["spec"];
            let metadata = &deployment.value()["metadata"];
            let part = |name: &str| metadata[name].as_str().unwrap_or_default();
            let hpa = autoscaler(&self.cluster.world.history, part("namespace"), part("name"));
            let most = hpa.map_or(0, |hpa| bounds(&hpa).1);
            add(spec["replicas"].as_i64().unwrap_or(0).max(most) + 1, &spec["template"]);
        }
        for (_, set) in now("statefulsets") {
            let spec = &set.value()["spec"];
            add(spec["replicas"].as_i64().unwrap_or(0), &spec["template"]);
        }
        for (_, set) in now("controllers") {
            let spec = &set.value()["spec"];
            add(spec["replicas"].as_i64().unwrap_or(0), &spec["template"]);
        }
        for (_, set) in now("daemonsets") {
            add(2 * i64::try_from(NODES_MIN).unwrap_or(1), &set.value()["spec"]["template"]);
        }
        for (_, job) in now("cronjobs") {
            add(2, &job.value()["spec"]["jobTemplate"]["spec"]["template"]);
        }
        for (_, job) in now("jobs") {
            let spec = &job.value()["spec"];
            if job.value()["status"]["completionTime"].is_null() {
                add(spec["parallelism"].as_i64().unwrap_or(0), &spec["template"]);
            }
        }
        for (_, pod) in now("pods") {
            let pod = pod.value();
            if !ended(pod) && pod["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty) {
                add(1, pod);
            }
        }
        let nodes = i64::try_from(NODES_MIN).unwrap_or(1);
        let NodeCapacity { cpu_millis, pods } = NodeCapacity::SMALL;
        let pods_max = i64::try_from(pods).unwrap_or(1);
        all_pods <= nodes * pods_max * 8 / 10 && all_millis <= nodes * cpu_millis * 8 / 10
    }

    async fn create(&self, kind: Kind, namespace: &str, object: Value) {
        let _ = self.api.create::<Value>(&kind, namespace, &object).await;
    }

    async fn delete(&self, kind: Kind, key: &ObjectKey, options: Value) {
        let mut all = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        for (name, value) in options.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let _ = self.api.delete::<Value>(&kind, key, &all).await;
    }

    async fn merge(&self, kind: Kind, key: &ObjectKey, patch: Value) {
        let _ = self.api.patch::<Value>(&kind, key, None, PatchType::Merge, &patch).await;
    }

    async fn step(&mut self) {
        match self.cluster.world.sabotage {
            Sabotage::UserForces if self.random.chance(500) => return self.delete_pod().await,
            Sabotage::BudgetsForget if self.random.chance(300) => {
                self.create_budget().await;
                return self.evict().await;
            }
            _ => {}
        }
        match self.theme {
            Theme::Volumes if self.random.chance(500) => return self.change_volumes().await,
            Theme::Loads if self.random.chance(500) => return self.change_loads().await,
            Theme::Terms if self.random.chance(500) => return self.change_terms().await,
            Theme::Grants if self.random.chance(500) => return self.change_grants().await,
            Theme::Names if self.random.chance(700) => return self.change_names().await,
            _ => {}
        }
        match self.random.below(44) {
            0..=3 => self.create_deployment().await,
            4 | 5 => self.scale(Kind::of::<Deployment>(), "deployments", 5).await,
            6 | 7 => self.roll().await,
            8 => self.delete_deployment().await,
            9 | 10 => self.create_job().await,
            11 => {
                if let Some((key, _)) = self.any("jobs") {
                    self.delete(Kind::of::<Job>(), &key, json!({"propagationPolicy": "Background"})).await;
                }
            }
            12 | 13 => self.create_service().await,
            14 => {
                if let Some((key, _)) = self.any("services/specs") {
                    self.delete(Kind::of::<Service>(), &key, json!({})).await;
                }
            }
            15 => self.create_namespace().await,
            16 => {
                let name = *self.random.pick(&NAMESPACES[1..]).unwrap_or(&"red");
                self.delete(Kind::of::<Namespace>(), &ObjectKey::new("", name), json!({})).await;
            }
            17 | 18 => self.delete_pod().await,
            19 => self.create_pod().await,
            20 => self.cordon().await,
            22..=35 => self.change_kinds().await,
            36..=40 => self.change_volumes().await,
            41.. => self.change_loads().await,
            _ => self.change_nodes().await,
        }
    }

    async fn create_namespace(&mut self) {
        let name = *self.random.pick(&NAMESPACES[1..]).unwrap_or(&"red");
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.create(Kind::of::<Namespace>(), "", namespace).await;
    }

    async fn create_deployment(&mut self) {
        let (replicas, cpu) = (self.random.between(1, 4) as i64, 100 * self.random.between(1, 4) as i64);
        if !self.fits_capacity(replicas + 1, cpu) {
            return;
        }
        let (name, namespace) = (self.name("web"), self.namespace());
        if namespace != "default" {
            self.create_namespace().await;
        }
        let strategy = if self.random.chance(250) { "Recreate" } else { "RollingUpdate" };
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "strategy": {"type": strategy},
                "template": template(&name, cpu, "Always")},
        });
        self.create(Kind::of::<Deployment>(), namespace, deployment).await;
        if self.random.chance(500) {
            self.service_for(namespace, &name).await;
        }
        if self.random.chance(300) {
            self.create_dependent(namespace, &name).await;
        }
    }

    /// A config map owned by a deployment.
    async fn create_dependent(&mut self, namespace: &str, deployment: &str) {
        let there = self.cluster.world.history.at(&format!("/registry/deployments/{namespace}/{deployment}"), u64::MAX);
        let Some(there) = there else { return };
        let uid = &there.value()["metadata"]["uid"];
        let name = self.name("settings");
        let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment, "uid": uid}]);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
            "metadata": {"name": name, "namespace": namespace, "ownerReferences": owner}});
        self.create(Kind::of::<ConfigMap>(), namespace, map).await;
    }

    /// Scales a random object of a kind to below `end`, within the capacity.
    pub(super) async fn scale(&mut self, kind: Kind, resource: &str, end: u64) {
        let Some((key, set)) = self.any(resource) else { return };
        let replicas = self.random.below(end) as i64;
        let more = replicas - set["spec"]["replicas"].as_i64().unwrap_or(0);
        if more > 0 && !self.fits_capacity(more, requested_millis(&set["spec"]["template"])) {
            return;
        }
        self.merge(kind, &key, json!({"spec": {"replicas": replicas}})).await;
    }

    async fn roll(&mut self) {
        let Some((key, _)) = self.any("deployments") else { return };
        self.made += 1;
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"roll": self.made.to_string()}}}}});
        self.merge(Kind::of::<Deployment>(), &key, patch).await;
    }

    async fn delete_deployment(&mut self) {
        let Some((key, _)) = self.any("deployments") else { return };
        let how = *self.random.pick(&["Background", "Foreground", "Orphan"]).unwrap_or(&"Background");
        self.delete(Kind::of::<Deployment>(), &key, json!({"propagationPolicy": how})).await;
    }

    async fn create_job(&mut self) {
        let (parallelism, cpu) = (self.random.between(1, 3) as i64, 100 * self.random.between(1, 3) as i64);
        if !self.fits_capacity(parallelism, cpu) {
            return;
        }
        let (name, namespace) = (self.name("job"), self.namespace());
        let mode = if self.random.chance(500) { "Indexed" } else { "NonIndexed" };
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
            "spec": {"completions": self.random.between(1, 4), "parallelism": parallelism, "completionMode": mode,
                "backoffLimit": 50, "template": template(&name, cpu, "Never")},
        });
        self.create(Kind::of::<Job>(), namespace, job).await;
    }

    async fn create_service(&mut self) {
        let Some((key, _)) = self.any("deployments") else { return };
        self.service_for(&key.namespace, &key.name).await;
    }

    async fn service_for(&mut self, namespace: &str, app: &str) {
        let name = self.name("svc");
        let kind = if self.random.chance(300) { "NodePort" } else { "ClusterIP" };
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": kind, "selector": {"app": app}, "ports": [{"port": 80}]},
        });
        self.create(Kind::of::<Service>(), namespace, service).await;
    }

    async fn create_pod(&mut self) {
        let cpu = 100 * self.random.between(1, 3) as i64;
        if !self.fits_capacity(1, cpu) {
            return;
        }
        let (name, namespace) = (self.name("pod"), self.namespace());
        let mut pod = template(&name, cpu, "Always");
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        self.create(Kind::of::<Pod>(), namespace, pod).await;
    }

    async fn delete_pod(&mut self) {
        let forces = self.cluster.world.sabotage == Sabotage::UserForces;
        let of_set = |pod: &Value| pod["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
        let Some((key, pod)) = self.any_of("pods", |pod| !forces || of_set(pod)) else { return };
        // Force-deleting a StatefulSet's pod asserts that it has ended, which no user here can verify.
        let one_of_a_kind = !forces && of_set(&pod);
        let options =
            if !one_of_a_kind && self.random.chance(500) { json!({"gracePeriodSeconds": 0}) } else { json!({}) };
        self.delete(Kind::of::<Pod>(), &key, options).await;
    }

    async fn cordon(&mut self) {
        let Some(name) = self.random.pick(&self.cluster.nodes()).cloned() else { return };
        let patch = json!({"spec": {"unschedulable": self.random.chance(500)}});
        self.merge(Kind::of::<Node>(), &ObjectKey::new("", name), patch).await;
    }

    async fn change_nodes(&mut self) {
        let there = self.cluster.nodes();
        if self.random.chance(500) && (there.len() as u64) < NODES_MAX {
            self.nodes += 1;
            let name = format!("node-{}", self.nodes);
            log!(self.cluster.world, "{}: adds {name}", self.link.name);
            self.cluster.add_node(&name);
        } else if there.len() as u64 > NODES_MIN {
            let kept = volumes::nodes(&self.cluster.world.history);
            let free: Vec<String> = there.into_iter().filter(|name| !kept.contains(name)).collect();
            let Some(name) = self.random.pick(&free).cloned() else { return };
            log!(self.cluster.world, "{}: takes {name} away", self.link.name);
            self.cluster.remove_node(&name);
            clock::sleep(Duration::from_millis(10)).await;
            self.delete(Kind::of::<Node>(), &ObjectKey::new("", name), json!({})).await;
        }
    }
}
