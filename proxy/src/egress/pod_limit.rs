//! Concurrency limit (external exchanges, DNS lookups) with a maximum per pod, so that no pod takes all permits. Excess
//! requests of a pod wait for that pod's own permits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_serve::accept::Client;
use machinery_serve::net::{Caller, Peer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The holder of a share: namespace and name of a pod; no namespace and the address of a host outside.
pub(crate) type Pod = (Arc<str>, Arc<str>);

/// The share of a calling pod.
pub(crate) fn pod(caller: &Caller) -> Pod {
    (caller.namespace.clone(), caller.pod.clone())
}

/// The share of the calling side of a request to a Service.
pub(crate) fn peer(from: &Peer) -> Pod {
    match from {
        Peer::Pod(caller) => pod(caller),
        Peer::Host(address) => (Arc::default(), Client::from(address.ip()).to_string().into()),
        Peer::Node => Pod::default(),
    }
}

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

    /// Waits for a permit of a pod's or client's share.
    pub(crate) async fn acquire(self: &Arc<Self>, pod: Pod) -> PodPermit {
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

    #[test]
    fn each_client_outside_has_a_share_of_its_own() {
        let host = |address: &str| peer(&Peer::Host(address.parse().unwrap()));
        assert_eq!(host("192.0.2.1:1"), host("192.0.2.1:2"));
        assert_ne!(host("192.0.2.1:1"), host("192.0.2.2:1"));
        assert_ne!(host("192.0.2.1:1"), pod(&caller("192.0.2.1")));
    }

    #[tokio::test]
    async fn one_pod_cannot_take_all_places() {
        let limit = PodLimit::new(2, 3);
        let (hungry, other) = (pod(&caller("hungry")), pod(&caller("other")));
        let first = limit.acquire(hungry.clone()).await;
        let _second = limit.acquire(hungry.clone()).await;
        let mut third = Box::pin(limit.acquire(hungry));
        assert!(futures::poll!(&mut third).is_pending(), "over its share");
        let elses = limit.acquire(other).await;
        assert_eq!((limit.free(), limit.pods()), (0, 2));
        drop((first, elses));
        drop(third.await);
        assert_eq!((limit.free(), limit.pods()), (2, 1));
    }
}
