//! CPU accounting of a container: measures CPU time on the thread around each poll of its guests and charges it to a token
//! bucket. An empty bucket (`limits.cpu`) delays the next poll: guests are throttled as by a cgroup, never killed. Under
//! contention, `requests.cpu` decides the order ([`CpuScheduler`](super::shares::CpuScheduler)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use machinery_env::Env;
use runtime_api::{CPU_SHARES_MIN, CpuQuota};

use super::shares::Container;

static NEXT_METER: AtomicU64 = AtomicU64::new(1);

/// The CPU account of one container.
pub(crate) struct CpuMeter {
    id: u64,
    weight: AtomicU64,
    namespace: Arc<str>,
    env: Env,
    used_nanos: AtomicU64,
    throttled_nanos: AtomicU64,
    quota: CpuQuota,
    /// The quota of its pod's containers together.
    pod: Option<Arc<CpuQuota>>,
}

impl CpuMeter {
    /// `weight`: its share of CPU under contention; `pod`: the quota of all containers of its pod.
    pub(crate) fn new(
        env: Env,
        namespace: Arc<str>,
        limit_millis: Option<u64>,
        weight: u64,
        pod: Option<Arc<CpuQuota>>,
    ) -> Self {
        let quota = CpuQuota::new(limit_millis, env.elapsed());
        let id = NEXT_METER.fetch_add(1, Ordering::Relaxed);
        let (used_nanos, throttled_nanos, weight) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(weight));
        Self { id, weight, namespace, env, used_nanos, throttled_nanos, quota, pod }
    }

    /// Sets a new limit and weight.
    pub(crate) fn resize(&self, limit_millis: Option<u64>, weight: u64) {
        self.quota.set(limit_millis, self.env.elapsed());
        self.weight.store(weight, Ordering::Relaxed);
    }

    pub(crate) fn container(&self) -> Container {
        let weight = self.weight.load(Ordering::Relaxed);
        // It requests no CPU, or an amount below the smallest weight.
        let weight_group = (weight <= CPU_SHARES_MIN).then(|| self.namespace.clone());
        Container { id: self.id, weight, used: self.used(), weight_group }
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

    /// Charges CPU time of its guests.
    pub(crate) fn charge(&self, used: Duration) {
        self.used_nanos.fetch_add(used.as_nanos() as u64, Ordering::Relaxed);
        if self.is_limited() {
            let now = self.env.elapsed();
            self.limits().for_each(|limit| limit.charge(used, now));
        }
    }

    fn limits(&self) -> impl Iterator<Item = &CpuQuota> {
        [Some(&self.quota), self.pod.as_deref()].into_iter().flatten()
    }

    /// Without a limit no poll reads the clock.
    fn is_limited(&self) -> bool {
        self.limits().any(CpuQuota::is_limited)
    }

    /// The delay before its next poll, while the quota is used up.
    pub(crate) fn throttle_delay(&self) -> Option<Duration> {
        let delay = self.delay()?;
        self.throttled_nanos.fetch_add(delay.as_nanos() as u64, Ordering::Relaxed);
        Some(delay)
    }

    fn delay(&self) -> Option<Duration> {
        if !self.is_limited() {
            return None;
        }
        let now = self.env.elapsed();
        self.limits().filter_map(|limit| limit.delay(now)).max()
    }
}

#[cfg(test)]
mod tests {
    use runtime_api::TokenBucket;

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
