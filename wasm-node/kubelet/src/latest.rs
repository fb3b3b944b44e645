//! A watch channel from the node to a pod's worker: holds the newest value and notifies of changes. Tokio's watch channel allocates
//! eight notifiers for many readers, 300 bytes; here each of thousands of pods has two channels.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

struct Channel<T> {
    state: Mutex<ChannelState<T>>,
    notify: Notify,
}

struct ChannelState<T> {
    value: T,
    /// The number of changes.
    version: u64,
    /// The sender was dropped.
    closed: bool,
}

impl<T> Channel<T> {
    fn state(&self) -> MutexGuard<'_, ChannelState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that can be notified without a change, so that its readers check their other inputs.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

impl<T: Send> Wake for Channel<T> {
    fn wake(&self) {
        self.state().version += 1;
        self.notify.notify_waiters();
    }
}

/// The sending half; dropping it closes the channel.
pub(crate) struct Sender<T>(Arc<Channel<T>>);

/// The receiving half.
pub(crate) struct Receiver<T> {
    shared: Arc<Channel<T>>,
    /// The last version read.
    seen: u64,
}

/// A channel with an initial value, which counts as read.
pub(crate) fn latest<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Channel {
        state: Mutex::new(ChannelState { value, version: 0, closed: false }),
        notify: Notify::new(),
    });
    (Sender(shared.clone()), Receiver { shared, seen: 0 })
}

/// The sender was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl<T> Sender<T> {
    /// Modifies the value; notifies readers if `change` returns true.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut state = self.0.state();
        if change(&mut state.value) {
            state.version += 1;
            drop(state);
            self.0.notify.notify_waiters();
        }
    }

    /// Modifies the value and notifies readers.
    pub(crate) fn set(&self, change: impl FnOnce(&mut T)) {
        self.change(|value| {
            change(value);
            true
        });
    }

    /// Reads the value under the lock: `look` must be short, and must not call this channel.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.state().value)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.notify.notify_waiters();
    }
}

impl<T> Receiver<T> {
    /// Reads the value under the lock and marks it as read: `look` must be short, and must not call this channel.
    pub(crate) fn read<R>(&mut self, look: impl FnOnce(&T) -> R) -> R {
        let state = self.shared.state();
        self.seen = state.version;
        look(&state.value)
    }

    /// Reads the value under the lock, and doesn't mark it as read.
    pub(crate) fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.shared.state().value)
    }

    /// Waits for a version after the last one read.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Registered before the check, so that a change between check and wait isn't missed.
            let mut notify = std::pin::pin!(self.shared.notify.notified());
            notify.as_mut().enable();
            {
                let state = self.shared.state();
                if state.version != self.seen {
                    return Ok(());
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            notify.await;
        }
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// A handle that notifies the readers of this channel while one exists.
    pub(crate) fn waker(&self) -> Weak<dyn Wake> {
        let shared: Arc<dyn Wake> = self.shared.clone();
        Arc::downgrade(&shared)
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_reader_hears_of_a_change_once() {
        let (sender, mut one) = latest(1);
        let mut other = one.clone();
        {
            let mut waits = std::pin::pin!(one.changed());
            assert!(futures::poll!(&mut waits).is_pending());
            sender.change(|value| {
                *value += 1;
                false
            });
            assert!(futures::poll!(&mut waits).is_pending(), "it was said to be the same");
            sender.set(|value| *value += 1);
            assert_eq!(waits.await, Ok(()));
        }
        assert_eq!(one.changed().await, Ok(()), "it was not read yet");
        assert_eq!((one.read(|value| *value), sender.read(|value| *value)), (3, 3));
        assert!(futures::poll!(std::pin::pin!(one.changed())).is_pending());
        assert_eq!(other.changed().await, Ok(()));
    }

    #[tokio::test]
    async fn a_bell_rings_as_a_change_does() {
        let (sender, mut reader) = latest(1);
        let waker = reader.waker();
        waker.upgrade().unwrap().wake();
        assert_eq!((reader.changed().await, reader.read(|value| *value)), (Ok(()), 1));
        assert!(futures::poll!(std::pin::pin!(reader.changed())).is_pending());
        drop((sender, reader));
        assert!(waker.upgrade().is_none());
    }

    #[tokio::test]
    async fn the_last_change_is_heard_before_the_end() {
        let (sender, mut reader) = latest(1);
        sender.set(|value| *value = 2);
        drop(sender);
        assert_eq!((reader.changed().await, reader.read(|value| *value)), (Ok(()), 2));
        assert_eq!(reader.changed().await, Err(Closed));
    }
}
