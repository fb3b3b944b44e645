//! Compiles modules away from serving: few at a time, with bounds on size and time, at low priority. With a compiler process,
//! memory is bounded too, and the time limit is hard.
//!
//! Compile time is not a security bound of wasmtime: 90 kB of nested code can take minutes and gigabytes. So there are two
//! lanes. A module first gets a short slice of CPU time in the quick lane, where most modules finish. A module that exhausts
//! its slice continues in the background lane, one process at a time, or restarts there later: a waiting process would hold its
//! memory. Lanes share by namespace: a quick module waits for slices only, a slow one for one slow module per other namespace.

mod failures;
mod idle;
mod lane;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::io::AsyncReadExt;

pub use worker::{COMPILE_WORKER_ARGUMENT, CompileProcess, compile_worker};

use super::aot::CompanionFiles;
use super::load::CodeKind;
use super::wasi::{CodeSettings, ModuleForm};
use super::{Engine, Metering};
use crate::bounds::priority;
use failures::FailureCache;
pub(super) use failures::Key;
use lane::{Lane, Seat};
use runtime_api::LoadError;
use runtime_api::flights::SingleFlight;
pub(crate) use worker::Compiled;
use worker::{CompileFailure, RunBounds, compile_bytes};

/// Concurrent modules of the quick lane: more would only share the same cores.
const QUICK_AT_ONCE: usize = 2;
/// Concurrent modules of the background lane: each may need gigabytes, and everything else needs a core.
const BACKGROUND_AT_ONCE: usize = 1;
/// Wall clock per CPU time of the quick lane's slice: on a busy machine the compiler runs last.
const QUICK_WALL_PER_CPU: u32 = 8;

/// Bounds of one module's compilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileBounds {
    /// CPU time in the quick lane.
    pub slice: Duration,
    /// Wall clock in the background lane.
    pub time: Duration,
    /// Address space of the compiler process.
    pub memory_bytes: u64,
}

impl Default for CompileBounds {
    fn default() -> Self {
        Self {
            // Enough for some 3 MB of module, so for nearly all without a language runtime (a 13 MB JavaScript component takes
            // 10 s).
            slice: Duration::from_secs(2),
            // Ten times the time of the slowest honest module seen.
            time: Duration::from_secs(120),
            // Ten times the need of the largest honest module seen.
            memory_bytes: 3 << 30,
        }
    }
}

pub(crate) struct Compiler {
    process: Option<CompileProcess>,
    bounds: CompileBounds,
    quick: Arc<Lane>,
    background: Arc<Lane>,
    failures: Mutex<FailureCache>,
    /// Locked during the compilation of a module.
    running: SingleFlight<Key>,
}

impl Compiler {
    pub(crate) fn new(process: Option<CompileProcess>, bounds: CompileBounds, env: &Env) -> Self {
        let quick = Lane::new(QUICK_AT_ONCE, bounds.slice, env.clone());
        let background = Lane::new(BACKGROUND_AT_ONCE, bounds.time, env.clone());
        Self { process, bounds, quick, background, failures: Mutex::default(), running: SingleFlight::default() }
    }

    /// The wall clock limit of a compilation, waiting excluded.
    pub(crate) fn time_max(&self) -> Duration {
        self.bounds.time
    }

    fn failures(&self) -> MutexGuard<'_, FailureCache> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quick_bounds(&self) -> RunBounds {
        let CompileBounds { slice, memory_bytes, time } = self.bounds;
        // Other systems don't measure the process's CPU time: the slice is wall clock.
        let wall = if cfg!(unix) { slice * QUICK_WALL_PER_CPU } else { slice };
        let cpu = slice + self.background_bounds().cpu;
        RunBounds { memory_bytes, slice: Some(slice), cpu, wall: wall.min(time) }
    }

    fn background_bounds(&self) -> RunBounds {
        let CompileBounds { time, memory_bytes, .. } = self.bounds;
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        RunBounds { memory_bytes, slice: None, cpu: time * cores, wall: time }
    }
}

impl Engine {
    /// Compiles the module in `file` into the cache, unless it is cached. `digest` is the file's own; the compilation is
    /// charged to `namespace`.
    ///
    /// # Errors
    /// The module does not compile within its bounds, or the disk fails.
    pub async fn compile(
        &self,
        digest: &str,
        file: &Path,
        metering: Metering,
        namespace: &str,
    ) -> Result<(), LoadError> {
        if self.cached_settings(digest, metering)?.is_some() {
            return Ok(());
        }
        let ModuleForm { kind, wasi } = ModuleForm::of_file(file).await?;
        let settings = CodeSettings::new(metering, wasi);
        let key: Key = (digest.to_owned(), self.fingerprint_of(settings)?.to_owned());
        let (compiler, env) = (&self.inner.compiler, self.env());
        let known = || compiler.failures().failure(&key, env.elapsed()).map_or(Ok(()), Err);
        known()?;
        if self.fetch_compiled(&key, kind).await {
            return Ok(());
        }
        loop {
            known()?;
            let slow = compiler.failures().is_slow(&key, env.elapsed());
            let seat = if slow { &compiler.background } else { &compiler.quick }.seat(namespace).await;
            // Another caller may have compiled it meanwhile.
            if self.inner.cache.contains(digest, &key.1) {
                return Ok(());
            }
            known()?;
            let running = compiler.running.of(&key);
            let Ok(_running) = running.try_lock() else {
                // Another caller compiles it: wait without a seat.
                drop(seat);
                drop(running.lock().await);
                continue;
            };
            let bounds = if slow { compiler.background_bounds() } else { compiler.quick_bounds() };
            match self.compile_now(&key, file, (settings, kind), bounds, (namespace, seat)).await {
                Ok(()) => return Ok(()),
                Err(CompileFailure::Slice) => compiler.failures().slow(&key, env.elapsed()),
                Err(CompileFailure::Time) => {
                    let error = LoadError::CompileTime { seconds: compiler.bounds.time.as_secs() };
                    compiler.failures().failed(&key, &error, env.elapsed());
                    return Err(error);
                }
                Err(CompileFailure::Error(error)) => {
                    compiler.failures().failed(&key, &error, env.elapsed());
                    return Err(error);
                }
            }
        }
    }

    async fn compile_now(
        &self,
        key: &Key,
        file: &Path,
        (settings, kind): (CodeSettings, CodeKind),
        bounds: RunBounds,
        (namespace, mut seat): (&str, Seat),
    ) -> Result<(), CompileFailure> {
        let (digest, fingerprint) = key;
        let io = |what| move |error| CompileFailure::Error(LoadError::io(what)(error));
        self.inner.cache.check_space().map_err(io("making the artifact"))?;
        match &self.inner.compiler.process {
            Some(process) => {
                let out = self.inner.cache.scratch().map_err(io("making the artifact"))?;
                let _companions = CompanionFiles::of(out.path());
                let extend = || {
                    let compiler = &self.inner.compiler;
                    // This frees its seat in the quick lane.
                    seat = compiler.background.try_seat(namespace)?;
                    compiler.failures().slow(key, self.env().elapsed());
                    Some(compiler.bounds.time)
                };
                worker::run(self.env(), process, bounds, (settings, kind), (file, out.path()), extend).await?;
                drop(seat);
                self.inner.cache.adopt(digest, fingerprint, out).map_err(io("keeping the artifact"))
            }
            None => {
                let (file, digest, engine) = (file.to_owned(), digest.clone(), self.clone());
                let fingerprint = fingerprint.clone();
                let (sender, receiver) = tokio::sync::oneshot::channel();
                std::thread::Builder::new()
                    .name("compile".into())
                    .spawn(move || {
                        // Held to the thread's end, also without a waiter.
                        let _seat = seat;
                        priority::set_nice(worker::COMPILE_NICE);
                        let _ = sender.send(compile_bytes(settings, kind, &file).and_then(|code| {
                            let kept = engine.inner.cache.store(&digest, &fingerprint, &code);
                            kept.map_err(LoadError::io("keeping the artifact"))
                        }));
                    })
                    .map_err(io("starting the compiler"))?;
                // A thread can't be stopped, so there is one run with the time of both lanes.
                match self.env().timeout(self.inner.compiler.bounds.time, receiver).await {
                    Ok(Ok(result)) => result.map_err(CompileFailure::Error),
                    Ok(Err(_)) => Err(CompileFailure::Error(LoadError::Compile("the compiler panicked".into()))),
                    Err(_) => {
                        let seconds = self.inner.compiler.bounds.time.as_secs();
                        Err(CompileFailure::Error(LoadError::CompileTime { seconds }))
                    }
                }
            }
        }
    }

    /// Removes compiled modules whose digest is neither in use nor loaded, and those of other engine settings. The
    /// image cache calls it after its own collection.
    pub fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        let mut fingerprints = Vec::with_capacity(CodeSettings::COUNT);
        for settings in CodeSettings::ALL {
            fingerprints.push(self.fingerprint_of(settings).map_err(std::io::Error::other)?.to_owned());
        }
        self.inner.cache.sweep(&fingerprints, &|digest| in_use(digest) || self.has_loaded(digest))
    }

    /// Bytes of compiled modules on disk, by the module's digest.
    pub fn compiled(&self) -> std::io::Result<std::collections::BTreeMap<String, u64>> {
        self.inner.cache.sizes()
    }
}

/// Distinguishes a component from a core module by the layer field of its preamble.
pub(crate) async fn code_kind(file: &Path) -> Result<CodeKind, LoadError> {
    let mut file = tokio::fs::File::open(file).await.map_err(LoadError::io("reading the module"))?;
    let mut preamble = [0; 8];
    let read = file.read(&mut preamble).await.map_err(LoadError::io("reading the module"))?;
    CodeKind::of(&preamble[..read])
}
