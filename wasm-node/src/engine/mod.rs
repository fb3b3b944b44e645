//! Everything that names wasmtime: engines, compilation, pre-instantiation, limits, running.
//!
//! [`Engine`] is one per process. It compiles modules at pull ([`Engine::compile`]), loads each once per digest and
//! metering ([`Engine::load`]), and makes [`Container`]s of them, which share code and differ in limits and context.
//! A container either runs to its end ([`Container::run`]) or serves HTTP ([`Container::serve`]); between requests a
//! server has no instance. Guests run on threads of their own ([`Engine::guest_runtime`]); the data plane should run
//! there too, as a request is then handed over without changing threads.

mod aot;
mod body;
mod command;
mod compile;
pub(crate) mod container;
mod cpu;
mod epoch;
mod inspect;
pub mod ledger;
pub(crate) mod limits;
mod load;
mod runtime;
mod server;
mod settings;
pub(crate) mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use machinery::env::Env;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use command::{Outcome, OutcomeReason, StopSignal};
pub use compile::{COMPILE_WORKER_ARGUMENT, CompileBounds, CompileProcess, MODULE_BYTES_MAX, compile_worker};
pub use container::{Container, ContainerSpec, LogSink, Preopen, Stats, StdStream};
pub use inspect::{Inspection, inspect};
pub use limits::{CONCURRENCY_DEFAULT, Limits, REQUEST_TIMEOUT_DEFAULT};
pub use load::{Kind, LoadError, Loaded};
pub use server::HttpServer;

use epoch::Ticker;
use ledger::{Ledger, Resource};
use runtime::GuestRuntime;

/// The runtime that is built in (a test holds it against Cargo.lock).
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Which engine a container needs: fuel metering is a setting of a whole engine and costs 26 to 45 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metering {
    /// Epochs only: the default.
    Epochs,
    /// Epochs and fuel: for containers with a `fuel.coracle.dev/` annotation.
    Fuel,
}

/// What an [`Engine`] is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where compiled modules are kept (made with mode 0700, trusted by later starts of this node).
    pub cache_dir: PathBuf,
    /// Threads for guests; usually the number of cores.
    pub threads: usize,
    /// All memory that guests of this process may hold together; over it the growing container is OOM-killed.
    pub memory_max_bytes: u64,
    /// How to start the compiler process ([`compile_worker`]); none = compile on threads of this process, where a
    /// module that compiles for minutes can be given up but not stopped.
    pub compile_process: Option<CompileProcess>,
    /// What each compilation may take.
    pub compile_bounds: CompileBounds,
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refused the settings.
    #[error("wasmtime: {0}")]
    Wasmtime(String),
    /// Threads or the cache folder could not be made.
    #[error("{what}: {source}")]
    Io {
        /// What was being made.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The engine of a process, cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// One wasmtime engine with what belongs to it.
pub(crate) struct Metered {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) fingerprint: String,
    /// One permit per instance that may be live at once: a full pool queues, it never fails a guest.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) component_linker: wasmtime::component::Linker<state::ComponentState>,
    pub(crate) core_linker: wasmtime::Linker<state::CoreState>,
}

struct Inner {
    env: Env,
    epochs: Arc<Metered>,
    fuel: OnceLock<Result<Arc<Metered>, String>>,
    ticker: Ticker,
    runtime: GuestRuntime,
    ledger: Arc<Ledger>,
    compiler: compile::Compiler,
    cache: aot::Cache,
    loaded: Mutex<HashMap<(String, Metering), Weak<Loaded>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes the engine, its threads and its cache folder.
    pub fn new(config: EngineConfig, env: Env) -> Result<Self, EngineError> {
        let ticker = Ticker::start().map_err(|source| EngineError::Io { what: "starting the ticker", source })?;
        let epochs = Metered::new(Metering::Epochs).map_err(|error| EngineError::Wasmtime(format!("{error:#}")))?;
        ticker.add(epochs.wasmtime.weak());
        let runtime = GuestRuntime::start(config.threads)
            .map_err(|source| EngineError::Io { what: "starting guest threads", source })?;
        let cache = aot::Cache::open(config.cache_dir)
            .map_err(|source| EngineError::Io { what: "making the folder of compiled modules", source })?;
        let ledger = Ledger::node();
        ledger.set_limit(Resource::Memory, config.memory_max_bytes);
        let inner = Inner {
            compiler: compile::Compiler::new(config.compile_process, config.compile_bounds, &env),
            env,
            epochs: Arc::new(epochs),
            fuel: OnceLock::new(),
            ticker,
            runtime,
            ledger,
            cache,
            loaded: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The threads that guests run on. Run the data plane here too.
    #[must_use]
    pub fn guest_runtime(&self) -> &Handle {
        self.inner.runtime.handle()
    }

    /// Bytes that all guests of this process hold now.
    #[must_use]
    pub fn memory_used_bytes(&self) -> u64 {
        self.inner.ledger.used(Resource::Memory)
    }

    /// What all guests of this process hold. Its limits may be changed while they run.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.inner.ledger
    }

    /// A ledger for one pod's containers.
    #[must_use]
    pub fn pod_ledger(&self) -> Arc<Ledger> {
        Ledger::pod(&self.inner.ledger)
    }

    pub(crate) fn on_guest_thread(&self) -> bool {
        self.inner.runtime.is_current()
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.inner.ticker
    }

    pub(crate) fn env(&self) -> &Env {
        &self.inner.env
    }

    pub(crate) fn metered(&self, metering: Metering) -> Result<&Arc<Metered>, LoadError> {
        match metering {
            Metering::Epochs => Ok(&self.inner.epochs),
            Metering::Fuel => self
                .inner
                .fuel
                .get_or_init(|| {
                    let engine = Metered::new(Metering::Fuel).map_err(|error| format!("{error:#}"))?;
                    self.inner.ticker.add(engine.wasmtime.weak());
                    Ok(Arc::new(engine))
                })
                .as_ref()
                .map_err(|error| LoadError::Engine(error.clone())),
        }
    }

    /// A loaded module that is still in use.
    fn shared(&self, key: &(String, Metering)) -> Option<Arc<Loaded>> {
        self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    /// Whether some container lives of this module.
    fn has_loaded(&self, digest: &str) -> bool {
        [Metering::Epochs, Metering::Fuel].iter().any(|metering| self.shared(&(digest.to_owned(), *metering)).is_some())
    }

    fn share(&self, key: (String, Metering), loaded: &Arc<Loaded>) {
        let mut all = self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, loaded| loaded.strong_count() > 0);
        all.insert(key, Arc::downgrade(loaded));
    }
}

impl Metered {
    fn new(metering: Metering) -> wasmtime::Result<Self> {
        let (wasmtime, live) = settings::engine(metering)?;
        let component_linker = crate::host::component_linker(&wasmtime)?;
        let core_linker = crate::host::core_linker(&wasmtime)?;
        Ok(Self {
            fingerprint: settings::fingerprint(&wasmtime),
            slots: Arc::new(Semaphore::new(live as usize)),
            wasmtime,
            component_linker,
            core_linker,
        })
    }
}
