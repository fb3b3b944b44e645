//! The shared state of one request's guest and its response body: whether the guest returned, failed or still runs.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use machinery_env::Env;
use machinery_serve::trace::Span;
use tokio::sync::Notify;
use tokio::time::Instant;

const RUNNING: u8 = 0;
const RETURNED: u8 = 1;
const FAILED: u8 = 2;

/// One request and its response.
pub(crate) struct Exchange {
    guest: AtomicU8,
    /// Notified when the body's reader disconnects before the end.
    pub(crate) abandoned: Notify,
    env: Env,
    started: Instant,
    progress_ms: AtomicU64,
    /// The guest's span: ends when neither the guest nor the reader of its body is left.
    pub(crate) span: Span,
}

impl Exchange {
    pub(crate) fn new(env: Env, started: Instant, span: Span) -> Self {
        let (guest, progress_ms) = (AtomicU8::new(RUNNING), AtomicU64::new(0));
        Self { guest, abandoned: Notify::new(), env, started, progress_ms, span }
    }

    /// Records the guest's end. Set before its store is dropped, so that a body reads it when its channel closes.
    pub(crate) fn end(&self, failed: bool) {
        // A failure is final.
        let _ = self.guest.fetch_max(if failed { FAILED } else { RETURNED }, Ordering::AcqRel);
    }

    /// Records a time since the request's arrival, in milliseconds.
    pub(crate) fn trace_elapsed(&self, name: &'static str) {
        if self.span.is_recording() {
            let elapsed = self.env.instant().saturating_duration_since(self.started);
            self.span.set(name, elapsed.as_secs_f64() * 1e3);
        }
    }

    /// Whether the guest has not failed: its finished output is complete.
    pub(crate) fn complete(&self) -> bool {
        self.guest.load(Ordering::Acquire) != FAILED
    }

    /// Records a sent frame. Ignored once the guest has ended.
    pub(crate) fn record_frame(&self) {
        if self.guest.load(Ordering::Relaxed) != RUNNING {
            return;
        }
        let elapsed = self.env.instant().saturating_duration_since(self.started);
        self.progress_ms.store(elapsed.as_millis() as u64, Ordering::Relaxed);
    }

    /// Time of the last sent frame (or of the start).
    pub(crate) fn progress_at(&self) -> Instant {
        self.started + Duration::from_millis(self.progress_ms.load(Ordering::Relaxed))
    }
}
