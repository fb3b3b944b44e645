//! Compiling modules away from serving: few at a time, of bounded size, for a bounded time, at low priority, and
//! where the program lends itself as compiler process also with bounded memory and a hard end.
//!
//! Compile time is not a security bound of wasmtime: 90 kB of nested code can take minutes and gigabytes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::load::{CodeKind, LoadError};
use super::{Engine, Metering, runtime, settings};

/// The first argument of a compiler process: the program calls [`compile_worker`] when it sees it.
pub const COMPILE_WORKER_ARGUMENT: &str = "coracle-compile-worker";
/// Size of a module: a Python or JavaScript runtime as a component has 10 to 40 MB.
pub const MODULE_BYTES_MAX: u64 = 128 << 20;
/// Modules compiled at once: more would only share the same cores, and each may need gigabytes.
const COMPILES_AT_ONCE: usize = 2;
/// What a module that did not compile is remembered for: many pods, and each pod again and again, may want the same one,
/// and each try would take a compiler from modules that do compile. As long as the longest back-off of a pod.
const FAILED_FOR: Duration = Duration::from_secs(300);
/// How many of those are remembered: the oldest make room.
const FAILED_MAX: usize = 1000;
/// The largest artifact: some eight times the largest module.
#[cfg(unix)]
const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// What a compiler's error begins with that is the disk's and not the module's.
const DISK_ERROR: &str = "writing the artifact: ";
/// The compiler yields to everything else on the machine.
const COMPILE_NICE: i32 = 15;
/// What is kept of a compiler's error.
const ERROR_BYTES_MAX: u64 = 4096;

/// How to start the compiler process: usually the program itself.
#[derive(Debug, Clone)]
pub struct CompileProcess {
    /// The program; it must call [`compile_worker`] with what follows `arguments`.
    pub program: PathBuf,
    /// What comes before the worker's own arguments.
    pub arguments: Vec<OsString>,
}

impl CompileProcess {
    /// The running program, dispatched by [`COMPILE_WORKER_ARGUMENT`].
    pub fn current() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec![COMPILE_WORKER_ARGUMENT.into()] })
    }
}

/// What one module's compilation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileBounds {
    /// Wall clock.
    pub time: Duration,
    /// Address space of the compiler process.
    pub memory_bytes: u64,
}

impl Default for CompileBounds {
    fn default() -> Self {
        Self {
            // A 13 MB JavaScript component takes 12 s on two cores, and the machine may be busy.
            time: Duration::from_secs(120),
            // Ten times what the largest honest module seen needs.
            memory_bytes: 3 << 30,
        }
    }
}

pub(crate) struct Compiler {
    process: Option<CompileProcess>,
    bounds: CompileBounds,
    permits: Arc<Semaphore>,
    failures: Mutex<Failures>,
}

impl Compiler {
    pub(crate) fn new(process: Option<CompileProcess>, bounds: CompileBounds) -> Self {
        let permits = Arc::new(Semaphore::new(COMPILES_AT_ONCE));
        Self { process, bounds, permits, failures: Mutex::default() }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The modules that did not compile lately, by digest and fingerprint. Pure.
#[derive(Debug, Default)]
struct Failures(BTreeMap<(String, String), (LoadError, Duration)>);

impl Failures {
    /// Why this one did not compile, if that is known.
    fn recall(&mut self, digest: &str, fingerprint: &str, now: Duration) -> Option<LoadError> {
        self.0.retain(|_, (_, failed)| now.saturating_sub(*failed) < FAILED_FOR);
        self.0.get(&(digest.to_owned(), fingerprint.to_owned())).and_then(|(error, _)| error.of_the_module())
    }

    fn remember(&mut self, digest: &str, fingerprint: &str, error: &LoadError, now: Duration) {
        let Some(error) = error.of_the_module() else { return };
        if self.0.len() >= FAILED_MAX {
            let oldest = self.0.iter().min_by_key(|(_, (_, failed))| *failed).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.0.remove(&key));
        }
        self.0.insert((digest.to_owned(), fingerprint.to_owned()), (error, now));
    }
}

impl Engine {
    /// Compiles the module in `file` into the cache, unless it is there already. `digest` is the file's own.
    pub async fn compile(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError> {
        let fingerprint = self.metered(metering)?.fingerprint.clone();
        if self.inner.cache.contains(digest, &fingerprint) {
            return Ok(());
        }
        let size = tokio::fs::metadata(file).await.map_err(LoadError::io("reading the module"))?.len();
        if size > MODULE_BYTES_MAX {
            return Err(LoadError::TooLarge { bytes: size, max_bytes: MODULE_BYTES_MAX });
        }
        let kind = code_kind(file).await?;
        let compiler = &self.inner.compiler;
        let env = self.env();
        let known = || compiler.failures().recall(digest, &fingerprint, env.elapsed()).map_or(Ok(()), Err);
        known()?;
        let permit = compiler.permits.clone().acquire_owned().await.expect("never closed");
        if self.inner.cache.contains(digest, &fingerprint) {
            return Ok(());
        }
        // Whoever had the permit before may have tried the same.
        known()?;
        let compiled = self.compile_now(digest, &fingerprint, file, (metering, kind), permit).await;
        if let Err(error) = &compiled {
            compiler.failures().remember(digest, &fingerprint, error, env.elapsed());
        }
        compiled
    }

    async fn compile_now(
        &self,
        digest: &str,
        fingerprint: &str,
        file: &Path,
        (metering, kind): (Metering, CodeKind),
        permit: OwnedSemaphorePermit,
    ) -> Result<(), LoadError> {
        let compiler = &self.inner.compiler;
        let bounds = compiler.bounds;
        match &compiler.process {
            Some(process) => {
                let out = self.inner.cache.scratch().map_err(LoadError::io("making the artifact"))?;
                run_worker(process, bounds, (metering, kind), file, out.path()).await?;
                drop(permit);
                self.inner.cache.adopt(digest, fingerprint, out).map_err(LoadError::io("keeping the artifact"))
            }
            None => {
                let (file, digest, engine) = (file.to_owned(), digest.to_owned(), self.clone());
                let fingerprint = fingerprint.to_owned();
                let (sender, receiver) = tokio::sync::oneshot::channel();
                std::thread::Builder::new()
                    .name("compile".into())
                    .spawn(move || {
                        // Held to the thread's end, also when nobody waits any more.
                        let _permit = permit;
                        runtime::lower_priority(COMPILE_NICE);
                        let _ = sender.send(compile_bytes(metering, kind, &file).and_then(|code| {
                            let kept = engine.inner.cache.store(&digest, &fingerprint, &code);
                            kept.map_err(LoadError::io("keeping the artifact"))
                        }));
                    })
                    .map_err(LoadError::io("starting the compiler"))?;
                match tokio::time::timeout(bounds.time, receiver).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err(LoadError::Compile("the compiler panicked".into())),
                    Err(_) => Err(LoadError::CompileTime { seconds: bounds.time.as_secs() }),
                }
            }
        }
    }

    /// Removes compiled modules whose digest is neither in use nor loaded, and those of other engine settings. The image
    /// cache calls it after its own collection.
    pub fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        let mut fingerprints = vec![self.inner.epochs.fingerprint.clone()];
        // Not the fuel engine itself: its pool would be made for nothing.
        let fuel = settings::compiler(Metering::Fuel).map_err(|error| std::io::Error::other(format!("{error:#}")))?;
        fingerprints.push(settings::fingerprint(&fuel));
        self.inner.cache.sweep(&fingerprints, &|digest| in_use(digest) || self.has_loaded(digest))
    }

    /// Bytes on the disk of what was compiled, by the module's digest.
    pub(crate) fn compiled(&self) -> std::io::Result<std::collections::BTreeMap<String, u64>> {
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

fn compile_bytes(metering: Metering, kind: CodeKind, file: &Path) -> Result<Vec<u8>, LoadError> {
    let bytes = std::fs::read(file).map_err(LoadError::io("reading the module"))?;
    let engine = settings::compiler(metering).map_err(LoadError::compile)?;
    match kind {
        CodeKind::Component => engine.precompile_component(&bytes),
        CodeKind::Module => engine.precompile_module(&bytes),
    }
    .map_err(LoadError::compile)
}

async fn run_worker(
    process: &CompileProcess,
    bounds: CompileBounds,
    (metering, kind): (Metering, CodeKind),
    file: &Path,
    out: &Path,
) -> Result<(), LoadError> {
    let mut child = tokio::process::Command::new(&process.program)
        .args(&process.arguments)
        .arg(if metering == Metering::Fuel { "fuel" } else { "epochs" })
        .arg(if kind == CodeKind::Component { "component" } else { "module" })
        .arg(bounds.memory_bytes.to_string())
        .arg(bounds.time.as_secs().to_string())
        .arg(file)
        .arg(out)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(LoadError::io("starting the compiler"))?;
    let stderr = child.stderr.take();
    let finished = tokio::time::timeout(bounds.time, async {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            // Bounded: a worker that says more is cut off and gets a broken pipe.
            let _ = stderr.take(ERROR_BYTES_MAX).read_to_end(&mut said).await;
        }
        (child.wait().await, said)
    })
    .await;
    match finished {
        Ok((Ok(status), _)) if status.success() => Ok(()),
        Ok((Ok(status), said)) => Err(failure(status, String::from_utf8_lossy(&said).trim(), bounds)),
        Ok((Err(error), _)) => Err(LoadError::io("waiting for the compiler")(error)),
        Err(_) => Err(LoadError::CompileTime { seconds: bounds.time.as_secs() }),
    }
}

/// What a compiler's end means. Pure.
fn failure(status: ExitStatus, said: &str, bounds: CompileBounds) -> LoadError {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    const KILLED: i32 = 9;
    if let Some(why) = said.strip_prefix(DISK_ERROR).filter(|_| status.code() == Some(1)) {
        return LoadError::io("writing the compiled module")(std::io::Error::other(why.to_owned()));
    }
    if status.code() == Some(1) {
        return LoadError::Compile(said.to_owned());
    }
    // The allocator's own last words, or those of the system's killer, whom the compiler is offered first.
    if said.contains("memory allocation of") || signal == Some(KILLED) {
        return LoadError::CompileMemory { mebibytes: bounds.memory_bytes >> 20 };
    }
    if said.contains("overflowed its stack") {
        return LoadError::Compile("it is nested too deeply".into());
    }
    LoadError::Compile(format!("the compiler ended with {status}"))
}

/// The compiler process's whole work; `arguments` are those after [`COMPILE_WORKER_ARGUMENT`]. Returns the error to
/// print on stderr before exiting with 1.
pub fn compile_worker(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let arguments: Vec<OsString> = arguments.collect();
    let usage = || "the compiler process wants: epochs|fuel component|module MEMORY_BYTES SECONDS FILE OUT".to_owned();
    let [metering, kind, memory_bytes, seconds, file, out] = arguments.as_slice() else { return Err(usage()) };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok()).ok_or_else(usage);
    confine(number(memory_bytes)?, number(seconds)?);
    let metering = if metering == "fuel" { Metering::Fuel } else { Metering::Epochs };
    let kind = if kind == "component" { CodeKind::Component } else { CodeKind::Module };
    let code = compile_bytes(metering, kind, Path::new(file)).map_err(|error| match error {
        LoadError::Compile(why) => why,
        other => other.to_string(),
    })?;
    std::fs::write(out, code).map_err(|error| format!("{DISK_ERROR}{error}"))
}

/// Lowers the worker's priority and bounds what it takes of the machine.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no resource limits")]
fn confine(memory_bytes: u64, seconds: u64) {
    // The wall clock is its parent's business; this ends what has lost its parent.
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let cpu_seconds = seconds.saturating_mul(cores).saturating_add(1);
    let limits = [
        (libc::RLIMIT_AS, memory_bytes),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_CPU, cpu_seconds),
        (libc::RLIMIT_FSIZE, ARTIFACT_BYTES_MAX),
    ];
    for (resource, amount) in limits {
        let limit = libc::rlimit { rlim_cur: amount as _, rlim_max: amount as _ };
        // SAFETY: the call reads its arguments and touches no other memory of ours.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    }
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, COMPILE_NICE) };
    // Where memory is short, the compiler goes before the cluster. Absent outside Linux.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

#[cfg(not(unix))]
fn confine(_memory_bytes: u64, _seconds: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_modules_are_remembered_for_a_while() {
        let mut failures = Failures::default();
        let at = Duration::from_secs;
        let slow = LoadError::CompileTime { seconds: 120 };
        failures.remember("a", "epochs", &slow, at(10));
        let io = LoadError::io("x")(std::io::ErrorKind::StorageFull.into());
        failures.remember("b", "epochs", &io, at(10));
        for (digest, fingerprint, now, known) in [
            ("a", "epochs", 10, true),
            ("a", "fuel", 10, false),
            ("b", "epochs", 10, false),
            ("a", "epochs", 309, true),
            ("a", "epochs", 310, false),
        ] {
            let recalled = failures.recall(digest, fingerprint, at(now)).map(|error| error.to_string());
            assert_eq!(recalled, known.then(|| slow.to_string()), "{digest} {fingerprint} {now}");
        }
        for n in 0..2 * FAILED_MAX as u64 {
            failures.remember(&n.to_string(), "epochs", &slow, at(400 + n / 100));
        }
        assert_eq!(failures.0.len(), FAILED_MAX);
        assert!(
            failures.recall("1999", "epochs", at(420)).is_some() && failures.recall("0", "epochs", at(420)).is_none()
        );
    }

    #[cfg(unix)]
    #[test]
    fn the_compilers_end_says_what_was_wrong() {
        use std::os::unix::process::ExitStatusExt as _;
        let bounds = CompileBounds::default();
        let (exit, signal) = (|code: i32| ExitStatus::from_raw(code << 8), ExitStatus::from_raw);
        for (status, said, expected) in [
            (exit(1), "unknown opcode", "the module does not compile: unknown opcode"),
            (exit(1), "writing the artifact: full", "writing the compiled module: full"),
            (
                signal(6),
                "memory allocation of 9 bytes failed",
                "compiling the module needs more than 3072 MiB of memory",
            ),
            (signal(9), "", "compiling the module needs more than 3072 MiB of memory"),
            (signal(6), "thread x has overflowed its stack", "the module does not compile: it is nested too deeply"),
            (signal(11), "", "the module does not compile: the compiler ended with signal: 11 (SIGSEGV)"),
            (exit(101), "panicked", "the module does not compile: the compiler ended with exit status: 101"),
        ] {
            assert_eq!(failure(status, said, bounds).to_string(), expected);
        }
    }
}
