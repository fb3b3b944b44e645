//! Virtual time of workloads, faults and checkers: tokio's paused clock, which the components' environment
//! (`machinery_env::TokioClock`) reads too. It advances as soon as every task waits.
//!
//! The simulation stands outside the simulated processes and moves all of their clocks, so it takes no environment of theirs.

use std::time::Duration;

use tokio::time::{Instant, Sleep, Timeout};

/// The present virtual time.
#[expect(clippy::disallowed_methods, reason = "the simulation's one home of tokio's clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits for `duration`.
#[expect(clippy::disallowed_methods, reason = "the simulation's one home of tokio's clock")]
pub(crate) fn sleep(duration: Duration) -> Sleep {
    tokio::time::sleep(duration)
}

/// Waits until `deadline`.
#[expect(clippy::disallowed_methods, reason = "the simulation's one home of tokio's clock")]
pub(crate) fn sleep_until(deadline: Instant) -> Sleep {
    tokio::time::sleep_until(deadline)
}

/// Drives `future` for `duration` at most.
#[expect(clippy::disallowed_methods, reason = "the simulation's one home of tokio's clock")]
pub(crate) fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    tokio::time::timeout(duration, future)
}

/// Drives `future` until `deadline` at most.
#[expect(clippy::disallowed_methods, reason = "the simulation's one home of tokio's clock")]
pub(crate) fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    tokio::time::timeout_at(deadline, future)
}
