//! The ticker: raises the engines' epochs while guests run, so that a busy guest yields its thread, and parks when
//! none runs, so that an idle node costs nothing.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use wasmtime::EngineWeak;

use super::shares::Turns;

/// How long a guest may hold its thread: short against a request's latency budget, long against the cost of a tick.
const TICK: Duration = Duration::from_millis(2);
/// The same where guests want more CPU than there is: who waits for a thread, most of all a request of a quiet pod, waits for the end of
/// somebody's turn, and again for each of its own steps.
const CROWDED_TICK: Duration = Duration::from_micros(500);
/// How many of those are a usual one.
pub(crate) const CROWDED_TICKS_OF_A_TICK: u32 = 4;
/// Ticks without a guest before the ticker parks: waking it costs a system call, so it stays up under steady traffic.
const IDLE_TICKS_MAX: u32 = 50;

thread_local! {
    /// The guest that is polled on this thread gave it up in the middle of its work.
    static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
}

/// A guest gives its thread up, as its epoch is over.
pub(crate) fn interrupt() {
    INTERRUPTED.set(true);
}

/// Whether one did since the last call.
pub(crate) fn take_interrupted() -> bool {
    INTERRUPTED.replace(false)
}

struct Shared {
    turns: Arc<Turns>,
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

/// The count of guests that are being polled.
#[derive(Clone)]
pub(crate) struct Polled(Arc<Shared>);

impl Polled {
    pub(crate) fn count(&self) -> usize {
        self.0.running.load(Ordering::SeqCst)
    }

    /// The guest that is polled on this thread does something that takes no core from others, until the answer is dropped.
    pub(crate) fn stand_aside(&self) -> impl Drop + use<> {
        struct Aside(Arc<Shared>);
        impl Drop for Aside {
            fn drop(&mut self) {
                self.0.running.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.turns.stood_aside();
        Aside(self.0.clone())
    }
}

impl Ticker {
    /// `turns` hear at each tick how many guests run.
    pub(crate) fn start(turns: Arc<Turns>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            turns,
            running: AtomicUsize::new(0),
            entered: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            engines: Mutex::default(),
            thread: OnceLock::new(),
        });
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

    /// How many guests are being polled.
    pub(crate) fn polled(&self) -> Polled {
        Polled(self.shared.clone())
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
        let (mut idle_ticks, mut seen, mut full_ticks) = (0, 0, 0);
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(if self.turns.crowded() { CROWDED_TICK } else { TICK });
            let entered = self.entered.load(Ordering::Relaxed);
            let running = self.running.load(Ordering::SeqCst);
            self.turns.tick(running, &mut full_ticks);
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
