//! The scheduling queue: active pods in order, pods in back-off, and unschedulable pods until an event may help them.
//! Pure: the caller passes the time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use machinery_api::ObjectKey;

use crate::plugins::Rank;
use crate::plugins::priority_sort::rank;
use crate::pod::PodInfo;

/// The back-off of a pod after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// After the first failure; doubles.
    pub initial: Duration,
    /// The maximum.
    pub max: Duration,
}

impl Default for BackOff {
    /// Upstream's defaults.
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(10) }
    }
}

/// An unschedulable pod is retried after this time without an event, in case a queueing hint missed one.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// A pod in the queue, or in a scheduling cycle.
#[derive(Debug, Clone)]
pub struct QueuedPodInfo {
    pub pod: Arc<PodInfo>,
    /// The number of attempts.
    pub attempts: u32,
    /// When the pod was first queued.
    pub since: Duration,
    state: QueueState,
    /// The end of the back-off.
    backoff_until: Duration,
    refused_by: BTreeSet<&'static str>,
    /// Whether the last attempt ended with an error: the pod then waits out its back-off.
    erred: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueState {
    /// Since when.
    Active(Duration),
    Backoff,
    /// Since when.
    Unschedulable(Duration),
    /// Taken by [`Queue::pop`].
    InFlight,
}

/// Shared with the pod.
type Key = Arc<ObjectKey>;

/// The scheduling queue.
#[derive(Debug)]
pub struct Queue {
    rank: fn(&PodInfo, Duration) -> Rank,
    back_off: BackOff,
    pods: HashMap<Key, QueuedPodInfo>,
    active: BTreeSet<(Rank, Key)>,
    /// Unschedulable pods, and pods after an error.
    backoff: [BTreeSet<(Duration, Key)>; 2],
    unschedulable: BTreeSet<(Duration, Key)>,
}

/// The number of pods by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// In the active queue.
    pub active: usize,
    /// In the back-off queue.
    pub backoff: usize,
    /// Unschedulable.
    pub unschedulable: usize,
}

impl Default for Queue {
    /// In upstream's order.
    fn default() -> Self {
        Self::new(rank)
    }
}

impl Queue {
    /// In the order of a `QueueSort` plugin.
    #[must_use]
    pub fn new(rank: fn(&PodInfo, Duration) -> Rank) -> Self {
        let (active, backoff, unschedulable) = (BTreeSet::new(), <[_; 2]>::default(), BTreeSet::new());
        Self { rank, back_off: BackOff::default(), pods: HashMap::new(), active, backoff, unschedulable }
    }

    /// The queue with another back-off.
    #[must_use]
    pub fn with_back_off(self, back_off: BackOff) -> Self {
        Self { back_off, ..self }
    }

    fn leave(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.state {
            QueueState::Active(at) => {
                self.active.remove(&((self.rank)(&waiting.pod, at), waiting.pod.key.clone()));
            }
            QueueState::Backoff => {
                self.backoff[usize::from(waiting.erred)].remove(&(waiting.backoff_until, waiting.pod.key.clone()));
            }
            QueueState::Unschedulable(at) => {
                self.unschedulable.remove(&(at, waiting.pod.key.clone()));
            }
            QueueState::InFlight => {}
        }
    }

    fn enter(&mut self, key: &ObjectKey, state: QueueState) {
        self.leave(key);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.state = state;
        match state {
            QueueState::Active(at) => {
                self.active.insert(((self.rank)(&waiting.pod, at), waiting.pod.key.clone()));
            }
            QueueState::Backoff => {
                self.backoff[usize::from(waiting.erred)].insert((waiting.backoff_until, waiting.pod.key.clone()));
            }
            QueueState::Unschedulable(at) => {
                self.unschedulable.insert((at, waiting.pod.key.clone()));
            }
            QueueState::InFlight => {}
        }
    }

    /// Moves a pod to the active queue, or to the back-off queue until its back-off ends.
    fn retry(&mut self, key: &ObjectKey, now: Duration) {
        let Some(waiting) = self.pods.get(key) else { return };
        let state = if waiting.backoff_until > now { QueueState::Backoff } else { QueueState::Active(now) };
        self.enter(key, state);
    }

    /// Adds or updates an unscheduled pod. An update that doesn't affect scheduling moves nothing.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let key = pod.key.clone();
        match self.pods.get_mut(&key) {
            Some(waiting) if waiting.pod.uid == pod.uid => {
                // A nomination, for instance.
                if waiting.pod.is_equivalent(&pod) {
                    waiting.pod = pod;
                    return;
                }
                if waiting.state == QueueState::InFlight {
                    waiting.pod = pod;
                    return;
                }
                self.leave(&key);
                if let Some(waiting) = self.pods.get_mut(&key) {
                    waiting.pod = pod;
                    // The change of the pod may make it fit, so the back-off ends.
                    waiting.backoff_until = Duration::ZERO;
                    waiting.state = QueueState::InFlight;
                }
                self.enter(&key, QueueState::Active(now));
            }
            _ => {
                self.remove(&key);
                let waiting = QueuedPodInfo {
                    pod,
                    attempts: 0,
                    since: now,
                    state: QueueState::InFlight,
                    backoff_until: Duration::ZERO,
                    refused_by: BTreeSet::new(),
                    erred: false,
                };
                self.pods.insert(key.clone(), waiting);
                self.enter(&key, QueueState::Active(now));
            }
        }
    }

    /// Removes a pod that is deleted, gated or bound.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<QueuedPodInfo> {
        self.leave(key);
        self.pods.remove(key)
    }

    /// The next pod to schedule; it stays in the queue until [`failed`](Self::failed) or [`remove`](Self::remove).
    pub fn pop(&mut self, now: Duration) -> Option<QueuedPodInfo> {
        self.flush(now);
        let key = match self.active.first() {
            Some((_, key)) => key.clone(),
            None => self.eager()?,
        };
        self.enter(&key, QueueState::InFlight);
        let waiting = self.pods.get_mut(&key)?;
        waiting.attempts += 1;
        Some(waiting.clone())
    }

    /// If no pod is active, a pod in back-off after a rejection is retried early (as upstream,
    /// `SchedulerPopFromBackoffQ`); a pod after an error is not.
    fn eager(&self) -> Option<Key> {
        self.backoff[0].first().map(|(_, key)| key.clone())
    }

    /// An attempt failed. `refused_by`: the plugins that rejected the pod; none: an error, so the pod is retried after
    /// its back-off.
    pub fn failed(&mut self, tried: &QueuedPodInfo, refused_by: Option<BTreeSet<&'static str>>, now: Duration) {
        let key = tried.pod.key.clone();
        let Some(waiting) =
            self.pods.get_mut(&key).filter(|w| w.state == QueueState::InFlight && w.pod.uid == tried.pod.uid)
        else {
            return;
        };
        let doubled = self.back_off.initial.saturating_mul(1 << waiting.attempts.saturating_sub(1).min(10));
        waiting.backoff_until = now + doubled.min(self.back_off.max);
        waiting.erred = refused_by.is_none();
        let changed = !waiting.pod.is_equivalent(&tried.pod);
        match refused_by {
            // The pod may have changed during the attempt, and fit now.
            Some(refused_by) if !changed => {
                waiting.refused_by = refused_by;
                self.enter(&key, QueueState::Unschedulable(now));
            }
            _ => self.enter(&key, QueueState::Backoff),
        }
    }

    /// Retries an unschedulable pod without an event.
    pub fn activate(&mut self, key: &ObjectKey, now: Duration) {
        if self.pods.get(key).is_some_and(|waiting| matches!(waiting.state, QueueState::Unschedulable(_))) {
            self.retry(key, now);
        }
    }

    /// Retries the unschedulable pods that an event may help, by the plugins that rejected them. Returns their number.
    pub fn requeue_helped(
        &mut self,
        now: Duration,
        helps: impl Fn(&PodInfo, &BTreeSet<&'static str>) -> bool,
    ) -> usize {
        let waiting = self.unschedulable.iter().filter_map(|(_, key)| self.pods.get_key_value(key));
        let helped = waiting.filter(|(_, waiting)| helps(&waiting.pod, &waiting.refused_by));
        let helped: Vec<Key> = helped.map(|(key, _)| key.clone()).collect();
        helped.iter().for_each(|key| self.retry(key, now));
        helped.len()
    }

    fn flush(&mut self, now: Duration) {
        for of in 0..self.backoff.len() {
            while let Some((_, key)) = self.backoff[of].first().filter(|(until, _)| *until <= now) {
                let key = key.clone();
                self.enter(&key, QueueState::Active(now));
            }
        }
        while let Some((_, key)) = self.unschedulable.first().filter(|(at, _)| *at + UNSCHEDULABLE_MAX <= now) {
            let key = key.clone();
            self.retry(&key, now);
        }
    }

    /// When the next pod becomes active without an event; none: never.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        let backoff = self.backoff.iter().filter_map(|waiting| waiting.first()).map(|(until, _)| *until).min();
        let unschedulable = self.unschedulable.first().map(|(at, _)| *at + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(unschedulable).min()
    }

    /// The number of pods by state.
    #[must_use]
    pub fn depth(&self) -> Depth {
        Depth {
            active: self.active.len(),
            backoff: self.backoff.iter().map(BTreeSet::len).sum(),
            unschedulable: self.unschedulable.len(),
        }
    }

    /// A pod in the queue.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&QueuedPodInfo> {
        self.pods.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeInfo;
    use crate::plugins::{Event, Profile};

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let key = ObjectKey::new("a", name).into();
        Arc::new(PodInfo { key, uid: name.into(), priority, ..PodInfo::default() })
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn helped(queue: &mut Queue, event: &Event<'_>, now: Duration) -> usize {
        let profile = Profile::default();
        queue.requeue_helped(now, |pod, refused_by| profile.may_fit_after(event, pod, refused_by))
    }

    fn added(node: &NodeInfo) -> Event<'_> {
        let change = crate::snapshot::NodeChange { added: true, ..Default::default() };
        Event::Node(node, change)
    }

    #[test]
    fn higher_priority_first_then_the_longer_wait() {
        let mut queue = Queue::default();
        queue.put(pod("late", 0), s(2));
        queue.put(pod("early", 0), s(1));
        queue.put(pod("high", 5), s(3));
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(s(4))).map(|w| w.pod.key.name.clone()).collect();
        assert_eq!(order, ["high", "early", "late"]);
    }

    #[test]
    fn errors_back_off_one_to_ten_seconds() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0), s(0));
        let mut now = s(0);
        for wait in [1, 2, 4, 8, 10, 10] {
            let tried = queue.pop(now).unwrap();
            queue.failed(&tried, None, now);
            assert_eq!(queue.next_at(), Some(now + s(wait)));
            assert!(queue.pop(now + s(wait) - Duration::from_millis(1)).is_none());
            now += s(wait);
        }
    }

    #[test]
    fn an_unschedulable_pod_waits_for_help_or_five_minutes() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0), s(0));
        let tried = queue.pop(s(0)).unwrap();
        queue.failed(&tried, Some(BTreeSet::new()), s(0));
        assert_eq!(queue.depth(), Depth { unschedulable: 1, ..Depth::default() });
        assert_eq!(helped(&mut queue, &Event::NodeGone, s(0)), 0);
        // After a helpful event the pod waits out its back-off while other pods are active.
        assert_eq!(helped(&mut queue, &added(&NodeInfo::default()), s(0)), 1);
        queue.put(pod("b", 0), s(0));
        assert_eq!(queue.pop(s(0)).unwrap().pod.key.name, "b");
        let tried = queue.pop(s(0)).unwrap();
        assert_eq!((tried.pod.key.name.as_str(), tried.attempts), ("a", 2));
        queue.failed(&tried, Some(BTreeSet::new()), s(1));
        assert!(queue.pop(s(300)).is_none());
        assert!(queue.pop(s(301)).is_some());
    }

    #[test]
    fn its_own_change_moves_a_pod_and_others_do_not() {
        let mut queue = Queue::default();
        queue.put(pod("a", 0), s(0));
        let tried = queue.pop(s(0)).unwrap();
        queue.failed(&tried, Some(BTreeSet::from(["NodeAffinity"])), s(0));
        queue.put(pod("a", 0), s(0));
        assert!(queue.pop(s(0)).is_none(), "the same again");
        queue.put(Arc::new(PodInfo { gated: true, ..(*pod("a", 0)).clone() }), s(0));
        assert!(queue.pop(s(0)).is_some());
        // Deleted and created again under the same name: another pod.
        queue.put(Arc::new(PodInfo { uid: "other".into(), ..(*pod("a", 0)).clone() }), s(0));
        assert_eq!(queue.pop(s(0)).unwrap().attempts, 1);
        assert!(queue.remove(&ObjectKey::new("a", "a")).is_some());
        queue.failed(&tried, None, s(0));
        assert_eq!(queue.depth(), Depth::default());
    }
}
