//! Schedules the measurement of volumes, on one thread per node with the lowest priority.
//!
//! A pod is measured while it changes something. The cost of its last walk determines the interval, and all walks
//! together leave the thread idle for most of the time. An unchanged pod costs nothing, however much it has written
//! before. Other walks through volumes run on the same thread ([`Measurer::run`]): no async thread blocks on them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::oneshot;

use super::usage::VolumeLimits;

/// The minimum interval of a pod's measurements.
const INTERVAL: Duration = Duration::from_secs(1);
/// A pod's walks take at most 1/[`POD_PART`] of its time.
const POD_PART: u32 = 20;
/// All walks of a node take at most 1/[`NODE_PART`] of a core.
const NODE_PART: u32 = 5;
/// The lowest priority of a thread.
const NICE: i32 = 19;

/// The schedule of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PodSchedule {
    /// The change counter at the last measurement; none before the first.
    seen: Option<u64>,
    due: Duration,
}

/// Selects the next pod to measure. Pure.
#[derive(Debug)]
struct Schedule<K> {
    entries: BTreeMap<K, PodSchedule>,
    /// The time until which the thread is idle.
    idle_until: Duration,
}

impl<K: Ord + Clone> Schedule<K> {
    fn new() -> Self {
        Self { entries: BTreeMap::new(), idle_until: Duration::ZERO }
    }

    fn add(&mut self, key: K, now: Duration) {
        self.entries.insert(key, PodSchedule { seen: None, due: now + INTERVAL });
    }

    fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Returns the pod with the earliest due time, of those that are due and have changed.
    fn next(&self, now: Duration, changes: impl Fn(&K) -> u64) -> Option<K> {
        if now < self.idle_until {
            return None;
        }
        let due = self.entries.iter().filter(|(_, entry)| entry.due <= now);
        let changed = due.filter(|(key, entry)| entry.seen != Some(changes(key)));
        changed.min_by_key(|(_, entry)| entry.due).map(|(key, _)| key.clone())
    }

    /// Records a walk from `began` to `ended`; `changes` is the change counter at its begin.
    fn walked(&mut self, key: &K, changes: u64, began: Duration, ended: Duration) {
        let cost = ended.saturating_sub(began);
        if let Some(entry) = self.entries.get_mut(key) {
            *entry = PodSchedule { seen: Some(changes), due: ended + INTERVAL.max(cost * POD_PART) };
        }
        self.idle_until = ended + cost * (NODE_PART - 1);
    }
}

/// A pod to measure.
pub(crate) struct MeasuredPod {
    /// Its folder.
    pub(crate) pod_dir: PathBuf,
    /// Its logs' folder.
    pub(crate) log_dir: PathBuf,
    /// Its limits.
    pub(crate) bounds: VolumeLimits,
    /// Returns a counter that each of its writes increments.
    pub(crate) changes: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Called before each measurement.
    pub(crate) settle: Box<dyn Fn() + Send + Sync>,
    /// Receives the exceeded limit; returns false if no receiver is ready now.
    pub(crate) exceeded: Box<dyn Fn(String) -> bool + Send + Sync>,
}

struct MeasurerState {
    schedule: Schedule<u64>,
    subjects: BTreeMap<u64, Arc<MeasuredPod>>,
    next_key: u64,
    /// Walks requested through [`Measurer::run`].
    wanted: VecDeque<Box<dyn FnOnce() + Send>>,
    /// Whether the measurer was dropped.
    ended: bool,
}

struct MeasurerShared {
    state: Mutex<MeasurerState>,
    changed: Condvar,
}

impl MeasurerShared {
    fn state(&self) -> MutexGuard<'_, MeasurerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures a node's pods until it is dropped.
pub(crate) struct Measurer {
    inner: Arc<MeasurerShared>,
    env: Env,
}

impl Measurer {
    /// Starts the thread.
    pub(crate) fn start(env: Env) -> io::Result<Self> {
        let state = MeasurerState {
            schedule: Schedule::new(),
            subjects: BTreeMap::new(),
            next_key: 0,
            wanted: VecDeque::new(),
            ended: false,
        };
        let inner = Arc::new(MeasurerShared { state: Mutex::new(state), changed: Condvar::new() });
        let (own, clock) = (inner.clone(), env.clone());
        std::thread::Builder::new().name("measure".into()).spawn(move || {
            lower_priority();
            measure(&own, &clock);
        })?;
        Ok(Self { inner, env })
    }

    /// Measures a pod until the returned guard is dropped.
    pub(crate) fn watch(&self, subject: MeasuredPod) -> MeasureGuard {
        let mut state = self.inner.state();
        let key = state.next_key;
        state.next_key += 1;
        state.subjects.insert(key, Arc::new(subject));
        state.schedule.add(key, self.env.elapsed());
        drop(state);
        self.inner.changed.notify_one();
        MeasureGuard { inner: self.inner.clone(), key }
    }

    /// Runs `walk` on the measuring thread, before any pod; `None` if the thread has ended.
    pub(crate) async fn run<T: Send + 'static>(&self, walk: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, walked) = oneshot::channel();
        self.inner.state().wanted.push_back(Box::new(move || {
            // The caller may have been dropped.
            let _ = sender.send(walk());
        }));
        self.inner.changed.notify_one();
        walked.await.ok()
    }
}

impl Drop for Measurer {
    fn drop(&mut self) {
        self.inner.state().ended = true;
        self.inner.changed.notify_one();
    }
}

/// The guard of a measured pod.
pub(crate) struct MeasureGuard {
    inner: Arc<MeasurerShared>,
    key: u64,
}

impl Drop for MeasureGuard {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.schedule.remove(&self.key);
        state.subjects.remove(&self.key);
    }
}

/// The thread's loop.
fn measure(inner: &MeasurerShared, env: &Env) {
    let mut state = inner.state();
    while !state.ended {
        if let Some(walk) = state.wanted.pop_front() {
            drop(state);
            walk();
            state = inner.state();
            continue;
        }
        let found = state.schedule.next(env.elapsed(), |key| state.subjects.get(key).map_or(0, |of| (of.changes)()));
        let subject = found.and_then(|key| Some((key, state.subjects.get(&key)?.clone())));
        let Some((key, subject)) = subject else {
            // Without pods the thread sleeps without a timeout.
            state = if state.subjects.is_empty() {
                inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                inner.changed.wait_timeout(state, INTERVAL).unwrap_or_else(PoisonError::into_inner).0
            };
            continue;
        };
        drop(state);
        let (mut changes, began) = ((subject.changes)(), env.elapsed());
        (subject.settle)();
        if let Some(message) = subject.bounds.exceeded(&subject.pod_dir, &subject.log_dir)
            && !(subject.exceeded)(message)
        {
            // To be reported again, even without further changes.
            changes = changes.wrapping_sub(1);
        }
        state = inner.state();
        state.schedule.walked(&key, changes, began, env.elapsed());
    }
}

/// Lowers the thread's priority. If the system refuses, the thread keeps the normal one and is idle between walks all
/// the same.
fn lower_priority() {
    // On Linux this sets the priority of the calling thread only; elsewhere it would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the measuring thread runs at normal priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = NICE;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Simulates `seconds` of a node in steps of 1 ms; returns the walks of each pod and their total time.
    fn play(
        cost: &BTreeMap<u8, Duration>,
        changes: impl Fn(u8, Duration) -> u64,
        seconds: u32,
    ) -> (BTreeMap<u8, u32>, Duration) {
        let mut schedule = Schedule::new();
        let (mut now, mut walks, mut busy) = (Duration::ZERO, BTreeMap::new(), Duration::ZERO);
        for key in cost.keys() {
            schedule.add(*key, now);
        }
        while now < Duration::from_secs(seconds.into()) {
            if let Some(key) = schedule.next(now, |key| changes(*key, now)) {
                let (began, seen) = (now, changes(key, now));
                now += cost[&key];
                busy += cost[&key];
                *walks.entry(key).or_default() += 1;
                schedule.walked(&key, seen, began, now);
            }
            now += MILLI;
        }
        (walks, busy)
    }

    #[test]
    fn pods_that_wait_are_measured_once() {
        let cost = (0..10).map(|pod| (pod, 150 * MILLI)).collect();
        let (walks, busy) = play(&cost, |_, _| 7, 3600);
        assert_eq!(walks, (0..10).map(|pod| (pod, 1)).collect());
        assert_eq!(busy, 1500 * MILLI);
    }

    #[test]
    fn pods_that_write_share_a_fifth_of_a_core() {
        let cost: BTreeMap<u8, Duration> = (0..10).map(|pod| (pod, 150 * MILLI)).collect();
        let (walks, busy) = play(&cost, |_, now| now.as_millis() as u64, 600);
        assert!(busy <= Duration::from_secs(121), "{busy:?}");
        let (least, most) = (walks.values().min().unwrap(), walks.values().max().unwrap());
        assert!(*least > 60 && most - least <= 1, "{walks:?}");
    }

    #[test]
    fn a_small_pod_is_measured_each_second_and_a_large_one_for_its_part_of_the_time() {
        let (walks, _) = play(&[(0, MILLI)].into(), |_, now| now.as_millis() as u64, 600);
        assert!((580..=600).contains(&walks[&0]), "{walks:?}");
        let (walks, busy) = play(&[(0, 500 * MILLI)].into(), |_, now| now.as_millis() as u64, 600);
        assert!((50..=58).contains(&walks[&0]), "{walks:?} {busy:?}");
    }

    #[tokio::test]
    async fn walks_that_are_wanted_take_no_thread_of_others() {
        let measurer = Measurer::start(Env::real()).unwrap();
        let on = || std::thread::current().name().map(str::to_owned);
        let names = futures::future::join_all((0..4).map(|_| measurer.run(on))).await;
        assert_eq!(names, vec![Some(Some("measure".to_owned())); 4]);
    }

    #[test]
    fn the_thread_reports_excess_until_it_is_received() {
        let root = tempfile::tempdir().unwrap();
        let measurer = Measurer::start(Env::real()).unwrap();
        let (sender, messages) = std::sync::mpsc::channel();
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1"}}], "containers": [{"name": "c"}]}}))
        .unwrap();
        let bounds = crate::volume::usage::limits(&pod, false);
        let folder = crate::volume::paths::folder(root.path(), "v");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("f"), [1; 10_000]).unwrap();
        let calls = std::sync::atomic::AtomicU32::new(0);
        let _watched = measurer.watch(MeasuredPod {
            pod_dir: root.path().to_owned(),
            log_dir: root.path().join("logs"),
            bounds,
            changes: Box::new(|| 1),
            settle: Box::new(|| ()),
            exceeded: Box::new(move |message| {
                sender.send(message).unwrap();
                calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0
            }),
        });
        for _ in 0..2 {
            let message = messages.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(message, "Usage of EmptyDir volume \"v\" exceeds the limit \"1\". ");
        }
    }
}
