//! Pods that wait for a node: active ones in order, those that back off after a failure, and those that fit nowhere until
//! something changes that may help them. Pure: time is handed in.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use machinery_api::ObjectKey;

use crate::plugins::Rank;
use crate::plugins::priority_sort::rank;
use crate::pod::PodInfo;

/// How long a pod waits after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// After the first; doubles.
    pub initial: Duration,
    /// The longest.
    pub max: Duration,
}

impl Default for BackOff {
    /// Upstream's.
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(10) }
    }
}

/// After this long a pod is tried again though nothing happened that may help: repairs a missed hint.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// A pod that waits, or is being worked on.
#[derive(Debug, Clone)]
pub struct QueuedPodInfo {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first seen.
    pub since: Duration,
    state: State,
    /// When it may be tried again.
    backoff_until: Duration,
    refused_by: BTreeSet<&'static str>,
    /// Something went wrong with it last, so that it waits for its time.
    erred: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Since when.
    Active(Duration),
    Backoff,
    /// Since when.
    Unschedulable(Duration),
    /// Taken by [`Queue::pop`].
    Working,
}

/// Shared with the pod.
type Key = Arc<ObjectKey>;

/// See the module.
#[derive(Debug)]
pub struct Queue {
    rank: fn(&PodInfo, Duration) -> Rank,
    back_off: BackOff,
    pods: HashMap<Key, QueuedPodInfo>,
    active: BTreeSet<(Rank, Key)>,
    /// Those that fitted nowhere, and those that something went wrong with.
    backoff: [BTreeSet<(Duration, Key)>; 2],
    unschedulable: BTreeSet<(Duration, Key)>,
}

/// How many pods wait, by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// To be tried.
    pub active: usize,
    /// To be tried later.
    pub backoff: usize,
    /// Fit nowhere.
    pub unschedulable: usize,
}

impl Default for Queue {
    /// In upstream's order.
    fn default() -> Self {
        Self::new(rank)
    }
}

impl Queue {
    /// In the order that a plugin gives.
    #[must_use]
    pub fn new(rank: fn(&PodInfo, Duration) -> Rank) -> Self {
        let (active, backoff, unschedulable) = (BTreeSet::new(), <[_; 2]>::default(), BTreeSet::new());
        Self { rank, back_off: BackOff::default(), pods: HashMap::new(), active, backoff, unschedulable }
    }

    /// With another time after a failure.
    #[must_use]
    pub fn backing_off(self, back_off: BackOff) -> Self {
        Self { back_off, ..self }
    }

    fn leave(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.get(key) else { return };
        match waiting.state {
            State::Active(at) => {
                self.active.remove(&((self.rank)(&waiting.pod, at), waiting.pod.key.clone()));
            }
            State::Backoff => {
                self.backoff[usize::from(waiting.erred)].remove(&(waiting.backoff_until, waiting.pod.key.clone()));
            }
            State::Unschedulable(at) => {
                self.unschedulable.remove(&(at, waiting.pod.key.clone()));
            }
            State::Working => {}
        }
    }

    fn enter(&mut self, key: &ObjectKey, state: State) {
        self.leave(key);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.state = state;
        match state {
            State::Active(at) => {
                self.active.insert(((self.rank)(&waiting.pod, at), waiting.pod.key.clone()));
            }
            State::Backoff => {
                self.backoff[usize::from(waiting.erred)].insert((waiting.backoff_until, waiting.pod.key.clone()));
            }
            State::Unschedulable(at) => {
                self.unschedulable.insert((at, waiting.pod.key.clone()));
            }
            State::Working => {}
        }
    }

    /// Active again, or when the back-off is over.
    fn retry(&mut self, key: &ObjectKey, now: Duration) {
        let Some(waiting) = self.pods.get(key) else { return };
        let state = if waiting.backoff_until > now { State::Backoff } else { State::Active(now) };
        self.enter(key, state);
    }

    /// A pod without a node is there, new or changed. What changes nothing for scheduling moves nothing.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let key = pod.key.clone();
        match self.pods.get_mut(&key) {
            Some(waiting) if waiting.pod.uid == pod.uid => {
                // What others decided about it changes nothing.
                if waiting.pod.waits_as(&pod) {
                    waiting.pod = pod;
                    return;
                }
                if waiting.state == State::Working {
                    waiting.pod = pod;
                    return;
                }
                self.leave(&key);
                if let Some(waiting) = self.pods.get_mut(&key) {
                    waiting.pod = pod;
                    // Its own change may make it fit: no back-off for what it was.
                    waiting.backoff_until = Duration::ZERO;
                    waiting.state = State::Working;
                }
                self.enter(&key, State::Active(now));
            }
            _ => {
                self.remove(&key);
                let waiting = QueuedPodInfo {
                    pod,
                    attempts: 0,
                    since: now,
                    state: State::Working,
                    backoff_until: Duration::ZERO,
                    refused_by: BTreeSet::new(),
                    erred: false,
                };
                self.pods.insert(key.clone(), waiting);
                self.enter(&key, State::Active(now));
            }
        }
    }

    /// A pod is gone, gated or has its node.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<QueuedPodInfo> {
        self.leave(key);
        self.pods.remove(key)
    }

    /// The next pod to try; it stays known until [`failed`](Self::failed) or [`remove`](Self::remove).
    pub fn pop(&mut self, now: Duration) -> Option<QueuedPodInfo> {
        self.flush(now);
        let key = match self.active.first() {
            Some((_, key)) => key.clone(),
            None => self.eager()?,
        };
        self.enter(&key, State::Working);
        let waiting = self.pods.get_mut(&key)?;
        waiting.attempts += 1;
        Some(waiting.clone())
    }

    /// With nothing else to do a pod that fitted nowhere, and may now, need not wait (as upstream,
    /// `SchedulerPopFromBackoffQ`); one that something went wrong with does.
    fn eager(&self) -> Option<Key> {
        self.backoff[0].first().map(|(_, key)| key.clone())
    }

    /// A try failed. `refused_by`: it fits nowhere; none: something went wrong, it is tried again after its back-off.
    pub fn failed(&mut self, tried: &QueuedPodInfo, refused_by: Option<BTreeSet<&'static str>>, now: Duration) {
        let key = tried.pod.key.clone();
        let Some(waiting) = self.pods.get_mut(&key).filter(|w| w.state == State::Working && w.pod.uid == tried.pod.uid)
        else {
            return;
        };
        let doubled = self.back_off.initial.saturating_mul(1 << waiting.attempts.saturating_sub(1).min(10));
        waiting.backoff_until = now + doubled.min(self.back_off.max);
        waiting.erred = refused_by.is_none();
        let changed = !waiting.pod.waits_as(&tried.pod);
        match refused_by {
            // What it was refused for may be mended by its own change meanwhile.
            Some(refused_by) if !changed => {
                waiting.refused_by = refused_by;
                self.enter(&key, State::Unschedulable(now));
            }
            _ => self.enter(&key, State::Backoff),
        }
    }

    /// A pod that fitted nowhere is tried again, though nothing happened.
    pub fn activate(&mut self, key: &ObjectKey, now: Duration) {
        if self.pods.get(key).is_some_and(|waiting| matches!(waiting.state, State::Unschedulable(_))) {
            self.retry(key, now);
        }
    }

    /// Something happened: pods that it may help, by what refused them, are tried again. Returns how many.
    pub fn happened(&mut self, now: Duration, helps: impl Fn(&PodInfo, &BTreeSet<&'static str>) -> bool) -> usize {
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
                self.enter(&key, State::Active(now));
            }
        }
        while let Some((_, key)) = self.unschedulable.first().filter(|(at, _)| *at + UNSCHEDULABLE_MAX <= now) {
            let key = key.clone();
            self.retry(&key, now);
        }
    }

    /// When something may become active by itself; none: not before something happens.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        let backoff = self.backoff.iter().filter_map(|waiting| waiting.first()).map(|(until, _)| *until).min();
        let unschedulable = self.unschedulable.first().map(|(at, _)| *at + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(unschedulable).min()
    }

    /// How many pods wait.
    #[must_use]
    pub fn depth(&self) -> Depth {
        Depth {
            active: self.active.len(),
            backoff: self.backoff.iter().map(BTreeSet::len).sum(),
            unschedulable: self.unschedulable.len(),
        }
    }

    /// A pod that waits.
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

    fn happened(queue: &mut Queue, event: &Event<'_>, now: Duration) -> usize {
        let profile = Profile::default();
        queue.happened(now, |pod, refused_by| profile.may_fit_after(event, pod, refused_by))
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
        assert_eq!(happened(&mut queue, &Event::NodeGone, s(0)), 0);
        // With help it waits out the back-off while others wait, too.
        assert_eq!(happened(&mut queue, &added(&NodeInfo::default()), s(0)), 1);
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
        // Deleted and made again under the same name: another pod.
        queue.put(Arc::new(PodInfo { uid: "other".into(), ..(*pod("a", 0)).clone() }), s(0));
        assert_eq!(queue.pop(s(0)).unwrap().attempts, 1);
        assert!(queue.remove(&ObjectKey::new("a", "a")).is_some());
        queue.failed(&tried, None, s(0));
        assert_eq!(queue.depth(), Depth::default());
    }
}
