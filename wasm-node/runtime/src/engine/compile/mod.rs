//! Compiling modules away from serving: few at a time, of bounded size, for a bounded time, at low priority, and
//! where the program lends itself as compiler process also with bounded memory and a hard end.
//!
//! Compile time is not a security bound of wasmtime: 90 kB of nested code can take minutes and gigabytes. So there are
//! two lanes. A module gets a short slice of CPU time in the quick lane first, where most modules are done; what uses it
//! up goes on in the background lane, one process at a time, or starts again there when its turn comes: a process that waits would hold its
//! memory. In both lanes namespaces take turns, so a quick module waits for slices only, and a slow one for one slow one of each other namespace.

mod idle;
mod lane;
mod memory;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::io::AsyncReadExt;

pub use worker::{COMPILE_WORKER_ARGUMENT, CompileProcess, compile_worker};

use super::aot::Beside;
use super::load::CodeKind;
use super::{Engine, Metering, settings};
use crate::bounds::priority;
use lane::{Lane, Seat};
use memory::{Key, Memory};
use runtime_api::LoadError;
use runtime_api::MODULE_BYTES_MAX;
use runtime_api::flights::Flights;
pub(crate) use worker::Compiled;
use worker::{RunBounds, Stopped, compile_bytes};

/// Modules in the quick lane at once: more would only share the same cores.
const QUICK_AT_ONCE: usize = 2;
/// Modules in the background lane at once: each may need gigabytes, and whatever else runs needs a core.
const BACKGROUND_AT_ONCE: usize = 1;
/// How much wall clock the quick lane's slice of CPU time may take: on a busy machine the compiler is served last.
const QUICK_WALL_PER_CPU: u32 = 8;

/// What one module's compilation may take.
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
            // Enough for some 3 MB of module, so for nearly all that bring no language runtime (a 13 MB JavaScript component takes
            // 10 s).
            slice: Duration::from_secs(2),
            // Ten times what the slowest honest module seen takes.
            time: Duration::from_secs(120),
            // Ten times what the largest honest module seen needs.
            memory_bytes: 3 << 30,
        }
    }
}

pub(crate) struct Compiler {
    process: Option<CompileProcess>,
    bounds: CompileBounds,
    quick: Arc<Lane>,
    background: Arc<Lane>,
    memory: Mutex<Memory>,
    /// Held by whoever compiles the module now.
    running: Flights<Key>,
}

impl Compiler {
    pub(crate) fn new(process: Option<CompileProcess>, bounds: CompileBounds, env: &Env) -> Self {
        let quick = Lane::new(QUICK_AT_ONCE, bounds.slice, env.clone());
        let background = Lane::new(BACKGROUND_AT_ONCE, bounds.time, env.clone());
        Self { process, bounds, quick, background, memory: Mutex::default(), running: Flights::default() }
    }

    /// The wall clock that a module has, once it is its turn.
    pub(crate) fn time_max(&self) -> Duration {
        self.bounds.time
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quick_bounds(&self) -> RunBounds {
        let CompileBounds { slice, memory_bytes, time } = self.bounds;
        // Elsewhere nothing measures the process's CPU time, so the slice is the wall clock's.
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
    /// Compiles the module in `file` into the cache, unless it is there already. `digest` is the file's own; `namespace` is
    /// who wants it, by whose share of the compilers it is compiled.
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
        let fingerprint = self.metered(metering)?.fingerprint.clone();
        if self.inner.cache.contains(digest, &fingerprint) {
            return Ok(());
        }
        let size = tokio::fs::metadata(file).await.map_err(LoadError::io("reading the module"))?.len();
        if size > MODULE_BYTES_MAX {
            return Err(LoadError::TooLarge { bytes: size, max_bytes: MODULE_BYTES_MAX });
        }
        let kind = code_kind(file).await?;
        let key: Key = (digest.to_owned(), fingerprint);
        let (compiler, env) = (&self.inner.compiler, self.env());
        let known = || compiler.memory().failure(&key, env.elapsed()).map_or(Ok(()), Err);
        loop {
            known()?;
            let slow = compiler.memory().is_slow(&key, env.elapsed());
            let seat = if slow { &compiler.background } else { &compiler.quick }.seat(namespace).await;
            // Others may have wanted the same in the meantime.
            if self.inner.cache.contains(digest, &key.1) {
                return Ok(());
            }
            known()?;
            let running = compiler.running.of(&key);
            let Ok(_running) = running.try_lock() else {
                // Somebody compiles it now: no seat is held while waiting for that.
                drop(seat);
                drop(running.lock().await);
                continue;
            };
            let bounds = if slow { compiler.background_bounds() } else { compiler.quick_bounds() };
            match self.compile_now(&key, file, (metering, kind), bounds, (namespace, seat)).await {
                Ok(()) => return Ok(()),
                Err(Stopped::Slice) => compiler.memory().slow(&key, env.elapsed()),
                Err(Stopped::Time) => {
                    let error = LoadError::CompileTime { seconds: compiler.bounds.time.as_secs() };
                    compiler.memory().failed(&key, &error, env.elapsed());
                    return Err(error);
                }
                Err(Stopped::Error(error)) => {
                    compiler.memory().failed(&key, &error, env.elapsed());
                    return Err(error);
                }
            }
        }
    }

    async fn compile_now(
        &self,
        key: &Key,
        file: &Path,
        (metering, kind): (Metering, CodeKind),
        bounds: RunBounds,
        (namespace, mut seat): (&str, Seat),
    ) -> Result<(), Stopped> {
        let (digest, fingerprint) = key;
        let io = |what| move |error| Stopped::Error(LoadError::io(what)(error));
        self.inner.cache.check_space().map_err(io("making the artifact"))?;
        match &self.inner.compiler.process {
            Some(process) => {
                let out = self.inner.cache.scratch().map_err(io("making the artifact"))?;
                let _beside = Beside::of(out.path());
                let go_on = || {
                    let compiler = &self.inner.compiler;
                    // Its seat in the quick lane is free from here on.
                    seat = compiler.background.free_seat(namespace)?;
                    compiler.memory().slow(key, self.env().elapsed());
                    Some(compiler.bounds.time)
                };
                worker::run(process, bounds, (metering, kind), (file, out.path()), go_on).await?;
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
                        // Held to the thread's end, also when nobody waits any more.
                        let _seat = seat;
                        priority::set_nice(worker::COMPILE_NICE);
                        let _ = sender.send(compile_bytes(metering, kind, &file).and_then(|code| {
                            let kept = engine.inner.cache.store(&digest, &fingerprint, &code);
                            kept.map_err(LoadError::io("keeping the artifact"))
                        }));
                    })
                    .map_err(io("starting the compiler"))?;
                // A thread can't be stopped, so there is one run, as long as both lanes' together.
                match tokio::time::timeout(self.inner.compiler.bounds.time, receiver).await {
                    Ok(Ok(result)) => result.map_err(Stopped::Error),
                    Ok(Err(_)) => Err(Stopped::Error(LoadError::Compile("the compiler panicked".into()))),
                    Err(_) => {
                        let seconds = self.inner.compiler.bounds.time.as_secs();
                        Err(Stopped::Error(LoadError::CompileTime { seconds }))
                    }
                }
            }
        }
    }

    /// Removes compiled modules whose digest is neither in use nor loaded, and those of other engine settings. The image
    /// cache calls it after its own collection.
    pub fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        let mut fingerprints = vec![self.inner.epochs.fingerprint.clone()];
        // Not the fuel engine itself: its pool would be made for nothing.
        let fuel = settings::on_demand(Metering::Fuel, self.guest_bounds());
        let fuel = fuel.map_err(|error| std::io::Error::other(format!("{error:#}")))?;
        fingerprints.push(settings::fingerprint(&fuel));
        self.inner.cache.sweep(&fingerprints, &|digest| in_use(digest) || self.has_loaded(digest))
    }

    /// Bytes on the disk of what was compiled, by the module's digest.
    pub fn compiled(&self) -> std::io::Result<std::collections::BTreeMap<String, u64>> {
        self.inner.cache.sizes()
    }
}

/// Tells a component from a core module by the layer field of its preamble.
pub(crate) async fn code_kind(file: &Path) -> Result<CodeKind, LoadError> {
    let mut file = tokio::fs::File::open(file).await.map_err(LoadError::io("reading the module"))?;
    let mut preamble = [0; 8];
    let read = file.read(&mut preamble).await.map_err(LoadError::io("reading the module"))?;
    CodeKind::of(&preamble[..read])
}
