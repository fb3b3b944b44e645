//! CPU time of a container: measured on the thread around each poll of its guests, charged to a token bucket, and
//! held back where `limits.cpu` is used up. Throttled, never killed, as a cgroup would. Where all guests together want more
//! than there is, `requests.cpu` decides who goes first ([`Turns`](super::shares::Turns)).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use machinery_env::Env;

use super::shares::Container;

/// The period over which a limit holds, as the kernel's CFS quota: a burst may use one period's share at once.
const PERIOD: Duration = Duration::from_millis(100);
/// What a throttled guest gets at least when it goes on, so that it isn't woken for nothing.
const SLICE: Duration = Duration::from_millis(1);

/// A bucket of CPU time, refilled at the limit's rate. Pure: time and use are handed in.
#[derive(Debug, Clone)]
pub(crate) struct TokenBucket {
    millis: u64,
    nanos: i128,
    filled_at: Duration,
}

impl TokenBucket {
    pub(crate) fn new(millis: u64, now: Duration) -> Self {
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

    pub(crate) fn charge(&mut self, used: Duration, now: Duration) {
        self.fill(now);
        self.nanos -= used.as_nanos() as i128;
    }

    /// How long the next poll has to wait; none where it may go on.
    pub(crate) fn delay(&mut self, now: Duration) -> Option<Duration> {
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

static NEXT_METER: AtomicU64 = AtomicU64::new(1);

/// The CPU account of one container.
pub(crate) struct CpuMeter {
    id: u64,
    weight: u64,
    env: Env,
    used_nanos: AtomicU64,
    throttled_nanos: AtomicU64,
    bucket: Option<Mutex<TokenBucket>>,
}

impl CpuMeter {
    /// `weight`: its share where CPU is short, against the others'.
    pub(crate) fn new(env: Env, limit_millis: Option<u64>, weight: u64) -> Self {
        let bucket = limit_millis.map(|millis| Mutex::new(TokenBucket::new(millis, env.elapsed())));
        let id = NEXT_METER.fetch_add(1, Ordering::Relaxed);
        Self { id, weight, env, used_nanos: AtomicU64::new(0), throttled_nanos: AtomicU64::new(0), bucket }
    }

    pub(crate) fn container(&self) -> Container {
        Container { id: self.id, weight: self.weight, used: self.used() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.env.elapsed()
    }

    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn throttled(&self) -> Duration {
        Duration::from_nanos(self.throttled_nanos.load(Ordering::Relaxed))
    }

    /// Its guests have used so much.
    pub(crate) fn charge(&self, used: Duration) {
        self.used_nanos.fetch_add(used.as_nanos() as u64, Ordering::Relaxed);
        if let Some(bucket) = &self.bucket {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).charge(used, self.env.elapsed());
        }
    }

    /// How long its next guest is held back from now on.
    pub(crate) fn hold_back(&self) -> Option<Duration> {
        let delay = self.delay()?;
        self.throttled_nanos.fetch_add(delay.as_nanos() as u64, Ordering::Relaxed);
        Some(delay)
    }

    fn delay(&self) -> Option<Duration> {
        let bucket = self.bucket.as_ref()?;
        bucket.lock().unwrap_or_else(PoisonError::into_inner).delay(self.env.elapsed())
    }
}

/// CPU time of the calling thread, user and system.
#[cfg(unix)]
#[expect(unsafe_code, reason = "std has no thread CPU clock")]
pub(crate) fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime only writes to `time`, which outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Where the system has no thread CPU clock wall time stands in: a guest is polled without interruption by others.
#[cfg(not(unix))]
#[expect(clippy::disallowed_methods, reason = "stands in for a CPU clock, decides nothing that is replayed")]
pub(crate) fn thread_cpu() -> Duration {
    use std::sync::LazyLock;
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_guest_to_its_share() {
        // 200m: a guest that burns 2 ms per poll must take about 5 s of wall clock for 1 s of CPU.
        let mut bucket = TokenBucket::new(200, Duration::ZERO);
        let (mut now, mut used) = (Duration::ZERO, Duration::ZERO);
        while used < Duration::from_secs(1) {
            while let Some(delay) = bucket.delay(now) {
                now += delay;
            }
            now += Duration::from_millis(2);
            used += Duration::from_millis(2);
            bucket.charge(Duration::from_millis(2), now);
        }
        let wall = now.as_secs_f64();
        assert!((4.8..5.1).contains(&wall), "{wall}");
    }

    #[test]
    fn idle_time_saves_up_one_period_only() {
        let mut bucket = TokenBucket::new(500, Duration::ZERO);
        bucket.charge(Duration::from_millis(50), Duration::from_secs(3600));
        assert!(bucket.delay(Duration::from_secs(3600)).is_some());
        // A clock that stands still or goes back never refills.
        assert!(bucket.delay(Duration::ZERO).is_some());
    }
}
