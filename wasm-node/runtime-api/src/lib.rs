//! What a kubelet asks of a container runtime: upstream's CRI, for modules instead of images.
//!
//! [`Runtime`] compiles and loads modules, a [`Module`] makes [`Container`]s, and a container either runs to its end
//! ([`Container::run`]) or serves requests ([`Container::serve`]). `wasm-runtime` implements it with wasmtime,
//! [`simulated`] with nothing but a script, so that the life of pods is tested without either compiler or threads.
//!
//! Absent on purpose: wasmtime, and everything of Kubernetes.
#![warn(missing_docs)]

mod container;
mod cpu;
pub mod disk;
pub mod flights;
mod grants;
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
pub use module::{Inspection, Kind, LoadError, MODULE_BYTES_MAX, Metering};
pub use outcome::{Outcome, OutcomeReason, StopSignal};
pub use preopen::Preopen;
pub use server::{NodeCall, Trial};
pub use session::{ExecError, ExecSpec, Session, Stdio};
pub use volume_quota::{FileAccount, Moving, VOLUME_FILES_MAX, VolumeQuota, VolumeUse};

use ledger::Ledger;

/// A container runtime. One is shared by all node agents of a process.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Its name and version, as a Node's `containerRuntimeVersion` has them.
    fn version(&self) -> (&'static str, &'static str);

    /// Host interfaces that a guest has only where its pod's annotation grants them.
    fn optional_interfaces(&self) -> Vec<&'static str>;

    /// Compiles the module in `file`, unless that was done. `digest` is the file's own; `namespace` is who wants it, by
    /// whose share of the compilers it is compiled.
    async fn compile(&self, digest: &str, file: &Path, metering: Metering, namespace: &str) -> Result<(), LoadError>;

    /// The same once nobody has had anything compiled for a while, and behind whoever does: for what nobody waits for.
    async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError>;

    /// The longest that one module may be compiled, without what it waits for others; none = it isn't bounded.
    fn compile_time_max(&self) -> Option<Duration> {
        None
    }

    /// Loads a module, compiled before if need be; shared by all who have it.
    async fn load(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Arc<dyn Module>, LoadError>;

    /// Loads a module as a command, whatever else it is: none where it exports no `wasi:cli/run` and no `_start`.
    async fn load_command(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError>;

    /// Bytes on the disk of what was compiled, by the module's digest.
    fn compiled(&self) -> std::io::Result<BTreeMap<String, u64>>;

    /// Removes compiled modules that nobody uses; bytes that came free.
    fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64>;

    /// What all containers hold. A pod's ledger is made below it.
    fn ledger(&self) -> &Arc<Ledger>;

    /// Whose guests have kept something by `wasi:keyvalue`.
    fn keyvalue_owners(&self) -> std::io::Result<Vec<KeyvalueOwner>>;

    /// Removes all that they kept.
    fn remove_keyvalue(&self, owner: &KeyvalueOwner) -> std::io::Result<()>;
}

/// A loaded module.
pub trait Module: Any + Send + Sync {
    /// Its own digest (`sha256:…`).
    fn digest(&self) -> &str;

    /// Command, server or plugin.
    fn kind(&self) -> Kind;

    /// Makes a container. Opens nothing, starts nothing.
    fn container(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, LoadError>;
}

/// Leave to run a command, until it is dropped.
pub struct Admitted(#[expect(dead_code, reason = "held until it is dropped")] Box<dyn Any + Send + Sync>);

impl Admitted {
    /// Leave that lasts as long as `held`.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self(Box::new(held))
    }
}

/// A container that was made. Dropping it ends nothing that runs.
#[async_trait]
pub trait Container: Send + Sync + std::fmt::Debug {
    /// Command, server or plugin.
    fn kind(&self) -> Kind;

    /// Its figures.
    fn stats(&self) -> Stats;

    /// Its limits of memory and CPU, and its weight, are these from now on; what its guests hold already stays held.
    fn resize(&self, limits: &Limits);

    /// Why no instance can be made any more, where that is so.
    fn broken(&self) -> Option<String>;

    /// Waits until a command may run.
    async fn admit(&self) -> Admitted;

    /// Runs a command to its end, or until `stop` resolves. Dropping the future ends it too.
    async fn run(&self, admitted: Admitted, stop: BoxFuture<'static, StopSignal>) -> Outcome;

    /// Makes a server of it: an HTTP server, or a plugin.
    fn serve(&self) -> Result<Arc<dyn Server>, LoadError>;

    /// One more command in this container's sandbox: with its volumes, environment, network identity, grants, and its
    /// budgets of memory and CPU. `command` comes from [`Runtime::load_command`] of the same runtime.
    ///
    /// # Errors
    /// See [`ExecError`].
    fn exec(&self, command: &Arc<dyn Module>, spec: ExecSpec) -> Result<Box<dyn Session>, ExecError>;

    /// Makes one instance and drops it: whether the module starts under this container's limits.
    async fn try_instantiate(&self) -> Trial;
}

/// A container that answers requests.
#[async_trait]
pub trait Server: Serve {
    /// Waits until no request is left, also none whose guest goes on after its response.
    async fn drained(&self);

    /// Cuts off what still runs; later requests are handed back.
    fn shut(&self);
}
