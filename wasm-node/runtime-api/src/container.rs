//! What a container is made from, and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

use machinery_api::imports::ImportRules;
use machinery_serve::net::{Caller, Dial};

use super::ledger::Ledger;
use super::pipe::PipeReader;
use super::{CpuQuota, Grants, Limits, MemoryFiles, Preopen, VolumeQuota};

/// Which of a guest's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output.
    Stdout,
    /// Standard error; also the node's own lines, such as a trap's backtrace.
    Stderr,
}

/// Where a container's output goes. Called on the guest's thread, so it must not block; it bounds what it keeps and
/// limits the rate by itself. Bytes come as the guest wrote them, at most 64 KiB at a time.
pub trait LogSink: Send + Sync {
    /// Takes what a guest wrote.
    fn write(&self, stream: StdStream, bytes: &[u8]);
}

/// Values that a guest reads by name, as they are at that moment.
pub trait ConfigValues: Send + Sync {
    /// The value of a name.
    fn get(&self, key: &str) -> Option<String>;

    /// All names and values.
    fn all(&self) -> Vec<(String, String)>;
}

/// Who owns what guests keep by `wasi:keyvalue`: a namespace. The uid tells it from an earlier one of its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyvalueOwner {
    /// Its name.
    pub namespace: String,
    /// Its `metadata.uid`.
    pub uid: String,
}

/// What a container is made from.
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
    /// The only imports that the module may have, where that is bounded: `wasi:cli/stdout@0.2.3`, and of a core module
    /// `wasi_snapshot_preview1/fd_write`. Programs that are run in the container's sandbox are bound by it, too.
    pub imports: Option<Arc<ImportRules>>,
    /// What the guest reads by `wasi:config/store`, where that is granted.
    pub config: Option<Arc<dyn ConfigValues>>,
    /// Whose `wasi:keyvalue` it has, where that is granted.
    pub keyvalue: Option<KeyvalueOwner>,
    /// Where stdout and stderr go.
    pub log: Arc<dyn LogSink>,
    /// What a command reads; none = an empty input.
    pub stdin: Option<PipeReader>,
    /// Whether the guest is told that these are a terminal.
    pub terminal: bool,
    /// The ledger of its pod, see [`Ledger::pod`].
    pub pod: Arc<Ledger>,
    /// What the pod's containers may use of the CPU together.
    pub pod_cpu: Option<Arc<CpuQuota>>,
    /// The account of the pod's volumes in memory, where it has any.
    pub memory_files: Option<Arc<MemoryFiles>>,
    /// The bounds of volumes of claims that it writes to.
    pub quotas: Vec<Arc<VolumeQuota>>,
    /// Who calls when the guest calls out.
    pub caller: Caller,
    /// How the guest calls out; none = every outgoing request is denied.
    pub dial: Option<Arc<dyn Dial>>,
}

/// Figures of one container, for `kubectl top`, the HPA and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instances made since the container's start.
    pub instances_started: u64,
    /// Instances that live now.
    pub instances_live: u64,
    /// CPU time used.
    pub cpu: Duration,
    /// Time for which polls were held back by `limits.cpu`.
    pub cpu_throttled: Duration,
    /// Bytes that live instances hold now: linear memories, tables, host-side buffers.
    pub memory_bytes: u64,
    /// The most they ever held.
    pub memory_peak_bytes: u64,
    /// Files, folders and sockets that its instances have open.
    pub descriptors: u64,
    /// Grows with every change of a writable volume.
    pub disk_changes: u64,
    /// Fuel used, where metered.
    pub fuel_used: u64,
    /// Requests answered, by anything.
    pub requests: u64,
    /// Of these, the node's own: nobody's traffic.
    pub probes: u64,
    /// Of these: traps, over memory, out of fuel, timeouts.
    pub failures: Failures,
}

/// How requests or runs failed.
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
