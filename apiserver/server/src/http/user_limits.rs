//! Limits per user of what holds a connection for long: proxied requests, which hold one to a node as well, and upgraded
//! connections, which nothing displaces. Other users need some, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_serve::descriptors::{Class, Descriptors};

/// The maximum number of concurrent proxied requests of one user.
pub(super) const PROXIED_MAX: usize = 256;
/// The maximum number of concurrent upgraded connections of one user (`exec`, port-forward, a watch or a log over a
/// WebSocket), where the process may open many files.
const SESSIONS_MAX: usize = 256;
/// The least part of the API server's connections that one user leaves to others.
const SESSIONS_PART: usize = 4;

/// The number of uses of each user.
#[derive(Debug)]
pub(super) struct UserLimits {
    max: usize,
    counts: Mutex<HashMap<String, usize>>,
}

/// Counts as one use of its user until it is dropped.
#[derive(Debug)]
pub(super) struct UserPermit {
    limits: Arc<UserLimits>,
    user: String,
}

impl UserLimits {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default() })
    }

    /// The limit of proxied requests.
    pub(super) fn of_proxied() -> Arc<Self> {
        Self::new(PROXIED_MAX)
    }

    /// The limit of upgraded connections.
    pub(super) fn of_sessions() -> Arc<Self> {
        Self::new(sessions_max(Descriptors::process().max(Class::Api)))
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Acquires a permit; `None` if the user has reached the limit.
    pub(super) fn try_acquire(self: &Arc<Self>, user: &str) -> Option<UserPermit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(user.to_owned()).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(UserPermit { limits: self.clone(), user: user.to_owned() })
    }
}

/// A user's upgraded connections of `connections` ones of the API server.
fn sessions_max(connections: usize) -> usize {
    SESSIONS_MAX.min(connections / SESSIONS_PART).max(1)
}

impl Drop for UserPermit {
    fn drop(&mut self) {
        let mut counts = self.limits.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_share_of_his_own() {
        let limits = UserLimits::of_proxied();
        let all: Vec<UserPermit> = std::iter::from_fn(|| limits.try_acquire("a")).collect();
        assert_eq!(all.len(), PROXIED_MAX);
        assert!(limits.try_acquire("b").is_some());
        drop(all);
        assert!(limits.try_acquire("a").is_some());
        assert!(limits.counts.lock().unwrap().is_empty(), "users without requests have no entry");
    }

    #[test]
    fn a_user_leaves_most_connections_to_others() {
        assert_eq!([8192, 1024, 224, 3].map(sessions_max), [256, 256, 56, 1]);
    }
}
