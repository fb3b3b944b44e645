//! Requests whose objects are large leave the threads that all others wait on: they run on threads of their own, a few at
//! once, and no user has more than one of them at a time. Small requests, which are nearly all, are handled where they
//! arrive.

pub(crate) mod patience;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;

/// Bytes of body and of the stored object that are handled where they arrive: the worst of them take some 20 ms.
pub(crate) const SMALL_BYTES_MAX: usize = 16 << 10;
/// Large ones handled at once, so that they never take more than the other threads have.
const AT_ONCE: usize = 2;

/// Who waits for a turn.
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    users: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// The right to handle a large one now.
pub(crate) struct Turn {
    _all: OwnedSemaphorePermit,
    _user: OwnedSemaphorePermit,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_ONCE)), users: Mutex::default() }
    }

    /// Waits for `user`'s turn. First among the user's own, then, as one of them at most, among all users': many large
    /// requests of one user hold up another user's by one at most. `None`: never, for the semaphores are never closed.
    pub(crate) async fn turn(&self, user: &str) -> Option<Turn> {
        let own = self.of(user);
        let user = own.acquire_owned().await.ok()?;
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _all: all, _user: user })
    }

    fn of(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = users.get(user).and_then(Weak::upgrade) {
            return own;
        }
        // Those of users who wait for nothing any more.
        users.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(1));
        users.insert(user.to_owned(), Arc::downgrade(&own));
        own
    }
}

impl Turn {
    /// Runs it to its end on this thread, which is no longer one of those that others wait on. The time is the work's own:
    /// who waits for it outside cannot look at a clock meanwhile.
    pub(crate) async fn run<T>(self, time_max: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        let work = async { tokio::time::timeout(time_max, work).await };
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
    async fn users_take_turns() {
        let large = Arc::new(Turns::new());
        let first = large.turn("greedy").await.unwrap();
        // The same user waits although there is a turn left, and others don't.
        let more: Vec<_> = (0..10)
            .map(|_| {
                let large = large.clone();
                tokio::spawn(async move { large.turn("greedy").await.is_some() })
            })
            .collect();
        tokio::task::yield_now().await;
        let other = large.turn("other").await.unwrap();
        assert!(more.iter().all(|waiting| !waiting.is_finished()));
        // Now there is none: a third user waits behind one of the greedy one's.
        let third = tokio::spawn({
            let large = large.clone();
            async move { large.turn("third").await.is_some() }
        });
        drop((first, other));
        assert!(third.await.unwrap());
        for waiting in more {
            assert!(waiting.await.unwrap());
        }
        drop(large.turn("last").await);
        assert_eq!(large.users.lock().unwrap().len(), 1, "who waits for nothing is forgotten");
    }

    /// What never ends gives its turn back when its time is over.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_turn_ends_with_its_time() {
        let large = Turns::new();
        for _ in 0..2 * AT_ONCE {
            let turn = large.turn("endless").await.unwrap();
            assert!(turn.run(Duration::from_millis(1), std::future::pending::<()>()).await.is_err());
        }
        let turn = large.turn("endless").await.unwrap();
        assert_eq!(turn.run(Duration::from_secs(60), async { 1 }).await.ok(), Some(1));
    }

    /// The same where there is one thread for all.
    #[tokio::test(start_paused = true)]
    async fn a_turn_on_the_only_thread_ends_with_its_time() {
        let turn = Turns::new().turn("endless").await.unwrap();
        assert!(turn.run(Duration::from_secs(60), std::future::pending::<()>()).await.is_err());
    }

    /// One thread serves all others; four users' large requests hold it up no longer than one step of theirs.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn large_ones_leave_the_threads_of_the_others() {
        let large = Arc::new(Turns::new());
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = Arc::new(Mutex::new(gone));
        let busy: Vec<_> = (0..4)
            .map(|n| {
                let (large, gone) = (large.clone(), gone.clone());
                tokio::spawn(async move {
                    let turn = large.turn(&format!("user-{n}")).await.unwrap();
                    // Keeps its thread until the others are done: nothing below would ever end on the same thread.
                    turn.run(Duration::from_secs(60), async { gone.lock().unwrap().recv().unwrap() }).await.unwrap();
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
