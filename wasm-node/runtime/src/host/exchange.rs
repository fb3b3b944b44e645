//! What a guest and its response's body tell each other.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const RUNNING: u8 = 0;
const RETURNED: u8 = 1;
const FAILED: u8 = 2;

/// One request and its answer.
pub(crate) struct Exchange {
    guest: AtomicU8,
    /// The body's reader is gone before its end.
    pub(crate) abandoned: Notify,
    started: Instant,
    progress_ms: AtomicU64,
}

impl Exchange {
    pub(crate) fn new(started: Instant) -> Self {
        Self { guest: AtomicU8::new(RUNNING), abandoned: Notify::new(), started, progress_ms: AtomicU64::new(0) }
    }

    /// The guest ended. Set before its store is dropped, so that a body whose channel closes finds it.
    pub(crate) fn end(&self, failed: bool) {
        // A failure stays one.
        let _ = self.guest.fetch_max(if failed { FAILED } else { RETURNED }, Ordering::AcqRel);
    }

    /// The guest has not failed: what it finished is whole.
    pub(crate) fn complete(&self) -> bool {
        self.guest.load(Ordering::Acquire) != FAILED
    }

    /// A frame went out. Nobody asks once the guest has ended.
    pub(crate) fn step(&self) {
        if self.guest.load(Ordering::Relaxed) != RUNNING {
            return;
        }
        self.progress_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// When the last frame went out (or the exchange began).
    pub(crate) fn progress_at(&self) -> Instant {
        self.started + Duration::from_millis(self.progress_ms.load(Ordering::Relaxed))
    }
}
