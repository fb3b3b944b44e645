//! The container runtime interface of a kubelet: upstream's CRI, for modules instead of images.
//!
//! [`Runtime`] compiles and loads modules, a [`Module`] creates [`Container`]s, and a container either runs to its end
//! ([`Container::run`]) or serves requests ([`Container::serve`]). `wasm-runtime` implements it with wasmtime,
//! [`simulated`] with scripts, so that tests of the pod lifecycle need neither compiler nor threads.
//!
//! Absent on purpose: wasmtime and Kubernetes.
#![warn(missing_docs)]

mod container;
mod cpu;
pub mod disk;
pub mod flights;
mod grants;
pub mod keyvalue;
pub mod ledger;
mod limits;
mod memory_files;
mod module;
mod outcome;
pub mod pipe;
mod preopen;
mod server;
mod session;
pub mod simulated;
mod volume_quota;

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use machinery_serve::net::Serve;

pub use container::{ConfigValues, ContainerSpec, Failures, KeyvalueOwner, LogSink, Stats, StdStream};
pub use cpu::{CpuQuota, TokenBucket};
pub use grants::{GrantError, Grants};
pub use limits::{
    CONCURRENCY_DEFAULT, CPU_SHARES_MIN, Limits, REQUEST_TIMEOUT_DEFAULT, REUSE_COUNT_DEFAULT, REUSE_IDLE_DEFAULT,
    Reuse, cpu_shares,
};
pub use memory_files::MemoryFiles;
pub use module::{Inspection, Kind, LoadError, MODULE_BYTES_MAX, Metering, ModuleInspector};
pub use outcome::{Outcome, OutcomeReason, StopSignal};
pub use preopen::Preopen;
pub use server::{NodeCall, TrialOutcome};
pub use session::{ExecError, ExecSpec, Session, Stdio};
pub use volume_quota::{FileAccount, Moving, VOLUME_FILES_MAX, VolumeQuota, VolumeUse};

use ledger::Ledger;

/// A container runtime, shared by all node agents of a process.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Its name and version, for a Node's `containerRuntimeVersion`.
    fn version(&self) -> (&'static str, &'static str);

    /// Host interfaces that need a grant by the pod's annotation.
    fn optional_interfaces(&self) -> Vec<&'static str>;

    /// Compiles the module in `file` unless it is cached. `digest` is the file's own; the compilation is charged to
    /// `namespace`.
    async fn compile(&self, digest: &str, file: &Path, metering: Metering, namespace: &str) -> Result<(), LoadError>;

    /// The same with lowest priority, once the compilers have been idle for a while.
    async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError>;

    /// The maximum compile time of one module, waiting excluded; `None`: unlimited.
    fn compile_time_max(&self) -> Option<Duration> {
        None
    }

    /// Loads a module, compiling it if necessary; shared by all its users.
    async fn load(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Arc<dyn Module>, LoadError>;

    /// Loads a module as a command, whatever its kind; `None` if it exports neither `wasi:cli/run` nor `_start`.
    async fn load_command(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError>;

    /// Bytes of compiled modules on disk, by the module's digest.
    fn compiled(&self) -> std::io::Result<BTreeMap<String, u64>>;

    /// Removes unused compiled modules; returns the freed bytes.
    fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64>;

    /// The ledger of all containers, the parent of pods' ledgers.
    fn ledger(&self) -> &Arc<Ledger>;

    /// Whether `wasi:keyvalue` is a store that several nodes share.
    fn is_keyvalue_shared(&self) -> bool;

    /// Owners of the `wasi:keyvalue` stores of this node, or of a cluster's in the shared store: there a part at each
    /// call, and none while another node looks.
    async fn keyvalue_owners(&self, cluster: Option<&str>) -> std::io::Result<Vec<KeyvalueOwner>>;

    /// Removes an owner's store, if there is one.
    async fn remove_keyvalue(&self, owner: &KeyvalueOwner) -> std::io::Result<()>;
}

/// A loaded module.
pub trait Module: Any + Send + Sync {
    /// The module's digest (`sha256:…`).
    fn digest(&self) -> &str;

    /// Command, server or plugin.
    fn kind(&self) -> Kind;

    /// Creates a container. Opens and starts nothing.
    fn container(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, LoadError>;
}

/// Permission to run a command, released on drop.
pub struct Admitted(#[expect(dead_code, reason = "held until it is dropped")] Box<dyn Any + Send + Sync>);

impl Admitted {
    /// A permission that lasts as long as `held`.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self(Box::new(held))
    }
}

/// A container. Dropping it ends nothing that runs.
#[async_trait]
pub trait Container: Send + Sync + std::fmt::Debug {
    /// Command, server or plugin.
    fn kind(&self) -> Kind;

    /// The container's statistics.
    fn stats(&self) -> Stats;

    /// Sets new limits of memory and CPU, and the weight; memory already held stays held.
    fn resize(&self, limits: &Limits);

    /// The error that prevents every instance, if any.
    fn broken(&self) -> Option<String>;

    /// Waits until a command may run.
    async fn admit(&self) -> Admitted;

    /// Runs a command to its end, or until `stop` resolves. Dropping the future ends it too.
    async fn run(&self, admitted: Admitted, stop: BoxFuture<'static, StopSignal>) -> Outcome;

    /// Creates a server of it: an HTTP server, or a plugin.
    fn serve(&self) -> Result<Arc<dyn Server>, LoadError>;

    /// Starts an additional command in this container's sandbox, with its volumes, environment, network identity,
    /// grants, and budgets of memory and CPU. `command` is from [`Runtime::load_command`] of the same runtime.
    ///
    /// # Errors
    /// See [`ExecError`].
    fn exec(&self, command: &Arc<dyn Module>, spec: ExecSpec) -> Result<Box<dyn Session>, ExecError>;

    /// Creates one instance and drops it: whether the module starts under this container's limits.
    async fn try_instantiate(&self) -> TrialOutcome;
}

/// A container that serves requests.
#[async_trait]
pub trait Server: Serve {
    /// Waits until no request is left, including those whose guest continues after its response.
    async fn drained(&self);

    /// Cuts off running requests; later ones are returned to the caller.
    fn shut(&self);
}
