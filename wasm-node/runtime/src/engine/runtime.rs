//! The threads that guests run on: a tokio runtime of their own, at lower priority while guests are busy, so that none starves
//! the control plane of its process.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use machinery_env::Env;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::bounds::epoch::Ticker;
use crate::bounds::priority;
use crate::bounds::shares::{self, Turns};
use crate::host::disk_threads::THREADS_MAX;

/// Threads beside those that guests' file work may hold up: for the guests that go on meanwhile, and for loading modules.
const SPARE_THREADS: usize = 32;
/// Turns between two looks at sockets and timers while there is always a guest to run. A turn may last a whole tick of
/// [`epoch`](super::epoch): with tokio's 61, a request to a quiet pod lay unread for 60 ms and more beside busy neighbours. With 1, small
/// requests take an eighth more of the CPU; who is interrupted after a whole tick steps aside for so many turns instead
/// ([`Metered`](super::metered)).
pub(crate) const TURNS_BETWEEN_EVENTS: u32 = 4;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    /// Which guest runtime this thread belongs to; 0 = none.
    static GUEST_RUNTIME: Cell<u64> = const { Cell::new(0) };
}

/// The threads of all guests of a process: they run from [`GuestThreads::start`] until this is dropped.
pub struct GuestThreads {
    pub(crate) runtime: GuestRuntime,
    pub(crate) ticker: Ticker,
    /// Whose turn it is where CPU is short.
    pub(crate) turns: Arc<Turns>,
}

impl std::fmt::Debug for GuestThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestThreads").finish_non_exhaustive()
    }
}

impl GuestThreads {
    /// Starts as many as `count`, usually the number of cores, and at least two; and the one that interrupts guests.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start(count: usize, env: &Env) -> std::io::Result<Self> {
        let count = count.max(2);
        let turns = Turns::new(count);
        let ticker = Ticker::start(turns.clone())?;
        let runtime = GuestRuntime::start(count)?;
        let polled = ticker.polled();
        runtime.handle().spawn(shares::dispatch(turns.clone(), env.clone(), move || polled.count()));
        Ok(Self { runtime, ticker, turns })
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
            .event_interval(TURNS_BETWEEN_EVENTS)
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

    /// Whether the caller already runs on one of these threads.
    pub(crate) fn is_current(&self) -> bool {
        GUEST_RUNTIME.get() == self.id
    }
}

impl Drop for GuestRuntime {
    fn drop(&mut self) {
        // The last engine may be dropped by a task of a runtime, where waiting for threads would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
