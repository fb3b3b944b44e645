//! Places of a bounded kind (exchanges with the outside, look-ups of names), of which no pod can take all: each has a
//! share, and what is over it waits for the pod's own places, not for others'.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use machinery_serve::net::Caller;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Which pod: namespace and name. Processes of the host are one.
type Pod = (Arc<str>, Arc<str>);

/// All places of one kind.
pub(crate) struct Shares {
    each: usize,
    all: Arc<Semaphore>,
    pods: Mutex<HashMap<Pod, Arc<Semaphore>>>,
}

/// A place, until it is dropped.
pub(crate) struct Place {
    _all: OwnedSemaphorePermit,
    /// Given back before the share is looked at.
    own: Option<OwnedSemaphorePermit>,
    _share: Share,
}

/// A pod's share, forgotten when nobody holds or awaits a place of it.
struct Share {
    shares: Arc<Shares>,
    pod: Pod,
    /// Always there, until the drop.
    places: Option<Arc<Semaphore>>,
}

impl Shares {
    pub(crate) fn new(each: usize, all: usize) -> Arc<Self> {
        Arc::new(Self { each, all: Arc::new(Semaphore::new(all)), pods: Mutex::default() })
    }

    /// A place for a pod, or for a process of the host.
    pub(crate) async fn place(self: &Arc<Self>, caller: Option<&Caller>) -> Place {
        let pod =
            caller.map_or_else(|| ("".into(), "".into()), |caller| (caller.namespace.clone(), caller.pod.clone()));
        let (share, places) = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            let places = pods.entry(pod.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each)));
            let places = places.clone();
            (Share { shares: self.clone(), pod, places: Some(places.clone()) }, places)
        };
        let own = places.acquire_owned().await.expect("shares are never closed");
        let all = self.all.clone().acquire_owned().await.expect("places are never closed");
        Place { _all: all, own: Some(own), _share: share }
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

impl Drop for Place {
    fn drop(&mut self) {
        // It holds the semaphore, which would count as one more who wants the share.
        self.own = None;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut pods = self.shares.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.places = None;
        // Only the map has it.
        if pods.get(&self.pod).is_some_and(|places| Arc::strong_count(places) == 1) {
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
        let shares = Shares::new(2, 3);
        let (hungry, other) = (caller("hungry"), caller("other"));
        let first = shares.place(Some(&hungry)).await;
        let _second = shares.place(Some(&hungry)).await;
        let mut third = Box::pin(shares.place(Some(&hungry)));
        assert!(futures::poll!(&mut third).is_pending(), "over its share");
        let elses = shares.place(Some(&other)).await;
        assert_eq!((shares.free(), shares.pods()), (0, 2));
        drop((first, elses));
        drop(third.await);
        assert_eq!((shares.free(), shares.pods()), (2, 1));
    }
}
