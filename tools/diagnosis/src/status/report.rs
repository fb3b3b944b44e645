//! The result of `coracle status` as data. `--output json` prints it: a change of a name breaks scripts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::inspection::certificates::CertificateEnd;
use crate::inspection::disk::DiskUse;
use crate::inspection::lock::ProcessFacts;
use tools_cluster::probe::ProbeError;

/// What runs in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StatusReport {
    pub(crate) state: ClusterState,
    /// Whether there are no problems.
    pub(crate) healthy: bool,
    pub(crate) problems: Vec<Problem>,
    pub(crate) program: ProgramVersions,
    pub(crate) control_plane: ControlPlane,
    pub(crate) process: Option<ProcessFacts>,
    pub(crate) addresses: Addresses,
    pub(crate) nodes: Option<Section<Vec<NodeRow>>>,
    pub(crate) workloads: Option<Section<Workloads>>,
    pub(crate) data_folder: Option<DiskUse>,
    pub(crate) certificates: Vec<CertificateEnd>,
}

/// Whether the cluster runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ClusterState {
    /// The API server answers.
    Running,
    /// No process has the data folder.
    Stopped,
    /// A process has the data folder, or the cluster is elsewhere, and the API server doesn't answer.
    Unreachable,
    /// No cluster has run in the data folder.
    Absent,
}

/// Something that isn't healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    pub(crate) message: String,
    /// What to do next: a command where there is one.
    pub(crate) next: String,
}

/// The versions of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProgramVersions {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) kubernetes: String,
}

/// The API server and its store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ControlPlane {
    /// The kubeconfig that leads to it.
    pub(crate) kubeconfig: Option<String>,
    /// `https://ADDR:PORT`
    pub(crate) server: Option<String>,
    /// The version of its API.
    pub(crate) version: Option<String>,
    /// Why it doesn't answer.
    pub(crate) error: Option<String>,
    /// The checks of `/readyz`.
    pub(crate) checks: Vec<ReadyCheck>,
    /// The store of the objects, if the data folder shows it.
    pub(crate) store: Option<String>,
}

/// A check of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReadyCheck {
    pub(crate) name: String,
    pub(crate) passes: bool,
}

/// The addresses of a cluster; absent ones are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Addresses {
    pub(crate) registry: Option<String>,
    /// Of cluster DNS, for processes of this machine.
    pub(crate) dns: Option<String>,
    /// Of cluster DNS in the cluster.
    pub(crate) cluster_dns: Option<String>,
    pub(crate) service_cidr: Option<String>,
    pub(crate) pod_cidr: Option<String>,
}

/// A part of the result that the API server may refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Section<T> {
    /// The content.
    Read(T),
    /// The user of the kubeconfig has no right to read it: the message of the API server.
    Forbidden(String),
    /// The request failed.
    Failed(String),
}

impl<T> Section<T> {
    pub(crate) fn of(result: Result<T, ProbeError>) -> Self {
        match result {
            Ok(content) => Self::Read(content),
            Err(error) if error.is_forbidden() => Self::Forbidden(error.to_string()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }

    pub(crate) fn read(&self) -> Option<&T> {
        match self {
            Self::Read(content) => Some(content),
            _ => None,
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeRow {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// The reason and the message of a node that isn't ready.
    pub(crate) reason: Option<String>,
    /// Conditions such as DiskPressure.
    pub(crate) pressures: Vec<String>,
    /// Whether no new pods are scheduled to it.
    pub(crate) cordoned: bool,
    pub(crate) version: String,
    pub(crate) address: Option<String>,
    /// Pods that haven't ended; absent if pods can't be read.
    pub(crate) pods: Option<u64>,
    pub(crate) pods_max: Option<u64>,
    /// CPU time in use, in thousandths of a core; absent without metrics.
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) cpu_millis_max: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) memory_bytes_max: Option<u64>,
}

/// Pods and the workloads that they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Workloads {
    /// Number of pods by phase.
    pub(crate) pods: BTreeMap<String, u64>,
    /// The first pods that aren't ready, in the order of namespace and name.
    pub(crate) pods_not_ready: Vec<NotReady>,
    pub(crate) pods_not_ready_count: u64,
    /// Deployments, StatefulSets and DaemonSets with fewer ready pods than they want.
    pub(crate) not_ready: Vec<NotReady>,
    pub(crate) not_ready_count: u64,
    /// Whether there are more pods than were counted.
    pub(crate) truncated: bool,
}

/// An object that isn't ready.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotReady {
    pub(crate) namespace: String,
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    /// Such as `CrashLoopBackOff` or `2 of 3 ready`.
    pub(crate) reason: String,
    pub(crate) message: String,
}
