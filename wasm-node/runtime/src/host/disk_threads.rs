//! Limits threads blocked on a disk, so that stalled work delays its own container only.
//!
//! A started operation can't be cancelled: its thread blocks until the disk responds. So a container has two threads, a
//! namespace a share of all threads relative to the free ones ([`Slots`]), and an operation that has stalled for 1 s no longer
//! keeps others from starting. A waiter without a thread eventually fails as late.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use runtime_api::disk::DiskBusy;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::bounds::slots::{Share, Slot, Slots, Weight};

/// Maximum blocked threads of one container's file work: one that waits for a disk, and one that works meanwhile.
const CONTAINER_THREADS_MAX: usize = 2;
/// Maximum threads that work on files concurrently, for all guests: more would take the cores from computing guests.
const ACTIVE_MAX: usize = 24;
/// A longer operation is waiting for a disk and uses no core.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// Maximum blocked threads of all guests' file work, most of them stalled: each has a stack.
pub(crate) const THREADS_MAX: u32 = 256;
/// Timeout of the start of an operation.
pub(crate) const LATE_AFTER: Duration = Duration::from_secs(30);

/// Thread limits of all guests' file work.
pub(crate) struct DiskThreads {
    all: Arc<Slots>,
    active_limit: StallLimit,
    env: Env,
}

/// Thread limits of one container.
pub(crate) struct ContainerThreads {
    node: Arc<DiskThreads>,
    own: Semaphore,
    share: Arc<Share>,
}

/// Permission to block a thread, released on drop.
pub(crate) struct ThreadPermit<'a> {
    _active: StallPermit<'a>,
    _slot: Slot,
    _own: SemaphorePermit<'a>,
}

const ONE: Weight = Weight { instances: 1, memories: 0, tables: 0 };

impl DiskThreads {
    pub(crate) fn new(env: Env) -> Arc<Self> {
        let all = Slots::new(Weight { instances: THREADS_MAX, memories: 0, tables: 0 });
        let active_limit = StallLimit::new(ACTIVE_MAX, STALLED_AFTER, env.clone());
        Arc::new(Self { all, active_limit, env })
    }

    pub(crate) fn of_container(self: &Arc<Self>, namespace: &Arc<str>) -> ContainerThreads {
        let share = self.all.share(namespace);
        ContainerThreads { node: self.clone(), own: Semaphore::new(CONTAINER_THREADS_MAX), share }
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> u32 {
        self.all.capacity().instances - self.all.free().instances
    }
}

impl ContainerThreads {
    pub(crate) async fn acquire(&self) -> Result<ThreadPermit<'_>, DiskBusy> {
        if let Some(thread) = self.try_acquire() {
            return Ok(thread);
        }
        let acquired = async {
            let own = self.own.acquire().await.expect("never closed");
            let slot = self.share.take(ONE).await;
            ThreadPermit { _active: self.node.active_limit.acquire().await, _slot: slot, _own: own }
        };
        self.node.env.timeout(LATE_AFTER, acquired).await.map_err(|_| DiskBusy)
    }

    pub(crate) fn try_acquire(&self) -> Option<ThreadPermit<'_>> {
        let own = self.own.try_acquire().ok()?;
        let slot = self.share.try_take(ONE)?;
        Some(ThreadPermit { _active: self.node.active_limit.try_acquire()?, _slot: slot, _own: own })
    }
}

/// A limit of concurrent permits, which stalled holders no longer count against.
struct StallLimit {
    free: Semaphore,
    stalled_after: Duration,
    env: Env,
    active: Mutex<ActivePermits>,
}

#[derive(Default)]
struct ActivePermits {
    next: u64,
    /// Start times of the permits that have not stalled, in order of their start.
    since: BTreeMap<u64, Instant>,
}

/// A permit, released on drop.
struct StallPermit<'a> {
    line: &'a StallLimit,
    number: u64,
}

impl Drop for StallPermit<'_> {
    fn drop(&mut self) {
        // Absent if it stalled: its permit has been passed on.
        if self.line.active().since.remove(&self.number).is_some() {
            self.line.free.add_permits(1);
        }
    }
}

impl StallLimit {
    fn new(places: usize, stalled_after: Duration, env: Env) -> Self {
        Self { free: Semaphore::new(places), stalled_after, env, active: Mutex::default() }
    }

    fn active(&self) -> MutexGuard<'_, ActivePermits> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, place: SemaphorePermit<'_>) -> StallPermit<'_> {
        place.forget();
        let mut active = self.active();
        let number = active.next;
        active.next += 1;
        active.since.insert(number, self.env.instant());
        StallPermit { line: self, number }
    }

    fn try_acquire(&self) -> Option<StallPermit<'_>> {
        Some(self.begin(self.free.try_acquire().ok()?))
    }

    async fn acquire(&self) -> StallPermit<'_> {
        let mut place = std::pin::pin!(self.free.acquire());
        loop {
            let now = self.env.instant();
            let stalls_at = self.pass_stalled(now);
            let sleep = async { self.env.sleep_until(stalls_at.unwrap_or(now)).await };
            tokio::select! {
                biased;
                place = &mut place => return self.begin(place.expect("never closed")),
                () = sleep, if stalls_at.is_some() => {}
            }
        }
    }

    /// Passes on permits of stalled holders; returns when the next one will stall.
    fn pass_stalled(&self, now: Instant) -> Option<Instant> {
        let mut active = self.active();
        while let Some((number, since)) = active.since.first_key_value().map(|(number, since)| (*number, *since)) {
            let stalls_at = since + self.stalled_after;
            if now < stalls_at {
                return Some(stalls_at);
            }
            active.since.remove(&number);
            self.free.add_permits(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(threads: &Arc<DiskThreads>, namespace: &str, count: usize) -> Vec<ContainerThreads> {
        (0..count).map(|_| threads.of_container(&namespace.into())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_container_delays_others_for_a_second() {
        let threads = DiskThreads::new(Env::real());
        let stalled = others(&threads, "stalled", ACTIVE_MAX / CONTAINER_THREADS_MAX);
        let mut held = Vec::new();
        for container in &stalled {
            held.extend([container.try_acquire().unwrap(), container.try_acquire().unwrap()]);
        }
        let victim = threads.of_container(&"stalled".into());
        assert!(victim.try_acquire().is_none(), "all that may move do");
        let before = threads.env.instant();
        drop(victim.acquire().await.unwrap());
        assert_eq!(threads.env.instant() - before, STALLED_AFTER);
        assert!(victim.try_acquire().is_some(), "they are waited for once");
        // A permit that was passed on is not released a second time.
        drop(held);
        let all = others(&threads, "other", ACTIVE_MAX);
        let active: Vec<_> = all.iter().map_while(|container| container.try_acquire()).collect();
        assert_eq!(active.len(), ACTIVE_MAX);
        assert!(victim.try_acquire().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_container_delays_only_itself() {
        let threads = DiskThreads::new(Env::real());
        let container = threads.of_container(&"a".into());
        let held = (container.acquire().await.unwrap(), container.acquire().await.unwrap());
        let before = threads.env.instant();
        assert_eq!(container.acquire().await.err(), Some(DiskBusy));
        assert_eq!(threads.env.instant() - before, LATE_AFTER);
        drop(held);
        assert!(container.acquire().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_stalls_leaves_threads_to_others() {
        let threads = DiskThreads::new(Env::real());
        let stalled = others(&threads, "stalled", THREADS_MAX as usize);
        let mut held = Vec::new();
        for container in &stalled {
            match container.acquire().await {
                Ok(thread) => held.push(thread),
                Err(DiskBusy) => break,
            }
        }
        assert!(held.len() > ACTIVE_MAX && held.len() < THREADS_MAX as usize * 3 / 4, "{}", held.len());
        let victim = threads.of_container(&"victim".into());
        let before = threads.env.instant();
        assert!(victim.acquire().await.is_ok());
        assert!(threads.env.instant() - before <= STALLED_AFTER);
    }
}
