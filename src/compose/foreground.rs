//! A verb that runs a process in the foreground: threads, signals, takeover, the `ready` line, and the exit.

use std::time::Duration;

use anyhow::Context as _;
use machinery_env::Env;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::notify;
use tools_command::output::print_stderr;
use tools_command::progress::Progress;
use tools_command::signals::stop_signal;

use super::memory;
use super::metrics::MetricsEndpoint;
use super::process::Process;
use tools_takeover::{self as takeover, HandedOver, HandoverRequests, TakenOver};

/// Version and commit of this program, for the process that it takes over from.
pub(crate) const PROGRAM: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CORACLE_COMMIT"), ")");

/// Threads of the control plane: it mostly waits, and two cores are the smallest supported machine.
const CONTROL_PLANE_THREADS: usize = 2;
/// Grace period of tasks that still run when the runtimes end; a stop takes 5 s at most (docs/contract.md §2).
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// A process that is ready, and what it reports.
pub(crate) struct ReadyProcess {
    pub(crate) process: Process,
    pub(crate) taken: Option<TakenOver>,
    pub(crate) metrics: MetricsEndpoint,
    /// The fields of the `ready` line.
    pub(crate) report: String,
}

/// Starts a process and runs it until SIGINT or SIGTERM, a takeover of its data folder `data`, or a failure.
///
/// # Errors
/// If the start fails, the address of the metrics is taken, or a component ended by itself.
pub(crate) fn until_stopped(
    env: &Env,
    data: Option<&DataDir>,
    start: impl AsyncFnOnce(Progress) -> anyhow::Result<ReadyProcess>,
) -> Result<(), Failure> {
    let progress = Progress::stderr();
    let runtime = runtime()?;
    let done: anyhow::Result<()> = runtime.block_on(async {
        // Installed before the start, so that a signal during it is not lost.
        let stop = stop_signal();
        tokio::pin!(stop);
        let started = tokio::select! {
            started = start(progress) => started?,
            () = &mut stop => return Ok(()),
        };
        let ReadyProcess { process, taken, metrics, report } = started;
        let mut handovers = data.map(|data| takeover::listen(env, data, PROGRAM));
        let metrics_stop = CancellationToken::new();
        let metrics = metrics.serve(env, &metrics_stop)?;
        progress.done();
        if let Some(taken) = taken {
            let engine = process.engine();
            let ended = move || {
                // The process before served pods of this folder until now.
                if let Some(engine) = engine {
                    engine.share_keyvalue_files(false);
                }
            };
            print_stderr!("coracle: {}", taken.complete(env, ended).await);
        }
        notify::ready(format_args!("ready {report}{metrics}"))?;
        memory::release_after_start(env);
        let ended = tokio::select! {
            () = &mut stop => Ok(()),
            given = committed(handovers.as_mut()) => {
                // The next process has a control socket of its own.
                drop(handovers);
                let leaving = process.hand_over(given).await;
                tokio::select! {
                    () = &mut stop => {}
                    () = leaving.complete() => {}
                }
                return Ok(());
            }
            error = process.failed() => Err(error),
        };
        process.stop().await;
        metrics_stop.cancel();
        ended
    });
    runtime.shutdown_timeout(LAST_MOMENT);
    Ok(done?)
}

async fn committed(handovers: Option<&mut HandoverRequests>) -> HandedOver {
    match handovers {
        Some(handovers) => handovers.committed().await,
        None => std::future::pending().await,
    }
}

/// The runtime of the control plane.
///
/// # Errors
/// If threads can't be started.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_PLANE_THREADS)
        .thread_name("control-plane")
        .enable_all()
        .build()
        .context("cannot start threads")
}
