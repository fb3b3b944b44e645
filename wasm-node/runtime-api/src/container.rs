//! A container's specification for the runtime, its log sink, and its statistics. Plain data.

use std::sync::Arc;
use std::time::Duration;

use machinery_api::imports::ImportRules;
use machinery_serve::net::{Caller, Dial, PodNetwork};

use super::ledger::{Ledger, Resource, ResourceUse};
use super::pipe::PipeReader;
use super::{CpuQuota, Grants, Limits, MemoryFiles, Preopen, VolumeQuota};

/// One of a guest's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output.
    Stdout,
    /// Standard error; also the node's own lines, such as a trap's backtrace.
    Stderr,
}

/// Destination of a container's output. Called on the guest's thread, so it must not block; it limits its size and rate
/// itself. Bytes arrive as written by the guest, at most 64 KiB at a time.
pub trait LogSink: Send + Sync {
    /// Writes a guest's output.
    fn write(&self, stream: StdStream, bytes: &[u8]);
}

/// Values that a guest reads by name; each call returns the current one.
pub trait ConfigValues: Send + Sync {
    /// The value of a name.
    fn get(&self, key: &str) -> Option<String>;

    /// All names and values.
    fn all(&self) -> Vec<(String, String)>;
}

/// Owner of a `wasi:keyvalue` store: a namespace. The uid distinguishes it from an earlier one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyvalueOwner {
    /// Its name.
    pub namespace: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// Identity of its cluster, the uid of the namespace `kube-system`, for a store that several clusters may share;
    /// `None`: the store of this node.
    pub cluster: Option<String>,
}

/// Specification of a container.
#[derive(Clone)]
pub struct ContainerSpec {
    /// For the node's own log: `namespace/pod/container`.
    pub name: String,
    /// argv, argv[0] first.
    pub argv: Vec<String>,
    /// The environment, in order; a name given twice keeps its last value.
    pub env: Vec<(String, String)>,
    /// `workingDir`.
    pub cwd: Option<String>,
    /// Volumes.
    pub preopens: Vec<Preopen>,
    /// Limits of the spec and its annotations.
    pub limits: Limits,
    /// Optional host interfaces, see [`Grants::parse`].
    pub grants: Grants,
    /// The only permitted imports of the module, where restricted: `wasi:cli/stdout@0.2.3`, and of a core module
    /// `wasi_snapshot_preview1/fd_write`. Programs run in the container's sandbox are restricted, too.
    pub imports: Option<Arc<ImportRules>>,
    /// Values of `wasi:config/store`, where that is granted.
    pub config: Option<Arc<dyn ConfigValues>>,
    /// Owner of its `wasi:keyvalue` store, where that is granted.
    pub keyvalue: Option<KeyvalueOwner>,
    /// Destination of stdout and stderr.
    pub log: Arc<dyn LogSink>,
    /// A command's stdin; `None`: an empty input.
    pub stdin: Option<PipeReader>,
    /// Whether the guest's standard streams report a terminal.
    pub terminal: bool,
    /// The ledger of its pod, see [`Ledger::pod`].
    pub pod: Arc<Ledger>,
    /// CPU quota of the pod's containers together.
    pub pod_cpu: Option<Arc<CpuQuota>>,
    /// The account of the pod's volumes in memory, where it has any.
    pub memory_files: Option<Arc<MemoryFiles>>,
    /// Quotas of claims' volumes that it writes to.
    pub quotas: Vec<Arc<VolumeQuota>>,
    /// The caller identity of its outgoing requests.
    pub caller: Caller,
    /// Dials outgoing requests; `None`: every one is denied.
    pub dial: Option<Arc<dyn Dial>>,
    /// The network in which its sockets listen; `None`: it has no sockets.
    pub network: Option<PodNetwork>,
}

/// Statistics of one container, for `kubectl top`, the HPA and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instances created since the container's start.
    pub instances_started: u64,
    /// Live instances.
    pub instances_live: u64,
    /// CPU time used.
    pub cpu: Duration,
    /// Total delay of polls by `limits.cpu`.
    pub cpu_throttled: Duration,
    /// Bytes held by live instances: linear memories, tables, host-side buffers.
    pub memory_bytes: u64,
    /// Maximum of `memory_bytes` so far.
    pub memory_peak_bytes: u64,
    /// Open files, folders and sockets of its instances.
    pub descriptors: u64,
    /// Incremented with every change of a writable volume.
    pub disk_changes: u64,
    /// Fuel used, where metered.
    pub fuel_used: u64,
    /// Requests with any response.
    pub requests: u64,
    /// Of these, the node's own probes and hooks.
    pub probes: u64,
    /// Responses whose guest failed after the head: the client saw a success, and an incomplete body.
    pub cut: u64,
    /// Of the requests, failures by cause.
    pub failures: Failures,
    /// Use of host resources and rejections by their limits, in the order of [`Resource::ALL`].
    pub resources: [ResourceUse; Resource::ALL.len()],
}

/// Failed requests or runs by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    /// Traps.
    pub trap: u64,
    /// Over the memory limit.
    pub memory: u64,
    /// Out of fuel.
    pub fuel: u64,
    /// Over the request timeout.
    pub timeout: u64,
    /// No response.
    pub no_response: u64,
}
