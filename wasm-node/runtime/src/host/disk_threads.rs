//! Who may hold up a thread for a disk, so that work which stalls holds up nobody but whoever asked for it.
//!
//! What has begun can't be taken back: a thread that waits for a disk waits until that answers. So a container has two
//! threads, a namespace a share of all that beside what is left ([`Slots`]), and what has not moved for a second no longer
//! keeps others from beginning. Who finds no room waits, and is late in the end: an error of whoever asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::bounds::slots::{Share, Slot, Slots, Weight};

/// Threads that one container's file work may hold up: one that waits for a disk, and one that works meanwhile.
const CONTAINER_THREADS_MAX: usize = 2;
/// Threads that work on files at once, for all guests: more would take the cores from guests that compute.
const MOVING_MAX: usize = 24;
/// What takes longer is waiting for a disk, and takes no core from anybody.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Threads that all guests' file work may hold up, most of them standing still: each has a stack.
pub(crate) const THREADS_MAX: u32 = 256;
/// How long an operation waits to begin.
pub(crate) const LATE_AFTER: Duration = Duration::from_secs(30);

/// An operation that could not begin in time, as others of its container, its namespace or the node did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late;

/// All guests' threads for file work.
pub(crate) struct Threads {
    all: Arc<Slots>,
    moving: Line,
}

/// One container's.
pub(crate) struct OwnThreads {
    node: Arc<Threads>,
    own: Semaphore,
    share: Arc<Share>,
}

/// Leave to hold up a thread, until it is dropped.
pub(crate) struct Thread<'a> {
    _moving: Turn<'a>,
    _slot: Slot,
    _own: SemaphorePermit<'a>,
}

const ONE: Weight = Weight { instances: 1, memories: 0, tables: 0 };

impl Threads {
    pub(crate) fn new() -> Arc<Self> {
        let all = Slots::new(Weight { instances: THREADS_MAX, memories: 0, tables: 0 });
        Arc::new(Self { all, moving: Line::new(MOVING_MAX, STALLED_AFTER) })
    }

    pub(crate) fn of_container(self: &Arc<Self>, namespace: &Arc<str>) -> OwnThreads {
        let share = self.all.share(namespace);
        OwnThreads { node: self.clone(), own: Semaphore::new(CONTAINER_THREADS_MAX), share }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.all.capacity().instances - self.all.free().instances
    }
}

impl OwnThreads {
    pub(crate) async fn acquire(&self) -> Result<Thread<'_>, Late> {
        if let Some(thread) = self.try_acquire() {
            return Ok(thread);
        }
        let acquired = async {
            let own = self.own.acquire().await.expect("never closed");
            let slot = self.share.take(ONE).await;
            Thread { _moving: self.node.moving.acquire().await, _slot: slot, _own: own }
        };
        tokio::time::timeout(LATE_AFTER, acquired).await.map_err(|_| Late)
    }

    pub(crate) fn try_acquire(&self) -> Option<Thread<'_>> {
        let own = self.own.try_acquire().ok()?;
        let slot = self.share.try_take(ONE)?;
        Some(Thread { _moving: self.node.moving.try_acquire()?, _slot: slot, _own: own })
    }
}

/// A line before so many places, which whoever stays too long no longer takes from others.
struct Line {
    free: Semaphore,
    stalled_after: Duration,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// Since when, of those whose place is not free for others yet. In the order in which they came.
    since: BTreeMap<u64, Instant>,
}

/// A place, until it is dropped.
struct Turn<'a> {
    line: &'a Line,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Gone already where it stalled: its place is somebody else's by now.
        if self.line.taken().since.remove(&self.number).is_some() {
            self.line.free.add_permits(1);
        }
    }
}

impl Line {
    fn new(places: usize, stalled_after: Duration) -> Self {
        Self { free: Semaphore::new(places), stalled_after, taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, place: SemaphorePermit<'_>) -> Turn<'_> {
        place.forget();
        let mut taken = self.taken();
        let number = taken.next;
        taken.next += 1;
        taken.since.insert(number, Instant::now());
        Turn { line: self, number }
    }

    fn try_acquire(&self) -> Option<Turn<'_>> {
        Some(self.begin(self.free.try_acquire().ok()?))
    }

    async fn acquire(&self) -> Turn<'_> {
        let mut place = std::pin::pin!(self.free.acquire());
        loop {
            let stalls_at = self.pass_stalled(Instant::now());
            let sleep = async { tokio::time::sleep_until(stalls_at.unwrap_or_else(Instant::now)).await };
            tokio::select! {
                biased;
                place = &mut place => return self.begin(place.expect("never closed")),
                () = sleep, if stalls_at.is_some() => {}
            }
        }
    }

    /// Gives places of those that stalled to others; answers when the next one does.
    fn pass_stalled(&self, now: Instant) -> Option<Instant> {
        let mut taken = self.taken();
        while let Some((number, since)) = taken.since.first_key_value().map(|(number, since)| (*number, *since)) {
            let stalls_at = since + self.stalled_after;
            if now < stalls_at {
                return Some(stalls_at);
            }
            taken.since.remove(&number);
            self.free.add_permits(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(threads: &Arc<Threads>, namespace: &str, count: usize) -> Vec<OwnThreads> {
        (0..count).map(|_| threads.of_container(&namespace.into())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_keeps_others_waiting_for_a_second() {
        let threads = Threads::new();
        let stalled = others(&threads, "stalled", MOVING_MAX / CONTAINER_THREADS_MAX);
        let mut held = Vec::new();
        for container in &stalled {
            held.extend([container.try_acquire().unwrap(), container.try_acquire().unwrap()]);
        }
        let victim = threads.of_container(&"stalled".into());
        assert!(victim.try_acquire().is_none(), "all that may move do");
        let before = Instant::now();
        drop(victim.acquire().await.unwrap());
        assert_eq!(before.elapsed(), STALLED_AFTER);
        assert!(victim.try_acquire().is_some(), "they are waited for once");
        // A place that was given on is not given back a second time.
        drop(held);
        let all = others(&threads, "other", MOVING_MAX);
        let moving: Vec<_> = all.iter().map_while(|container| container.try_acquire()).collect();
        assert_eq!(moving.len(), MOVING_MAX);
        assert!(victim.try_acquire().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_that_stalls_is_late_itself_and_leaves_the_rest_to_others() {
        let threads = Threads::new();
        let container = threads.of_container(&"a".into());
        let held = (container.acquire().await.unwrap(), container.acquire().await.unwrap());
        let before = Instant::now();
        assert_eq!(container.acquire().await.err(), Some(Late));
        assert_eq!(before.elapsed(), LATE_AFTER);
        drop(held);
        assert!(container.acquire().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_stalls_leaves_threads_to_others() {
        let threads = Threads::new();
        let stalled = others(&threads, "stalled", THREADS_MAX as usize);
        let mut held = Vec::new();
        for container in &stalled {
            match container.acquire().await {
                Ok(thread) => held.push(thread),
                Err(Late) => break,
            }
        }
        assert!(held.len() > MOVING_MAX && held.len() < THREADS_MAX as usize * 3 / 4, "{}", held.len());
        let victim = threads.of_container(&"victim".into());
        let before = Instant::now();
        assert!(victim.acquire().await.is_ok());
        assert!(before.elapsed() <= STALLED_AFTER);
    }
}
