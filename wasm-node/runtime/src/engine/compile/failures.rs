//! Cache of compilation failures and of slow modules. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime_api::LoadError;

/// Lifetime of an entry: many pods retry the same module, and each attempt would take a compiler from modules that compile.
/// As long as the longest back-off of a pod.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// Maximum entries: the oldest is evicted.
const REMEMBERED_MAX: usize = 1000;

/// A module's digest and the fingerprint of the engine that it is compiled for.
pub(in crate::engine) type Key = (String, String);

/// Result of a module's last unsuccessful compilation.
#[derive(Debug)]
enum Verdict {
    /// It exhausted the quick lane's slice.
    Slow,
    Failed(LoadError),
}

/// Recent failures and slow modules.
#[derive(Debug, Default)]
pub(super) struct FailureCache(BTreeMap<Key, (Verdict, Duration)>);

impl FailureCache {
    /// The cached error of a module.
    pub(super) fn failure(&mut self, key: &Key, now: Duration) -> Option<LoadError> {
        match self.verdict(key, now)? {
            Verdict::Failed(error) => error.module_error(),
            Verdict::Slow => None,
        }
    }

    /// Whether a module is known to exceed the quick lane's slice.
    pub(super) fn is_slow(&mut self, key: &Key, now: Duration) -> bool {
        matches!(self.verdict(key, now), Some(Verdict::Slow))
    }

    fn verdict(&mut self, key: &Key, now: Duration) -> Option<&Verdict> {
        self.0.retain(|_, (_, at)| now.saturating_sub(*at) < REMEMBERED_FOR);
        self.0.get(key).map(|(verdict, _)| verdict)
    }

    pub(super) fn slow(&mut self, key: &Key, now: Duration) {
        self.remember(key, Verdict::Slow, now);
    }

    /// Caches errors of the module only.
    pub(super) fn failed(&mut self, key: &Key, error: &LoadError, now: Duration) {
        if let Some(error) = error.module_error() {
            self.remember(key, Verdict::Failed(error), now);
        }
    }

    fn remember(&mut self, key: &Key, verdict: Verdict, now: Duration) {
        if self.0.len() >= REMEMBERED_MAX && !self.0.contains_key(key) {
            let oldest = self.0.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.0.remove(&key));
        }
        self.0.insert(key.clone(), (verdict, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digest: &str, fingerprint: &str) -> Key {
        (digest.to_owned(), fingerprint.to_owned())
    }

    #[test]
    fn failures_of_modules_are_remembered_for_a_while() {
        let mut cache = FailureCache::default();
        let at = Duration::from_secs;
        let slow = LoadError::CompileTime { seconds: 120 };
        cache.failed(&key("a", "epochs"), &slow, at(10));
        let io = LoadError::io("x")(std::io::ErrorKind::StorageFull.into());
        cache.failed(&key("b", "epochs"), &io, at(10));
        for (digest, fingerprint, now, known) in [
            ("a", "epochs", 10, true),
            ("a", "fuel", 10, false),
            ("b", "epochs", 10, false),
            ("a", "epochs", 309, true),
            ("a", "epochs", 310, false),
        ] {
            let recalled = cache.failure(&key(digest, fingerprint), at(now)).map(|error| error.to_string());
            assert_eq!(recalled, known.then(|| slow.to_string()), "{digest} {fingerprint} {now}");
        }
        for n in 0..2 * REMEMBERED_MAX as u64 {
            cache.failed(&key(&n.to_string(), "epochs"), &slow, at(400 + n / 100));
        }
        assert_eq!(cache.0.len(), REMEMBERED_MAX);
        assert!(cache.failure(&key("1999", "epochs"), at(420)).is_some());
        assert!(cache.failure(&key("0", "epochs"), at(420)).is_none());
    }

    #[test]
    fn a_slow_module_is_no_failure() {
        let mut cache = FailureCache::default();
        let (a, at) = (key("a", "epochs"), Duration::from_secs);
        cache.slow(&a, at(1));
        assert!(cache.is_slow(&a, at(2)) && cache.failure(&a, at(2)).is_none());
        cache.failed(&a, &LoadError::CompileTime { seconds: 120 }, at(3));
        assert!(!cache.is_slow(&a, at(4)) && cache.failure(&a, at(4)).is_some());
        cache.slow(&a, at(5));
        assert!(!cache.is_slow(&a, at(305)));
    }
}
