//! The compiler process: this program, restarted to compile one module with resource limits. Ends with the process that
//! started it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use machinery_env::Env;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::super::aot;
#[cfg(unix)]
use super::super::exchange::COMPILED_BYTES_MAX;
use super::super::inspect::inspect_valid;
use super::super::load::CodeKind;
use super::super::wasi::CodeSettings;
use super::super::{GuestBounds, Metering, settings};
use crate::bounds::thread_clock::process_cpu;
use crate::host::wasi_version::WasiVersion;
use crate::plugin::describe::describe;
use crate::plugin::types::Description;
use runtime_api::{Kind, LoadError};

/// The first argument of a compiler process: the program calls [`compile_worker`] for it.
pub const COMPILE_WORKER_ARGUMENT: &str = "coracle-compile-worker";
/// A link to the image of the process that opens it, on Linux. A new process opens it before it has an image of its own.
const OWN_IMAGE: &str = "/proc/self/exe";
/// Name of a compiler process in lists of processes, in place of the link's.
#[cfg(unix)]
const PROCESS_NAME: &str = "coracle";
/// Prefix of a compiler error that is the disk's and not the module's.
const DISK_ERROR: &str = "writing the artifact: ";
/// The compiler yields to everything else on the machine.
pub(super) const COMPILE_NICE: i32 = 15;
/// Maximum bytes kept of a compiler's error.
const ERROR_BYTES_MAX: u64 = 4096;
/// Written by a compiler to its stdout when it has exhausted its slice of CPU time (ASCII's enquiry). It continues
/// until it is killed.
const SLICE_USED_UP: u8 = 5;
/// Minimum interval between two checks of a compiler's CPU time.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// Command of the compiler process: usually the program itself.
#[derive(Debug, Clone)]
pub struct CompileProcess {
    /// The program; it must call [`compile_worker`] with the arguments after `arguments`.
    pub program: PathBuf,
    /// Arguments before the worker's own.
    pub arguments: Vec<OsString>,
}

impl CompileProcess {
    /// The running program, dispatched by [`COMPILE_WORKER_ARGUMENT`].
    ///
    /// On Linux it is the image that runs, also after an upgrade has replaced or removed the file: another version's
    /// compiler takes other arguments and writes other artifacts. Windows doesn't replace the file of a running program. Elsewhere
    /// the path is the only reference.
    pub fn current() -> std::io::Result<Self> {
        let program = if cfg!(target_os = "linux") {
            // Reports a missing /proc now and not at the first module.
            std::fs::metadata(OWN_IMAGE)?;
            OWN_IMAGE.into()
        } else {
            std::env::current_exe()?
        };
        Ok(Self { program, arguments: vec![COMPILE_WORKER_ARGUMENT.into()] })
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        #[cfg(unix)]
        if self.program == Path::new(OWN_IMAGE) {
            command.arg0(PROCESS_NAME);
        }
        command.args(&self.arguments);
        command
    }
}

/// Limits of one run of the compiler process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunBounds {
    /// Address space.
    pub(super) memory_bytes: u64,
    /// CPU time of all its threads after which `extend` is called; `None`: never.
    pub(super) slice: Option<Duration>,
    /// CPU time of all its threads.
    pub(super) cpu: Duration,
    /// Wall clock, up to the call of `extend` where there is a slice.
    pub(super) wall: Duration,
}

/// Reason why a compiler process produced no artifact.
#[derive(Debug)]
pub(super) enum CompileFailure {
    /// It exhausted its slice and was not allowed to continue.
    Slice,
    /// It exhausted its time.
    Time,
    Error(LoadError),
}

/// Compiles `file` into `out`. Dropping the future kills the process. At the end of its slice of CPU time, `extend` returns the
/// time that it may continue for, if any: no work is repeated then.
pub(super) async fn run(
    env: &Env,
    process: &CompileProcess,
    bounds: RunBounds,
    (settings, kind): (CodeSettings, CodeKind),
    (file, out): (&Path, &Path),
    extend: impl FnOnce() -> Option<Duration>,
) -> Result<(), CompileFailure> {
    let mut child = spawn(process, bounds, (settings, kind), (file, out))
        .map_err(|error| CompileFailure::Error(LoadError::io("starting the compiler")(error)))?;
    // Taken out, as waiting for the child would close it; held to the end.
    let (_lifeline, mut stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut ended = std::pin::pin!(async {
        let mut output = Vec::new();
        if let Some(stderr) = stderr {
            // Bounded: a worker that writes more gets a broken pipe.
            let _ = stderr.take(ERROR_BYTES_MAX).read_to_end(&mut output).await;
        }
        (child.wait().await, output)
    });
    let first = tokio::select! {
        ended = &mut ended => Some(ended),
        () = slice_used_up(stdout.as_mut()) => None,
        () = env.sleep(bounds.wall) => None,
    };
    let (status, output) = match (first, bounds.slice) {
        (Some(ended), _) => ended,
        (None, None) => return Err(CompileFailure::Time),
        (None, Some(_)) => {
            let more = extend().ok_or(CompileFailure::Slice)?;
            env.timeout(more, ended).await.map_err(|_| CompileFailure::Time)?
        }
    };
    let status = status.map_err(|error| CompileFailure::Error(LoadError::io("waiting for the compiler")(error)))?;
    if status.success() {
        return Ok(());
    }
    Err(failure(status, String::from_utf8_lossy(&output).trim(), bounds.memory_bytes))
}

fn spawn(
    process: &CompileProcess,
    bounds: RunBounds,
    (settings, kind): (CodeSettings, CodeKind),
    (file, out): (&Path, &Path),
) -> std::io::Result<tokio::process::Child> {
    let slice = bounds.slice.map_or(0, |slice| slice.as_millis().max(1));
    process
        .command()
        .arg(if settings.metering == Metering::Fuel { "fuel" } else { "epochs" })
        .arg(if settings.wasi == WasiVersion::V0_3 { "0.3" } else { "0.2" })
        .arg(if kind == CodeKind::Component { "component" } else { "module" })
        .arg(bounds.memory_bytes.to_string())
        .arg(bounds.cpu.as_secs().max(1).to_string())
        .arg(slice.to_string())
        .arg(file)
        .arg(out)
        .env_clear()
        // Never written to: it closes with this process, which ends the compiler.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// Resolves when the compiler reports the end of its slice, else never. A test's program also writes other bytes.
async fn slice_used_up(stdout: Option<impl AsyncRead + Unpin>) {
    if let Some(stdout) = stdout {
        let (mut stdout, mut byte) = (stdout.take(ERROR_BYTES_MAX), [0]);
        while stdout.read_exact(&mut byte).await.is_ok() {
            if byte == [SLICE_USED_UP] {
                return;
            }
        }
    }
    std::future::pending().await
}

/// Maps a compiler's end to its reason. Pure.
fn failure(status: ExitStatus, output: &str, memory_bytes: u64) -> CompileFailure {
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal: Option<i32> = None;
    /// Sent at the CPU time limit.
    const SIGXCPU: i32 = 24;
    const SIGKILL: i32 = 9;
    if signal == Some(SIGXCPU) {
        return CompileFailure::Time;
    }
    CompileFailure::Error(match (output.strip_prefix(DISK_ERROR), status.code()) {
        (Some(why), Some(1)) => LoadError::io("writing the compiled module")(std::io::Error::other(why.to_owned())),
        (None, Some(1)) => LoadError::Compile(output.to_owned()),
        // The allocator's abort message, or the OOM killer, which takes the compiler first.
        _ if output.contains("memory allocation of") || signal == Some(SIGKILL) => {
            LoadError::CompileMemory { mebibytes: memory_bytes >> 20 }
        }
        _ if output.contains("overflowed its stack") => LoadError::Compile("it is nested too deeply".into()),
        _ => LoadError::Compile(format!("the compiler ended with {status}")),
    })
}

/// Main function of the compiler process; `arguments` are those after [`COMPILE_WORKER_ARGUMENT`]. Returns the error to
/// print on stderr before exiting with 1.
pub fn compile_worker(arguments: impl Iterator<Item = OsString>) -> Result<(), String> {
    let arguments: Vec<OsString> = arguments.collect();
    let usage = || {
        "the compiler process wants: epochs|fuel 0.2|0.3 component|module MEMORY_BYTES CPU_SECONDS SLICE_MILLISECONDS FILE OUT"
            .to_owned()
    };
    let [metering, wasi, kind, memory_bytes, cpu_seconds, slice, file, out] = arguments.as_slice() else {
        return Err(usage());
    };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok()).ok_or_else(usage);
    confine(number(memory_bytes)?, number(cpu_seconds)?);
    end_with_parent().map_err(|error| format!("watching the parent: {error}"))?;
    match number(slice)? {
        0 => {}
        slice => {
            report_slice_end(Duration::from_millis(slice))
                .map_err(|error| format!("watching the CPU time: {error}"))?;
        }
    }
    let metering = if metering == "fuel" { Metering::Fuel } else { Metering::Epochs };
    let wasi = if wasi == "0.3" { WasiVersion::V0_3 } else { WasiVersion::V0_2 };
    let kind = if kind == "component" { CodeKind::Component } else { CodeKind::Module };
    let code =
        compile_bytes(CodeSettings::new(metering, wasi), kind, Path::new(file)).map_err(|error| match error {
            LoadError::Compile(why) => why,
            other => other.to_string(),
        })?;
    let out = Path::new(out);
    code.write(out).map_err(|error| format!("{DISK_ERROR}{error}{}", runtime_api::disk::advice(&error)))
}

/// Ends this process when its stdin closes, which is when the process that started it has ended in any way.
fn end_with_parent() -> std::io::Result<()> {
    let watch = || {
        // Never written to: any result is the end.
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    };
    std::thread::Builder::new().name("lifeline".into()).spawn(watch).map(drop)
}

/// Reports the end of the CPU slice to the parent process.
fn report_slice_end(slice: Duration) -> std::io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let watch = move || {
        while let Some(left) = slice.checked_sub(process_cpu()) {
            // No number of threads can exhaust it earlier.
            std::thread::sleep((left / cores).max(LOOK_INTERVAL_MIN));
        }
        let mut stdout = std::io::stdout();
        // Without a reader, the lifeline is closed too.
        let _ = stdout.write_all(&[SLICE_USED_UP]).and_then(|()| stdout.flush());
    };
    std::thread::Builder::new().name("slice".into()).spawn(watch).map(drop)
}

/// Lowers the worker's priority and sets its resource limits.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no resource limits")]
fn confine(memory_bytes: u64, cpu_seconds: u64) {
    let limits = [
        (libc::RLIMIT_AS, memory_bytes, memory_bytes),
        (libc::RLIMIT_CORE, 0, 0),
        // The soft limit has a signal of its own; the kill at the hard limit looks like one for lack of memory.
        (libc::RLIMIT_CPU, cpu_seconds, cpu_seconds.saturating_add(1)),
        (libc::RLIMIT_FSIZE, COMPILED_BYTES_MAX, COMPILED_BYTES_MAX),
    ];
    for (resource, soft, hard) in limits {
        let limit = libc::rlimit { rlim_cur: soft as _, rlim_max: hard as _ };
        // SAFETY: the call reads its arguments and touches no other memory of ours.
        unsafe { libc::setrlimit(resource, &raw const limit) };
    }
    // SAFETY: as above.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, COMPILE_NICE) };
    // Absent outside Linux. Under memory pressure the compiler is killed before the cluster.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = std::fs::write("/proc/self/comm", PROCESS_NAME);
}

#[cfg(not(unix))]
fn confine(_memory_bytes: u64, _cpu_seconds: u64) {}

/// Result of compiling a module.
pub(crate) struct Compiled {
    artifact: Vec<u8>,
    /// A plugin's description, or why there is none; `None` for other modules.
    description: Option<Result<Description, String>>,
}

impl Compiled {
    /// Writes the artifact and its companions: its checksum, and a plugin's description. Neither is part of the artifact, which
    /// is mapped as a whole. The checksum is of the compiler's output, not of the file's content.
    pub(crate) fn write(&self, out: &Path) -> std::io::Result<()> {
        let sum = std::thread::scope(|scope| {
            let sum = std::thread::Builder::new().spawn_scoped(scope, || aot::checksum(&self.artifact[..]))?;
            std::fs::write(out, &self.artifact)?;
            sum.join().map_err(|_| std::io::Error::other("the checksum's thread panicked"))?
        })?;
        std::fs::write(aot::sum_path(out), sum)?;
        let Some(description) = &self.description else { return Ok(()) };
        std::fs::write(aot::description_path(out), serde_json::to_vec(description)?)
    }
}

pub(super) fn compile_bytes(settings: CodeSettings, kind: CodeKind, file: &Path) -> Result<Compiled, LoadError> {
    let bytes = std::fs::read(file).map_err(LoadError::io("reading the module"))?;
    let engine = settings::on_demand(settings, GuestBounds::default()).map_err(LoadError::compile)?;
    let artifact = match kind {
        CodeKind::Component => engine.precompile_component(&bytes),
        CodeKind::Module => engine.precompile_module(&bytes),
    }
    .map_err(LoadError::compile)?;
    // It compiled, so it is valid; a type nested too deeply ends only this process.
    let is_plugin = inspect_valid(&bytes).is_ok_and(|found| found.kind == Some(Kind::Plugin));
    Ok(Compiled { artifact, description: is_plugin.then(|| describe(&bytes)) })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_used_up_slice_is_detected_in_any_output() {
        let is_used_up = |output: &'static [u8]| slice_used_up(Some(output)).now_or_never().is_some();
        assert!(is_used_up(b"\nrunning 1 test\n\x05more"));
        assert!(!is_used_up(b"\nrunning 1 test\n"));
        assert!(!is_used_up(&[b'x'; ERROR_BYTES_MAX as usize + 1]));
    }

    #[cfg(unix)]
    #[test]
    fn the_compilers_exit_has_the_error() {
        use std::os::unix::process::ExitStatusExt as _;
        let (exit, signal) = (|code: i32| ExitStatus::from_raw(code << 8), ExitStatus::from_raw);
        let memory = "compiling the module needs more than 3072 MiB of memory, which the node's --module-compile-memory \
                      raises as far as the machine has it";
        for (status, output, expected) in [
            (exit(1), "unknown opcode", "the module does not compile: unknown opcode"),
            (exit(1), "writing the artifact: full", "writing the compiled module: full"),
            (signal(6), "memory allocation of 9 bytes failed", memory),
            (signal(9), "", memory),
            (signal(6), "thread x has overflowed its stack", "the module does not compile: it is nested too deeply"),
            (signal(11), "", "the module does not compile: the compiler ended with signal: 11 (SIGSEGV)"),
            (exit(101), "panicked", "the module does not compile: the compiler ended with exit status: 101"),
        ] {
            let CompileFailure::Error(error) = failure(status, output, 3 << 30) else { panic!("{status} {output}") };
            assert_eq!(error.to_string(), expected);
        }
        assert!(matches!(failure(signal(24), "", 3 << 30), CompileFailure::Time));
    }
}
