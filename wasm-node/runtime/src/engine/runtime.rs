//! The guests' threads: a tokio runtime of their own, at lower priority while guests are busy, so that none starves the control
//! plane of its process.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machinery_env::Env;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::bounds::epoch::Ticker;
use crate::bounds::priority;
use crate::bounds::shares::{self, CpuScheduler};
use crate::host::disk_threads::THREADS_MAX;

/// Threads beside those that guests' file work may block: for other guests meanwhile, and for loading modules.
const SPARE_THREADS: usize = 32;
/// Scheduler ticks between two polls of sockets and timers under constant load. A tick may last a whole epoch of
/// [`epoch`](super::epoch): with tokio's 61, a request to a quiet pod waited unread for 60 ms and more beside busy neighbours.
/// With 1, small requests take an eighth more CPU; a guest interrupted after a whole epoch yields that many times instead
/// ([`MeteredFuture`](super::metered)).
pub(crate) const EVENT_INTERVAL: u32 = 4;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Id of this thread's guest runtime; 0 = none.
    static GUEST_RUNTIME: Cell<u64> = const { Cell::new(0) };
}

/// The threads of all guests of a process, from [`GuestThreads::start`] until this is dropped.
pub struct GuestThreads {
    pub(crate) runtime: GuestRuntime,
    pub(crate) ticker: Ticker,
    /// The CPU scheduler under contention.
    pub(crate) scheduler: Arc<CpuScheduler>,
}

impl std::fmt::Debug for GuestThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestThreads").finish_non_exhaustive()
    }
}

impl GuestThreads {
    /// Starts `count` threads (usually the number of cores, at least two), and the epoch ticker.
    ///
    /// # Errors
    /// The system can't create threads.
    pub fn start(count: usize, env: &Env) -> std::io::Result<Self> {
        let count = count.max(2);
        let scheduler = CpuScheduler::new(count);
        let ticker = Ticker::start(scheduler.clone())?;
        let runtime = GuestRuntime::start(count)?;
        let polled = ticker.polled();
        runtime.handle().spawn(shares::dispatch(scheduler.clone(), env.clone(), move || polled.count()));
        Ok(Self { runtime, ticker, scheduler })
    }
}

pub(crate) struct GuestRuntime {
    runtime: Option<Runtime>,
    id: u64,
}

impl GuestRuntime {
    fn start(threads: usize) -> std::io::Result<Self> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(THREADS_MAX as usize + threads + SPARE_THREADS)
            .event_interval(EVENT_INTERVAL)
            .thread_name("guest")
            .enable_all()
            .on_thread_start(move || {
                GUEST_RUNTIME.set(id);
                priority::begin();
            })
            .build()?;
        Ok(Self { runtime: Some(runtime), id })
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("taken only by drop").handle()
    }

    /// Whether the caller runs on one of these threads.
    pub(crate) fn is_current(&self) -> bool {
        GUEST_RUNTIME.get() == self.id
    }
}

impl Drop for GuestRuntime {
    fn drop(&mut self) {
        // A task of a runtime may drop the last engine, where waiting for threads would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
