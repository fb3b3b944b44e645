//! Users' actions on limited resources: addresses of a pool that is too small, jobs and tokens that expire, and ephemeral
//! volumes.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Secret, Service};
use machinery_client::{Kind, Pod};
use serde_json::json;

use super::{User, template};

/// Addresses for Services of type LoadBalancer: at times fewer than needed.
pub(crate) const POOL: &str = "192.0.2.240-192.0.2.242";
pub(crate) const POOL_SIZE: usize = 3;

impl User {
    pub(super) async fn change_terms(&mut self) {
        match self.random.below(8) {
            0..=2 => self.create_load_balancer().await,
            3 => self.release_address().await,
            4 => self.create_short_job().await,
            5 => self.create_token().await,
            _ => self.create_scratching_pod().await,
        }
    }

    /// Creates a Service of type LoadBalancer, or changes one to it.
    async fn create_load_balancer(&mut self) {
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

    /// Releases the address of one, or deletes it.
    async fn release_address(&mut self) {
        let Some((key, _)) = self.any_of("services/specs", |service| service["spec"]["type"] == "LoadBalancer") else {
            return;
        };
        if self.random.chance(500) {
            return self.delete(Kind::of::<Service>(), &key, json!({})).await;
        }
        self.merge(Kind::of::<Service>(), &key, json!({"spec": {"type": "ClusterIP"}})).await;
    }

    async fn create_short_job(&mut self) {
        if !self.fits_capacity(1, 100) {
            return;
        }
        let (name, namespace) = (self.name("short"), self.namespace());
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
            "spec": {"ttlSecondsAfterFinished": self.random.between(0, 5), "backoffLimit": 50, "template": template(&name, 100, "Never")},
        });
        self.create(Kind::of::<Job>(), namespace, job).await;
    }

    /// Creates a bootstrap token that is valid for a few seconds.
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

    /// Creates a pod with an ephemeral volume, or deletes one.
    async fn create_scratching_pod(&mut self) {
        if let Some((key, _)) = self
            .any_of("pods", |pod| pod["spec"]["volumes"][0]["ephemeral"].is_object())
            .filter(|_| self.random.chance(400))
        {
            return self.delete(Kind::of::<Pod>(), &key, json!({})).await;
        }
        if !self.claims_fit(1) || !self.fits_capacity(1, 100) {
            return;
        }
        let (name, namespace, class) = (self.name("scratch"), self.namespace(), self.class().await);
        let mut pod = super::volumes::first(template(&name, 100, "Always"));
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        let claim = super::volumes::claim_spec(class);
        pod["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        self.create(Kind::of::<Pod>(), namespace, pod).await;
    }
}
