//! Compilation lane: a few seats, shared by namespaces by compile time. A namespace with a hundred slow modules delays
//! another's single one by at most the module that compiles now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use machinery_env::Env;
use tokio::sync::oneshot;

use crate::bounds::fair_queue::FairQueue;

/// A few seats for compilations, shared fairly between namespaces.
pub(super) struct Lane {
    env: Env,
    queue: Mutex<FairQueue<oneshot::Sender<Seat>>>,
}

impl Lane {
    /// `usual` is the provisional charge of a running compilation; its end replaces it by the actual time.
    pub(super) fn new(seats: usize, usual: Duration, env: Env) -> Arc<Self> {
        Arc::new(Self { env, queue: Mutex::new(FairQueue::new(seats, usual)) })
    }

    /// Waits for a seat. Dropping the future leaves no entry.
    pub(super) async fn seat(self: &Arc<Self>, namespace: &str) -> Seat {
        let (sender, receiver) = oneshot::channel();
        self.queue().push(namespace, sender);
        self.grant();
        receiver.await.expect("a sender is dropped only after it was used")
    }

    /// A seat if one is free without waiting.
    pub(super) fn try_seat(self: &Arc<Self>, namespace: &str) -> Option<Seat> {
        self.seat(namespace).now_or_never()
    }

    /// Whether no compilation runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.queue().is_idle()
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, FairQueue<oneshot::Sender<Seat>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants free seats. A cancelled waiter drops its seat, which frees it for the next.
    fn grant(self: &Arc<Self>) {
        loop {
            let Some((namespace, sender)) = self.queue().pop() else { return };
            let _ = sender.send(Seat { lane: self.clone(), namespace, since: self.env.elapsed() });
        }
    }
}

/// The right to compile one module in a lane, released on drop.
pub(super) struct Seat {
    lane: Arc<Lane>,
    namespace: String,
    since: Duration,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let held = self.lane.env.elapsed().saturating_sub(self.since);
        self.lane.queue().release(&self.namespace, held);
        self.lane.grant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn an_abandoned_wait_keeps_no_slot() {
        let lane = Lane::new(1, USUAL, Env::real());
        let first = lane.seat("a").await;
        {
            let mut second = std::pin::pin!(lane.seat("b"));
            assert!(futures::poll!(second.as_mut()).is_pending());
        }
        let mut third = std::pin::pin!(lane.seat("c"));
        assert!(futures::poll!(third.as_mut()).is_pending());
        assert!(!lane.is_idle());
        drop(first);
        let third = third.await;
        assert!(lane.try_seat("d").is_none());
        drop(third);
        assert!(lane.try_seat("a").is_some());
        drop(lane.seat("a").await);
        assert!(lane.is_idle());
    }
}
