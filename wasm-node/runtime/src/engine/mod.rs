//! The wasmtime engine: engines, compilation, pre-instantiation, limits, running.
//!
//! [`Engine`] is one per process. It compiles modules at pull ([`Engine::compile`]) and loads each once per digest and metering
//! ([`Engine::load`]). Its [`Container`]s share code; they differ in limits, context, and permitted imports (the grants of
//! their pods). A container either runs to its end ([`Container::run`]) or serves HTTP ([`Container::serve`],
//! [`Container::serve_plugin`]); between requests a server has no instance. Guests run on their own threads
//! ([`Engine::guest_runtime`]). The data plane should run there too: a request is then handed over without changing threads.

mod admission;
mod aot;
mod api;
mod body;
mod command;
mod compile;
mod container;
mod describe;
mod exchange;
mod failure;
mod gate;
mod inspect;
mod load;
mod metered;
mod panics;
mod plugin;
mod request;
mod response;
mod runtime;
mod server;
mod service;
mod session;
mod settings;
mod spans;
mod stacks;
#[cfg(test)]
mod tests;
mod warm;
mod wasi;
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
pub use exchange::{
    COMPILED_BYTES_MAX, CompiledModule, CompiledName, CompiledSource, DESCRIPTION_BYTES_MAX, FetchedModule,
};
pub use inspect::{MODULE_INSPECTOR, imports, inspect};
pub use load::PreparedModule;
pub use plugin::PluginServer;
pub use runtime::GuestThreads;
pub use server::HttpServer;
pub use settings::PoolCapacity;
pub use world::World;

use crate::bounds::epoch::Ticker;
use crate::bounds::growth::Growth;
pub use crate::bounds::guest::{GuestBounds, HANDLES, STACK_BYTES};
use crate::bounds::shares::CpuScheduler;
use crate::bounds::slots::Slots;
use crate::host::wasi_version::WasiVersion;
use runtime_api::flights::SingleFlight;
use runtime_api::keyvalue::KeyvalueStores;
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{Grants, LoadError, Metering};
use wasi::CodeSettings;

use crate::host::disk::NodeDisk;
use crate::host::state::{ComponentState, CoreState};

/// The linked wasmtime version (a test compares it with Cargo.lock).
pub const WASMTIME_VERSION: &str = "48.0.8";

/// Configuration of an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Folder of compiled modules (created with mode 0700, trusted by later starts of this node).
    pub cache_dir: PathBuf,
    /// Maximum memory of all guests of this process together; beyond it the growing container is OOM-killed.
    pub memory_max_bytes: u64,
    /// Command of the compiler process ([`compile_worker`]); `None` compiles on threads of this process, where a
    /// compilation of minutes can be abandoned but not stopped.
    pub compile_process: Option<CompileProcess>,
    /// Bounds of each compilation.
    pub compile_bounds: CompileBounds,
    /// Bounds of each instance, whatever its container's limits.
    pub guest_bounds: GuestBounds,
}

/// Error of creating an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime rejected the settings.
    #[error("wasmtime: {0}")]
    Wasmtime(String),
    /// The cache folder could not be created.
    #[error("{what}: {source}")]
    Io {
        /// The object being created.
        what: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The engine of a process, cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<EngineInner>,
}

/// A wasmtime engine with its linkers.
pub(crate) struct LinkedEngine {
    pub(crate) wasmtime: wasmtime::Engine,
    wasi: WasiVersion,
    pub(crate) core_linker: wasmtime::Linker<CoreState>,
    /// By grants: a guest finds its pod's granted interfaces only. Few ever differ.
    component_linkers: Mutex<Vec<(Grants, Arc<ComponentLinker>)>>,
}

type ComponentLinker = wasmtime::component::Linker<ComponentState>;

/// The engines of one metering and WASI version. They share compiled code.
pub(crate) struct MeteredEngines {
    pub(crate) settings: CodeSettings,
    /// For servers: an instance per request, from a pool.
    pub(crate) pooled: Arc<LinkedEngine>,
    /// For commands: each holds its resources as long as it runs, so it takes none from the pool.
    pub(crate) on_demand: Arc<LinkedEngine>,
    pub(crate) fingerprint: String,
    /// Slots of the pool for requests.
    pub(crate) requests: Arc<Slots>,
    /// Slots of the pool for the node's own calls.
    pub(crate) node_calls: Arc<Slots>,
}

struct EngineInner {
    env: Env,
    epochs: Arc<MeteredEngines>,
    /// The engines of other settings, created at their first use, by [`CodeSettings::index`].
    others: [OnceLock<Result<Arc<MeteredEngines>, String>>; CodeSettings::COUNT],
    /// Fingerprints of artifacts by the same index, which need no engine with a pool.
    fingerprints: [OnceLock<String>; CodeSettings::COUNT],
    threads: GuestThreads,
    /// Slots for commands of all engines.
    commands: Arc<Slots>,
    /// Slots for sessions, so that one can start while commands hold all of theirs.
    sessions: Arc<Slots>,
    /// Slots for the node's own sessions, of probes and hooks.
    node_sessions: Arc<Slots>,
    ledger: Arc<Ledger>,
    growth: Arc<Growth>,
    guest_bounds: GuestBounds,
    disk: Arc<NodeDisk>,
    keyvalue: OnceLock<Arc<dyn KeyvalueStores>>,
    compiler: compile::Compiler,
    cache: aot::Cache,
    compiled_source: OnceLock<Arc<dyn CompiledSource>>,
    /// Locked while other nodes are queried for a module.
    fetching: SingleFlight<compile::Key>,
    loaded: Mutex<HashMap<load::ModuleKey, Weak<PreparedModule>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Creates the engine and its cache folder. Guests run on `threads`; starts nothing.
    pub fn new(config: EngineConfig, threads: GuestThreads, env: Env) -> Result<Self, EngineError> {
        let wrong = |error: wasmtime::Error| EngineError::Wasmtime(format!("{error:#}"));
        let settings = CodeSettings::new(Metering::Epochs, WasiVersion::V0_2);
        let (epochs, live) = MeteredEngines::new(settings, config.guest_bounds, &threads.ticker).map_err(wrong)?;
        let cache = aot::Cache::open(config.cache_dir)
            .map_err(|source| EngineError::Io { what: "making the folder of compiled modules", source })?;
        let ledger = Ledger::node();
        ledger.set_limit(Resource::Memory, config.memory_max_bytes);
        ledger.set_limit(Resource::Descriptors, Descriptors::process().max(Class::Guests) as u64);
        let inner = EngineInner {
            keyvalue: OnceLock::new(),
            disk: NodeDisk::new(&env, &ledger, Some(threads.ticker.polled())),
            guest_bounds: config.guest_bounds,
            compiler: compile::Compiler::new(config.compile_process, config.compile_bounds, &env),
            growth: Arc::new(Growth::new(env.clone())),
            env,
            epochs: Arc::new(epochs),
            others: Default::default(),
            fingerprints: Default::default(),
            threads,
            commands: Slots::new(settings::commands(live)),
            sessions: Slots::new(settings::sessions(live)),
            node_sessions: Slots::new(settings::sessions(live)),
            ledger,
            cache,
            compiled_source: OnceLock::new(),
            fetching: SingleFlight::default(),
            loaded: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The runtime of guests' threads. Run the data plane here too.
    #[must_use]
    pub fn guest_runtime(&self) -> &Handle {
        self.inner.threads.runtime.handle()
    }

    /// Bytes that all guests of this process hold.
    #[must_use]
    pub fn memory_used_bytes(&self) -> u64 {
        self.inner.ledger.used(Resource::Memory)
    }

    /// Ledger of all guests of this process. Its limits may be changed at run time.
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

    pub(crate) fn scheduler(&self) -> &Arc<CpuScheduler> {
        &self.inner.threads.scheduler
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

    /// Sets the stores of `wasi:keyvalue`. The first ones stay; without any, no container with that grant is created.
    pub fn set_keyvalue(&self, stores: Arc<dyn KeyvalueStores>) {
        let _ = self.inner.keyvalue.set(stores);
    }

    /// Shares the files of `wasi:keyvalue` with another process, until it is called with `false`. Blocking.
    pub fn share_keyvalue_files(&self, with_another_process: bool) {
        if let Some(stores) = self.keyvalue() {
            stores.share_files(with_another_process);
        }
    }

    pub(crate) fn keyvalue(&self) -> Option<&Arc<dyn KeyvalueStores>> {
        self.inner.keyvalue.get()
    }

    /// The engines of these settings.
    pub(crate) fn engines(&self, settings: CodeSettings) -> Result<&Arc<MeteredEngines>, LoadError> {
        if settings == self.inner.epochs.settings {
            return Ok(&self.inner.epochs);
        }
        let make = || {
            let made = MeteredEngines::new(settings, self.guest_bounds(), &self.inner.threads.ticker);
            made.map(|(engine, _)| Arc::new(engine)).map_err(|error| format!("{error:#}"))
        };
        let made = self.inner.others[settings.index()].get_or_init(make);
        made.as_ref().map_err(|error| LoadError::Engine(error.clone()))
    }

    /// The fingerprint of artifacts of these settings.
    pub(crate) fn fingerprint_of(&self, settings: CodeSettings) -> Result<&str, LoadError> {
        if settings == self.inner.epochs.settings {
            return Ok(&self.inner.epochs.fingerprint);
        }
        let known = &self.inner.fingerprints[settings.index()];
        if let Some(known) = known.get() {
            return Ok(known);
        }
        let engine = settings::on_demand(settings, self.guest_bounds());
        let engine = engine.map_err(|error| LoadError::Engine(format!("{error:#}")))?;
        Ok(known.get_or_init(|| settings::fingerprint(&engine)))
    }

    /// The settings with which a module is in the cache, if it is.
    pub(crate) fn cached_settings(&self, digest: &str, metering: Metering) -> Result<Option<CodeSettings>, LoadError> {
        for wasi in [WasiVersion::V0_2, WasiVersion::V0_3] {
            let settings = CodeSettings::new(metering, wasi);
            if self.inner.cache.contains(digest, self.fingerprint_of(settings)?) {
                return Ok(Some(settings));
            }
        }
        Ok(None)
    }

    /// A loaded module that is still in use.
    fn shared(&self, key: &load::ModuleKey) -> Option<Arc<PreparedModule>> {
        self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    /// Whether a container of this module exists.
    fn has_loaded(&self, digest: &str) -> bool {
        let all = self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().any(|((known, ..), loaded)| known == digest && loaded.strong_count() > 0)
    }

    fn share(&self, key: load::ModuleKey, loaded: &Arc<PreparedModule>) {
        let mut all = self.inner.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, loaded| loaded.strong_count() > 0);
        all.insert(key, Arc::downgrade(loaded));
    }
}

impl MeteredEngines {
    /// Creates the engines; also returns the number of instances of the pool.
    fn new(settings: CodeSettings, bounds: GuestBounds, ticker: &Ticker) -> wasmtime::Result<(Self, u32)> {
        let (pooled, live) = settings::engine(settings, bounds)?;
        let on_demand = settings::on_demand(settings, bounds)?;
        ticker.add(pooled.weak());
        ticker.add(on_demand.weak());
        let (node_calls, requests) = settings::shares(live);
        let metered = Self {
            settings,
            fingerprint: settings::fingerprint(&pooled),
            pooled: Arc::new(LinkedEngine::new(pooled, settings.wasi)?),
            on_demand: Arc::new(LinkedEngine::new(on_demand, settings.wasi)?),
            requests: Slots::new(requests),
            node_calls: Slots::new(node_calls),
        };
        Ok((metered, live))
    }
}

impl LinkedEngine {
    fn new(wasmtime: wasmtime::Engine, wasi: WasiVersion) -> wasmtime::Result<Self> {
        let core_linker = crate::host::core_linker(&wasmtime)?;
        Ok(Self { wasmtime, wasi, core_linker, component_linkers: Mutex::default() })
    }

    /// The linker of components with these grants.
    pub(crate) fn component_linker(&self, grants: &Grants) -> wasmtime::Result<Arc<ComponentLinker>> {
        let mut known = self.component_linkers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, linker)) = known.iter().find(|(of, _)| of == grants) {
            return Ok(linker.clone());
        }
        let linker = Arc::new(crate::host::component_linker(&self.wasmtime, grants, self.wasi)?);
        known.push((grants.clone(), linker.clone()));
        Ok(linker)
    }
}
