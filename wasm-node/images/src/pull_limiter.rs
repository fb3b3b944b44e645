//! Limits concurrent pulls: upstream's `maxParallelImagePulls`. No namespace may hold all permits with a slow registry.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use std::collections::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Default of concurrent pulls: enough to use a slow line fully.
pub(crate) const PARALLEL_PULLS_DEFAULT: usize = 4;

/// A FIFO limiter of concurrent pulls.
pub(super) struct PullLimiter {
    all: Arc<Semaphore>,
    /// The maximum concurrent pulls of one namespace.
    namespace_max: usize,
    by_namespace: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// A permit to pull, released on drop.
#[derive(Debug)]
pub(super) struct PullPermit {
    _own: (Arc<Semaphore>, OwnedSemaphorePermit),
    _all: OwnedSemaphorePermit,
}

impl PullLimiter {
    pub(super) fn new(parallel: usize) -> Self {
        let parallel = parallel.max(1);
        // One permit is left for other namespaces if there is more than one.
        let namespace_max = parallel.saturating_sub(1).max(1);
        Self { all: Arc::new(Semaphore::new(parallel)), namespace_max, by_namespace: Mutex::default() }
    }

    /// Waits for a permit.
    pub(super) async fn acquire(&self, namespace: &str) -> PullPermit {
        let own = self.semaphore_of(namespace);
        let permit = own.clone().acquire_owned().await.expect("the semaphore is never closed");
        let all = self.all.clone().acquire_owned().await.expect("the semaphore is never closed");
        PullPermit { _own: (own, permit), _all: all }
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.all.available_permits()
    }

    fn semaphore_of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, semaphore| semaphore.strong_count() > 0);
        let new_semaphore = Arc::new(Semaphore::new(self.namespace_max));
        all.insert(namespace.to_owned(), Arc::downgrade(&new_semaphore));
        new_semaphore
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn no_namespace_has_them_all() {
        let limiter = PullLimiter::new(3);
        let first = limiter.acquire("slow").now_or_never().unwrap();
        let _second = limiter.acquire("slow").now_or_never().unwrap();
        assert!(limiter.acquire("slow").now_or_never().is_none(), "one is left for others");
        let other = limiter.acquire("other").now_or_never().unwrap();
        assert!(limiter.acquire("third").now_or_never().is_none());
        drop(first);
        assert!(limiter.acquire("slow").now_or_never().is_some());
        drop(other);
        let one = PullLimiter::new(1);
        let held = one.acquire("a").now_or_never().unwrap();
        assert!(one.acquire("b").now_or_never().is_none());
        drop(held);
        assert!(one.acquire("b").now_or_never().is_some());
        assert_eq!(one.by_namespace.lock().unwrap().len(), 1, "unused semaphores are removed");
    }
}
