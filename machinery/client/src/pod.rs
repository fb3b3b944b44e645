//! A reduced pod for caches: pods are the most numerous objects, and most of their fields concern only their node.
//!
//! Fields are named as in k8s-openapi's type, which takes 2.4 KiB for an empty pod. No reader of a cache uses the
//! omitted fields, and none writes a whole pod (writers patch), so nothing is lost.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, PersistentVolumeClaimTemplate, PodIP, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::{Metadata, NamespaceResourceScope, Resource};
use serde::{Deserialize, Deserializer, Serialize};

use crate::interner::Interner;

mod condition;
mod resize;

pub use condition::Condition;

static SHAPES: Interner<PodShape> = Interner::new();

/// `kubectl apply` stores the whole manifest in this annotation; no decision reads it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A reduced pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Read")]
pub struct Pod {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodSpec>,
    /// The status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PodStatus>,
}

/// The wire form of a pod.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Read {
    #[serde(deserialize_with = "metadata")]
    metadata: ObjectMeta,
    spec: Option<PodShape>,
    status: Option<PodStatus>,
}

impl From<Read> for Pod {
    fn from(Read { metadata, mut spec, mut status }: Read) -> Self {
        if let (Some(spec), Some(status)) = (&mut spec, &mut status) {
            resize::raise(spec, status);
        }
        Self { metadata, spec: spec.map(PodSpec::of), status }
    }
}

/// A pod's spec.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The headless Service of its DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// The fields shared by pods of one template.
    #[serde(flatten)]
    pub shape: Arc<PodShape>,
}

/// Fields that pods of one template have in common; interned.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodShape {
    // Per-pod fields: decoded here, and moved out before the shape is interned.
    #[serde(skip_serializing)]
    node_name: Option<String>,
    #[serde(skip_serializing)]
    hostname: Option<String>,
    #[serde(skip_serializing)]
    subdomain: Option<String>,
    /// Its containers.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// Init containers, sidecars included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_containers: Option<Vec<Container>>,
    /// Time limit in seconds; a pod with one is terminating for quotas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    /// The PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// The scheduler that places it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// The priority; higher is more important.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether it may preempt others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption_policy: Option<String>,
    /// Gates that block scheduling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling_gates: Option<Vec<EmptyObject>>,
    /// Required labels of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Node and pod affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// The taints it tolerates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// Spreading over topology domains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// The RuntimeClass' overhead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<BTreeMap<String, Quantity>>,
    /// Pod-level resources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Its ResourceClaims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_claims: Option<Vec<EmptyObject>>,
    /// Its scheduling group (gang).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling_group: Option<EmptyObject>,
    /// All volumes if any refers to a claim or an image, since messages name a volume by its index; else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Volume>>,
}

/// A container of the spec.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<ContainerPort>>,
    /// Requests and limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// `Always` makes an init container a sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// Its number.
    #[serde(deserialize_with = "or_default")]
    pub container_port: i32,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP`, `UDP`, `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The bound host address.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// The bound host port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<i32>,
}

/// Requests and limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// By resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// Limits by resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

/// A volume's fields for scheduling.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// Its name; an ephemeral claim's name is derived from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The claim of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// The ephemeral claim of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralSource>,
    /// The image of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
}

/// The image of a volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageSource {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// The source of an ephemeral claim.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EphemeralSource {
    /// The claim's template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_claim_template: Option<PersistentVolumeClaimTemplate>,
}

/// The claim of a volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_name: Option<String>,
}

/// An object of which only the presence matters.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct EmptyObject {}

/// A pod's status.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// The phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// A CamelCase reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node on which preemption makes room for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nominated_node_name: Option<String>,
    /// When the kubelet acknowledged it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// Complete: a writer of one condition writes all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Box<[Condition]>>,
    /// Its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_statuses: Option<Box<[ContainerStatus]>>,
    /// Its init containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_container_statuses: Option<Box<[ContainerStatus]>>,
    /// Its first address.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
    /// Its addresses.
    #[serde(rename = "podIPs", skip_serializing_if = "Option::is_none")]
    pub pod_ips: Option<Box<[PodIP]>>,
    // Pod-level, as a container's.
    #[serde(skip_serializing)]
    allocated_resources: Option<BTreeMap<String, Quantity>>,
    #[serde(skip_serializing)]
    resources: Option<Resources>,
}

/// A container's status.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// The number of restarts.
    #[serde(deserialize_with = "or_default")]
    pub restart_count: i32,
    /// The present state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ContainerState>,
    // Resources allocated by its node: merged into the spec's requests, then removed.
    #[serde(skip_serializing)]
    allocated_resources: Option<BTreeMap<String, Quantity>>,
    #[serde(skip_serializing)]
    resources: Option<Resources>,
}

/// A container's state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Set once it has terminated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<Terminated>,
}

/// A container's termination.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// Its exit code.
    #[serde(deserialize_with = "or_default")]
    pub exit_code: i32,
    /// When it terminated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

impl Resource for Pod {
    const API_VERSION: &'static str = k8s_openapi::api::core::v1::Pod::API_VERSION;
    const GROUP: &'static str = k8s_openapi::api::core::v1::Pod::GROUP;
    const KIND: &'static str = k8s_openapi::api::core::v1::Pod::KIND;
    const VERSION: &'static str = k8s_openapi::api::core::v1::Pod::VERSION;
    const URL_PATH_SEGMENT: &'static str = k8s_openapi::api::core::v1::Pod::URL_PATH_SEGMENT;
    type Scope = NamespaceResourceScope;
}

impl Metadata for Pod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<'de> Deserialize<'de> for PodSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodShape::deserialize(deserializer).map(Self::of)
    }
}

impl PodSpec {
    fn of(mut shape: PodShape) -> Self {
        let matters = |volume: &Volume| {
            volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() || volume.image.is_some()
        };
        shape.volumes = shape.volumes.filter(|volumes| volumes.iter().any(matters));
        let volumes = shape.volumes.iter_mut().flatten();
        volumes.filter(|volume| volume.ephemeral.is_none()).for_each(|volume| volume.name = None);
        Self {
            node_name: shape.node_name.take(),
            hostname: shape.hostname.take(),
            subdomain: shape.subdomain.take(),
            shape: SHAPES.intern(shape),
        }
    }
}

impl Eq for PodShape {}

impl Hash for PodShape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The generated types inside don't implement `Hash`.
        serde_json::to_vec(self).unwrap_or_default().hash(state);
    }
}

/// Decodes null as the default value, as the generated types do.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Decodes metadata without long fields that no component reads; managed fields are skipped.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Read {
        annotations: Option<BTreeMap<String, String>>,
        creation_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
        deletion_timestamp: Option<Time>,
        finalizers: Option<Vec<String>>,
        generate_name: Option<String>,
        generation: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        name: Option<String>,
        namespace: Option<String>,
        owner_references: Option<Vec<OwnerReference>>,
        resource_version: Option<String>,
        uid: Option<String>,
    }
    let mut read: Read = or_default(deserializer)?;
    if let Some(annotations) = &mut read.annotations {
        annotations.remove(LAST_APPLIED);
    }
    read.finalizers.iter_mut().for_each(Vec::shrink_to_fit);
    read.owner_references.iter_mut().for_each(Vec::shrink_to_fit);
    Ok(ObjectMeta {
        annotations: read.annotations.filter(|annotations| !annotations.is_empty()),
        creation_timestamp: read.creation_timestamp,
        deletion_grace_period_seconds: read.deletion_grace_period_seconds,
        deletion_timestamp: read.deletion_timestamp,
        finalizers: read.finalizers,
        generate_name: read.generate_name,
        generation: read.generation,
        labels: read.labels,
        name: read.name,
        namespace: read.namespace,
        owner_references: read.owner_references,
        resource_version: read.resource_version,
        uid: read.uid,
        ..ObjectMeta::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(pod: &Value) -> Pod {
        serde_json::from_str(&pod.to_string()).unwrap()
    }

    #[test]
    fn fields_that_decisions_read_are_kept() {
        let port = json!([{"containerPort": 80, "name": "http", "hostIP": "10.0.0.1", "hostPort": 8080}]);
        let resources = json!({"requests": {"cpu": "1"}});
        let pod = read(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {LAST_APPLIED: "{}", "x": "y"},
                "managedFields": [{"manager": "m"}], "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "nodeName": "n", "tolerations": [{"operator": "Exists"}], "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "E"}], "ports": port, "resources": resources}],
                "initContainers": [{"name": "i", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "reason": "R"}], "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "image": "i", "imageID": "x",
                    "state": {"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:00:00Z", "reason": "Error"}}}],
            },
        }));
        let kept = json!({
            "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"x": "y"},
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "nodeName": "n", "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "i", "ports": port, "resources": resources}],
                "initContainers": [{"name": "i", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True", "reason": "R"}], "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}],
                "containerStatuses": [{"name": "c", "restartCount": 2,
                    "state": {"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:00:00Z"}}}],
            },
        });
        assert_eq!(serde_json::to_value(&pod).unwrap(), kept);
        assert_eq!(read(&kept), pod);
    }

    #[test]
    fn volumes_with_claims_keep_their_places() {
        let volumes =
            json!([{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "c"}}]);
        let pod = read(&json!({"metadata": {}, "spec": {"containers": [], "volumes": volumes}}));
        let claims = pod.spec.unwrap().shape.volumes.clone().unwrap();
        assert_eq!(claims.iter().map(|v| v.persistent_volume_claim.is_some()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn pods_of_one_template_share_its_shape() {
        let of = |name: &str, image_port: i32| {
            let spec = json!({"nodeName": name, "hostname": name, "schedulerName": "shared",
                "containers": [{"name": "c", "ports": [{"containerPort": image_port}]}]});
            read(&json!({"metadata": {"name": name}, "spec": spec})).spec.unwrap()
        };
        let (a, b, other) = (of("a", 1), of("b", 1), of("c", 2));
        assert!(Arc::ptr_eq(&a.shape, &b.shape) && !Arc::ptr_eq(&a.shape, &other.shape));
        assert_eq!((b.node_name.as_deref(), b.hostname.as_deref()), (Some("b"), Some("b")));
    }

    /// Upstream never writes these, but another writer to its store may have.
    #[test]
    fn nulls_hide_no_pod() {
        let pod =
            read(&json!({"metadata": null, "spec": {"containers": null, "initContainers": null, "volumes": null},
            "status": {"conditions": [{"type": "T", "status": "True", "lastTransitionTime": null}],
                "containerStatuses": [{"name": null, "restartCount": null, "state": {"terminated": null}}]}}));
        assert!(pod.spec.unwrap().shape.containers.is_empty());
    }
}
