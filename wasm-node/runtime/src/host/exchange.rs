//! What a guest and its response's body tell each other.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const RUNNING: u8 = 0;
const RETURNED: u8 = 1;
const FAILED: u8 = 2;

/// One request and its answer.
pub(crate) struct Exchange {
    guest: AtomicU8,
    /// The guest finished a body.
    finished: AtomicBool,
    /// The body's reader is gone before its end.
    pub(crate) abandoned: Notify,
    started: Instant,
    progress_ms: AtomicU64,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self {
            guest: AtomicU8::new(RUNNING),
            finished: AtomicBool::new(false),
            abandoned: Notify::new(),
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
        }
    }

    /// The guest ended. Set before its store is dropped, so that a body whose channel closes finds it.
    pub(crate) fn end(&self, failed: bool) {
        // A failure stays one.
        let _ = self.guest.fetch_max(if failed { FAILED } else { RETURNED }, Ordering::AcqRel);
    }

    pub(crate) fn finish_body(&self) {
        self.finished.store(true, Ordering::Release);
    }

    /// Whether the end of the body's channel is the body's end.
    pub(crate) fn complete(&self) -> bool {
        match self.guest.load(Ordering::Acquire) {
            FAILED => false,
            _ => self.finished.load(Ordering::Acquire),
        }
    }

    /// A frame went out.
    pub(crate) fn step(&self) {
        self.progress_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// When the last frame went out (or the exchange began).
    pub(crate) fn progress_at(&self) -> Instant {
        self.started + Duration::from_millis(self.progress_ms.load(Ordering::Relaxed))
    }
}
