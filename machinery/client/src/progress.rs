//! Rate limit of plans that only report progress: see [`crate::Plan::may_wait`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::ObjectKey;

/// Maximum delay of such a plan. Short for a person, long compared with the few milliseconds between the pods of one
/// rollout.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Keys with delayed progress, each with the time of its first delay. Each key is requeued when its delay ends, so the
/// size is bounded by the keys that changed within one interval.
#[derive(Debug, Default)]
pub(super) struct ProgressLimiter {
    since: HashMap<Arc<ObjectKey>, Duration>,
}

impl ProgressLimiter {
    /// The delay of a key's plan; `None` to perform it now.
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
    fn progress_is_delayed_and_other_writes_end_the_delay() {
        let mut limiter = ProgressLimiter::default();
        let (key, other) = (Arc::new(ObjectKey::new("a", "x")), Arc::new(ObjectKey::new("a", "y")));
        let ms = Duration::from_millis;
        assert_eq!(limiter.wait(&key, true, ms(1000)), Some(ms(100)));
        assert_eq!(limiter.wait(&key, true, ms(1040)), Some(ms(60)), "the wait doesn't begin anew with each change");
        assert_eq!(limiter.wait(&other, true, ms(1040)), Some(ms(100)));
        assert_eq!(limiter.wait(&key, true, ms(1100)), None);
        assert_eq!(limiter.wait(&key, true, ms(1101)), Some(ms(100)), "the next one waits again");
        assert_eq!(limiter.wait(&key, false, ms(1102)), None, "what is complete is said at once");
        assert_eq!(limiter.wait(&key, true, ms(1150)), Some(ms(100)));
        assert_eq!(limiter.since.len(), 2);
        assert_eq!((limiter.wait(&key, false, ms(1151)), limiter.wait(&other, true, ms(1151))), (None, None));
        assert!(limiter.since.is_empty(), "nothing is kept of keys that rest");
    }
}
