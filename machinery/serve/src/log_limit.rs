//! A limit for log lines that a peer can cause: one line of a peer in an interval, with the number of those left out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Interval between two lines of one peer.
pub const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Peers that are remembered; lines of others are left out while so many have logged within the interval.
const PEERS_MAX: usize = 1024;

/// The last log lines by peer.
#[derive(Debug)]
pub struct LogLimit<K>(Mutex<HashMap<K, LoggedPeer>>);

#[derive(Debug)]
struct LoggedPeer {
    /// The time of its last line.
    at: Duration,
    left_out: u64,
}

impl<K> Default for LogLimit<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> LogLimit<K> {
    /// Whether a line of a peer is logged at `now`, the time of a monotonic clock: with the number of lines left out since
    /// its last one.
    pub fn admit(&self, peer: &K, now: Duration) -> Option<u64> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |logged: &LoggedPeer| now.saturating_sub(logged.at) < LOG_INTERVAL;
        if let Some(logged) = peers.get_mut(peer) {
            if is_recent(logged) {
                logged.left_out += 1;
                return None;
            }
            logged.at = now;
            return Some(std::mem::take(&mut logged.left_out));
        }
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, logged| is_recent(logged));
        }
        (peers.len() < PEERS_MAX).then(|| {
            peers.insert(peer.clone(), LoggedPeer { at: now, left_out: 0 });
            0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_one_line_in_an_interval() {
        let limit = LogLimit::default();
        let at = Duration::from_secs;
        assert_eq!(limit.admit(&"a", at(5)), Some(0));
        assert!((0..1_000_000).all(|_| limit.admit(&"a", at(5)).is_none()));
        assert_eq!(limit.admit(&"b", at(6)), Some(0), "another peer has its own");
        assert_eq!(limit.admit(&"a", at(5) + LOG_INTERVAL), Some(1_000_000));
        assert_eq!(limit.admit(&"a", at(6) + LOG_INTERVAL), None);
    }

    #[test]
    fn many_names_of_one_peer_are_bounded_too() {
        let limit = LogLimit::default();
        let lines = |now| (0..10 * PEERS_MAX).filter(|peer| limit.admit(peer, now).is_some()).count();
        assert_eq!(lines(Duration::ZERO), PEERS_MAX);
        assert_eq!(lines(LOG_INTERVAL * 2), PEERS_MAX);
        assert!(limit.0.lock().unwrap().len() <= PEERS_MAX);
    }
}
