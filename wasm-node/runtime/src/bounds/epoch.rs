//! The epoch ticker: raises the engines' epochs while guests run, so that a busy guest yields its thread. Parks without
//! running guests, so that an idle node costs nothing.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::EngineWeak;

use super::shares::CpuScheduler;

/// Time slice of a guest on its thread: short against a request's latency budget, long against the cost of a tick.
const TICK: Duration = Duration::from_millis(2);
/// Time slice under CPU contention: a waiting guest, above all a quiet pod's request, waits for the end of another's slice at
/// each of its own steps.
const CONTENDED_TICK: Duration = Duration::from_micros(500);
/// Contended ticks per normal tick.
pub(crate) const CONTENDED_TICKS_PER_TICK: u32 = 4;
/// Ticks without a guest before the ticker parks: waking it costs a system call, so steady traffic keeps it awake.
const IDLE_TICKS_MAX: u32 = 50;

thread_local! {
    /// Whether the guest polled on this thread was interrupted by its epoch.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// Records that the current guest yields at the end of its epoch.
pub(crate) fn interrupt() {
    INTERRUPTED.set(true);
}

/// Whether a guest was interrupted since the last call.
pub(crate) fn take_interrupted() -> bool {
    INTERRUPTED.replace(false)
}

struct TickerState {
    scheduler: Arc<CpuScheduler>,
    running: AtomicUsize,
    entered: AtomicU64,
    parked: AtomicBool,
    stop: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    thread: OnceLock<Thread>,
}

/// Owns the ticker thread, which ends with the last clone of the engine.
pub(crate) struct Ticker {
    shared: Arc<TickerState>,
}

/// Guard of a polled guest: epochs advance while one exists.
pub(crate) struct PollGuard<'a>(&'a TickerState);

/// The number of guests being polled.
#[derive(Clone)]
pub(crate) struct PolledCount(Arc<TickerState>);

impl PolledCount {
    pub(crate) fn count(&self) -> usize {
        self.0.running.load(Ordering::SeqCst)
    }

    /// Excludes the guest polled on this thread from the count until the guard is dropped: its work takes no core from others.
    pub(crate) fn exclude_current(&self) -> impl Drop + use<> {
        struct ExclusionGuard(Arc<TickerState>);
        impl Drop for ExclusionGuard {
            fn drop(&mut self) {
                self.0.running.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.scheduler.yielded();
        ExclusionGuard(self.0.clone())
    }
}

impl Ticker {
    /// Starts the thread; each tick reports the number of running guests to `scheduler`.
    pub(crate) fn start(scheduler: Arc<CpuScheduler>) -> std::io::Result<Self> {
        let shared = Arc::new(TickerState {
            scheduler,
            running: AtomicUsize::new(0),
            entered: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            engines: Mutex::default(),
            thread: OnceLock::new(),
        });
        let theirs = shared.clone();
        let handle = std::thread::Builder::new().name("guest-ticker".into()).spawn(move || theirs.run())?;
        // Set before the ticker is visible, so that `enter` always finds it.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self { shared })
    }

    pub(crate) fn add(&self, engine: EngineWeak) {
        self.shared.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }

    /// Marks the start of a guest's poll.
    pub(crate) fn enter(&self) -> PollGuard<'_> {
        let shared = &*self.shared;
        shared.running.fetch_add(1, Ordering::SeqCst);
        shared.entered.fetch_add(1, Ordering::Relaxed);
        if shared.parked.load(Ordering::SeqCst)
            && shared.parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = shared.thread.get()
        {
            thread.unpark();
        }
        PollGuard(shared)
    }

    /// A handle to the number of guests being polled.
    pub(crate) fn polled(&self) -> PolledCount {
        PolledCount(self.shared.clone())
    }

    #[cfg(test)]
    pub(crate) fn is_parked(&self) -> bool {
        self.shared.parked.load(Ordering::SeqCst)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TickerState {
    fn run(&self) {
        let (mut idle_ticks, mut seen, mut full_ticks) = (0, 0, 0);
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(if self.scheduler.contended() { CONTENDED_TICK } else { TICK });
            let entered = self.entered.load(Ordering::Relaxed);
            let running = self.running.load(Ordering::SeqCst);
            self.scheduler.tick(running, &mut full_ticks);
            if running > 0 || entered != seen {
                (idle_ticks, seen) = (0, entered);
                for engine in self.engines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    if let Some(engine) = engine.upgrade() {
                        engine.increment_epoch();
                    }
                }
                continue;
            }
            idle_ticks += 1;
            if idle_ticks > IDLE_TICKS_MAX {
                idle_ticks = 0;
                self.parked.store(true, Ordering::SeqCst);
                // A guest that entered before the store above is counted here; a later one unparks the thread.
                while self.parked.load(Ordering::SeqCst)
                    && self.running.load(Ordering::SeqCst) == 0
                    && !self.stop.load(Ordering::SeqCst)
                {
                    std::thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
            }
        }
    }
}
