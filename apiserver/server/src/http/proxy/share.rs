//! How many requests of one user are passed on at once: each holds a connection to a node, of which others need some, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Requests of one user that are passed on at once.
pub(super) const PASSED_MAX: usize = 256;

/// What users hold.
#[derive(Debug, Default)]
pub(in crate::http) struct Shares(Mutex<HashMap<String, usize>>);

/// One request's part of its user's share, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Shares>,
    user: String,
}

impl Shares {
    /// None where the user has as much as he may.
    pub(super) fn take(self: &Arc<Self>, user: &str) -> Option<Share> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(user.to_owned()).or_default();
        if *count >= PASSED_MAX {
            return None;
        }
        *count += 1;
        Some(Share { of: self.clone(), user: user.to_owned() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_his_share_and_nobody_elses() {
        let shares = Arc::new(Shares::default());
        let all: Vec<Share> = std::iter::from_fn(|| shares.take("a")).collect();
        assert_eq!(all.len(), PASSED_MAX);
        assert!(shares.take("b").is_some());
        drop(all);
        assert!(shares.take("a").is_some());
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is remembered of who holds nothing");
    }
}
