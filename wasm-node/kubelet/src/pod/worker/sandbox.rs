//! The resources of the node that a pod holds from its mount to its cleanup. A cleanup drops them together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use runtime_api::MemoryFiles;

use super::Task;
use super::volumes::PodVolumes;
use crate::config::sources::{ConfigSource, SourceKind};
use crate::volume::measure::MeasureGuard;
use crate::volume::usage::VolumeLimits;

/// A pod's resources of the node; the default has none.
#[derive(Default)]
pub(super) struct PodSandbox {
    pub(super) volumes: Option<PodVolumes>,
    /// Waits for an address or a host port.
    pub(super) mount_retry: Option<Task>,
    /// The missing resource of the last event.
    pub(super) last_mount_error: Option<String>,
    /// Measures the disk usage of running containers, with its limits.
    pub(super) measure: Option<(VolumeLimits, MeasureGuard)>,
    /// The listeners of the host ports.
    pub(super) host_ports: Vec<Task>,
    /// The memory account of the pod's in-memory volumes, if it has any.
    pub(super) memory_files: Option<Arc<MemoryFiles>>,
    /// The ConfigMaps and Secrets of the containers. They are held from the first start on, so that restarts work while
    /// the API is unavailable.
    pub(super) sources: BTreeMap<(SourceKind, String), Arc<ConfigSource>>,
    /// The pod's address.
    pub(super) ip: Option<IpAddr>,
}
