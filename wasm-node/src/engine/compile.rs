//! Compiling modules away from serving: few at a time, of bounded size, for a bounded time, at low priority, and
//! where the program lends itself as compiler process also with bounded memory and a hard end.
//!
//! Compile time is not a security bound of wasmtime: 90 kB of nested code can take minutes and gigabytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::load::{CodeKind, LoadError};
use super::{Engine, Metering, runtime, settings};

/// The first argument of a compiler process: the program calls [`compile_worker`] when it sees it.
pub const COMPILE_WORKER_ARGUMENT: &str = "coracle-compile-worker";
/// Size of a module: a Python or JavaScript runtime as a component has 10 to 40 MB.
pub const MODULE_BYTES_MAX: u64 = 128 << 20;
/// Modules compiled at once: more would only share the same cores, and each may need gigabytes.
const COMPILES_AT_ONCE: usize = 2;
/// Wall clock for one module: a 13 MB JavaScript component takes 12 s on two cores, and the machine may be busy.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(120);
/// Address space of a compiler process: ten times what the largest honest module seen needs.
#[cfg(unix)]
const COMPILE_MEMORY_MAX_BYTES: u64 = 3 << 30;
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

pub(crate) struct Compiler {
    process: Option<CompileProcess>,
    permits: Arc<Semaphore>,
}

impl Compiler {
    pub(crate) fn new(process: Option<CompileProcess>) -> Self {
        Self { process, permits: Arc::new(Semaphore::new(COMPILES_AT_ONCE)) }
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
        let permit = compiler.permits.clone().acquire_owned().await.expect("never closed");
        if self.inner.cache.contains(digest, &fingerprint) {
            return Ok(());
        }
        match &compiler.process {
            Some(process) => {
                let out = self.inner.cache.scratch().map_err(LoadError::io("making the artifact"))?;
                run_worker(process, metering, kind, file, out.path()).await?;
                drop(permit);
                self.inner.cache.adopt(digest, &fingerprint, out).map_err(LoadError::io("keeping the artifact"))
            }
            None => {
                let (file, digest, engine) = (file.to_owned(), digest.to_owned(), self.clone());
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
                match tokio::time::timeout(COMPILE_TIME_MAX, receiver).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err(LoadError::Compile("the compiler panicked".into())),
                    Err(_) => Err(LoadError::CompileTime { seconds: COMPILE_TIME_MAX.as_secs() }),
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
    metering: Metering,
    kind: CodeKind,
    file: &Path,
    out: &Path,
) -> Result<(), LoadError> {
    let mut child = tokio::process::Command::new(&process.program)
        .args(&process.arguments)
        .arg(if metering == Metering::Fuel { "fuel" } else { "epochs" })
        .arg(if kind == CodeKind::Component { "component" } else { "module" })
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
    let finished = tokio::time::timeout(COMPILE_TIME_MAX, async {
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
        Ok((Ok(status), said)) if status.code() == Some(1) => {
            Err(LoadError::Compile(String::from_utf8_lossy(&said).trim().to_owned()))
        }
        Ok((Ok(status), _)) => Err(LoadError::CompileMemory { status: status.to_string() }),
        Ok((Err(error), _)) => Err(LoadError::io("waiting for the compiler")(error)),
        Err(_) => Err(LoadError::CompileTime { seconds: COMPILE_TIME_MAX.as_secs() }),
    }
}

/// The compiler process's whole work; `arguments` are those after [`COMPILE_WORKER_ARGUMENT`]. Returns the error to
/// print on stderr before exiting with 1.
pub fn compile_worker(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let arguments: Vec<OsString> = arguments.collect();
    let [metering, kind, file, out] = arguments.as_slice() else {
        return Err("the compiler process wants: epochs|fuel component|module FILE OUT".into());
    };
    confine();
    let metering = if metering == "fuel" { Metering::Fuel } else { Metering::Epochs };
    let kind = if kind == "component" { CodeKind::Component } else { CodeKind::Module };
    let code = compile_bytes(metering, kind, Path::new(file)).map_err(|error| match error {
        LoadError::Compile(why) => why,
        other => other.to_string(),
    })?;
    std::fs::write(out, code).map_err(|error| format!("writing the artifact: {error}"))
}

/// Lowers the worker's priority and bounds its memory and CPU time.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no resource limits")]
fn confine() {
    let memory = libc::rlimit { rlim_cur: COMPILE_MEMORY_MAX_BYTES as _, rlim_max: COMPILE_MEMORY_MAX_BYTES as _ };
    let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: these calls read their arguments and touch no other memory of ours.
    unsafe {
        libc::setrlimit(libc::RLIMIT_AS, &raw const memory);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const core);
        libc::setpriority(libc::PRIO_PROCESS, 0, COMPILE_NICE);
    }
}

#[cfg(not(unix))]
fn confine() {}
