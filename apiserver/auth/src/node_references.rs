//! The objects that a pod or a volume references, by upstream's rules: pure functions over one object.

use std::collections::BTreeSet;

use machinery_api::{ObjectKey, names};
use serde_json::Value;

/// The kinds that a pod can reference in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ReferenceKind {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    ResourceClaim,
    /// A pod's own.
    Namespace,
}

/// An object that a pod references.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Reference {
    pub(super) kind: ReferenceKind,
    pub(super) object: ObjectKey,
}

impl Reference {
    pub(super) fn new(kind: ReferenceKind, namespace: &str, name: &str) -> Self {
        Self { kind, object: ObjectKey::new(namespace, name) }
    }
}

/// The PersistentVolume sources with a `secretRef`. True: a reference without a namespace is in the claim's namespace.
const VOLUME_SECRET_REFS: [(&str, bool); 7] = [
    ("cephfs", true),
    ("cinder", false),
    ("flexVolume", true),
    ("iscsi", true),
    ("rbd", true),
    ("scaleIO", true),
    ("storageos", false),
];
/// The Secrets of a CSI volume that kubelets read. Those of the controller (publish and expand) are not among them.
const CSI_SECRET_REFS: [&str; 3] = ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"];

pub(super) fn is_on_node(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"].as_str() == Some(node)
}

/// Whether a volume is on a node alone, by its affinity to the node's host name.
#[must_use]
pub fn is_volume_of(node: &str, volume: &Value) -> bool {
    let terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array();
    let names_node = |term: &Value| {
        items(term, "matchExpressions").any(|expression| {
            expression["key"] == names::HOSTNAME
                && expression["operator"] == "In"
                && expression["values"].as_array().is_some_and(|values| values.iter().eq([node]))
        })
    };
    terms.is_some_and(|terms| !terms.is_empty() && terms.iter().all(names_node))
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

/// The objects that a pod references. A mirror pod counts for its namespace alone, whose identity the stores of its pod
/// have: a node could grant itself access to all others by creating one.
pub(super) fn of_pod(pod: &Value) -> BTreeSet<Reference> {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut references = BTreeSet::from([Reference::new(ReferenceKind::Namespace, "", namespace)]);
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return references;
    }
    let mut add = |kind: ReferenceKind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            references.insert(Reference::new(kind, namespace, name));
        }
    };
    let spec = &pod["spec"];
    add(ReferenceKind::ServiceAccount, &spec["serviceAccountName"]);
    items(spec, "imagePullSecrets").for_each(|secret| add(ReferenceKind::Secret, &secret["name"]));
    for volume in items(spec, "volumes") {
        add(ReferenceKind::Secret, &volume["secret"]["secretName"]);
        add(ReferenceKind::Secret, &volume["azureFile"]["secretName"]);
        add(ReferenceKind::ConfigMap, &volume["configMap"]["name"]);
        add(ReferenceKind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if let (true, Some(pod), Some(own)) =
            (volume["ephemeral"].is_object(), pod["metadata"]["name"].as_str(), volume["name"].as_str())
        {
            add(ReferenceKind::Claim, &format!("{pod}-{own}").into());
        }
        for source in items(&volume["projected"], "sources") {
            add(ReferenceKind::Secret, &source["secret"]["name"]);
            add(ReferenceKind::ConfigMap, &source["configMap"]["name"]);
        }
        // CSI drivers and in-tree storage plugins with a secret of their own.
        for source in volume.as_object().into_iter().flat_map(serde_json::Map::values) {
            add(ReferenceKind::Secret, &source["secretRef"]["name"]);
            add(ReferenceKind::Secret, &source["nodePublishSecretRef"]["name"]);
        }
    }
    // The name of a claim that is created for the pod is in the pod's status.
    for claim in items(spec, "resourceClaims") {
        add(ReferenceKind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"], "resourceClaimStatuses") {
        add(ReferenceKind::ResourceClaim, &claim["resourceClaimName"]);
    }
    add(ReferenceKind::ResourceClaim, &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for source in items(container, "envFrom") {
                add(ReferenceKind::Secret, &source["secretRef"]["name"]);
                add(ReferenceKind::ConfigMap, &source["configMapRef"]["name"]);
            }
            for env in items(container, "env") {
                add(ReferenceKind::Secret, &env["valueFrom"]["secretKeyRef"]["name"]);
                add(ReferenceKind::ConfigMap, &env["valueFrom"]["configMapKeyRef"]["name"]);
            }
        }
    }
    references
}

/// The claim that a PersistentVolume is reserved for or bound to.
pub(super) fn claim_of_volume(volume: &Value) -> Option<ObjectKey> {
    let claim = &volume["spec"]["claimRef"];
    Some(ObjectKey::new(claim["namespace"].as_str()?, claim["name"].as_str()?))
}

/// The Secrets that kubelets need for a PersistentVolume of a claim.
pub(super) fn secrets_of_volume(volume: &Value, claim: &ObjectKey) -> BTreeSet<ObjectKey> {
    let mut secrets = BTreeSet::new();
    let mut add = |namespace: &Value, name: &Value, of_claim: bool| {
        let namespace = namespace.as_str().filter(|namespace| !namespace.is_empty());
        let namespace = namespace.or_else(|| of_claim.then_some(&*claim.namespace));
        if let (Some(namespace), Some(name)) = (namespace, name.as_str().filter(|name| !name.is_empty())) {
            secrets.insert(ObjectKey::new(namespace, name));
        }
    };
    let spec = &volume["spec"];
    add(&spec["azureFile"]["secretNamespace"], &spec["azureFile"]["secretName"], true);
    for (source, of_claim) in VOLUME_SECRET_REFS {
        let secret = &spec[source]["secretRef"];
        add(&secret["namespace"], &secret["name"], of_claim);
    }
    for field in CSI_SECRET_REFS {
        let secret = &spec["csi"][field];
        add(&secret["namespace"], &secret["name"], false);
    }
    secrets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_names_the_secrets_that_kubelets_read() {
        let claim = ObjectKey::new("mine", "c");
        let secrets = |source: Value| -> Vec<String> {
            let mut spec = json!({"claimRef": {"namespace": "mine", "name": "c"}});
            spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            let volume = json!({"metadata": {"name": "v"}, "spec": spec});
            assert_eq!(claim_of_volume(&volume).as_ref(), Some(&claim));
            secrets_of_volume(&volume, &claim).iter().map(ToString::to_string).collect()
        };
        for source in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO"] {
            assert_eq!(secrets(json!({source: {"secretRef": {"name": "s"}}})), ["mine/s"], "{source}");
            assert_eq!(secrets(json!({source: {"secretRef": {"name": "s", "namespace": "x"}}})), ["x/s"], "{source}");
        }
        for source in ["cinder", "storageos"] {
            assert!(secrets(json!({source: {"secretRef": {"name": "s"}}})).is_empty(), "{source}");
            assert_eq!(secrets(json!({source: {"secretRef": {"name": "s", "namespace": "x"}}})), ["x/s"], "{source}");
        }
        assert_eq!(secrets(json!({"azureFile": {"secretName": "s", "shareName": "f"}})), ["mine/s"]);
        assert_eq!(secrets(json!({"azureFile": {"secretName": "s", "secretNamespace": "x"}})), ["x/s"]);
        assert_eq!(secrets(json!({"azureFile": {"secretName": "s", "secretNamespace": ""}})), ["mine/s"]);
        let csi = |field: &str| secrets(json!({"csi": {"driver": "d", field: {"name": "s", "namespace": "x"}}}));
        for field in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
            assert_eq!(csi(field), ["x/s"], "{field}");
        }
        for field in ["controllerPublishSecretRef", "controllerExpandSecretRef"] {
            assert!(csi(field).is_empty(), "{field}");
        }
        assert!(
            secrets(json!({"nfs": {"server": "s", "path": "/"}, "cephfs": {"secretRef": {"name": ""}}})).is_empty()
        );
    }

    #[test]
    fn a_pod_names_the_secret_of_an_azure_file() {
        let volumes = json!([{"name": "v", "azureFile": {"secretName": "s", "shareName": "f"}}]);
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"volumes": volumes}});
        let namespace = Reference::new(ReferenceKind::Namespace, "", "ns");
        assert_eq!(of_pod(&pod), [Reference::new(ReferenceKind::Secret, "ns", "s"), namespace].into());
    }
}
