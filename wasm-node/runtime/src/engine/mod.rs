//! Everything that names wasmtime: engines, compilation, pre-instantiation, limits, running.
//!
//! [`Engine`] is one per process. It compiles modules at pull ([`Engine::compile`]), loads each once per digest and
//! metering ([`Engine::load`]), and makes [`Container`]s of them, which share code and differ in limits and context, and
//! in what they may import by the grants of their pods.
//! A container either runs to its end ([`Container::run`]) or serves HTTP ([`Container::serve`], [`Container::serve_plugin`]);
//! between requests a server has no instance. Guests run on threads of their own ([`Engine::guest_runtime`]); the data plane should run
//! there too, as a request is then handed over without changing threads.

mod admission;
mod aot;
mod api;
mod body;
mod command;
mod compile;
mod container;
mod describe;
mod failure;
mod gate;
mod inspect;
mod load;
mod metered;
mod plugin;
mod request;
mod response;
mod runtime;
mod server;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod warm;
mod world;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use machinery_env::Env;
use machinery_serve::descriptors::{Class, Descriptors};
use tokio::runtime::Handle;

pub use compile::{COMPILE_WORKER_ARGUMENT, CompileBounds, CompileProcess, compile_worker};
pub use container::Container;
pub use describe::{Description, describe};
pub use inspect::{imports, inspect};
pub use load::Loaded;
pub use plugin::PluginServer;
pub use runtime::GuestThreads;
pub use server::HttpServer;
pub use world::World;

use crate::bounds::epoch::Ticker;
use crate::bounds::growth::Growth;
pub use crate::bounds::guest::{GuestBounds, HANDLES, STACK_BYTES};
use crate::bounds::shares::Turns;
use crate::bounds::slots::Slots;
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{Grants, LoadError, Metering};

use crate::host::disk::NodeDisk;
use crate::host::state::{ComponentState, CoreState};
use crate::keyvalue::{self, Stores};

/// The runtime that is built in (a test holds it against Cargo.lock).
pub const WASMTIME_VERSION: &str = "48.0.8";

/// What an [`Engine`] is made from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where compiled modules are kept (made with mode 0700, trusted by later starts of this node).
    pub cache_dir: PathBuf,
    /// All memory that guests of this process may hold together; over it the growing container is OOM-killed.
    pub memory_max_bytes: u64,
    /// How to start the compiler process ([`compile_worker`]); none = compile on threads of this process, where a
    /// module that compiles for minutes can be given up but not stopped.
    pub compile_process: Option<CompileProcess>,
    /// What each compilation may take.
    pub compile_bounds: CompileBounds,
    /// What each instance may take, whatever its container says.
    pub guest_bounds: GuestBounds,
    /// What guests keep by `wasi:keyvalue`; made with mode 0700 when the first one does.
    pub keyvalue_dir: PathBuf,
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime refused the settings.
    #[error("wasmtime: {0}")]
    Wasmtime(String),
    /// The cache folder could not be made.
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

/// A wasmtime engine with what its guests may import.
pub(crate) struct Linked {
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) core_linker: wasmtime::Linker<CoreState>,
    /// By grants: a guest finds what its pod was granted, and nothing else. Few ever differ.
    component_linkers: Mutex<Vec<(Grants, Arc<ComponentLinker>)>>,
}

type ComponentLinker = wasmtime::component::Linker<ComponentState>;

/// The engines of one metering. Their compiled code is the same.
pub(crate) struct Metered {
    pub(crate) metering: Metering,
    /// For servers: an instance for each request, from a pool.
    pub(crate) pooled: Arc<Linked>,
    /// For commands: each holds what it takes for as long as it runs, so none of it is the pool's.
    pub(crate) on_demand: Arc<Linked>,
    pub(crate) fingerprint: String,
    /// What requests may take of the pool.
    pub(crate) requests: Arc<Slots>,
    /// The rest of it: for the node's own calls.
    pub(crate) node_calls: Arc<Slots>,
}

struct Inner {
    env: Env,
    epochs: Arc<Metered>,
    fuel: OnceLock<Result<Arc<Metered>, String>>,
    threads: GuestThreads,
    /// Commands of all engines: what they take is the process's.
    commands: Arc<Slots>,
    /// Sessions beside them, so that one can begin when commands have all of theirs.
    sessions: Arc<Slots>,
    /// The same for the node's own, of probes and hooks.
    node_sessions: Arc<Slots>,
    ledger: Arc<Ledger>,
    growth: Arc<Growth>,
    guest_bounds: GuestBounds,
    disk: Arc<NodeDisk>,
    keyvalue: Arc<Stores>,
    compiler: compile::Compiler,
    cache: aot::Cache,
    loaded: Mutex<HashMap<load::Key, Weak<Loaded>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes the engine and its cache folder. Guests run on `threads`; nothing is started here.
    pub fn new(config: EngineConfig, threads: GuestThreads, env: Env) -> Result<Self, EngineError> {
        let wrong = |error: wasmtime::Error| EngineError::Wasmtime(format!("{error:#}"));
        let (epochs, live) = Metered::new(Metering::Epochs, config.guest_bounds, &threads.ticker).map_err(wrong)?;
        let cache = aot::Cache::open(config.cache_dir)
            .map_err(|source| EngineError::Io { what: "making the folder of compiled modules", source })?;
        let ledger = Ledger::node();
        ledger.set_limit(Resource::Memory, config.memory_max_bytes);
        ledger.set_limit(Resource::Descriptors, Descriptors::process().max(Class::Guests) as u64);
        let inner = Inner {
            keyvalue: Stores::new(config.keyvalue_dir, keyvalue::QUOTA, &ledger),
            disk: NodeDisk::new(&env, &ledger, Some(threads.ticker.polled())),
            guest_bounds: config.guest_bounds,
            compiler: compile::Compiler::new(config.compile_process, config.compile_bounds, &env),
            env,
            epochs: Arc::new(epochs),
            fuel: OnceLock::new(),
            threads,
            commands: Slots::new(settings::commands(live)),
            sessions: Slots::new(settings::sessions(live)),
            node_sessions: Slots::new(settings::sessions(live)),
            ledger,
            growth: Arc::default(),
            cache,
            loaded: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The threads that guests run on. Run the data plane here too.
    #[must_use]
    pub fn guest_runtime(&self) -> &Handle {
        self.inner.threads.runtime.handle()
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
        self.inner.threads.runtime.is_current()
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.inner.threads.ticker
    }

    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.inner.threads.turns
    }

    pub fn env(&self) -> &Env {
        &self.inner.env
    }

    pub(crate) fn growth(&self) -> &Arc<Growth> {
        &self.inner.growth
    }

    pub(crate) fn guest_bounds(&self) -> GuestBounds {
        self.inner.guest_bounds
    }

    pub(crate) fn commands(&self) -> &Arc<Slots> {
        &self.inner.commands
    }

    pub(crate) fn sessions(&self) -> &Arc<Slots> {
        &self.inner.sessions
    }

    pub(crate) fn node_sessions(&self) -> &Arc<Slots> {
        &self.inner.node_sessions
    }

    pub(crate) fn disk(&self) -> &Arc<NodeDisk> {
        &self.inner.disk
    }

    pub(crate) fn keyvalue(&self) -> &Arc<Stores> {
        &self.inner.keyvalue
    }

    pub(crate) fn metered(&self, metering: Metering) -> Result<&Arc<Metered>, LoadError> {
        match metering {
            Metering::Epochs => Ok(&self.inner.epochs),
            Metering::Fuel => self
                .inner
                .fuel
                .get_or_init(|| {
                    let made = Metered::new(Metering::Fuel, self.guest_bounds(), &self.inner.threads.ticker);
                    made.map(|(engine, _)| Arc::new(engine)).map_err(|error| format!("{error:#}"))
                })
                .as_ref()
                .map_err(|error| LoadError::Engine(error.clone())),
        }
    }

    /// A loaded module that is still in use.
    fn shared(&self, key: &load::Key) -> Option<Arc<Loaded>> {
        self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    /// Whether some container lives of this module.
    fn has_loaded(&self, digest: &str) -> bool {
        let all = self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().any(|((known, ..), loaded)| known == digest && loaded.strong_count() > 0)
    }

    fn share(&self, key: load::Key, loaded: &Arc<Loaded>) {
        let mut all = self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, loaded| loaded.strong_count() > 0);
        all.insert(key, Arc::downgrade(loaded));
    }
}

impl Metered {
    /// The engines, and how many instances the pool has.
    fn new(metering: Metering, bounds: GuestBounds, ticker: &Ticker) -> wasmtime::Result<(Self, u32)> {
        let (pooled, live) = settings::engine(metering, bounds)?;
        let on_demand = settings::on_demand(metering, bounds)?;
        ticker.add(pooled.weak());
        ticker.add(on_demand.weak());
        let (node_calls, requests) = settings::shares(live);
        let metered = Self {
            metering,
            fingerprint: settings::fingerprint(&pooled),
            pooled: Arc::new(Linked::new(pooled)?),
            on_demand: Arc::new(Linked::new(on_demand)?),
            requests: Slots::new(requests),
            node_calls: Slots::new(node_calls),
        };
        Ok((metered, live))
    }
}

impl Linked {
    fn new(wasmtime: wasmtime::Engine) -> wasmtime::Result<Self> {
        let core_linker = crate::host::core_linker(&wasmtime)?;
        Ok(Self { wasmtime, core_linker, component_linkers: Mutex::default() })
    }

    /// What a component with these grants may import.
    pub(crate) fn component_linker(&self, grants: &Grants) -> wasmtime::Result<Arc<ComponentLinker>> {
        let mut known = self.component_linkers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, linker)) = known.iter().find(|(of, _)| of == grants) {
            return Ok(linker.clone());
        }
        let linker = Arc::new(crate::host::component_linker(&self.wasmtime, grants)?);
        known.push((grants.clone(), linker.clone()));
        Ok(linker)
    }
}
