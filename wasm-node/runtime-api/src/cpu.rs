//! CPU quota in thousandths of a core, of one container or of a whole pod. Pure: time and usage are arguments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The period of a limit, as the kernel's CFS quota: a burst may use one period's share at once.
const PERIOD: Duration = Duration::from_millis(100);
/// Minimum time of a throttled guest when it resumes, so that it isn't woken for nothing.
const SLICE: Duration = Duration::from_millis(1);

/// A bucket of CPU time, refilled at the limit's rate. Pure: time and usage are arguments.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    millis: u64,
    nanos: i128,
    filled_at: Duration,
}

impl TokenBucket {
    /// A full bucket, refilled with `millis` thousandths of a core.
    #[must_use]
    pub fn new(millis: u64, now: Duration) -> Self {
        let millis = millis.max(1);
        Self { millis, nanos: Self::burst(millis), filled_at: now }
    }

    fn burst(millis: u64) -> i128 {
        (PERIOD.as_nanos() as i128) * i128::from(millis) / 1000
    }

    fn fill(&mut self, now: Duration) {
        let past = now.saturating_sub(self.filled_at);
        self.filled_at = now.max(self.filled_at);
        self.nanos =
            (self.nanos + past.as_nanos() as i128 * i128::from(self.millis) / 1000).min(Self::burst(self.millis));
    }

    /// Charges CPU time.
    pub fn charge(&mut self, used: Duration, now: Duration) {
        self.fill(now);
        self.nanos -= used.as_nanos() as i128;
    }

    /// The delay of the next poll; `None` if it may run.
    pub fn delay(&mut self, now: Duration) -> Option<Duration> {
        self.fill(now);
        if self.nanos > 0 {
            return None;
        }
        let slice = (SLICE.as_nanos() as i128).min(Self::burst(self.millis));
        let wanted = slice - self.nanos;
        let wait = wanted * 1000 / i128::from(self.millis);
        Some(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)).max(Duration::from_micros(1)))
    }
}

/// A limit of CPU time that may change at run time, or be none.
#[derive(Debug)]
pub struct CpuQuota {
    /// Read before each poll.
    limited: AtomicBool,
    bucket: Mutex<TokenBucket>,
}

impl CpuQuota {
    /// A limit of `millis` thousandths of a core from `now` on.
    #[must_use]
    pub fn new(millis: Option<u64>, now: Duration) -> Self {
        let limited = AtomicBool::new(millis.is_some());
        Self { limited, bucket: Mutex::new(TokenBucket::new(millis.unwrap_or(1), now)) }
    }

    /// Whether there is a limit: otherwise nothing is charged or throttled.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    fn bucket(&self) -> Option<MutexGuard<'_, TokenBucket>> {
        self.is_limited().then(|| self.bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets a new limit from `now` on, and forgets debts under the old one.
    pub fn set(&self, millis: Option<u64>, now: Duration) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if millis.is_none_or(|millis| bucket.millis != millis.max(1)) {
            *bucket = TokenBucket::new(millis.unwrap_or(1), now);
        }
        self.limited.store(millis.is_some(), Ordering::Release);
    }

    /// See [`TokenBucket::charge`].
    pub fn charge(&self, used: Duration, now: Duration) {
        if let Some(mut bucket) = self.bucket() {
            bucket.charge(used, now);
        }
    }

    /// See [`TokenBucket::delay`].
    #[must_use]
    pub fn delay(&self, now: Duration) -> Option<Duration> {
        self.bucket()?.delay(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_changes_while_it_is_used() {
        let at = Duration::from_secs;
        let quota = CpuQuota::new(None, at(0));
        quota.charge(at(100), at(0));
        assert_eq!(quota.delay(at(0)), None);
        quota.set(Some(100), at(1));
        quota.charge(Duration::from_millis(110), at(1));
        assert_eq!(quota.delay(at(1)), Some(Duration::from_millis(1010)), "100 ms are owed, and 1 ms is to be there");
        quota.set(Some(1000), at(1));
        assert_eq!(quota.delay(at(1)), None, "nothing is owed of the old one");
        quota.charge(Duration::from_millis(150), at(1));
        assert!(quota.delay(at(1)).is_some_and(|wait| wait < Duration::from_millis(60)));
        quota.set(None, at(1));
        assert_eq!(quota.delay(at(1)), None);
    }
}
