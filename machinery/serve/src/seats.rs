//! Connection limit with eviction: an authenticated connection keeps its seat; of the others the oldest is evicted for
//! a new one, so that silent unauthenticated clients lock no other client out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The seats of a server.
#[derive(Debug)]
pub struct Seats {
    free: Arc<Semaphore>,
    unauthenticated: Mutex<UnauthenticatedConnections>,
}

/// Unauthenticated connections, the oldest first.
#[derive(Debug, Default)]
struct UnauthenticatedConnections {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Seats {
    /// A pool of `max` seats.
    #[must_use]
    pub fn new(max: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { free, unauthenticated: Mutex::default() })
    }

    /// Takes a seat for an unauthenticated connection. If none is free, the oldest unauthenticated one loses its seat;
    /// if all are authenticated, it waits.
    pub async fn take(self: &Arc<Self>) -> Seat {
        let free = self.free.clone();
        let permit = match free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let oldest = self.lock().by_age.pop_first();
                if let Some((_, cut)) = oldest {
                    cut.notify_one();
                }
                free.acquire_owned().await.expect("never closed")
            }
        };
        let cut = Arc::new(Notify::new());
        let mut unauthenticated = self.lock();
        let number = unauthenticated.next;
        unauthenticated.next += 1;
        unauthenticated.by_age.insert(number, cut.clone());
        drop(unauthenticated);
        Seat { number, cut, seats: self.clone(), _permit: permit }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, UnauthenticatedConnections> {
        self.unauthenticated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's seat, released on drop.
#[derive(Debug)]
pub struct Seat {
    number: u64,
    cut: Arc<Notify>,
    seats: Arc<Seats>,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Marks the peer as authenticated: it keeps its seat from now on.
    pub fn mark_authenticated(&self) {
        self.seats.lock().by_age.remove(&self.number);
    }

    /// Resolves when the seat is lost: drop the connection then. One task may wait.
    pub async fn evicted(&self) {
        self.cut.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.mark_authenticated();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once.
    fn now_or_never<F: Future>(future: F) -> Option<F::Output> {
        match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn the_oldest_unauthenticated_connection_is_evicted() {
        let seats = Seats::new(3);
        let mut taken: Vec<Seat> = (0..3).map(|_| now_or_never(seats.take()).unwrap()).collect();
        taken[0].mark_authenticated();
        let mut next = Box::pin(seats.take());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(next.as_mut().poll(&mut context).is_pending(), "no seat is free yet");
        assert!(now_or_never(taken[0].evicted()).is_none(), "authenticated");
        assert!(now_or_never(taken[1].evicted()).is_some(), "the oldest unauthenticated one");
        assert!(now_or_never(taken[2].evicted()).is_none(), "only as many as are needed");
        drop(taken.remove(1));
        let std::task::Poll::Ready(next) = next.as_mut().poll(&mut context) else { panic!("a seat is free") };
        next.mark_authenticated();
        taken[1].mark_authenticated();
        let waits = now_or_never(seats.take());
        assert!(waits.is_none(), "all are authenticated: the next one waits");
        drop(next);
        assert!(now_or_never(seats.take()).is_some());
    }
}
