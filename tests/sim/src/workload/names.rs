//! Reuses names: deletes owners with each propagation policy and recreates them at once, beside dependents of their
//! predecessors; and taints nodes, whose pods leave at once or after their toleration.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, ReplicationController};
use machinery_api::ObjectKey;
use machinery_client::{Kind, Pod};
use serde_json::{Value, json};

use super::{User, template};
use crate::checkers::waits::TAINT;
use crate::clock;

/// Names that owners share over time.
const NAMES: [&str; 2] = ["again-1", "again-2"];

impl User {
    pub(super) async fn change_names(&mut self) {
        match self.random.below(12) {
            0..=3 => self.recreate_job().await,
            4 | 5 => self.recreate_deployment().await,
            6 => self.recreate_controller().await,
            7 => self.force_delete_pod().await,
            8 | 9 => self.taint().await,
            10 => {
                let name = *self.random.pick(&super::NAMESPACES[1..]).unwrap_or(&"red");
                self.delete(Kind::of::<Namespace>(), &ObjectKey::new("", name), json!({})).await;
            }
            _ => self.create_namespace().await,
        }
    }

    /// A pod template; some tolerate users' taint.
    fn tolerating_template(&self, app: &str, restart: &str) -> Value {
        let mut template = template(app, 100, restart);
        if self.random.chance(500) {
            let seconds = self.random.between(1, 5);
            template["spec"]["tolerations"] =
                json!([{"key": TAINT, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
        }
        template
    }

    /// Deletes the object with a random propagation policy and recreates it, mostly at once.
    async fn recreate(&mut self, kind: Kind, namespace: &str, name: &str, object: Value) {
        let how = *self.random.pick(&["Background", "Foreground", "Orphan"]).unwrap_or(&"Orphan");
        let key = ObjectKey::new(namespace, name);
        self.delete(kind.clone(), &key, json!({"propagationPolicy": how})).await;
        if self.random.chance(300) {
            clock::sleep(self.random.millis(0, 2000)).await;
        }
        if namespace != "default" && self.random.chance(500) {
            self.create_namespace().await;
        }
        self.create(kind.clone(), namespace, object).await;
        // It may be deleted before its creation has been observed.
        if self.random.chance(300) {
            clock::sleep(self.random.millis(0, 300)).await;
            let how = if self.random.chance(600) { "Orphan" } else { how };
            self.delete(kind, &key, json!({"propagationPolicy": how})).await;
        }
    }

    fn shared_name(&self) -> (&'static str, &'static str) {
        (self.namespace(), self.random.pick(&NAMES).copied().unwrap_or("again-1"))
    }

    async fn recreate_job(&mut self) {
        if !self.fits_capacity(2, 100) {
            return;
        }
        let (namespace, name) = self.shared_name();
        let mut spec = json!({"completions": self.random.between(1, 3), "parallelism": self.random.between(1, 2),
            "backoffLimit": 50, "template": self.tolerating_template(name, "Never")});
        if self.random.chance(250) {
            spec["activeDeadlineSeconds"] = json!(self.random.between(1, 6));
        }
        let job = json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        self.recreate(Kind::of::<Job>(), namespace, name, job).await;
    }

    async fn recreate_deployment(&mut self) {
        let replicas = self.random.between(1, 2) as i64;
        if !self.fits_capacity(replicas + 1, 100) {
            return;
        }
        let (namespace, name) = self.shared_name();
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": format!("{name}-web")}},
                "template": self.tolerating_template(&format!("{name}-web"), "Always")},
        });
        self.recreate(Kind::of::<Deployment>(), namespace, name, deployment).await;
    }

    async fn recreate_controller(&mut self) {
        if !self.fits_capacity(2, 100) {
            return;
        }
        let (namespace, name) = self.shared_name();
        let app = format!("{name}-former");
        let set = json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": self.random.between(1, 2), "selector": {"app": app},
                "template": self.tolerating_template(&app, "Always")},
        });
        self.recreate(Kind::of::<ReplicationController>(), namespace, name, set).await;
    }

    /// Force-deletes a Job's pod.
    async fn force_delete_pod(&mut self) {
        let of_job = |pod: &Value| pod["metadata"]["ownerReferences"][0]["kind"] == "Job";
        let Some((key, _)) = self.any_of("pods", of_job) else { return };
        self.delete(Kind::of::<Pod>(), &key, json!({"gracePeriodSeconds": 0})).await;
    }

    /// Adds the taint like `kubectl taint`, without a time, or removes it.
    async fn taint(&mut self) {
        let Some(name) = self.random.pick(&self.cluster.nodes()).cloned() else { return };
        let added = self.random.chance(700);
        let nodes = self.cluster.world.history.now("/registry/minions/");
        let troubled = |node: &Value| {
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            taints.into_iter().any(|taint| taint["key"] == TAINT)
        };
        // One node at a time: the others have capacity for all pods.
        if added && nodes.iter().any(|(_, node)| troubled(node.value())) {
            return;
        }
        let Some((_, node)) = nodes.iter().find(|(_, node)| node.value()["metadata"]["name"] == *name) else { return };
        let patch = json!({"spec": {"taints": tainted(node.value(), added)}});
        self.merge(Kind::of::<Node>(), &ObjectKey::new("", name), patch).await;
    }
}

/// A node's taints with or without the users' taint.
pub(super) fn tainted(node: &Value, added: bool) -> Value {
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.retain(|taint| taint["key"] != TAINT);
    if added {
        taints.push(json!({"key": TAINT, "effect": "NoExecute"}));
    }
    if taints.is_empty() { Value::Null } else { taints.into() }
}
