//! How soon a node's failed pod is replaced: at once, then after a second, twice as long with each further failure.

use std::collections::BTreeMap;
use std::time::Duration;

/// After the first failure of a node's pod (upstream's `failedPodsBackoff`); it doubles.
const FIRST: Duration = Duration::from_secs(1);
/// It grows no further, and is forgotten after twice as long without a failure.
const MOST: Duration = Duration::from_mins(15);

/// The back-offs of a set's nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Failed(BTreeMap<String, BackedOff>);

/// One node's: its last failed pod was deleted then, and the next one stays for so long.
#[derive(Debug, Clone, PartialEq)]
struct BackedOff {
    wait: Duration,
    at: Duration,
}

impl Failed {
    /// How long the node's failed pod stays; none: it goes now.
    pub(super) fn wait(&self, node: &str, now: Duration) -> Option<Duration> {
        let known = self.0.get(node)?;
        let left = (known.at + known.wait).saturating_sub(now);
        (!left.is_zero()).then_some(left)
    }

    /// The node's failed pod goes.
    pub(super) fn goes(&mut self, node: &str, now: Duration) {
        self.forget(now);
        let wait = self.0.get(node).map_or(FIRST, |known| (known.wait * 2).min(MOST));
        self.0.insert(node.to_owned(), BackedOff { wait, at: now });
    }

    /// Forgets the nodes whose pods haven't failed for long.
    pub(super) fn forget(&mut self, now: Duration) {
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
        let (mut failed, mut now, mut waits) = (Failed::default(), Duration::from_secs(100), Vec::new());
        for _ in 0..14 {
            let wait = failed.wait("n", now).unwrap_or_default();
            waits.push(wait.as_secs());
            now += wait;
            failed.goes("n", now);
        }
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert_eq!(failed.wait("m", now), None);
        now += MOST * 2 + FIRST;
        failed.forget(now);
        assert!(failed.is_empty());
    }
}
