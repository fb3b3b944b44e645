//! Request gate of a serving container: a concurrency limit with a queue up to each request's deadline. Requests end on
//! their own during a drain, and are cut off by a shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use machinery_env::{Deadline, Env};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::container::ContainerState;
use super::failure::Failure;
use crate::bounds::limits::QUEUED_REQUESTS_MAX;

/// Maximum concurrent calls of the node: a probe of each kind, a hook, and a trial, which all wait for their result.
const NODE_CALLS_MAX: usize = 8;

/// One container's gate.
pub(crate) struct Gate {
    env: Env,
    permits: Arc<Semaphore>,
    node_permits: Arc<Semaphore>,
    queued: AtomicUsize,
    in_flight: Arc<InFlightRequests>,
    shut: CancellationToken,
}

/// Requests whose guest still runs, for a drain to wait for.
#[derive(Default)]
struct InFlightRequests {
    count: AtomicUsize,
    changed: tokio::sync::Notify,
}

/// One request, queued or running.
struct InFlightRequest(Arc<InFlightRequests>);

impl InFlightRequest {
    fn new(all: &Arc<InFlightRequests>) -> Self {
        all.count.fetch_add(1, Ordering::AcqRel);
        Self(all.clone())
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

/// A request's permit, held until its guest ends.
pub(crate) struct GatePermit {
    _permit: OwnedSemaphorePermit,
    _flight: InFlightRequest,
}

impl Gate {
    pub(crate) fn new(shared: &ContainerState) -> Self {
        // More than there are slots would only wait for one.
        let most = shared.admission.share.slots().capacity().instances as usize;
        Self {
            env: shared.engine.env().clone(),
            permits: Arc::new(Semaphore::new(shared.limits.concurrency.clamp(1, most))),
            node_permits: Arc::new(Semaphore::new(NODE_CALLS_MAX)),
            queued: AtomicUsize::new(0),
            in_flight: Arc::default(),
            shut: CancellationToken::new(),
        }
    }

    /// Waits for a permit of a request, or of a call of the node.
    pub(crate) async fn acquire(&self, node_call: bool, deadline: Deadline) -> Result<GatePermit, Failure> {
        let flight = InFlightRequest::new(&self.in_flight);
        let permits = if node_call { &self.node_permits } else { &self.permits };
        Ok(GatePermit { _permit: self.permit(permits, deadline).await?, _flight: flight })
    }

    /// Number of running and queued requests.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.count.load(Ordering::Acquire)
    }

    /// Waits until no request is left, including those whose guest continues after its response.
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

    /// Cuts off running requests and rejects later ones.
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

    async fn permit(&self, permits: &Arc<Semaphore>, deadline: Deadline) -> Result<OwnedSemaphorePermit, Failure> {
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
            () = self.env.sleep_until(deadline) => Err(Failure::Timeout),
        }
    }
}
