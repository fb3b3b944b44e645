//! What is known of a machine. Facts that the system doesn't report are `None`.

use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use wasm_runtime::engine::PoolCapacity;

use crate::inspection::certificates::CertificateEnd;
use crate::inspection::disk::DiskSpace;

/// All facts.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) machine: MachineFacts,
    pub(crate) clock: ClockFacts,
    pub(crate) folder: FolderFacts,
    pub(crate) tools: ToolFacts,
}

/// The system's limits and sockets.
#[derive(Debug, Clone)]
pub(crate) struct MachineFacts {
    /// What a low limit of open files restricts.
    pub(crate) descriptor_shortage: Option<String>,
    /// The address of the API server; port 0: a free one.
    pub(crate) api_address: SocketAddr,
    pub(crate) api_port: PortState,
    /// Port 80 on an address like a ClusterIP; `None` where ClusterIPs have no listeners.
    pub(crate) http_port: Option<PortState>,
    /// The lowest port that a user may bind.
    pub(crate) unprivileged_port_start: Option<u16>,
    pub(crate) pool: PoolCapacity,
    /// `vm.overcommit_memory`.
    pub(crate) overcommit: Option<u8>,
    pub(crate) memory_bytes: Option<u64>,
    /// The memory limit of the control group of this process, if it is below the machine's memory.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Blocks of 127.0.0.0/8 without a cluster.
    pub(crate) free_blocks: Option<usize>,
}

/// Whether a process may listen on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortState {
    Free,
    Taken,
    /// Not by this user.
    Forbidden,
    /// The address isn't one of this machine, or another error.
    Failed(String),
}

/// Clocks.
#[derive(Debug, Clone)]
pub(crate) struct ClockFacts {
    pub(crate) now: Timestamp,
    /// The time of the commit that this program is built from.
    pub(crate) built_at: Option<Timestamp>,
    /// The time of the cluster's API server.
    pub(crate) server_time: Option<Timestamp>,
    /// The start of the validity of the cluster's authority.
    pub(crate) authority_since: Option<Timestamp>,
    /// Whether a time service keeps the clock.
    pub(crate) synchronized: Option<bool>,
}

/// The data folder.
#[derive(Debug, Clone)]
pub(crate) struct FolderFacts {
    pub(crate) path: PathBuf,
    /// The disk of the folder, or of the place where it would be made.
    pub(crate) disk: Option<DiskSpace>,
    /// Files and folders that must be private, with their mode bits. `None` where files have no such bits.
    pub(crate) modes: Option<Vec<FileMode>>,
    /// Why the folder can't be read.
    pub(crate) error: Option<String>,
    pub(crate) certificates: Vec<CertificateEnd>,
    /// Whether a cluster runs here.
    pub(crate) is_running: bool,
    /// A socket of a process that has ended.
    pub(crate) leftover_socket: Option<PathBuf>,
}

/// The mode of a private file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileMode {
    pub(crate) path: PathBuf,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) is_folder: bool,
}

/// kubectl and its configuration.
#[derive(Debug, Clone)]
pub(crate) struct ToolFacts {
    /// The cluster's kubeconfig, if there is one.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The files in KUBECONFIG; empty if it isn't set.
    pub(crate) kubeconfig_variable: Vec<PathBuf>,
    pub(crate) kubectl: Kubectl,
}

/// The kubectl on the search path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kubectl {
    Absent,
    /// Its version, such as `v1.36.0`.
    Version(String),
    /// Why its version is unknown.
    Failed(String),
}
