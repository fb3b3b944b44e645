//! How requests come to a container that serves: so many at once, the rest queued to their deadline; and how they end, by
//! themselves when it drains, or cut off when it is shut.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::container::Shared;
use super::failure::Failure;
use crate::bounds::limits::QUEUED_REQUESTS_MAX;

/// Calls of the node's own at once: a probe of each kind, a hook, and a trial, which all wait for their answer.
const NODE_CALLS_MAX: usize = 8;

/// One container's gate.
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    node_permits: Arc<Semaphore>,
    queued: AtomicUsize,
    in_flight: Arc<InFlight>,
    shut: CancellationToken,
}

/// Requests whose guest still runs, so that a drain can wait for them.
#[derive(Default)]
struct InFlight {
    count: AtomicUsize,
    changed: tokio::sync::Notify,
}

/// One request that is there, waiting or running.
struct Flight(Arc<InFlight>);

impl Flight {
    fn new(all: &Arc<InFlight>) -> Self {
        all.count.fetch_add(1, Ordering::AcqRel);
        Self(all.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

/// A request's place, until its guest ends.
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _flight: Flight,
}

impl Gate {
    pub(crate) fn new(shared: &Shared) -> Self {
        // More than there are slots would only wait for one.
        let most = shared.door.share.slots().capacity().instances as usize;
        Self {
            permits: Arc::new(Semaphore::new(shared.limits.concurrency.clamp(1, most))),
            node_permits: Arc::new(Semaphore::new(NODE_CALLS_MAX)),
            queued: AtomicUsize::new(0),
            in_flight: Arc::default(),
            shut: CancellationToken::new(),
        }
    }

    /// A place for a request, or for a call of the node's own, as soon as there is one.
    pub(crate) async fn place(&self, node_call: bool, deadline: Instant) -> Result<Place, Failure> {
        let flight = Flight::new(&self.in_flight);
        let permits = if node_call { &self.node_permits } else { &self.permits };
        Ok(Place { _permit: self.permit(permits, deadline).await?, _flight: flight })
    }

    /// Requests whose guest runs or that wait for one.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.count.load(Ordering::Acquire)
    }

    /// Waits until no request is left, also none whose guest goes on after its response.
    pub(crate) async fn drained(&self) {
        loop {
            let changed = self.in_flight.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Cuts off what still runs; later requests are not taken.
    pub(crate) fn shut(&self) {
        self.shut.cancel();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.is_cancelled()
    }

    /// Resolves when the gate is shut.
    pub(crate) fn cut(&self) -> WaitForCancellationFuture<'_> {
        self.shut.cancelled()
    }

    async fn permit(&self, permits: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Failure> {
        if self.is_shut() {
            return Err(Failure::Stopped);
        }
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        struct Queued<'a>(&'a AtomicUsize);
        impl Drop for Queued<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = self.queued.fetch_add(1, Ordering::Relaxed);
        let _queued = Queued(&self.queued);
        if waiting >= QUEUED_REQUESTS_MAX {
            return Err(Failure::Overload);
        }
        tokio::select! {
            permit = permits.clone().acquire_owned() => permit.map_err(|_| Failure::Stopped),
            () = self.shut.cancelled() => Err(Failure::Stopped),
            () = tokio::time::sleep_until(deadline) => Err(Failure::Timeout),
        }
    }
}
