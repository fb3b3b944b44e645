//! Concurrency limit (external exchanges, DNS lookups) with a maximum per pod, so that no pod takes all permits. Excess
//! requests of a pod wait for that pod's own permits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_serve::net::Caller;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Namespace and name of a pod; empty for all processes of the host together.
type Pod = (Arc<str>, Arc<str>);

/// A total limit and a limit per pod.
pub(crate) struct PodLimit {
    each: usize,
    all: Arc<Semaphore>,
    pods: Mutex<HashMap<Pod, Arc<Semaphore>>>,
}

/// A permit, released on drop.
pub(crate) struct PodPermit {
    _all: OwnedSemaphorePermit,
    /// Released before `_share`.
    own: Option<OwnedSemaphorePermit>,
    _share: PodShare,
}

/// A pod's semaphore, removed from the map with its last holder or waiter.
struct PodShare {
    limit: Arc<PodLimit>,
    pod: Pod,
    /// `Some` until the drop.
    semaphore: Option<Arc<Semaphore>>,
}

impl PodLimit {
    pub(crate) fn new(each: usize, all: usize) -> Arc<Self> {
        Arc::new(Self { each, all: Arc::new(Semaphore::new(all)), pods: Mutex::default() })
    }

    /// Waits for a permit of a pod, or of the host's processes.
    pub(crate) async fn acquire(self: &Arc<Self>, caller: Option<&Caller>) -> PodPermit {
        let pod =
            caller.map_or_else(|| ("".into(), "".into()), |caller| (caller.namespace.clone(), caller.pod.clone()));
        let (share, semaphore) = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            let semaphore = pods.entry(pod.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each)));
            let semaphore = semaphore.clone();
            (PodShare { limit: self.clone(), pod, semaphore: Some(semaphore.clone()) }, semaphore)
        };
        let own = semaphore.acquire_owned().await.expect("a pod's semaphore is never closed");
        let all = self.all.clone().acquire_owned().await.expect("the semaphore is never closed");
        PodPermit { _all: all, own: Some(own), _share: share }
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }

    #[cfg(test)]
    pub(crate) fn pods(&self) -> usize {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for PodPermit {
    fn drop(&mut self) {
        // An owned permit holds the semaphore and would count as one more holder.
        self.own = None;
    }
}

impl Drop for PodShare {
    fn drop(&mut self) {
        let mut pods = self.limit.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.semaphore = None;
        // Only the map holds it.
        if pods.get(&self.pod).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            pods.remove(&self.pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(pod: &str) -> Caller {
        Caller { node: "n".into(), namespace: "shop".into(), pod: pod.into(), ip: None, names: Arc::default() }
    }

    #[tokio::test]
    async fn one_pod_cannot_take_all_places() {
        let limit = PodLimit::new(2, 3);
        let (hungry, other) = (caller("hungry"), caller("other"));
        let first = limit.acquire(Some(&hungry)).await;
        let _second = limit.acquire(Some(&hungry)).await;
        let mut third = Box::pin(limit.acquire(Some(&hungry)));
        assert!(futures::poll!(&mut third).is_pending(), "over its share");
        let elses = limit.acquire(Some(&other)).await;
        assert_eq!((limit.free(), limit.pods()), (0, 2));
        drop((first, elses));
        drop(third.await);
        assert_eq!((limit.free(), limit.pods()), (2, 1));
    }
}
