//! `coracle up`: the whole cluster in one process, in the foreground.

use std::io::Write as _;
use std::time::Duration;

use machinery_env::Env;

use super::Failure;
use crate::compose;
use crate::config::{Common, Up};
use crate::data_dir::DataDir;
use crate::progress::Progress;

/// What is still running when the runtimes end is dropped after this long; a stop takes 5 s at most (contract.md §2).
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// The flags contradict each other, or the cluster can't start.
pub(crate) fn run(flags: &Up, common: &Common) -> Result<(), Failure> {
    check(flags)?;
    let env = Env::real();
    let data = DataDir::of(common)?;
    let progress = Progress::new();
    let runtime = compose::runtime()?;
    let done = runtime.block_on(async {
        // Taken before the start, so that a signal during it is not lost.
        let stop = compose::stop_signal();
        tokio::pin!(stop);
        let cluster = tokio::select! {
            cluster = compose::start(&env, flags, &data, progress) => cluster?,
            () = &mut stop => return Ok(()),
        };
        let line = format!(
            "ready server={} kubeconfig={} nodes={}\n",
            cluster.server,
            data.kubeconfig().display(),
            flags.nodes
        );
        progress.done();
        // One write, so that whoever waits for the line reads it whole.
        std::io::stdout().write_all(line.as_bytes())?;
        std::io::stdout().flush()?;
        tokio::select! {
            () = &mut stop => {}
            error = cluster.failed() => {
                cluster.stop().await;
                return Err(error);
            }
        }
        cluster.stop().await;
        Ok(())
    });
    runtime.shutdown_timeout(LAST_MOMENT);
    Ok(done?)
}

/// What clap can't see: values of built flags that are not built yet.
fn check(flags: &Up) -> Result<(), Failure> {
    let (high, low) = (flags.image_gc_high_threshold, flags.image_gc_low_threshold);
    if low >= high {
        return Err(Failure::Usage(format!(
            "--image-gc-low-threshold {low}: must be below --image-gc-high-threshold {high}"
        )));
    }
    match flags.store.as_deref() {
        None => Ok(()),
        Some(url) if url.strip_prefix("sled:").is_some_and(|path| !path.is_empty()) => Ok(()),
        Some(url) if url.starts_with("etcd:") => {
            Err(Failure::Usage(format!("--store {url}: etcd is not served yet; leave --store out, or give sled:DIR")))
        }
        Some(url) => Err(Failure::Usage(format!("--store {url}: not a store; leave it out, or give sled:DIR"))),
    }
}
