//! The contents of the checkpoint's files, as JSON. Pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Service, ServicePort, ServiceSpec, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_client::checkpoint::CheckpointError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::spec::referred::{BoundVolume, Content, SourceKind, plain};

/// The kinds of files, in their headers.
pub(crate) const NODE: &str = "node";
pub(crate) const POD: &str = "pod";
pub(crate) const SOURCE: &str = "source";
pub(crate) const SERVICES: &str = "services";

/// The Node that a folder was first written for. It stays when the Node object is created again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    pub(crate) node_name: String,
    pub(crate) node_uid: String,
}

/// The facts of the Node that the agent needs before it can run pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRecord {
    pub(crate) name: String,
    /// The current uid.
    pub(crate) uid: String,
    /// The first uid that was recorded.
    pub(crate) origin: String,
    pub(crate) pod_cidr: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) taints: Vec<Taint>,
}

impl NodeRecord {
    pub(crate) fn origin(&self) -> Origin {
        Origin { node_name: self.name.clone(), node_uid: self.origin.clone() }
    }
}

/// A pod that the agent has admitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodRecord {
    pub(crate) origin: Origin,
    /// The pod as received, with the agent's own status: address, starts and exits.
    pub(crate) pod: Pod,
    /// The volumes of its claims, by volume name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) claims: BTreeMap<String, BoundVolume>,
    /// The uid of its namespace, which owns its keyvalue store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace_uid: Option<String>,
    /// The identity of its cluster, where the keyvalue store is shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster_uid: Option<String>,
}

impl PodRecord {
    pub(crate) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The agent's status.
    pub(crate) fn status(&self) -> PodStatus {
        self.pod.status.clone().unwrap_or_default()
    }
}

/// A pod with the agent's status in place of the received one. Conditions of other writers stay.
pub(crate) fn with_status(pod: &Pod, own: &PodStatus) -> Pod {
    let received = pod.status.clone().unwrap_or_default();
    let mut conditions = own.conditions.clone().unwrap_or_default();
    for other in received.conditions.into_iter().flatten() {
        if conditions.iter().all(|condition| condition.type_ != other.type_) {
            conditions.push(other);
        }
    }
    let status = PodStatus {
        conditions: Some(conditions),
        qos_class: received.qos_class,
        nominated_node_name: received.nominated_node_name,
        ..own.clone()
    };
    let mut pod = Pod { status: Some(status), ..pod.clone() };
    pod.metadata.managed_fields = None;
    pod
}

/// Whether the agent's status is of a later time in the pod's life than the API's: it has more starts or exits, or the
/// pod's end. The API may lack the last ones, and the checkpoint those after a failed write.
pub(crate) fn is_ahead(own: &PodStatus, api: Option<&PodStatus>) -> bool {
    let progress = |status: &PodStatus| {
        let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        let containers = || lists.into_iter().flatten().flatten();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let starts: i64 = containers().map(|container| i64::from(container.restart_count)).sum();
        let states = containers().filter_map(|container| container.state.as_ref());
        (ended, starts, states.filter(|state| state.terminated.is_some()).count())
    };
    api.is_none_or(|api| progress(own) > progress(api))
}

/// A ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceRecord {
    /// `ConfigMap` or `Secret`.
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    #[serde(default)]
    immutable: bool,
    #[serde(default)]
    secret_type: String,
    /// The values by key.
    data: BTreeMap<String, ByteString>,
}

/// The name of a source's file: the names of a namespace and an object together may be too long for one.
pub(crate) fn source_id(kind: SourceKind, namespace: &str, name: &str) -> String {
    let hash = Sha256::digest(format!("{}/{namespace}/{name}", kind.word()));
    hex::encode(&hash[..16])
}

impl SourceRecord {
    pub(crate) fn new(kind: SourceKind, namespace: &str, name: &str, content: &Content) -> Self {
        Self {
            kind: kind.kind().to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: content.uid.clone(),
            immutable: content.immutable,
            secret_type: content.secret_type.clone(),
            data: content.data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone()))).collect(),
        }
    }

    /// The name of its file; `None` for an unknown kind.
    pub(crate) fn id(&self) -> Option<String> {
        let kind = [SourceKind::ConfigMap, SourceKind::Secret].into_iter().find(|kind| kind.kind() == self.kind)?;
        Some(source_id(kind, &self.namespace, &self.name))
    }

    /// The content.
    pub(crate) fn content(&self) -> Content {
        Content {
            data: self.data.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect(),
            immutable: self.immutable,
            uid: self.uid.clone(),
            secret_type: self.secret_type.clone(),
        }
    }
}

/// The part of a Service that pods' environments show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceRecord {
    namespace: String,
    name: String,
    cluster_ip: String,
    ports: Vec<PortRecord>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortRecord {
    port: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
}

impl ServiceRecord {
    /// The record of a Service; `None` if environments don't show it.
    pub(crate) fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let cluster_ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None")?;
        let port = |port: &ServicePort| PortRecord {
            port: port.port,
            name: port.name.clone(),
            protocol: port.protocol.clone(),
        };
        Some(Self {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
            cluster_ip,
            ports: spec.ports.iter().flatten().map(port).collect(),
        })
    }

    /// Whether the environment of pods in that namespace may show it.
    pub(crate) fn is_visible_in(&self, namespace: &str) -> bool {
        self.namespace == namespace || self.namespace == "default" && self.name == "kubernetes"
    }

    /// A Service with the recorded part.
    pub(crate) fn service(&self) -> Service {
        let port = |port: &PortRecord| ServicePort {
            port: port.port,
            name: port.name.clone(),
            protocol: port.protocol.clone(),
            ..ServicePort::default()
        };
        let metadata = ObjectMeta {
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            ..ObjectMeta::default()
        };
        let spec = ServiceSpec {
            cluster_ip: Some(self.cluster_ip.clone()),
            ports: Some(self.ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        };
        Service { metadata, spec: Some(spec), ..Service::default() }
    }
}

/// The body of a record's file.
pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(record)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, CheckpointError> {
    serde_json::from_slice(body).map_err(CheckpointError::damaged)
}

/// Reads the record of the node of that name.
///
/// # Errors
/// The body is invalid, or belongs to another node.
pub(crate) fn decode_node(body: &[u8], name: &str) -> Result<NodeRecord, CheckpointError> {
    let record: NodeRecord = parse(body)?;
    if record.name != name {
        return Err(CheckpointError::Foreign(format!("node {}", record.name)));
    }
    if record.uid.is_empty() || record.origin.is_empty() {
        return Err(CheckpointError::damaged("the node has no uid"));
    }
    Ok(record)
}

/// Reads a pod's record. `file` is the name of its file without extension, `origin` that of the folder, if it is known.
///
/// # Errors
/// The body is invalid, or belongs to another node.
pub(crate) fn decode_pod(
    body: &[u8],
    file: &str,
    name: &str,
    origin: Option<&Origin>,
) -> Result<PodRecord, CheckpointError> {
    let record: PodRecord = parse(body)?;
    let own = origin.is_none_or(|origin| *origin == record.origin) && record.origin.node_name == name;
    if !own {
        let Origin { node_name, node_uid } = &record.origin;
        return Err(CheckpointError::Foreign(format!("node {node_name} ({node_uid})")));
    }
    let metadata = &record.pod.metadata;
    let named =
        [&metadata.name, &metadata.namespace].into_iter().all(|text| text.as_ref().is_some_and(|t| !t.is_empty()));
    if !named || record.pod.spec.is_none() || plain(record.uid()) != file {
        return Err(CheckpointError::damaged("it is no pod of that file's uid"));
    }
    Ok(record)
}

/// Reads a source's record. `file` is the name of its file without extension.
///
/// # Errors
/// The body is invalid.
pub(crate) fn decode_source(body: &[u8], file: &str) -> Result<SourceRecord, CheckpointError> {
    let record: SourceRecord = parse(body)?;
    if record.id().as_deref() != Some(file) {
        return Err(CheckpointError::damaged("it is no object of that file's name"));
    }
    Ok(record)
}

/// Reads the record of the Services.
///
/// # Errors
/// The body is invalid.
pub(crate) fn decode_services(body: &[u8]) -> Result<Vec<ServiceRecord>, CheckpointError> {
    parse(body)
}
