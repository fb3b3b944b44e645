//! How often a plan is performed that says only how far something has come: see [`crate::Plan::may_wait`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::ObjectKey;

/// How long such a plan waits at most for more to say. Short beside what a person notices, long beside the few
/// milliseconds that lie between the pods of one rollout.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The keys whose progress waits to be written, each with the time from which on. Every one of them is looked at again
/// when its wait is over, so there are no more than keys that changed within an interval.
#[derive(Debug, Default)]
pub(super) struct Pace {
    since: HashMap<Arc<ObjectKey>, Duration>,
}

impl Pace {
    /// How long a plan for this key waits; none where it is performed now.
    pub(super) fn wait(&mut self, key: &Arc<ObjectKey>, may_wait: bool, now: Duration) -> Option<Duration> {
        if !may_wait {
            self.since.remove(key);
            return None;
        }
        let since = *self.since.entry(key.clone()).or_insert(now);
        let left = (since + PROGRESS_INTERVAL).saturating_sub(now);
        if left.is_zero() {
            self.since.remove(key);
        }
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_waits_from_its_first_word_on_and_whatever_else_is_written_ends_the_wait() {
        let mut pace = Pace::default();
        let (key, other) = (Arc::new(ObjectKey::new("a", "x")), Arc::new(ObjectKey::new("a", "y")));
        let ms = Duration::from_millis;
        assert_eq!(pace.wait(&key, true, ms(1000)), Some(ms(100)));
        assert_eq!(pace.wait(&key, true, ms(1040)), Some(ms(60)), "the wait doesn't begin anew with each change");
        assert_eq!(pace.wait(&other, true, ms(1040)), Some(ms(100)));
        assert_eq!(pace.wait(&key, true, ms(1100)), None);
        assert_eq!(pace.wait(&key, true, ms(1101)), Some(ms(100)), "the next one waits again");
        assert_eq!(pace.wait(&key, false, ms(1102)), None, "what is complete is said at once");
        assert_eq!(pace.wait(&key, true, ms(1150)), Some(ms(100)));
        assert_eq!(pace.since.len(), 2);
        assert_eq!((pace.wait(&key, false, ms(1151)), pace.wait(&other, true, ms(1151))), (None, None));
        assert!(pace.since.is_empty(), "nothing is kept of keys that rest");
    }
}
