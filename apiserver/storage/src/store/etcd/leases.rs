//! Leases that keys with a time to live share, as upstream's API server does: a lease for each Event would cost etcd more
//! than the Event.

use std::collections::HashMap;
use std::time::Duration;

/// The longest time by which a shared lease outlives its first key (upstream's `lease-reuse-duration-seconds`).
const REUSED_MAX: Duration = Duration::from_secs(60);
/// A lease outlives its first key by this part of its time at most.
const REUSED_PART: u32 = 20;
/// The maximum number of keys of a lease (upstream's default).
const KEYS_MAX: u32 = 1000;

/// A granted lease.
#[derive(Debug)]
struct SharedLease {
    id: i64,
    /// Keys that are written later need another one (monotonic).
    until: Duration,
    keys: u32,
}

/// The current lease for each time to live.
#[derive(Debug, Default)]
pub(super) struct Leases(HashMap<Duration, SharedLease>);

/// The time by which a lease for `ttl` outlives its first key.
fn reuse(ttl: Duration) -> Duration {
    Duration::from_secs((ttl / REUSED_PART).min(REUSED_MAX).as_secs())
}

/// The time in seconds to request for a lease, whose keys live for `ttl` at least.
pub(super) fn seconds(ttl: Duration) -> i64 {
    let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
    i64::try_from(whole.saturating_add(reuse(ttl).as_secs())).unwrap_or(i64::MAX)
}

impl Leases {
    /// The lease for one more key; none: one must be granted.
    pub(super) fn take(&mut self, ttl: Duration, now: Duration) -> Option<i64> {
        let lease = self.0.get_mut(&ttl).filter(|lease| now < lease.until && lease.keys < KEYS_MAX)?;
        lease.keys += 1;
        Some(lease.id)
    }

    /// Notes a lease that was requested at `requested_at` for a key.
    pub(super) fn granted(&mut self, ttl: Duration, id: i64, requested_at: Duration) {
        self.0.retain(|_, lease| requested_at < lease.until);
        let until = requested_at.saturating_add(reuse(ttl));
        if requested_at < until {
            self.0.insert(ttl, SharedLease { id, until, keys: 1 });
        }
    }

    /// Forgets a lease that etcd doesn't know.
    pub(super) fn forget(&mut self, id: i64) {
        self.0.retain(|_, lease| lease.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_share_a_lease_for_a_while() {
        let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
        assert_eq!((seconds(hour), seconds(second * 100), seconds(Duration::from_millis(1500))), (3660, 105, 2));
        let mut leases = Leases::default();
        assert_eq!(leases.take(hour, second), None);
        leases.granted(hour, 7, second);
        assert_eq!(leases.take(hour, second * 60), Some(7));
        assert_eq!(leases.take(second * 100, second), None, "another time to live");
        assert_eq!(leases.take(hour, second * 61), None, "its last key would die early");
        leases.granted(hour, 8, second * 61);
        for _ in 1..KEYS_MAX {
            assert_eq!(leases.take(hour, second * 62), Some(8));
        }
        assert_eq!(leases.take(hour, second * 62), None);
        leases.granted(hour, 9, second * 62);
        leases.forget(9);
        assert_eq!(leases.take(hour, second * 62), None);
        leases.granted(second * 9, 10, second);
        assert_eq!(leases.take(second * 9, second), None, "too short to share");
    }
}
