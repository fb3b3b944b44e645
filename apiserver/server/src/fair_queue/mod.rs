//! The fair queue for large requests: they leave the runtime's workers and run on the blocking pool, a few at once, and
//! at most one per user. Small requests, which are nearly all, run inline.

pub(crate) mod budget;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use machinery_env::Env;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;

/// The maximum bytes of body plus stored object that run inline: the worst of them take some 20 ms.
pub(crate) const SMALL_BYTES_MAX: usize = 16 << 10;
/// The maximum number of concurrent large requests, so that they never occupy more than the spare threads.
const CONCURRENT_MAX: usize = 2;

/// A fair queue: one global semaphore, and one per user.
pub(crate) struct FairQueue {
    env: Env,
    global: Arc<Semaphore>,
    users: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// A permit to run one large request.
pub(crate) struct FairQueuePermit {
    env: Env,
    _global: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl FairQueue {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, global: Arc::new(Semaphore::new(CONCURRENT_MAX)), users: Mutex::default() }
    }

    /// Waits for a permit: first behind `user`'s other requests, then, as at most one of them, behind those of other
    /// users. So many large requests of one user delay another user by one at most. `None` never occurs, as the
    /// semaphores are never closed.
    pub(crate) async fn acquire(&self, user: &str) -> Option<FairQueuePermit> {
        let user_queue = self.of(user);
        let user = user_queue.acquire_owned().await.ok()?;
        let global = self.global.clone().acquire_owned().await.ok()?;
        Some(FairQueuePermit { env: self.env.clone(), _global: global, _user: user })
    }

    fn of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user_queue) = users.get(user).and_then(Weak::upgrade) {
            return user_queue;
        }
        // Drops the users without waiting or running requests.
        users.retain(|_, user_queue| user_queue.strong_count() > 0);
        let user_queue = Arc::new(Semaphore::new(1));
        users.insert(user.to_owned(), Arc::downgrade(&user_queue));
        user_queue
    }
}

impl FairQueuePermit {
    /// Runs the work to completion on this thread, which the runtime replaces (`block_in_place`). The timeout is
    /// inside: a timer outside does not fire while the thread is blocked.
    pub(crate) async fn run<T>(self, time_max: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        let work = async { self.env.timeout(time_max, work).await };
        let handle = Handle::current();
        match handle.runtime_flavor() {
            // There are no other threads.
            RuntimeFlavor::CurrentThread => work.await,
            _ => tokio::task::block_in_place(|| handle.block_on(work)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_one_request_in_the_queue() {
        let queue = Arc::new(FairQueue::new(Env::real()));
        let first = queue.acquire("greedy").await.unwrap();
        // Further requests of the same user wait although a permit is free; those of others don't.
        let more: Vec<_> = (0..10)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.acquire("greedy").await.is_some() })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = queue.acquire("other").await.unwrap();
        assert!(more.iter().all(|waiting| !waiting.is_finished()));
        // Now no permit is free: a third user waits behind one request of the greedy one.
        let third = tokio::spawn({
            let queue = queue.clone();
            async move { queue.acquire("third").await.is_some() }
        });
        drop((first, other));
        assert!(third.await.unwrap());
        for waiting in more {
            assert!(waiting.await.unwrap());
        }
        drop(queue.acquire("last").await);
        assert_eq!(queue.users.lock().unwrap().len(), 1, "users without requests have no entry");
    }

    /// Endless work releases its permit at its timeout.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_permit_is_released_at_the_timeout() {
        let queue = FairQueue::new(Env::real());
        for _ in 0..2 * CONCURRENT_MAX {
            let permit = queue.acquire("endless").await.unwrap();
            assert!(permit.run(Duration::from_millis(1), std::future::pending::<()>()).await.is_err());
        }
        let permit = queue.acquire("endless").await.unwrap();
        assert_eq!(permit.run(Duration::from_secs(60), async { 1 }).await.ok(), Some(1));
    }

    /// The same on a runtime with one thread.
    #[tokio::test(start_paused = true)]
    async fn a_permit_is_released_at_the_timeout_on_a_single_thread() {
        let permit = FairQueue::new(Env::real()).acquire("endless").await.unwrap();
        assert!(permit.run(Duration::from_secs(60), std::future::pending::<()>()).await.is_err());
    }

    /// One worker serves all other requests; four users' large requests delay it by one step of theirs at most.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn large_requests_block_no_runtime_worker() {
        let queue = Arc::new(FairQueue::new(Env::real()));
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let busy: Vec<_> = (0..4)
            .map(|n| {
                let (queue, gone) = (queue.clone(), gone.clone());
                tokio::spawn(async move {
                    let permit = queue.acquire(&format!("user-{n}")).await.unwrap();
                    // Blocks its thread until the others are done: on a shared thread, the test would never end.
                    permit.run(Duration::from_secs(60), async { gone.lock().unwrap().recv().unwrap() }).await.unwrap();
                })
            })
            .collect();
        for _ in 0..1000 {
            tokio::spawn(tokio::task::yield_now()).await.unwrap();
        }
        assert!(busy.iter().all(|work| !work.is_finished()));
        for _ in 0..4 {
            go.send(()).unwrap();
        }
        for work in busy {
            work.await.unwrap();
        }
    }
}
