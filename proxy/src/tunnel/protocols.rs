//! What servers of a peer understand, as it has answered lately. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How long an answer counts: a container may start again with another module.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Maximum answers; a full cache is cleared.
const ANSWERS_MAX: usize = 4096;

/// Answers by address, with the time of each.
#[derive(Debug, Default)]
pub(super) struct ProtocolCache(HashMap<SocketAddr, (bool, Duration)>);

impl ProtocolCache {
    /// Whether the server at an address speaks HTTP, if that is known.
    pub(super) fn find(&self, at: SocketAddr, now: Duration) -> Option<bool> {
        let (is_http, since) = self.0.get(&at)?;
        (now.saturating_sub(*since) < KEPT_FOR).then_some(*is_http)
    }

    /// Keeps an answer.
    pub(super) fn keep(&mut self, at: SocketAddr, is_http: bool, now: Duration) {
        if self.0.len() >= ANSWERS_MAX && !self.0.contains_key(&at) {
            self.0.clear();
        }
        self.0.insert(at, (is_http, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_for_a_while_within_a_bound() {
        let mut cache = ProtocolCache::default();
        let at = |n: usize| SocketAddr::from(([127, 66, 0, 2], u16::try_from(n).unwrap()));
        cache.keep(at(1), false, Duration::ZERO);
        assert_eq!(cache.find(at(1), KEPT_FOR - Duration::from_millis(1)), Some(false));
        assert_eq!((cache.find(at(1), KEPT_FOR), cache.find(at(2), Duration::ZERO)), (None, None));
        for n in 0..2 * ANSWERS_MAX {
            cache.keep(at(n), true, Duration::ZERO);
            assert!(cache.0.len() <= ANSWERS_MAX && cache.find(at(n), Duration::ZERO) == Some(true));
        }
    }
}
