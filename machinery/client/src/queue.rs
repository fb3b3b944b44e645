//! A work queue of keys as client-go's: deduplicated, one worker a key, with delays and per-key back-off.
//!
//! Its length is bounded by the number of distinct keys, that is by the objects in the cache.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use machinery_api::ObjectKey;
use machinery_env::Env;

/// Back-off of a failed key (client-go's `ItemExponentialFailureRateLimiter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// The delay after the first failure; it doubles with each further one.
    pub first: Duration,
    /// The maximum delay.
    pub most: Duration,
}

impl BackOff {
    /// client-go's default.
    pub const DEFAULT: Self = Self { first: Duration::from_millis(5), most: Duration::from_secs(1000) };

    fn after(self, failures: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(self.most)
    }
}

/// The queue's state: pure, with time as an argument.
#[derive(Debug, Default)]
struct WorkQueueState {
    ready: VecDeque<Arc<ObjectKey>>,
    /// Queued keys with the time of their addition: in `ready`, or to be requeued after the present work.
    dirty: HashMap<Arc<ObjectKey>, Duration>,
    working: HashMap<Arc<ObjectKey>, Duration>,
    later: BTreeMap<(Duration, u64), Arc<ObjectKey>>,
    due: HashMap<Arc<ObjectKey>, (Duration, u64)>,
    failures: HashMap<Arc<ObjectKey>, u32>,
    sequence: u64,
    added: u64,
    retried: u64,
}

impl WorkQueueState {
    fn add(&mut self, key: Arc<ObjectKey>, now: Duration) -> bool {
        if self.dirty.contains_key(&key) {
            return false;
        }
        self.added += 1;
        self.dirty.insert(key.clone(), now);
        if !self.working.contains_key(&key) {
            self.ready.push_back(key);
        }
        true
    }

    /// Of several delays for a key the earliest wins.
    fn add_at(&mut self, key: Arc<ObjectKey>, at: Duration) {
        self.retried += 1;
        if let Some(known) = self.due.get(&key) {
            if known.0 <= at {
                return;
            }
            self.later.remove(known);
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.later.insert((at, self.sequence), key);
    }

    /// Counts a failure. Returns the number of failures before it.
    fn fail(&mut self, key: &Arc<ObjectKey>) -> u32 {
        let failures = self.failures.entry(key.clone()).or_default();
        std::mem::replace(failures, failures.saturating_add(1))
    }

    fn pop(&mut self, now: Duration) -> Option<(Arc<ObjectKey>, Duration)> {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key, now);
        }
        let key = self.ready.pop_front()?;
        let added = self.dirty.remove(&key).unwrap_or(now);
        self.working.insert(key.clone(), now);
        Some((key, now.saturating_sub(added)))
    }

    fn metrics(&self, now: Duration) -> WorkQueueMetrics {
        let ages = || self.working.values().map(|since| now.saturating_sub(*since));
        #[expect(clippy::cast_precision_loss, reason = "keys are no more than objects")]
        let waiting = self.ready.len() as f64;
        let (added, retried) = (self.added, self.retried);
        WorkQueueMetrics {
            waiting,
            added,
            retried,
            unfinished: ages().sum(),
            longest: ages().max().unwrap_or_default(),
        }
    }

    fn done(&mut self, key: &Arc<ObjectKey>) -> Option<Duration> {
        let since = self.working.remove(key);
        if self.dirty.contains_key(key) {
            self.ready.push_back(key.clone());
        }
        since
    }
}

/// Metrics of a queue at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkQueueMetrics {
    /// Depth: keys that wait for a worker.
    pub waiting: f64,
    /// Keys ever added.
    pub added: u64,
    /// Keys ever added with a delay.
    pub retried: u64,
    /// Sum of the processing times of the keys in work.
    pub unfinished: Duration,
    /// The longest of these processing times.
    pub longest: Duration,
}

/// A key taken from the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct QueuedKey {
    /// The key; call [`WorkQueue::done`] after the work.
    pub key: Arc<ObjectKey>,
    /// Time in the queue.
    pub waited: Duration,
}

/// A keyed queue.
#[derive(Debug)]
pub struct WorkQueue {
    state: Mutex<WorkQueueState>,
    wake: Notify,
    env: Env,
    back_off: BackOff,
}

impl WorkQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(env: Env, back_off: BackOff) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), env, back_off }
    }

    fn state(&self) -> MutexGuard<'_, WorkQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key; returns false if it is queued already.
    pub fn add(&self, key: impl Into<Arc<ObjectKey>>) -> bool {
        let added = self.state().add(key.into(), self.env.elapsed());
        if added {
            self.wake.notify_one();
        }
        added
    }

    /// Adds a key after `wait`.
    pub fn add_after(&self, key: impl Into<Arc<ObjectKey>>, wait: Duration) {
        self.state().add_at(key.into(), self.env.elapsed().saturating_add(wait));
        self.wake.notify_one();
    }

    /// Requeues a failed key after its back-off.
    pub fn add_rate_limited(&self, key: Arc<ObjectKey>) {
        let wait = self.back_off.after(self.state().fail(&key));
        self.add_after(key, wait);
    }

    /// Resets a key's back-off.
    pub fn forget(&self, key: &ObjectKey) {
        self.state().failures.remove(key);
    }

    /// The queue's present metrics.
    #[must_use]
    pub fn metrics(&self) -> WorkQueueMetrics {
        self.state().metrics(self.env.elapsed())
    }

    /// Marks a key as done. Returns the duration of the work.
    pub fn done(&self, key: &Arc<ObjectKey>) -> Duration {
        let since = self.state().done(key);
        self.wake.notify_one();
        since.map_or(Duration::ZERO, |since| self.env.elapsed().saturating_sub(since))
    }

    /// Waits for a key to work on.
    pub async fn next(&self) -> QueuedKey {
        loop {
            let woken = self.wake.notified();
            let wait = {
                let mut state = self.state();
                let now = self.env.elapsed();
                if let Some((key, waited)) = state.pop(now) {
                    if !state.ready.is_empty() || !state.later.is_empty() {
                        // Wake another worker: it takes the next ready key, or waits for the next delayed one.
                        self.wake.notify_one();
                    }
                    return QueuedKey { key, waited };
                }
                state.later.first_key_value().map(|((at, _), _)| at.saturating_sub(now))
            };
            match wait {
                None => woken.await,
                Some(wait) => {
                    tokio::select! {
                        biased;
                        () = woken => {}
                        () = self.env.sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// The keys in work, for tests.
    #[must_use]
    pub fn working(&self) -> HashSet<Arc<ObjectKey>> {
        self.state().working.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Arc<ObjectKey> {
        ObjectKey::new("a", name).into()
    }

    #[test]
    fn a_key_waits_once_and_is_never_worked_on_twice_at_once() {
        let mut q = WorkQueueState::default();
        let t = Duration::from_secs;
        assert!(q.add(key("x"), t(0)) && !q.add(key("x"), t(0)));
        assert_eq!(q.pop(t(2)), Some((key("x"), t(2))));
        q.add(key("x"), t(3));
        assert_eq!(q.pop(t(3)), None, "it is being worked on");
        q.done(&key("x"));
        assert_eq!(q.pop(t(4)), Some((key("x"), t(1))));
    }

    #[test]
    fn the_earliest_requeue_wins_and_back_off_doubles_to_its_limit() {
        let mut q = WorkQueueState::default();
        let t = Duration::from_secs;
        q.add_at(key("x"), t(9));
        q.add_at(key("x"), t(5));
        q.add_at(key("x"), t(7));
        assert_eq!(q.pop(t(4)), None);
        assert_eq!(q.pop(t(5)), Some((key("x"), t(0))));
        q.done(&key("x"));
        assert_eq!(q.pop(t(20)), None);
        let mut waits =
            |times: usize| (0..times).map(|_| BackOff::DEFAULT.after(q.fail(&key("x")))).collect::<Vec<_>>();
        assert_eq!(waits(3), [5, 10, 20].map(Duration::from_millis));
        assert_eq!(waits(60).last(), Some(&BackOff::DEFAULT.most));
    }

    #[tokio::test]
    async fn waiting_workers_are_woken() {
        let queue = Arc::new(WorkQueue::new(Env::real(), BackOff::DEFAULT));
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.next().await.key })
            })
            .collect();
        queue.add_after(key("late"), Duration::from_millis(5));
        queue.add(key("one"));
        queue.add(key("two"));
        let mut names = Vec::new();
        for worker in workers {
            names.push(worker.await.unwrap().name.clone());
        }
        names.sort();
        assert_eq!(names, ["late", "one", "two"]);
    }
}
