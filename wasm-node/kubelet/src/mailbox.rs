//! The mailbox of a pod's worker: a bounded channel that allocates almost nothing while it is empty, its usual state. Tokio's
//! channel allocates 32 slots and 1 KiB at creation, and a node has thousands of pods.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore};

struct Channel<M> {
    queue: Mutex<VecDeque<M>>,
    /// The free places; closed when the receiver is dropped.
    slots: Semaphore,
    filled: Notify,
}

impl<M> Channel<M> {
    fn queue(&self) -> MutexGuard<'_, VecDeque<M>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: M) {
        self.queue().push_back(message);
        self.filled.notify_one();
    }
}

/// The sending half. Cheap to clone.
pub(crate) struct Sender<M>(Arc<Channel<M>>);

/// The receiving half.
pub(crate) struct Receiver<M>(Arc<Channel<M>>);

/// A mailbox with that capacity.
pub(crate) fn mailbox<M>(capacity: usize) -> (Sender<M>, Receiver<M>) {
    let (queue, slots, filled) = (Mutex::default(), Semaphore::new(capacity), Notify::new());
    let shared = Arc::new(Channel { queue, slots, filled });
    (Sender(shared.clone()), Receiver(shared))
}

/// The receiver was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl<M> Sender<M> {
    /// Sends a message; waits for a free place in FIFO order if the mailbox is full.
    pub(crate) async fn send(&self, message: M) -> Result<(), Gone> {
        self.0.slots.acquire().await.map_err(|_| Gone)?.forget();
        self.0.put(message);
        Ok(())
    }

    /// Sends a message without waiting; false if the mailbox is full or the receiver was dropped.
    pub(crate) fn try_send(&self, message: M) -> bool {
        let slot = self.0.slots.try_acquire();
        slot.is_ok_and(|slot| {
            slot.forget();
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
        f.debug_struct("Sender").field("slots", &self.0.slots.available_permits()).finish_non_exhaustive()
    }
}

impl<M> Receiver<M> {
    /// The next message. Cancellation-safe; waits even if all senders were dropped.
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
                self.0.slots.add_permits(1);
                return message;
            }
            // There is one reader, so a message that was sent meanwhile has stored its permit.
            self.0.filled.notified().await;
        }
    }
}

impl<M> Drop for Receiver<M> {
    fn drop(&mut self) {
        self.0.slots.close();
        // Drops the unread messages with their reader.
        self.0.queue().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_in_order_and_wait_for_capacity() {
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
    async fn senders_get_an_error_without_a_receiver() {
        let (sender, receiver) = mailbox(1);
        let (token, message) = (Arc::new(()), sender.clone());
        message.send(token.clone()).await.unwrap();
        let mut waiting = std::pin::pin!(sender.send(token.clone()));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(receiver);
        assert_eq!(waiting.await, Err(Gone));
        assert!(!sender.try_send(token.clone()));
        assert_eq!(Arc::strong_count(&token), 1, "nothing is kept that nobody reads");
    }

    #[tokio::test]
    async fn concurrent_senders_are_all_received() {
        let (sender, mut receiver) = mailbox(3);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(n).await })
            })
            .collect();
        let mut received = Vec::new();
        while received.len() < tasks.len() {
            received.push(receiver.recv().await);
        }
        received.sort_unstable();
        assert_eq!(received, (0..50).collect::<Vec<_>>());
    }
}
