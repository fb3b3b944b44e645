//! The per-user limit of concurrent proxied requests: each holds a connection to a node, and other users need some,
//! too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The maximum number of concurrent proxied requests of one user.
pub(super) const PROXIED_MAX: usize = 256;

/// The number of proxied requests of each user.
#[derive(Debug, Default)]
pub(in crate::http) struct ProxyLimits(Mutex<HashMap<String, usize>>);

/// Counts as one proxied request of its user until it is dropped.
#[derive(Debug)]
pub(super) struct ProxyPermit {
    limits: Arc<ProxyLimits>,
    user: String,
}

impl ProxyLimits {
    /// Acquires a permit; `None` if the user has reached the limit.
    pub(super) fn try_acquire(self: &Arc<Self>, user: &str) -> Option<ProxyPermit> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(user.to_owned()).or_default();
        if *count >= PROXIED_MAX {
            return None;
        }
        *count += 1;
        Some(ProxyPermit { limits: self.clone(), user: user.to_owned() })
    }
}

impl Drop for ProxyPermit {
    fn drop(&mut self) {
        let mut counts = self.limits.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let limits = Arc::new(ProxyLimits::default());
        let all: Vec<ProxyPermit> = std::iter::from_fn(|| limits.try_acquire("a")).collect();
        assert_eq!(all.len(), PROXIED_MAX);
        assert!(limits.try_acquire("b").is_some());
        drop(all);
        assert!(limits.try_acquire("a").is_some());
        assert!(limits.0.lock().unwrap().is_empty(), "users without requests have no entry");
    }
}
