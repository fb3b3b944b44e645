//! What is given for a while or is scarce: addresses of a pool that is too small, jobs and tokens that go by themselves, and volumes
//! that go with their pods.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Secret, Service};
use machinery_client::{Kind, Pod};
use serde_json::json;

use super::{User, template};

/// Addresses for Services of type LoadBalancer: fewer than are asked for at times.
pub(crate) const POOL: &str = "192.0.2.240-192.0.2.242";
pub(crate) const POOL_SIZE: usize = 3;

impl User {
    pub(super) async fn change_terms(&mut self) {
        match self.random.below(8) {
            0..=2 => self.balance().await,
            3 => self.unbalance().await,
            4 => self.create_short_job().await,
            5 => self.create_token().await,
            _ => self.create_scratching_pod().await,
        }
    }

    /// A Service of type LoadBalancer, or one that becomes such.
    async fn balance(&mut self) {
        let there = self.any_of("services/specs", |service| service["spec"]["type"] != "LoadBalancer");
        if let Some((key, _)) = there.filter(|_| self.random.chance(300)) {
            return self.merge(Kind::of::<Service>(), &key, json!({"spec": {"type": "LoadBalancer"}})).await;
        }
        let (name, namespace) = (self.name("lb"), self.namespace());
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"port": 80}]},
        });
        self.create(Kind::of::<Service>(), namespace, service).await;
    }

    /// One gives its address up, or goes.
    async fn unbalance(&mut self) {
        let Some((key, _)) = self.any_of("services/specs", |service| service["spec"]["type"] == "LoadBalancer") else {
            return;
        };
        if self.random.chance(500) {
            return self.delete(Kind::of::<Service>(), &key, json!({})).await;
        }
        self.merge(Kind::of::<Service>(), &key, json!({"spec": {"type": "ClusterIP"}})).await;
    }

    async fn create_short_job(&mut self) {
        if !self.room(1, 100) {
            return;
        }
        let (name, namespace) = (self.name("short"), self.namespace());
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
            "spec": {"ttlSecondsAfterFinished": self.random.between(0, 5), "backoffLimit": 50, "template": template(&name, 100, "Never")},
        });
        self.create(Kind::of::<Job>(), namespace, job).await;
    }

    /// A bootstrap token that is good for a few seconds.
    async fn create_token(&mut self) {
        self.made += 1;
        let id = format!("{:06}", self.made);
        let until = self.cluster.world.env.now() + jiff::SignedDuration::from_secs(self.random.between(1, 8) as i64);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "expiration": format!("{until:.0}")},
        });
        self.create(Kind::of::<Secret>(), "kube-system", secret).await;
    }

    /// A pod with a volume that is made for it and goes with it; at times its claim is there before, and somebody's.
    async fn create_scratching_pod(&mut self) {
        if let Some((key, _)) = self
            .any_of("pods", |pod| pod["spec"]["volumes"][0]["ephemeral"].is_object())
            .filter(|_| self.random.chance(400))
        {
            return self.delete(Kind::of::<Pod>(), &key, json!({})).await;
        }
        if !self.claims_fit(1) || !self.room(1, 100) {
            return;
        }
        let (name, namespace, class) = (self.name("scratch"), self.namespace(), self.class().await);
        let mut pod = super::volumes::first(template(&name, 100, "Always"));
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["spec"]["volumes"] =
            json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": super::volumes::wants(class)}}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        self.create(Kind::of::<Pod>(), namespace, pod).await;
    }
}
