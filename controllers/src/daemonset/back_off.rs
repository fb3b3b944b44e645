//! Back-off for replacing a node's failed pod: at once, then after a second, doubling with each further failure.

use std::collections::BTreeMap;
use std::time::Duration;

/// The back-off after the first failure of a node's pod (upstream's `failedPodsBackoff`); it doubles.
const FIRST: Duration = Duration::from_secs(1);
/// The maximum back-off. After twice this time without a failure the back-off is reset.
const MOST: Duration = Duration::from_mins(15);

/// The back-offs of a set, by node.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FailedPodBackOff(BTreeMap<String, NodeBackOff>);

/// The back-off of one node: when its last failed pod was deleted, and how long the next one stays.
#[derive(Debug, Clone, PartialEq)]
struct NodeBackOff {
    wait: Duration,
    at: Duration,
}

impl FailedPodBackOff {
    /// How long the node's failed pod stays; none: it is deleted now.
    pub(super) fn remaining(&self, node: &str, now: Duration) -> Option<Duration> {
        let known = self.0.get(node)?;
        let left = (known.at + known.wait).saturating_sub(now);
        (!left.is_zero()).then_some(left)
    }

    /// Records the deletion of the node's failed pod.
    pub(super) fn record_deletion(&mut self, node: &str, now: Duration) {
        self.drop_expired(now);
        let wait = self.0.get(node).map_or(FIRST, |known| (known.wait * 2).min(MOST));
        self.0.insert(node.to_owned(), NodeBackOff { wait, at: now });
    }

    /// Drops the back-offs of nodes without recent failures.
    pub(super) fn drop_expired(&mut self, now: Duration) {
        self.0.retain(|_, known| now.saturating_sub(known.at) <= MOST * 2);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_waits_twice_as_long_up_to_a_quarter_of_an_hour() {
        let (mut failed, mut now, mut waits) = (FailedPodBackOff::default(), Duration::from_secs(100), Vec::new());
        for _ in 0..14 {
            let wait = failed.remaining("n", now).unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
            failed.record_deletion("n", now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(failed.remaining("m", now), None);
        now += MOST * 2 + FIRST;
        failed.drop_expired(now);
        assert!(failed.is_empty());
    }
}
