//! The newest value of something, and news of it: what the node tells a pod's worker. As tokio's watch channel, which keeps eight
//! bells for channels with many readers, three hundred bytes; here each of thousands of pods has two.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

struct Shared<T> {
    state: Mutex<State<T>>,
    rung: Notify,
}

struct State<T> {
    value: T,
    /// How often it was changed.
    version: u64,
    /// Nobody changes it any more.
    closed: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be rung as if it had changed: who waits for it looks at all that it depends on.
pub(crate) trait Bell: Send + Sync {
    fn ring(&self);
}

impl<T: Send> Bell for Shared<T> {
    fn ring(&self) {
        self.state().version += 1;
        self.rung.notify_waiters();
    }
}

/// Who says what it is now; dropped, nothing changes any more.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// Who hears of it.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The version that was read last.
    seen: u64,
}

/// A value to begin with, which counts as read.
pub(crate) fn latest<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared =
        Arc::new(Shared { state: Mutex::new(State { value, version: 0, closed: false }), rung: Notify::new() });
    (Sender(shared.clone()), Receiver { shared, seen: 0 })
}

/// Nobody changes it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

impl<T> Sender<T> {
    /// Changes it; readers hear of it where `change` says that it did.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut state = self.0.state();
        if change(&mut state.value) {
            state.version += 1;
            drop(state);
            self.0.rung.notify_waiters();
        }
    }

    /// Changes it, and tells.
    pub(crate) fn set(&self, change: impl FnOnce(&mut T)) {
        self.change(|value| {
            change(value);
            true
        });
    }

    /// Looks at it. What takes long, or asks others, is not done in `look`.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.state().value)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.rung.notify_waiters();
    }
}

impl<T> Receiver<T> {
    /// Looks at it, and has read it then. What takes long, or asks others, is not done in `look`.
    pub(crate) fn read<R>(&mut self, look: impl FnOnce(&T) -> R) -> R {
        let state = self.shared.state();
        self.seen = state.version;
        look(&state.value)
    }

    /// Waits until it is another one than was read last.
    pub(crate) async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            // Heard from here on: a change between the look and the wait is not missed.
            let mut rung = std::pin::pin!(self.shared.rung.notified());
            rung.as_mut().enable();
            {
                let state = self.shared.state();
                if state.version != self.seen {
                    return Ok(());
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            rung.await;
        }
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// Rings for all that read this, as long as any is there.
    pub(crate) fn bell(&self) -> Weak<dyn Bell> {
        let shared: Arc<dyn Bell> = self.shared.clone();
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
        let bell = reader.bell();
        bell.upgrade().unwrap().ring();
        assert_eq!((reader.changed().await, reader.read(|value| *value)), (Ok(()), 1));
        assert!(futures::poll!(std::pin::pin!(reader.changed())).is_pending());
        drop((sender, reader));
        assert!(bell.upgrade().is_none());
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
