//! The ticker: raises the engines' epochs while guests run, so that a busy guest yields its thread, and parks when
//! none runs, so that an idle node costs nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::EngineWeak;

/// How long a guest may hold its thread: short against a request's latency budget, long against the cost of a tick.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without a guest before the ticker parks: waking it costs a system call, so it stays up under steady traffic.
const IDLE_TICKS_MAX: u32 = 50;

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    entered: AtomicU64,
    parked: AtomicBool,
    stop: AtomicBool,
    engines: Mutex<Vec<EngineWeak>>,
    thread: OnceLock<Thread>,
}

/// Owns the thread; it ends with the last clone of the engine.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
}

/// While one of these lives, epochs advance.
pub(crate) struct Running<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let handle = std::thread::Builder::new().name("guest-ticker".into()).spawn(move || theirs.run())?;
        // Set before anyone can see the ticker, so `enter` always finds it.
        let _ = shared.thread.set(handle.thread().clone());
        Ok(Self { shared })
    }

    pub(crate) fn add(&self, engine: EngineWeak) {
        self.shared.engines.lock().unwrap_or_else(PoisonError::into_inner).push(engine);
    }

    /// A guest is about to be polled.
    pub(crate) fn enter(&self) -> Running<'_> {
        let shared = &*self.shared;
        shared.running.fetch_add(1, Ordering::SeqCst);
        shared.entered.fetch_add(1, Ordering::Relaxed);
        if shared.parked.load(Ordering::SeqCst)
            && shared.parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = shared.thread.get()
        {
            thread.unpark();
        }
        Running(shared)
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

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn run(&self) {
        let (mut idle_ticks, mut seen) = (0, 0);
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            let entered = self.entered.load(Ordering::Relaxed);
            if self.running.load(Ordering::SeqCst) > 0 || entered != seen {
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
                // A guest that entered before the store above was visible is seen here; one after it unparks.
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
