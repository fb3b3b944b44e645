//! A container: a loaded module with its arguments, limits and log, shared by its live instances.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Engine;
use super::admission::AdmissionQueue;
use super::load::{Pre, PreparedModule};
use crate::bounds::cpu::CpuMeter;
use crate::bounds::growth::{COMMAND_GROWTH_WAIT_MAX, StoreLimiter};
use crate::bounds::limits::OUTGOING_REQUESTS_MAX;
use crate::bounds::slots::Share;
use crate::host::disk::Disk;
use crate::host::guest::{Guest, GuestGrowth};
use guest_sockets::SocketContext;
use machinery_api::imports::ImportRules;
use runtime_api::keyvalue::KeyvalueStore;
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{
    ContainerSpec, CpuQuota, Failures, Grants, KeyvalueOwner, Kind, Limits, LoadError, LogSink, Metering, Preopen,
    Stats, StdStream,
};

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) instances_started: AtomicU64,
    pub(crate) instances_live: AtomicU64,
    pub(crate) fuel_used: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) probes: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) trap: AtomicU64,
    pub(crate) memory: AtomicU64,
    pub(crate) fuel: AtomicU64,
    pub(crate) timeout: AtomicU64,
    pub(crate) no_response: AtomicU64,
}

/// State shared by all live instances of a container.
pub(crate) struct ContainerState {
    pub(crate) engine: Engine,
    pub(crate) loaded: Arc<PreparedModule>,
    pub(crate) pre: Arc<Pre>,
    pub(crate) admission: AdmissionQueue,
    /// Its share of the slots for sessions.
    pub(crate) sessions: Arc<Share>,
    /// The same for sessions of the node.
    pub(crate) node_sessions: Arc<Share>,
    pub(crate) name: String,
    pub(crate) guest: Arc<Guest>,
    pub(crate) limits: Limits,
    pub(crate) grants: Grants,
    pub(crate) imports: Option<Arc<ImportRules>>,
    pub(crate) log: Arc<dyn LogSink>,
    /// Resources held by its instances together.
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) cpu: Arc<CpuMeter>,
    pub(crate) counters: Counters,
    /// Consecutive failed instantiations, with the last error.
    pub(super) broken: Mutex<(u32, String)>,
}

/// A container, cheap to clone. Dropping all clones ends nothing that runs: see [`Container::run`] and
/// [`Container::serve`].
#[derive(Clone)]
pub struct Container {
    pub(crate) shared: Arc<ContainerState>,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Consecutive failed instantiations before a server counts as broken. Failures due to memory held by others don't count: they
/// don't depend on the module.
const BROKEN_AFTER: u32 = 3;

impl Container {
    /// Sets new limits of memory and CPU. Guests above a lowered limit continue, and get no more.
    pub fn resize(&self, limits: &Limits) {
        self.shared.ledger.set_limit(Resource::Memory, limits.memory_bytes.unwrap_or(u64::MAX));
        self.shared.cpu.resize(limits.cpu_millis, limits.cpu_shares);
    }
}

impl Engine {
    /// Creates a container. Opens and starts nothing: a volume is opened on a guest's first use.
    pub fn container(&self, loaded: Arc<PreparedModule>, spec: ContainerSpec) -> Result<Container, LoadError> {
        if spec.limits.fuel.is_some() && loaded.metering != Metering::Fuel {
            return Err(LoadError::Engine("a fuel limit needs the module loaded with Metering::Fuel".into()));
        }
        for preopen in &spec.preopens {
            preopen.open().map_err(LoadError::io("looking for a volume"))?;
        }
        let ledger = self.open_ledger(&spec);
        let sockets = self.sockets(&spec, &ledger);
        let cwd_dir = spec.cwd.as_deref().and_then(|cwd| working_folder(&spec.preopens, cwd));
        let env = with_working_directory(last_values(spec.env), spec.cwd.as_deref().filter(|_| cwd_dir.is_some()));
        let container = spec.name.rsplit('/').next().unwrap_or_default();
        loaded.check_imports(container, spec.imports.as_deref())?;
        let pre = loaded.prepare(container, &spec.grants)?;
        let node_calls = &loaded.engine.node_calls;
        let share = match loaded.kind() {
            Kind::HttpServer | Kind::Plugin => &loaded.engine.requests,
            Kind::Command => self.commands(),
        };
        let namespace = spec.caller.namespace.clone();
        let admission = AdmissionQueue::new(share.share(&namespace), node_calls.share(&namespace), loaded.start_bytes);
        let disk = Disk::new(self.disk(), &ledger, &namespace, spec.preopens);
        let disk = disk.with_accounts(spec.memory_files, spec.quotas).with_cwd(spec.cwd.clone().zip(cwd_dir.clone()));
        let disk = Arc::new(disk);
        let cpu = self.meter(&namespace, &spec.limits, spec.pod_cpu);
        let guest = Guest {
            argv: spec.argv.into(),
            env: env.into(),
            cwd: spec.cwd,
            keyvalue: self.open_keyvalue(spec.keyvalue.as_ref(), &disk)?,
            disk,
            cwd_dir,
            log: spec.log.clone(),
            config: spec.config,
            stdin: spec.stdin,
            terminal: spec.terminal,
            outputs: None,
            bounds: self.guest_bounds(),
            caller: spec.caller,
            dial: spec.dial,
            sockets,
            cpu: cpu.clone(),
            ledger: ledger.clone(),
            growth: self.guest_growth(loaded.kind(), &spec.limits),
            fuel: (loaded.metering == Metering::Fuel).then(|| spec.limits.fuel.unwrap_or(u64::MAX)),
            engine: loaded.linked().wasmtime.clone(),
        };
        let shared = ContainerState {
            guest: Arc::new(guest),
            ledger,
            cpu,
            engine: self.clone(),
            loaded,
            pre,
            admission,
            sessions: self.sessions().share(&namespace),
            node_sessions: self.node_sessions().share(&namespace),
            name: spec.name,
            limits: spec.limits,
            grants: spec.grants,
            imports: spec.imports,
            log: spec.log,
            counters: Counters::default(),
            broken: Mutex::default(),
        };
        Ok(Container { shared: Arc::new(shared) })
    }

    /// The account of a container, with its limits and those of its pod's sockets.
    fn open_ledger(&self, spec: &ContainerSpec) -> Arc<Ledger> {
        let ledger = Ledger::container(&spec.pod);
        ledger.set_limit(Resource::Memory, spec.limits.memory_bytes.unwrap_or(u64::MAX));
        ledger.set_limit(Resource::Connections, OUTGOING_REQUESTS_MAX);
        self.guest_bounds().sockets.apply(&ledger);
        ledger
    }

    /// The sockets of a container that has a network.
    fn sockets(&self, spec: &ContainerSpec, ledger: &Arc<Ledger>) -> Option<SocketContext> {
        let (network, dial) = spec.network.clone().zip(spec.dial.clone())?;
        Some(SocketContext::new(network, spec.caller.clone(), dial, ledger.clone(), self.env().clone()))
    }

    fn guest_growth(&self, kind: Kind, limits: &Limits) -> GuestGrowth {
        let wait_max = match kind {
            Kind::HttpServer | Kind::Plugin => limits.timeout,
            Kind::Command => COMMAND_GROWTH_WAIT_MAX,
        };
        GuestGrowth { growth: self.growth().clone(), wait_max }
    }

    fn meter(&self, namespace: &Arc<str>, limits: &Limits, pod: Option<Arc<CpuQuota>>) -> Arc<CpuMeter> {
        let env = self.env().clone();
        Arc::new(CpuMeter::new(env, namespace.clone(), limits.cpu_millis, limits.cpu_shares, pod))
    }

    fn open_keyvalue(
        &self,
        owner: Option<&KeyvalueOwner>,
        disk: &Arc<Disk>,
    ) -> Result<Option<Arc<dyn KeyvalueStore>>, LoadError> {
        let Some(owner) = owner else { return Ok(None) };
        let opened = match self.keyvalue() {
            Some(stores) => stores.open(owner, disk.clone()),
            None => Err(std::io::Error::other("this engine has none")),
        };
        opened.map(Some).map_err(LoadError::io("looking for the namespace's keyvalue store"))
    }
}

impl Container {
    /// Command, server or plugin.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.shared.loaded.kind()
    }

    /// The container's statistics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        Stats {
            instances_started: read(&counters.instances_started),
            instances_live: read(&counters.instances_live),
            cpu: shared.cpu.used(),
            cpu_throttled: shared.cpu.throttled(),
            memory_bytes: shared.ledger.used(Resource::Memory),
            memory_peak_bytes: shared.ledger.peak(Resource::Memory),
            descriptors: shared.ledger.used(Resource::Descriptors),
            disk_changes: shared.guest.disk.changes(),
            fuel_used: read(&counters.fuel_used),
            requests: read(&counters.requests),
            probes: read(&counters.probes),
            cut: read(&counters.cut),
            failures: Failures {
                trap: read(&counters.trap),
                memory: read(&counters.memory),
                fuel: read(&counters.fuel),
                timeout: read(&counters.timeout),
                no_response: read(&counters.no_response),
            },
            resources: Resource::ALL.map(|resource| shared.ledger.resource_use(resource)),
        }
    }

    /// Error that prevents every instance, if any: such a server is not Ready.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let broken = self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner);
        (broken.0 >= BROKEN_AFTER).then(|| broken.1.clone())
    }
}

impl ContainerState {
    /// Whether its guests hold more than half of their memory limit.
    pub(crate) fn is_half_full(&self) -> bool {
        self.ledger.used(Resource::Memory) > self.ledger.limit(Resource::Memory) / 2
    }

    pub(crate) fn record_instantiation(&self) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.0 > 0 {
            *broken = (0, String::new());
        }
    }

    /// Records a failed instantiation; returns the message.
    pub(crate) fn record_instantiation_failure(&self, error: &wasmtime::Error, limiter: &StoreLimiter) -> String {
        let why = with_advice(format!("{error:#}"), self.advice(error, limiter));
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        *broken = (broken.0.saturating_add(1), why.clone());
        why
    }

    /// The bound with a flag that a failed guest hit, and how to raise it.
    fn advice(&self, error: &wasmtime::Error, limiter: &StoreLimiter) -> Option<String> {
        match limiter.exceeded() {
            // Regardless of the error: a guest over its memory limit gets no further handle either.
            Some(_) => limiter.advice(),
            None => self.guest.bounds.advice(error, limiter.handles.as_ref()),
        }
    }

    /// Logs a guest's end into the container's log; returns the bound that it hit, for [`with_advice`].
    pub(crate) fn log_end(&self, error: &wasmtime::Error, limiter: &StoreLimiter) -> Option<String> {
        self.log_error(error);
        let advice = self.advice(error, limiter);
        if let Some(advice) = &advice {
            self.log_system(advice);
        }
        advice
    }

    /// Logs a guest's error with its causes and the guest's own backtrace. The host's backtrace, which `RUST_BACKTRACE`
    /// adds to the error, is left out.
    pub(crate) fn log_error(&self, error: &wasmtime::Error) {
        self.log_system(&error.to_string());
        for cause in error.chain().skip(1) {
            self.log_system(&format!("Caused by: {cause}"));
        }
    }

    /// Writes the node's own lines into the container's log.
    pub(crate) fn log_system(&self, text: &str) {
        for line in text.lines() {
            self.log.write(StdStream::Stderr, format!("{line}\n").as_bytes());
        }
    }
}

/// Appends the bound that a guest hit to the reason of its end.
pub(crate) fn with_advice(why: String, advice: Option<String>) -> String {
    match advice {
        Some(advice) => format!("{why}: {advice}"),
        None => why,
    }
}

/// Counts a live instance until its end.
pub(crate) struct LiveInstance(Arc<ContainerState>);

impl LiveInstance {
    pub(crate) fn new(shared: &Arc<ContainerState>) -> Self {
        shared.counters.instances_started.fetch_add(1, Ordering::Relaxed);
        shared.counters.instances_live.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for LiveInstance {
    fn drop(&mut self) {
        self.0.counters.instances_live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removes duplicate variables; the last value wins.
fn last_values(given: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(given.len());
    for (name, value) in given {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => env.push((name, value)),
        }
    }
    env
}

/// Adds `PWD`, unless it is set: Go's standard library knows the working directory by it. Container runtimes for Linux set it too.
pub(super) fn with_working_directory(mut env: Vec<(String, String)>, cwd: Option<&str>) -> Vec<(String, String)> {
    if let Some(cwd) = cwd
        && env.iter().all(|(name, _)| name != "PWD")
    {
        env.push(("PWD".into(), cwd.into()));
    }
    env
}

/// The working folder of a guest: within the longest mount path that contains `cwd`; `None` if there is none, or if a link
/// within the volume leads out of it.
pub(super) fn working_folder(preopens: &[Preopen], cwd: &str) -> Option<Preopen> {
    let cwd = Path::new(cwd);
    let inside = |preopen: &&Preopen| cwd.starts_with(&preopen.guest);
    let preopen = preopens.iter().filter(inside).max_by_key(|preopen| preopen.guest.len())?;
    preopen.below(cwd).filter(|folder| folder.open().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_is_a_variable_that_a_pod_may_set() {
        let own = vec![("PWD".to_owned(), "/own".to_owned())];
        assert_eq!(with_working_directory(own.clone(), Some("/data")), own);
        assert_eq!(with_working_directory(Vec::new(), Some("/data")), [("PWD".to_owned(), "/data".to_owned())]);
        assert_eq!(with_working_directory(Vec::new(), None), []);
    }
}
