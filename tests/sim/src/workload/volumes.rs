//! Users' actions on storage: StatefulSets and pods with claims of several classes, claims that compete for pre-made volumes,
//! and autoscalers.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use machinery_api::ObjectKey;
use machinery_client::request::ApiClient;
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};

use super::{User, template};
use crate::checkers::autoscaling::{EACH, WINDOW, autoscaler};
use crate::checkers::claims::{bound_to, claims_of};
use crate::checkers::invariants::requested_millis;
use crate::checkers::mounts::node_of;
use crate::cluster::Cluster;
use crate::history::History;
use crate::sabotage::Sabotage;

/// Maximum concurrent claims: each binds its pod to one node.
const CLAIMS_MAX: usize = 8;
/// Classes with binding mode and reclaim policy.
const CLASSES: [(&str, &str, &str); 3] = [
    ("soon", "Immediate", "Delete"),
    ("later", "WaitForFirstConsumer", "Delete"),
    ("kept", "WaitForFirstConsumer", "Retain"),
];
/// The class of pre-made volumes.
const MADE: &str = "made";

/// Pods bound to one node precede those that fit any node.
pub(super) fn first(mut template: Value) -> Value {
    template["spec"]["priorityClassName"] = json!("system-cluster-critical");
    template
}

/// Nodes with local volumes.
pub(super) fn nodes(history: &History) -> BTreeSet<String> {
    let all = history.now("/registry/persistentvolumes/");
    all.iter().filter_map(|(_, volume)| node_of(volume.value()).map(str::to_owned)).collect()
}

pub(super) fn claim_spec(class: &str) -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}})
}

impl User {
    pub(super) async fn change_volumes(&mut self) {
        match self.random.below(9) {
            0..=2 => self.create_keeping_set().await,
            3 => self.create_keeping_pod().await,
            4 => self.create_competing_claims().await,
            5 => self.delete_claim().await,
            6 => self.scale(Kind::of::<StatefulSet>(), "statefulsets", 4).await,
            7 => self.delete_any(Kind::of::<StatefulSet>(), "statefulsets").await,
            _ => self.delete_pod().await,
        }
        if self.cluster.world.sabotage == Sabotage::VolumesGo {
            self.delete_any(Kind::of::<PersistentVolume>(), "persistentvolumes").await;
        }
    }

    pub(super) async fn change_loads(&mut self) {
        match self.random.below(10) {
            0..=2 => self.create_deployment().await,
            3..=5 => self.create_autoscaler().await,
            6 => self.delete_any(Kind::of::<HorizontalPodAutoscaler>(), "horizontalpodautoscalers").await,
            _ => self.change_load(),
        }
    }

    /// One of the classes, which is created first.
    pub(super) async fn class(&self) -> &'static str {
        let (name, mode, policy) = self.random.pick(&CLASSES).copied().unwrap_or(CLASSES[0]);
        self.create(Kind::of::<StorageClass>(), "", class(name, mode, policy)).await;
        name
    }

    pub(super) fn claims_fit(&self, more: usize) -> bool {
        self.cluster.world.history.now("/registry/persistentvolumeclaims/").len() + more <= CLAIMS_MAX
    }

    async fn create_keeping_set(&mut self) {
        let replicas = self.random.between(1, 2);
        if !self.claims_fit(usize::try_from(replicas).unwrap_or(1)) || !self.fits_capacity(replicas as i64, 100) {
            return;
        }
        let (name, namespace, class) = (self.name("keep"), self.namespace(), self.class().await);
        let after = |random: &crate::random::Random| if random.chance(500) { "Delete" } else { "Retain" };
        let mut template = first(template(&name, 100, "Always"));
        template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}}, "template": template,
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": after(&self.random), "whenScaled": after(&self.random)},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim_spec(class)}]},
        });
        self.create(Kind::of::<StatefulSet>(), namespace, set).await;
    }

    fn claim(&self, name: &str, namespace: &str, class: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
            "spec": claim_spec(class)})
    }

    async fn create_keeping_pod(&mut self) {
        if !self.claims_fit(1) || !self.fits_capacity(1, 100) {
            return;
        }
        let (name, namespace, class) = (self.name("own"), self.namespace(), self.class().await);
        let mut pod = first(template(&name, 100, "Always"));
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let kind = Kind::of::<PersistentVolumeClaim>();
        self.create(kind, namespace, self.claim(&name, namespace, class)).await;
        self.create(Kind::of::<Pod>(), namespace, pod).await;
    }

    /// Creates more claims than volumes, or fewer.
    async fn create_competing_claims(&mut self) {
        for _ in 0..self.random.between(1, 2) {
            let (name, namespace) = (self.name("share"), self.namespace());
            if self.claims_fit(1) {
                let claim = self.claim(&name, namespace, MADE);
                self.create(Kind::of::<PersistentVolumeClaim>(), namespace, claim).await;
            }
        }
        for _ in 0..self.random.between(0, 2) {
            let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": self.name("made")},
                "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}, "storageClassName": MADE,
                    "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/data"}}});
            self.create(Kind::of::<PersistentVolume>(), "", volume).await;
        }
    }

    async fn delete_claim(&mut self) {
        let Some((key, _)) = self.any("persistentvolumeclaims") else { return };
        self.delete(Kind::of::<PersistentVolumeClaim>(), &key, json!({})).await;
    }

    async fn create_autoscaler(&mut self) {
        let Some((key, deployment)) = self.any("deployments") else { return };
        let (least, most) = (self.random.between(1, 2) as i64, self.random.between(3, 5) as i64);
        let replicas = deployment["spec"]["replicas"].as_i64().unwrap_or(0);
        let more = (most - replicas).max(0);
        if autoscaler(&self.cluster.world.history, &key.namespace, &key.name).is_some()
            || !self.fits_capacity(more, requested_millis(&deployment["spec"]["template"]))
        {
            return;
        }
        let metric = json!({"type": "External", "external": {"metric": {"name": key.name},
            "target": {"type": "AverageValue", "averageValue": EACH.to_string()}}});
        let hpa = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": {"minReplicas": least, "maxReplicas": most, "metrics": [metric],
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": key.name},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW.as_secs()}}},
        });
        self.create(Kind::of::<HorizontalPodAutoscaler>(), &key.namespace, hpa).await;
        self.change_load();
    }

    fn change_load(&mut self) {
        let Some((key, _)) = self.any("horizontalpodautoscalers") else { return };
        let load = self.random.between(0, 70) as i64;
        crate::log::log!(self.cluster.world, "{}: the load of {key} is to be {load}", self.link.name);
        self.cluster.world.autoscaling.set(&key.to_string(), load);
    }
}

fn class(name: &str, mode: &str, policy: &str) -> Value {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "local.coracle.dev", "volumeBindingMode": mode, "reclaimPolicy": policy})
}

/// Recreates missing classes, and gives up volumes of removed nodes with the pods that wait for them. Returns the number of
/// leftovers.
pub(super) async fn settle(cluster: &Cluster, api: &ApiClient) -> usize {
    let (history, mut left) = (&cluster.world.history, 0);
    for (name, mode, policy) in CLASSES {
        if history.at(&format!("/registry/storageclasses/{name}"), u64::MAX).is_none() {
            left += 1;
            let _ = api.create::<Value>(&Kind::of::<StorageClass>(), "", &class(name, mode, policy)).await;
        }
    }
    for (key, pod) in history.now("/registry/pods/") {
        let pod = pod.value();
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let claim = |name: &str| history.at(&format!("/registry/persistentvolumeclaims/{namespace}/{name}"), u64::MAX);
        let names = pod["spec"]["volumes"][0]["persistentVolumeClaim"].is_object();
        let waits = names && pod["spec"]["nodeName"].is_null() && pod["metadata"]["ownerReferences"].is_null();
        // No controller recreates a claim after a lost request or a deletion.
        if waits && claims_of(pod).any(|name| claim(&name).is_none()) {
            left += 1;
            let key = ObjectKey::new(namespace, key.rsplit('/').next().unwrap_or_default());
            let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
            let _ = api.delete::<Value>(&Kind::of::<Pod>(), &key, &options).await;
        }
    }
    let there = cluster.nodes();
    let lost = |volume: &Value| node_of(volume).is_some_and(|node| !there.iter().any(|there| there == node));
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    for (_, claim) in history.now("/registry/persistentvolumeclaims/") {
        let claim = claim.value();
        let part = |name: &str| claim["metadata"][name].as_str().unwrap_or_default();
        let (namespace, name) = (part("namespace"), part("name"));
        let volume =
            bound_to(claim).and_then(|name| history.at(&format!("/registry/persistentvolumes/{name}"), u64::MAX));
        if !volume.is_some_and(|volume| lost(volume.value())) {
            continue;
        }
        left += 1;
        let key = ObjectKey::new(namespace, name);
        let _ = api.delete::<Value>(&Kind::of::<PersistentVolumeClaim>(), &key, &options).await;
        for (_, pod) in history.now(&format!("/registry/pods/{namespace}/")) {
            if claims_of(pod.value()).any(|claim| claim == name) {
                let key = ObjectKey::new(namespace, pod.value()["metadata"]["name"].as_str().unwrap_or_default());
                let _ = api.delete::<Value>(&Kind::of::<Pod>(), &key, &options).await;
            }
        }
    }
    left
}
