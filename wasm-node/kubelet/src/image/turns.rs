//! Pulls at once: upstream's `maxParallelImagePulls`, and no namespace may hold them all with a slow registry.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use std::collections::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pulls at once where nothing else is said: as many as a slow line can use.
pub const PARALLEL_PULLS_DEFAULT: usize = 4;

/// Leave to pull, in the order in which it was asked for.
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// Of the pulls at once, what one namespace may have.
    share: usize,
    by_namespace: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A pull's leave, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _own: (Arc<Semaphore>, OwnedSemaphorePermit),
    _all: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new(parallel: usize) -> Self {
        let parallel = parallel.max(1);
        // One is left for the others, where there is more than one.
        let share = parallel.saturating_sub(1).max(1);
        Self { all: Arc::new(Semaphore::new(parallel)), share, by_namespace: Mutex::default() }
    }

    /// Waits for a turn.
    pub(super) async fn take(&self, namespace: &str) -> Turn {
        let own = self.of(namespace);
        let permit = own.clone().acquire_owned().await.expect("never closed");
        let all = self.all.clone().acquire_owned().await.expect("never closed");
        Turn { _own: (own, permit), _all: all }
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }

    fn of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, semaphore| semaphore.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(self.share));
        all.insert(namespace.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn no_namespace_has_them_all() {
        let turns = Turns::new(3);
        let first = turns.take("slow").now_or_never().unwrap();
        let _second = turns.take("slow").now_or_never().unwrap();
        assert!(turns.take("slow").now_or_never().is_none(), "one is left for others");
        let other = turns.take("other").now_or_never().unwrap();
        assert!(turns.take("third").now_or_never().is_none());
        drop(first);
        assert!(turns.take("slow").now_or_never().is_some());
        drop(other);
        let one = Turns::new(1);
        let held = one.take("a").now_or_never().unwrap();
        assert!(one.take("b").now_or_never().is_none());
        drop(held);
        assert!(one.take("b").now_or_never().is_some());
        assert_eq!(one.by_namespace.lock().unwrap().len(), 1, "those that nobody waits in go");
    }
}
