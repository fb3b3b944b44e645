//! Admission of instances: an instance needs memory within the limits of its container, its pod and the node, and a
//! slot. Without them it waits in FIFO order until another one ends; there is no polling.
//!
//! An instance grows while it runs, so admission reserves what earlier ones used: at least a start's memory, and the
//! recent requests' final memory. That is a reservation, not a charge: the ledger counts memory actually held, and a
//! growth over a limit fails regardless of admission.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use super::container::ContainerState;
use crate::bounds::growth::StoreLimiter;
use crate::bounds::slots::{Share, Slot, Weight};
use runtime_api::NodeCall;
use runtime_api::ledger::{Ledger, Level, Resource, WaiterGuard};

/// Decay of the estimate: one part in this many per request, so that some ten small requests bring it back after a
/// large one.
const RECENT_DECAY: u64 = 4;
/// Estimate before the first request has ended: this many starts, plus something for the first buffers. Too much makes
/// a container's first burst wait for its first response, too little makes some of it fail.
const UNKNOWN_STARTS: u64 = 2;
const UNKNOWN_BYTES: u64 = 2 << 20;

/// Admission state of one container.
pub(crate) struct AdmissionQueue {
    /// Its share of the slots for requests, or for commands.
    pub(crate) share: Arc<Share>,
    node_calls: Arc<Share>,
    /// Sum of the reservations of admitted instances.
    reserved: AtomicU64,
    /// Memory of a start.
    start: AtomicU64,
    /// Recent final memory of requests; 0 until one has ended.
    recent: AtomicU64,
    /// Requests that wait for memory.
    queued: AtomicUsize,
    /// The node's own calls that wait for memory: they go first.
    node_calls_queued: AtomicUsize,
    fifo: tokio::sync::Mutex<()>,
}

impl AdmissionQueue {
    pub(crate) fn new(share: Arc<Share>, node_calls: Arc<Share>, start_bytes: u64) -> Self {
        Self {
            share,
            node_calls,
            reserved: AtomicU64::new(0),
            start: AtomicU64::new(start_bytes),
            recent: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            node_calls_queued: AtomicUsize::new(0),
            fifo: tokio::sync::Mutex::new(()),
        }
    }

    /// Records the memory of an instance's start.
    pub(crate) fn started(&self, bytes: u64) {
        self.start.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Records the final memory of a request.
    pub(crate) fn ended(&self, bytes: u64) {
        let recent = self.recent.load(Ordering::Relaxed);
        let next = if bytes >= recent { bytes } else { recent - (recent - bytes).div_ceil(RECENT_DECAY) };
        if next != recent {
            self.recent.store(next, Ordering::Relaxed);
        }
    }

    fn need(&self) -> u64 {
        let start = self.start.load(Ordering::Relaxed);
        match self.recent.load(Ordering::Relaxed) {
            0 => start.saturating_mul(UNKNOWN_STARTS).saturating_add(UNKNOWN_BYTES),
            recent => recent.max(start),
        }
    }
}

/// Permission for one instance to live, released on drop.
pub(crate) struct Admission {
    shared: Arc<ContainerState>,
    reserved: u64,
    _slot: Slot,
}

impl Drop for Admission {
    fn drop(&mut self) {
        release_reservation(&self.shared, self.reserved);
    }
}

fn release_reservation(shared: &ContainerState, reserved: u64) {
    if reserved > 0 {
        shared.admission.reserved.fetch_sub(reserved, Ordering::SeqCst);
        shared.ledger.wake(Resource::Memory);
    }
}

/// A reservation before it becomes an [`Admission`].
struct Reservation<'a>(&'a ContainerState, u64);

impl Reservation<'_> {
    fn commit(mut self) -> u64 {
        std::mem::take(&mut self.1)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        release_reservation(self.0, self.1);
    }
}

impl ContainerState {
    /// Waits until an instance that takes `at_least` this much may start. The caller bounds the wait.
    pub(crate) async fn admit(self: &Arc<Self>, call: Option<&NodeCall>, at_least: u64) -> Admission {
        let admission = &self.admission;
        let share = if call.is_some() { &admission.node_calls } else { &admission.share };
        let weight = self.loaded.weight;
        if (call.is_some() || admission.queued.load(Ordering::Acquire) == 0)
            && let Ok(reserved) = self.reserve(call.is_some(), at_least)
        {
            let reservation = Reservation(self, reserved);
            if let Some(slot) = share.try_take(weight) {
                return Admission { shared: self.clone(), reserved: reservation.commit(), _slot: slot };
            }
        }
        if let Some(call) = call {
            call.set_waits(true);
        }
        let reservation = Reservation(self, self.wait_for_memory(call.is_some(), at_least).await);
        let slot = self.wait_for_slot(share, weight).await;
        if let Some(call) = call {
            call.set_waits(false);
        }
        Admission { shared: self.clone(), reserved: reservation.commit(), _slot: slot }
    }

    async fn wait_for_slot(&self, share: &Arc<Share>, weight: Weight) -> Slot {
        let mut slot = pin!(share.take(weight));
        if let Poll::Ready(slot) = futures::poll!(&mut slot) {
            return slot;
        }
        // Queued from here on, so that no idle instance is kept unnoticed.
        self.engine.growth().parked().evict_for_slot(share, share.is_exhausted_for(weight));
        slot.await
    }

    async fn wait_for_memory(&self, node_call: bool, at_least: u64) -> u64 {
        let admission = &self.admission;
        let _first = node_call.then(|| NodeCallWaiter(WaiterGuard::new(&admission.node_calls_queued), self));
        let _queued = (!node_call).then(|| WaiterGuard::new(&admission.queued));
        let _fifo = if node_call { None } else { Some(admission.fifo.lock().await) };
        loop {
            let level = match self.reserve(node_call, at_least) {
                Ok(reserved) => return reserved,
                Err(level) => level,
            };
            let mut reserved = None;
            let look = |_: &Ledger| {
                self.engine.growth().parked().evict_for_memory(&self.ledger, level);
                reserved = self.reserve(node_call, at_least).ok();
                reserved.is_some()
            };
            self.ledger.changed(Resource::Memory, level, look).await;
            if let Some(reserved) = reserved {
                return reserved;
            }
        }
    }

    /// Reserves memory for an instance, or returns the exhausted level. An instance that would be alone is always admitted: its
    /// growth decides. Memory held for calls waiting for admission belongs to no instance.
    fn reserve(&self, node_call: bool, at_least: u64) -> Result<u64, Level> {
        let admission = &self.admission;
        if !node_call && admission.node_calls_queued.load(Ordering::SeqCst) > 0 {
            return Err(Level::Container);
        }
        let need = admission.need().max(at_least);
        let waiting =
            if admission.reserved.load(Ordering::SeqCst) == 0 { self.ledger.used(Resource::Memory) } else { 0 };
        for level in [Level::Node, Level::Pod] {
            let at = self.ledger.at(level);
            let (mut used, limit) = (at.used(Resource::Memory), at.limit(Resource::Memory));
            if level == Level::Node {
                // Live guests that wait for growth go first.
                used = used.saturating_add(self.engine.growth().wanted());
            }
            if used.saturating_add(need.min(limit)) > limit && used > waiting {
                return Err(level);
            }
        }
        let limit = self.ledger.limit(Resource::Memory);
        if limit == u64::MAX {
            return Ok(0);
        }
        let (used, need) = (self.ledger.used(Resource::Memory), need.min(limit));
        let fits = |reserved: u64| reserved == 0 || reserved.max(used).saturating_add(need) <= limit;
        let add = |reserved: u64| fits(reserved).then(|| reserved + need);
        match admission.reserved.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add) {
            Ok(_) => Ok(need),
            Err(_) => Err(Level::Container),
        }
    }
}

/// A node call, which precedes all requests; on drop, the requests check again.
struct NodeCallWaiter<'a>(WaiterGuard<'a>, &'a ContainerState);

impl Drop for NodeCallWaiter<'_> {
    fn drop(&mut self) {
        let Self(waiting, shared) = self;
        waiting.end();
        shared.ledger.wake(Resource::Memory);
    }
}

/// Minimum memory of an instance whose growth failed because of other guests: alone it may well fit.
pub(crate) fn fits_alone(limiter: &StoreLimiter, shared: &ContainerState) -> Option<u64> {
    let exceeded = limiter.exceeded()?;
    let own = limiter.held_bytes();
    let need = own.checked_add(exceeded.wanted)?;
    let limit = shared.ledger.at(exceeded.level).limit(Resource::Memory);
    (exceeded.used > own && need <= limit).then_some(need)
}
