//! Timers of an [`Env`]: waits, timeouts, intervals and deadlines, each without an allocation.
//!
//! All are tokio's, whatever clock the environment has. A deadline is computed once, from a recorded instant: code that
//! adds a duration to the present time on each pass of a loop never reaches its end.

use std::future::IntoFuture;
use std::time::Duration;

use tokio::time::{Instant, Interval, Sleep, Timeout};

use crate::Env;

/// Distance of a deadline that is too far for the clock: tokio's own substitute for such a sleep, some 30 years.
const FAR_FUTURE: Duration = Duration::from_secs(86_400 * 365 * 30);

/// The instant that timers are compared with.
#[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

/// A recorded instant of the monotonic clock at which a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline `duration` after a recorded instant.
    #[must_use]
    pub fn after(recorded: Instant, duration: Duration) -> Self {
        Self(recorded.checked_add(duration).unwrap_or_else(|| recorded + FAR_FUTURE))
    }

    /// The time left, zero after the deadline.
    #[must_use]
    pub fn remaining(self, env: &Env) -> Duration {
        self.0.saturating_duration_since(env.instant())
    }

    /// Whether the deadline is reached.
    #[must_use]
    pub fn passed(self, env: &Env) -> bool {
        env.instant() >= self.0
    }

    /// The instant of the deadline.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self(at)
    }
}

impl Env {
    /// The present instant of the monotonic clock that timers use, for measuring.
    #[must_use]
    pub fn instant(&self) -> Instant {
        instant()
    }

    /// The deadline `after` from now.
    #[must_use]
    pub fn deadline(&self, after: Duration) -> Deadline {
        Deadline::after(self.instant(), after)
    }

    /// Waits for `duration`. Must be called within a tokio runtime, like all timers.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        tokio::time::sleep(duration)
    }

    /// Waits until `deadline`.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn sleep_until(&self, deadline: impl Into<Deadline>) -> Sleep {
        tokio::time::sleep_until(deadline.into().0)
    }

    /// Drives `future` for `duration` at most.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn timeout<F: IntoFuture>(&self, duration: Duration, future: F) -> Timeout<F::IntoFuture> {
        tokio::time::timeout(duration, future)
    }

    /// Drives `future` until `deadline` at most.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn timeout_at<F: IntoFuture>(&self, deadline: impl Into<Deadline>, future: F) -> Timeout<F::IntoFuture> {
        tokio::time::timeout_at(deadline.into().0, future)
    }

    /// Ticks at once, and then each `period`.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn interval(&self, period: Duration) -> Interval {
        tokio::time::interval(period)
    }

    /// Ticks at `first`, and then each `period`.
    #[expect(clippy::disallowed_methods, reason = "the one home of tokio's clock")]
    pub fn interval_at(&self, first: impl Into<Deadline>, period: Duration) -> Interval {
        tokio::time::interval_at(first.into().0, period)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use jiff::Timestamp;

    use super::*;
    use crate::TokioClock;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn timers_move_the_clock_of_tokio_with_them() {
        let (env, _) = TokioClock::env(7);
        let begun = env.instant();
        env.sleep(3 * SECOND).await;
        assert_eq!((env.instant() - begun, env.elapsed(), env.now().as_second()), (3 * SECOND, 3 * SECOND, 3));
        assert!(env.timeout(SECOND, pending::<()>()).await.is_err());
        env.sleep_until(begun + 5 * SECOND).await;
        let mut ticks = env.interval_at(env.deadline(SECOND), 2 * SECOND);
        ticks.tick().await;
        ticks.tick().await;
        assert_eq!(env.elapsed(), 8 * SECOND);
        env.interval(SECOND).tick().await;
        assert_eq!(env.elapsed(), 8 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_stays_where_it_was_set() {
        let (env, _) = TokioClock::env(7);
        let deadline = env.deadline(2 * SECOND);
        assert_eq!((deadline.remaining(&env), deadline.passed(&env)), (2 * SECOND, false));
        // However often a wait starts again, it ends by the deadline.
        let mut passes = 0;
        while env.timeout_at(deadline, env.sleep(SECOND * 3 / 4)).await.is_ok() {
            passes += 1;
        }
        assert_eq!((passes, env.elapsed()), (2, 2 * SECOND));
        assert_eq!((deadline.remaining(&env), deadline.passed(&env)), (Duration::ZERO, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_beyond_the_clock_is_far_away() {
        let (env, _) = TokioClock::env(7);
        assert!(env.deadline(Duration::MAX).remaining(&env) >= FAR_FUTURE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_manual_clock_moves_no_timer_and_no_timer_moves_it() {
        let (env, clock) = Env::seeded(7, Timestamp::UNIX_EPOCH);
        let deadline = env.deadline(SECOND);
        clock.advance(5 * SECOND);
        assert!(!deadline.passed(&env));
        env.sleep_until(deadline).await;
        assert_eq!((deadline.passed(&env), env.elapsed()), (true, 5 * SECOND));
    }
}
