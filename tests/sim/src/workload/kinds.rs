//! Users' actions on StatefulSets, DaemonSets, CronJobs, disruption budgets with evictions, and quotas.

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{Endpoints, ReplicationController, ResourceQuota, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery_api::ObjectKey;
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};

use super::{User, template};

/// Maximum concurrent DaemonSets: each takes capacity on all nodes.
const DAEMONS_MAX: usize = 1;

impl User {
    pub(super) async fn change_kinds(&mut self) {
        match self.random.below(22) {
            0..=2 => self.create_stateful_set().await,
            3 => self.scale(Kind::of::<StatefulSet>(), "statefulsets", 4).await,
            4 | 5 => self.change(Kind::of::<StatefulSet>(), "statefulsets").await,
            6 => self.delete_any(Kind::of::<StatefulSet>(), "statefulsets").await,
            7 | 8 => self.create_daemon_set().await,
            9 => self.change(Kind::of::<DaemonSet>(), "daemonsets").await,
            10 => self.delete_any(Kind::of::<DaemonSet>(), "daemonsets").await,
            11 => self.create_cron_job().await,
            12..=14 => {
                self.create_budget().await;
                self.evict().await;
            }
            15 => self.evict().await,
            18 => self.create_replication_controller().await,
            19 => self.scale(Kind::of::<ReplicationController>(), "controllers", 4).await,
            20 | 21 => self.create_endpoints().await,
            _ => self.create_quota().await,
        }
    }

    async fn change(&mut self, kind: Kind, prefix: &str) {
        let Some((key, _)) = self.any(prefix) else { return };
        self.made += 1;
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"roll": self.made.to_string()}}}}});
        self.merge(kind, &key, patch).await;
    }

    pub(super) async fn delete_any(&mut self, kind: Kind, prefix: &str) {
        let Some((key, _)) = self.any(prefix) else { return };
        let how = *self.random.pick(&["Background", "Foreground"]).unwrap_or(&"Background");
        self.delete(kind, &key, json!({"propagationPolicy": how})).await;
    }

    async fn create_stateful_set(&mut self) {
        let (replicas, cpu) = (self.random.between(1, 3) as i64, 100 * self.random.between(1, 2) as i64);
        if !self.fits_capacity(replicas, cpu) {
            return;
        }
        let (name, namespace) = (self.name("db"), self.namespace());
        let how = if self.random.chance(300) { "Parallel" } else { "OrderedReady" };
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "serviceName": name, "podManagementPolicy": how,
                "selector": {"matchLabels": {"app": name}}, "template": template(&name, cpu, "Always")},
        });
        self.create(Kind::of::<StatefulSet>(), namespace, set).await;
    }

    async fn create_replication_controller(&mut self) {
        let (replicas, cpu) = (self.random.between(1, 3) as i64, 100);
        if !self.fits_capacity(replicas, cpu) {
            return;
        }
        let (name, namespace) = (self.name("former"), self.namespace());
        let set = json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"app": name}, "template": template(&name, cpu, "Always")},
        });
        self.create(Kind::of::<ReplicationController>(), namespace, set).await;
    }

    /// Creates or changes manual Endpoints of a Service without a selector.
    async fn create_endpoints(&mut self) {
        let address = format!("192.0.2.{}", self.random.between(1, 200));
        let subsets = json!([{"addresses": [{"ip": address}], "ports": [{"port": 80}]}]);
        let theirs =
            |object: &Value| object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("outside"));
        if let Some((key, _)) = self.any("services/endpoints").filter(|(_, object)| theirs(object)) {
            return self.merge(Kind::of::<Endpoints>(), &key, json!({"subsets": subsets})).await;
        }
        let (name, namespace) = (self.name("outside"), self.namespace());
        let metadata = json!({"name": name, "namespace": namespace});
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}});
        self.create(Kind::of::<Service>(), namespace, service).await;
        let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets});
        self.create(Kind::of::<Endpoints>(), namespace, endpoints).await;
    }

    async fn create_daemon_set(&mut self) {
        let there = self.cluster.world.history.now("/registry/daemonsets/").len();
        if there >= DAEMONS_MAX || !self.fits_capacity(i64::try_from(super::NODES_MIN).unwrap_or(1), 50) {
            return;
        }
        let (name, namespace) = (self.name("agent"), self.namespace());
        let rolling = if self.random.chance(300) { json!({"maxSurge": 1, "maxUnavailable": 0}) } else { json!({}) };
        let set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": super::volumes::first(template(&name, 50, "Always")),
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}},
        });
        self.create(Kind::of::<DaemonSet>(), namespace, set).await;
    }

    async fn create_cron_job(&mut self) {
        if !self.fits_capacity(2, 100) {
            return;
        }
        let (name, namespace) = (self.name("tick"), self.namespace());
        let policy = *self.random.pick(&["Allow", "Forbid", "Replace"]).unwrap_or(&"Forbid");
        let job = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "namespace": namespace},
            "spec": {"schedule": "* * * * *", "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1,
                "failedJobsHistoryLimit": 1, "jobTemplate": {"spec": {"backoffLimit": 50, "template": template(&name, 100, "Never")}}},
        });
        self.create(Kind::of::<CronJob>(), namespace, job).await;
    }

    pub(super) async fn create_budget(&mut self) {
        let budgets = self.cluster.world.history.now("/registry/poddisruptionbudgets/");
        let has = |object: &Value| {
            let (name, namespace) = (&object["metadata"]["name"], &object["metadata"]["namespace"]);
            budgets.iter().map(|(_, budget)| budget.value()).any(|budget| {
                budget["metadata"]["namespace"] == *namespace
                    && budget["spec"]["selector"]["matchLabels"]["app"] == *name
            })
        };
        // Two budgets on one pod prevent every eviction.
        let two = self.random.chance(100);
        let Some((key, _)) = self.any_of("deployments", |object| two || !has(object)) else { return };
        let bound = if self.random.chance(500) { json!({"minAvailable": 1}) } else { json!({"maxUnavailable": 1}) };
        let name = self.name("budget");
        let mut budget = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name, "namespace": key.namespace},
            "spec": {"selector": {"matchLabels": {"app": key.name}}},
        });
        for (field, value) in bound.as_object().into_iter().flatten() {
            budget["spec"][field] = value.clone();
        }
        self.create(Kind::of::<PodDisruptionBudget>(), &key.namespace, budget).await;
    }

    /// Evicts a few pods at once, like `kubectl drain`.
    pub(super) async fn evict(&mut self) {
        let app = self
            .any("poddisruptionbudgets")
            .map(|(_, budget)| budget["spec"]["selector"]["matchLabels"]["app"].clone());
        let theirs = |pod: &Value| app.as_ref().is_some_and(|app| pod["metadata"]["labels"]["app"] == *app);
        for _ in 0..self.random.between(1, 3) {
            // A pod with a budget, if there is one.
            let Some((key, _)) = self.any_of("pods", theirs).or_else(|| self.any("pods")) else { return };
            let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": key.name, "namespace": key.namespace}});
            let _ = self.api.post::<Value>(&Kind::of::<Pod>(), &key, "eviction", &eviction).await;
        }
    }

    async fn create_quota(&mut self) {
        let (name, namespace) = (self.name("quota"), self.namespace());
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name, "namespace": namespace},
            "spec": {"hard": {"pods": self.random.between(2, 10).to_string()}},
        });
        self.create(Kind::of::<ResourceQuota>(), namespace, quota).await;
    }
}

/// Deletes quotas and suspends CronJobs, which prevent convergence. Returns the number of leftovers.
pub(super) async fn settle(cluster: &crate::cluster::Cluster, api: &machinery_client::request::ApiClient) -> usize {
    let key = |object: &Value| {
        let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        ObjectKey::new(part("namespace"), part("name"))
    };
    let mut left = 0;
    for (_, quota) in cluster.world.history.now("/registry/resourcequotas/") {
        left += 1;
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        let _ = api.delete::<Value>(&Kind::of::<ResourceQuota>(), &key(quota.value()), &options).await;
    }
    for (_, job) in cluster.world.history.now("/registry/cronjobs/") {
        if job.value()["spec"]["suspend"] != true {
            left += 1;
            let patch = json!({"spec": {"suspend": true}});
            let how = machinery_client::request::PatchType::Merge;
            let _ = api.patch::<Value>(&Kind::of::<CronJob>(), &key(job.value()), None, how, &patch).await;
        }
    }
    left
}
