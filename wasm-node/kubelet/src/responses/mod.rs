//! Measures the responses of a container that serves: by status class, by duration from a request's arrival to the
//! response's head, and by caller and Service. Probes and hooks of the node are not counted, nor are requests that the
//! container rejected unread.
//!
//! A request costs some atomic additions and no allocation; a container without a response has no tables.

mod callers;
mod tally;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use machinery_serve::net::Origin;

use callers::Callers;
pub(crate) use callers::{Caller, Calls};
pub(crate) use tally::Counts;
use tally::Tally;

/// The minimum window of a meaningful rate.
pub(crate) const WINDOW_MIN: Duration = Duration::from_secs(1);
/// The status classes.
pub(crate) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Measures one container.
#[derive(Debug)]
pub(crate) struct ResponseMeter {
    /// When the container started, of the clock's [`elapsed`](machinery_env::Env::elapsed) time.
    born: Duration,
    /// Created with the first response.
    measured: OnceLock<Box<Measured>>,
}

#[derive(Debug, Default)]
struct Measured {
    tally: Tally,
    /// The sum of durations, in nanoseconds.
    nanos: AtomicU64,
    classes: [AtomicU64; CLASSES.len()],
    callers: Callers,
    /// Nanoseconds of the time of the earlier of the last two samples; zero without one.
    sampled_at: AtomicU64,
}

/// All responses since the container's start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Totals {
    pub(crate) counts: Counts,
    pub(crate) seconds: f64,
    /// In the order of [`CLASSES`].
    pub(crate) classes: [u64; CLASSES.len()],
}

/// Responses in a window before now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) counts: Counts,
    pub(crate) window: Duration,
}

fn nanos(of: Duration) -> u64 {
    u64::try_from(of.as_nanos()).unwrap_or(u64::MAX)
}

impl ResponseMeter {
    pub(crate) fn new(born: Duration) -> Self {
        Self { born, measured: OnceLock::new() }
    }

    /// Records a response.
    pub(crate) fn record(&self, from: &Origin, status: StatusCode, took: Duration) {
        let measured = self.measured.get_or_init(Box::default);
        let class = usize::from(status.as_u16() / 100).saturating_sub(1).min(CLASSES.len() - 1);
        measured.classes[class].fetch_add(1, Ordering::Relaxed);
        measured.nanos.fetch_add(nanos(took), Ordering::Relaxed);
        let is_error = status.is_server_error();
        measured.tally.record(took, is_error);
        measured.callers.record(from, took, is_error);
    }

    /// Takes a sample. `earlier` is the time of the previous one.
    pub(crate) fn sample(&self, earlier: Duration) {
        let Some(measured) = self.measured.get() else { return };
        measured.tally.sample();
        measured.callers.sample();
        measured.sampled_at.store(nanos(earlier), Ordering::Relaxed);
    }

    /// All responses; `None` without any.
    pub(crate) fn totals(&self) -> Option<Totals> {
        let measured = self.measured.get()?;
        let classes = std::array::from_fn(|at| measured.classes[at].load(Ordering::Relaxed));
        let seconds = Duration::from_nanos(measured.nanos.load(Ordering::Relaxed)).as_secs_f64();
        Some(Totals { counts: measured.tally.counts(), seconds, classes })
    }

    /// The responses of the window that ends at `now`; `None` if it is too short for a rate. `earlier` is the time of the
    /// earlier of the node's last two samples.
    pub(crate) fn recent(&self, earlier: Duration, now: Duration) -> Option<Recent> {
        let measured = self.measured.get();
        let sampled_at = measured.map_or(0, |measured| measured.sampled_at.load(Ordering::Relaxed));
        // Without a sample of its own, nothing was counted at the node's earlier one.
        let since = if sampled_at == 0 { earlier } else { Duration::from_nanos(sampled_at) };
        let window = now.saturating_sub(since.max(self.born));
        let counts = measured.map(|measured| measured.tally.recent()).unwrap_or_default();
        (window >= WINDOW_MIN).then_some(Recent { counts, window })
    }

    /// Passes the calls of the same window to `show`, by Service and caller.
    pub(crate) fn each_caller(&self, show: impl FnMut(Calls<'_>)) {
        if let Some(measured) = self.measured.get() {
            measured.callers.each(show);
        }
    }
}

#[cfg(test)]
mod tests {
    use machinery_rules::response_times;
    use machinery_serve::net::Peer;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn origin() -> Origin {
        Origin { peer: Peer::Node, local: ([127, 66, 0, 2], 80).into(), via: None }
    }

    #[test]
    fn responses_are_counted_by_class() {
        let meter = ResponseMeter::new(s(5));
        assert_eq!(meter.totals(), None);
        for status in [101, 200, 204, 302, 404, 503, 999] {
            meter.record(&origin(), StatusCode::from_u16(status).unwrap(), Duration::from_millis(250));
        }
        let totals = meter.totals().unwrap();
        assert_eq!((totals.classes, totals.seconds), ([1, 2, 1, 1, 2], 1.75));
        assert_eq!((response_times::count(&totals.counts.durations), totals.counts.errors), (7, 1));
    }

    #[test]
    fn a_window_begins_with_a_sample_or_with_the_container() {
        let meter = ResponseMeter::new(s(100));
        let window = |earlier, now| meter.recent(s(earlier), s(now)).map(|recent| recent.window);
        assert_eq!(window(90, 100), None, "it has just begun");
        assert_eq!(window(90, 103), Some(s(3)), "since its beginning");
        assert_eq!(window(990, 1010), Some(s(20)), "nothing was counted before");
        meter.record(&origin(), StatusCode::OK, s(1));
        meter.sample(s(1005));
        assert_eq!(window(990, 1021), Some(s(16)), "its own sample counts");
    }
}
