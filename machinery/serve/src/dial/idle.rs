//! Idle connections by destination, so that a request pays no handshake. Takes time and connection state as arguments: no
//! clock, no socket, no lock.
//!
//! Invariant: each destination has a connection, and its connections are ordered by the time since which they are idle.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// A connection that carries one exchange at a time.
pub trait Reusable {
    /// Whether it takes a request now.
    fn is_ready(&mut self) -> bool;

    /// Whether it never takes another request.
    fn is_closed(&mut self) -> bool;
}

impl<B> Reusable for hyper::client::conn::http1::SendRequest<B> {
    fn is_ready(&mut self) -> bool {
        Self::is_ready(self)
    }

    fn is_closed(&mut self) -> bool {
        Self::is_closed(self)
    }
}

/// What gives way where no more connections are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The connection that is idle for longest: of the destination if that has its maximum, else of all.
    ClosesOldest,
    /// The connection that was to be kept.
    ClosesReturned,
}

/// Limits of idle connections.
#[derive(Debug, Clone, Copy)]
pub struct IdleLimits {
    /// Maximum for one destination.
    pub per_key_max: usize,
    /// Maximum in all.
    pub max: usize,
    /// Maximum idle time.
    pub idle_max: Duration,
    /// Maximum time since the handshake, after which the certificate is verified again.
    pub age_max: Duration,
    /// What gives way at a maximum.
    pub when_full: WhenFull,
}

struct Idle<C> {
    connection: C,
    created_at: Duration,
    idle_since: Duration,
}

/// Idle connections. Times are those of one monotonic clock.
pub struct IdleConnections<K, C> {
    by_key: HashMap<K, Vec<Idle<C>>>,
    count: usize,
    limits: IdleLimits,
}

impl<K, C> std::fmt::Debug for IdleConnections<K, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdleConnections").field("count", &self.count).field("limits", &self.limits).finish()
    }
}

impl<K: Eq + Hash + Clone, C: Reusable> IdleConnections<K, C> {
    /// Without connections.
    #[must_use]
    pub fn new(limits: IdleLimits) -> Self {
        Self { by_key: HashMap::new(), count: 0, limits }
    }

    /// Number of connections.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes a connection to a destination, with its creation time. The most recently used one comes first, as it is the
    /// least likely to be closed. Closed and expired connections are dropped on the way.
    pub fn take(&mut self, to: &K, now: Duration) -> Option<(C, Duration)> {
        let idle = self.by_key.get_mut(to)?;
        let mut taken = None;
        let mut at = idle.len();
        while taken.is_none() && at > 0 {
            at -= 1;
            let is_usable = self.limits.is_fresh(&idle[at], now) && !idle[at].connection.is_closed();
            if is_usable && !idle[at].connection.is_ready() {
                continue;
            }
            let removed = idle.remove(at);
            self.count -= 1;
            taken = is_usable.then_some((removed.connection, removed.created_at));
        }
        if idle.is_empty() {
            self.by_key.remove(to);
        }
        taken
    }

    /// Takes the most recently used connection to a destination, whatever its state: a caller with a lock around this looks
    /// at it without the lock. Expired ones are dropped on the way.
    pub fn pop(&mut self, to: &K, now: Duration) -> Option<C> {
        let idle = self.by_key.get_mut(to)?;
        let mut taken = None;
        while taken.is_none()
            && let Some(last) = idle.pop()
        {
            self.count -= 1;
            taken = self.limits.is_fresh(&last, now).then_some(last.connection);
        }
        if idle.is_empty() {
            self.by_key.remove(to);
        }
        taken
    }

    /// Keeps a connection, with its creation time, unless it is too old or no more are kept. Before one gives way, closed and
    /// expired ones are dropped.
    pub fn keep(&mut self, to: K, connection: C, created_at: Duration, now: Duration) {
        let IdleLimits { per_key_max, max, age_max, when_full, .. } = self.limits;
        if max == 0 || now.saturating_sub(created_at) >= age_max {
            return;
        }
        if self.count >= max {
            self.sweep(now);
        }
        let is_key_full = self.by_key.get(&to).is_some_and(|idle| idle.len() >= per_key_max);
        if is_key_full || self.count >= max {
            if when_full == WhenFull::ClosesReturned {
                return;
            }
            let oldest = match is_key_full {
                true => Some(to.clone()),
                false => self.oldest(),
            };
            if let Some(key) = oldest {
                self.remove_first(&key);
            }
        }
        self.by_key.entry(to).or_default().push(Idle { connection, created_at, idle_since: now });
        self.count += 1;
    }

    /// Drops closed and expired connections.
    pub fn sweep(&mut self, now: Duration) {
        let limits = self.limits;
        for idle in self.by_key.values_mut() {
            idle.retain_mut(|idle| limits.is_fresh(idle, now) && !idle.connection.is_closed());
        }
        self.recount();
    }

    /// Drops connections to other destinations than those that `keeps` names.
    pub fn retain(&mut self, keeps: impl Fn(&K) -> bool) {
        self.by_key.retain(|key, _| keeps(key));
        self.recount();
    }

    /// Drops all connections.
    pub fn clear(&mut self) {
        self.by_key.clear();
        self.count = 0;
    }

    fn recount(&mut self) {
        self.by_key.retain(|_, idle| !idle.is_empty());
        self.count = self.by_key.values().map(Vec::len).sum();
    }

    /// The destination of the connection that is idle for longest.
    fn oldest(&self) -> Option<K> {
        let first = |(key, idle): (&K, &Vec<Idle<C>>)| Some((idle.first()?.idle_since, key.clone()));
        self.by_key.iter().filter_map(first).min_by_key(|(since, _)| *since).map(|(_, key)| key)
    }

    fn remove_first(&mut self, key: &K) {
        let Some(idle) = self.by_key.get_mut(key).filter(|idle| !idle.is_empty()) else { return };
        idle.remove(0);
        self.count -= 1;
        if idle.is_empty() {
            self.by_key.remove(key);
        }
    }
}

impl IdleLimits {
    fn is_fresh<C>(&self, idle: &Idle<C>, now: Duration) -> bool {
        now.saturating_sub(idle.idle_since) < self.idle_max && now.saturating_sub(idle.created_at) < self.age_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection by its number.
    #[derive(Debug, PartialEq)]
    struct Numbered(usize);

    /// Numbers from here on are closed, and those from `BUSY` on are not ready.
    const CLOSED: usize = 10_000;
    const BUSY: usize = 20_000;

    impl Reusable for Numbered {
        fn is_ready(&mut self) -> bool {
            self.0 < CLOSED
        }

        fn is_closed(&mut self) -> bool {
            (CLOSED..BUSY).contains(&self.0)
        }
    }

    const LIMITS: IdleLimits = IdleLimits {
        per_key_max: 4,
        max: 64,
        idle_max: Duration::from_secs(60),
        age_max: Duration::from_secs(600),
        when_full: WhenFull::ClosesOldest,
    };

    fn pool(when_full: WhenFull) -> IdleConnections<usize, Numbered> {
        IdleConnections::new(IdleLimits { when_full, ..LIMITS })
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn numbers(pool: &IdleConnections<usize, Numbered>, key: usize) -> Vec<usize> {
        pool.by_key.get(&key).into_iter().flatten().map(|idle| idle.connection.0).collect()
    }

    #[test]
    fn the_last_one_used_is_taken_and_others_end_in_time() {
        let mut pool = pool(WhenFull::ClosesOldest);
        pool.keep(1, Numbered(1), at(0), at(0));
        pool.keep(1, Numbered(2), at(0), at(1));
        assert_eq!(pool.take(&2, at(1)), None, "another destination");
        assert_eq!(pool.take(&1, at(2)), Some((Numbered(2), at(0))));
        assert_eq!(pool.take(&1, LIMITS.idle_max), None, "idle for too long");
        pool.keep(1, Numbered(3), at(0), LIMITS.age_max);
        assert_eq!(pool.take(&1, LIMITS.age_max), None, "its certificate was seen long ago");
        pool.keep(1, Numbered(CLOSED), at(0), at(0));
        assert_eq!(pool.take(&1, at(1)), None, "closed");
        assert!(pool.is_empty() && pool.by_key.is_empty());
    }

    #[test]
    fn a_connection_that_is_not_ready_yet_stays() {
        let mut pool = pool(WhenFull::ClosesOldest);
        for number in [1, BUSY, CLOSED] {
            pool.keep(1, Numbered(number), at(0), at(0));
        }
        assert_eq!(pool.take(&1, at(1)), Some((Numbered(1), at(0))));
        assert_eq!((numbers(&pool, 1), pool.len()), (vec![BUSY], 1));
        assert_eq!(pool.take(&1, at(1)), None);
        assert_eq!(pool.pop(&1, at(1)), Some(Numbered(BUSY)), "unless its state doesn't count");
        pool.keep(1, Numbered(BUSY), at(0), at(0));
        assert_eq!(pool.pop(&1, at(60)), None, "expired");
        pool.keep(1, Numbered(BUSY), at(0), at(0));
        pool.sweep(at(60));
        assert!(pool.is_empty() && pool.by_key.is_empty());
    }

    #[test]
    fn a_burst_leaves_few_and_no_destination_takes_all() {
        let mut pool = pool(WhenFull::ClosesOldest);
        for n in 0..100 {
            pool.keep(0, Numbered(n), at(0), at(0));
        }
        assert_eq!(numbers(&pool, 0), [96, 97, 98, 99]);
        for n in 1..=100 {
            pool.keep(n, Numbered(n), at(0), at(1));
        }
        assert_eq!((pool.len(), numbers(&pool, 100)), (LIMITS.max, vec![100]));
        assert!(numbers(&pool, 0).is_empty(), "idle for longest");
        pool.retain(|key| *key != 100);
        assert_eq!(pool.len(), LIMITS.max - 1);
        pool.clear();
        assert!(pool.is_empty());
    }

    #[test]
    fn a_full_pool_may_close_the_returned_connection() {
        let mut pool = pool(WhenFull::ClosesReturned);
        (0..5).for_each(|n| pool.keep(0, Numbered(n), at(0), at(0)));
        assert_eq!(numbers(&pool, 0), [0, 1, 2, 3]);
        (0..100).for_each(|n| pool.keep(1 + n, Numbered(n), at(0), at(1)));
        assert_eq!((pool.len(), numbers(&pool, 100)), (LIMITS.max, vec![]));
        pool.keep(100, Numbered(7), at(60), at(60));
        assert_eq!(numbers(&pool, 100), [7], "others have expired");
    }
}
