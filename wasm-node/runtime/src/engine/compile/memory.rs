//! What is remembered of modules that did not compile, or not quickly. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime_api::LoadError;

/// What a module that did not compile is remembered for: many pods, and each pod again and again, may want the same one,
/// and each try would take a compiler from modules that do compile. As long as the longest back-off of a pod.
const REMEMBERED_FOR: Duration = Duration::from_secs(300);
/// How many are remembered: the oldest make room.
const REMEMBERED_MAX: usize = 1000;

/// A module's digest and the fingerprint of the engine that it is compiled for.
pub(super) type Key = (String, String);

/// How a module's last compilation ended, where it did not succeed.
#[derive(Debug)]
enum Verdict {
    /// It used up the slice of the quick lane.
    Slow,
    Failed(LoadError),
}

/// The modules that did not compile lately, or not quickly.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<Key, (Verdict, Duration)>);

impl Memory {
    /// Why this one did not compile, if that is known.
    pub(super) fn failure(&mut self, key: &Key, now: Duration) -> Option<LoadError> {
        match self.verdict(key, now)? {
            Verdict::Failed(error) => error.of_the_module(),
            Verdict::Slow => None,
        }
    }

    /// Whether it is known to take longer than the quick lane's slice.
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

    /// An error that is not the module's fault is not remembered.
    pub(super) fn failed(&mut self, key: &Key, error: &LoadError, now: Duration) {
        if let Some(error) = error.of_the_module() {
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
        let mut memory = Memory::default();
        let at = Duration::from_secs;
        let slow = LoadError::CompileTime { seconds: 120 };
        memory.failed(&key("a", "epochs"), &slow, at(10));
        let io = LoadError::io("x")(std::io::ErrorKind::StorageFull.into());
        memory.failed(&key("b", "epochs"), &io, at(10));
        for (digest, fingerprint, now, known) in [
            ("a", "epochs", 10, true),
            ("a", "fuel", 10, false),
            ("b", "epochs", 10, false),
            ("a", "epochs", 309, true),
            ("a", "epochs", 310, false),
        ] {
            let recalled = memory.failure(&key(digest, fingerprint), at(now)).map(|error| error.to_string());
            assert_eq!(recalled, known.then(|| slow.to_string()), "{digest} {fingerprint} {now}");
        }
        for n in 0..2 * REMEMBERED_MAX as u64 {
            memory.failed(&key(&n.to_string(), "epochs"), &slow, at(400 + n / 100));
        }
        assert_eq!(memory.0.len(), REMEMBERED_MAX);
        assert!(memory.failure(&key("1999", "epochs"), at(420)).is_some());
        assert!(memory.failure(&key("0", "epochs"), at(420)).is_none());
    }

    #[test]
    fn a_slow_module_is_no_failure() {
        let mut memory = Memory::default();
        let (a, at) = (key("a", "epochs"), Duration::from_secs);
        memory.slow(&a, at(1));
        assert!(memory.is_slow(&a, at(2)) && memory.failure(&a, at(2)).is_none());
        memory.failed(&a, &LoadError::CompileTime { seconds: 120 }, at(3));
        assert!(!memory.is_slow(&a, at(4)) && memory.failure(&a, at(4)).is_some());
        memory.slow(&a, at(5));
        assert!(!memory.is_slow(&a, at(305)));
    }
}
