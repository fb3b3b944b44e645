//! What a pod's worker hears from its tasks. A bounded channel that takes next to no room while it is empty, as it nearly always is:
//! tokio's has room for 32 messages and a kilobyte of its own from the start, and a node has thousands of pods.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

struct Shared<M> {
    queue: Mutex<VecDeque<M>>,
    /// Places that are free; closed where nobody reads any more.
    room: Semaphore,
    filled: Notify,
}

impl<M> Shared<M> {
    fn queue(&self) -> MutexGuard<'_, VecDeque<M>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: M) {
        self.queue().push_back(message);
        self.filled.notify_one();
    }
}

/// Where messages are put. Cheap to clone.
pub(crate) struct Sender<M>(Arc<Shared<M>>);

/// The one who reads them.
pub(crate) struct Receiver<M>(Arc<Shared<M>>);

/// A mailbox of that many places.
pub(crate) fn mailbox<M>(places: usize) -> (Sender<M>, Receiver<M>) {
    let (queue, room, filled) = (Mutex::default(), Semaphore::new(places), Notify::new());
    let shared = Arc::new(Shared { queue, room, filled });
    (Sender(shared.clone()), Receiver(shared))
}

/// Nobody reads it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl<M> Sender<M> {
    /// Waits for a place, in turn with others, and puts the message there.
    pub(crate) async fn send(&self, message: M) -> Result<(), Gone> {
        self.0.room.acquire().await.map_err(|_| Gone)?.forget();
        self.0.put(message);
        Ok(())
    }

    /// Puts the message where there is a place now; false: there is none, or nobody reads it.
    pub(crate) fn try_send(&self, message: M) -> bool {
        let place = self.0.room.try_acquire();
        place.is_ok_and(|place| {
            place.forget();
            self.0.put(message);
            true
        })
    }
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> std::fmt::Debug for Sender<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("room", &self.0.room.available_permits()).finish_non_exhaustive()
    }
}

impl<M> Receiver<M> {
    /// The next message. Nothing is lost where the wait is dropped; senders that are all gone don't end it.
    pub(crate) async fn recv(&mut self) -> M {
        loop {
            let next = {
                let mut queue = self.0.queue();
                let next = queue.pop_front();
                if queue.is_empty() {
                    *queue = VecDeque::new();
                }
                next
            };
            if let Some(message) = next {
                self.0.room.add_permits(1);
                return message;
            }
            // The one who reads: what was put meanwhile has left its permit.
            self.0.filled.notified().await;
        }
    }
}

impl<M> Drop for Receiver<M> {
    fn drop(&mut self) {
        self.0.room.close();
        // What messages hold goes with who would have read them.
        self.0.queue().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_in_order_and_wait_for_room() {
        let (sender, mut receiver) = mailbox(2);
        sender.send(1).await.unwrap();
        assert!(sender.try_send(2));
        assert!(!sender.try_send(3), "it is full");
        let mut third = std::pin::pin!(sender.send(3));
        assert!(futures::poll!(&mut third).is_pending());
        assert_eq!(receiver.recv().await, 1);
        third.await.unwrap();
        assert_eq!((receiver.recv().await, receiver.recv().await), (2, 3));
        {
            let mut next = std::pin::pin!(receiver.recv());
            assert!(futures::poll!(&mut next).is_pending());
            assert!(sender.try_send(4), "for a wait that is dropped");
        }
        assert_eq!(receiver.recv().await, 4);
    }

    #[tokio::test]
    async fn who_sends_hears_that_nobody_reads() {
        let (sender, receiver) = mailbox(1);
        let (held, message) = (Arc::new(()), sender.clone());
        message.send(held.clone()).await.unwrap();
        let mut waiting = std::pin::pin!(sender.send(held.clone()));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(receiver);
        assert_eq!(waiting.await, Err(Gone));
        assert!(!sender.try_send(held.clone()));
        assert_eq!(Arc::strong_count(&held), 1, "nothing is kept that nobody reads");
    }

    #[tokio::test]
    async fn many_who_send_at_once_are_all_heard() {
        let (sender, mut receiver) = mailbox(3);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(n).await })
            })
            .collect();
        let mut heard = Vec::new();
        while heard.len() < tasks.len() {
            heard.push(receiver.recv().await);
        }
        heard.sort_unstable();
        assert_eq!(heard, (0..50).collect::<Vec<_>>());
    }
}
