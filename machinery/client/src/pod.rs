//! A pod as views hold it: pods are the many, and most of one is for its node alone.
//!
//! Fields are named as in k8s-openapi's type, whose width (2.4 KiB for an empty pod) is what this one is for. No role that
//! reads a view looks at the rest, and none writes a pod as a whole (they patch), so nothing is lost.

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

use machinery_api::shared::Pool;

mod condition;
mod resize;

pub use condition::Condition;

static SHAPES: Pool<PodShape> = Pool::new();

/// `kubectl apply` keeps the whole manifest in this annotation, and no decision reads it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// See the module.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "Read")]
pub struct Pod {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What it shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodSpec>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PodStatus>,
}

/// A pod as it is read.
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
    /// The headless Service that it is named below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subdomain: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub shape: Arc<PodShape>,
}

/// What pods of one template have in common, and share.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodShape {
    // A pod's own: they are read here, and taken out before the shape is shared.
    #[serde(skip_serializing)]
    node_name: Option<String>,
    #[serde(skip_serializing)]
    hostname: Option<String>,
    #[serde(skip_serializing)]
    subdomain: Option<String>,
    /// Its containers.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
    /// Those that go before, and sidecars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_containers: Option<Vec<Container>>,
    /// How long it may run; who does has an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    /// Its class of priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Whose pod it is to place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// Higher goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether others go for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preemption_policy: Option<String>,
    /// What it waits for before it is placed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling_gates: Option<Vec<Present>>,
    /// The labels of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Near what it shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// The taints it tolerates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,
    /// How it is spread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// What it costs beside its containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead: Option<BTreeMap<String, Quantity>>,
    /// What it asks for as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The devices that it claims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_claims: Option<Vec<Present>>,
    /// The gang that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduling_group: Option<Present>,
    /// All of them where one needs a claim or an image, as refusals name it by its index; else none.
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
    /// What it asks for.
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
    /// The node's address that it takes.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// The node's port that it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<i32>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// By resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<BTreeMap<String, Quantity>>,
    /// How much it may have at most, by resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, Quantity>>,
}

/// A volume, as far as scheduling depends on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    /// Its name, where a claim is named after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It is a claim's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A claim is made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralSource>,
    /// It is an image's content.
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

/// What the claim of a volume is made of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EphemeralSource {
    /// The claim.
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

/// An object of which only matters that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Present {}

/// A pod's status.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The node on which room is made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nominated_node_name: Option<String>,
    /// When its node took it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// Whole: who changes one writes all.
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
    // As a container's.
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
    /// How often it was started again.
    #[serde(deserialize_with = "or_default")]
    pub restart_count: i32,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ContainerState>,
    // What its node has given it: read into the spec's requests, and taken out.
    #[serde(skip_serializing)]
    allocated_resources: Option<BTreeMap<String, Quantity>>,
    #[serde(skip_serializing)]
    resources: Option<Resources>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// It has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// Its code.
    #[serde(deserialize_with = "or_default")]
    pub exit_code: i32,
    /// When.
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
            shape: SHAPES.share(shape),
        }
    }
}

impl Eq for PodShape {}

impl Hash for PodShape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The generated types inside have no hash of their own.
        serde_json::to_vec(self).unwrap_or_default().hash(state);
    }
}

/// A null where a value belongs is that value's default, as the generated types read it.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Metadata without what is long and read by nobody; managed fields aren't even looked at.
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
    fn what_decisions_read_stays() {
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

    /// Upstream never writes these, but whoever wrote to its store may have.
    #[test]
    fn nulls_hide_no_pod() {
        let pod =
            read(&json!({"metadata": null, "spec": {"containers": null, "initContainers": null, "volumes": null},
            "status": {"conditions": [{"type": "T", "status": "True", "lastTransitionTime": null}],
                "containerStatuses": [{"name": null, "restartCount": null, "state": {"terminated": null}}]}}));
        assert!(pod.spec.unwrap().shape.containers.is_empty());
    }
}
