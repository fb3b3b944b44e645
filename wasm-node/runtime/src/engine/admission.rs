//! Whether an instance may begin: there must be memory for it beside the live ones of its container, its pod and the
//! node, and a slot. Who finds none waits, first come first served, until somebody ends; nobody asks again and again.
//!
//! An instance grows while it runs, so it is let in by what the ones before it took: at least what a start takes, and
//! what requests lately ended with. That is a promise, not a charge: the ledger counts what is really held, and a growth
//! over a limit fails however it was let in.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use super::container::Shared;
use crate::bounds::growth::StoreLimiter;
use crate::bounds::slots::{Share, Slot, Weight};
use runtime_api::NodeCall;
use runtime_api::ledger::{Ledger, Level, Resource, Waiting};

/// What requests usually take follows them down by one part of so many each: after one large request some ten small ones
/// bring it back.
const USUAL_DECAY: u64 = 4;
/// Until a request has ended nobody knows what they take: so many times a start, and something for the first buffers.
/// Too much makes the first burst of a container wait for its first answer, too little makes some of it fail.
const UNKNOWN_STARTS: u64 = 2;
const UNKNOWN_BYTES: u64 = 2 << 20;

/// One container's way in.
pub(crate) struct AdmissionQueue {
    /// Its share of the slots for requests, or for commands.
    pub(crate) share: Arc<Share>,
    node_calls: Arc<Share>,
    /// What those who were let in may take, by what was known then.
    promised: AtomicU64,
    /// What a start takes.
    start: AtomicU64,
    /// What requests ended with, lately; 0 until one has.
    usual: AtomicU64,
    /// Requests that wait for memory.
    queued: AtomicUsize,
    /// The node's own calls that do: they go first.
    node_calls_queued: AtomicUsize,
    turn: tokio::sync::Mutex<()>,
}

impl AdmissionQueue {
    pub(crate) fn new(share: Arc<Share>, node_calls: Arc<Share>, start_bytes: u64) -> Self {
        Self {
            share,
            node_calls,
            promised: AtomicU64::new(0),
            start: AtomicU64::new(start_bytes),
            usual: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            node_calls_queued: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// An instance's start took this much.
    pub(crate) fn started(&self, bytes: u64) {
        self.start.fetch_max(bytes, Ordering::Relaxed);
    }

    /// A request ended with this much.
    pub(crate) fn ended(&self, bytes: u64) {
        let usual = self.usual.load(Ordering::Relaxed);
        let next = if bytes >= usual { bytes } else { usual - (usual - bytes).div_ceil(USUAL_DECAY) };
        if next != usual {
            self.usual.store(next, Ordering::Relaxed);
        }
    }

    fn need(&self) -> u64 {
        let start = self.start.load(Ordering::Relaxed);
        match self.usual.load(Ordering::Relaxed) {
            0 => start.saturating_mul(UNKNOWN_STARTS).saturating_add(UNKNOWN_BYTES),
            usual => usual.max(start),
        }
    }
}

/// Leave for one instance to live, until it is dropped.
pub(crate) struct Admission {
    shared: Arc<Shared>,
    promised: u64,
    _slot: Slot,
}

impl Drop for Admission {
    fn drop(&mut self) {
        give_back(&self.shared, self.promised);
    }
}

fn give_back(shared: &Shared, promised: u64) {
    if promised > 0 {
        shared.door.promised.fetch_sub(promised, Ordering::SeqCst);
        shared.ledger.wake(Resource::Memory);
    }
}

/// A promise on its way to an [`Admission`].
struct Promise<'a>(&'a Shared, u64);

impl Promise<'_> {
    fn keep(mut self) -> u64 {
        std::mem::take(&mut self.1)
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        give_back(self.0, self.1);
    }
}

impl Shared {
    /// Waits until an instance may begin that takes `at_least` so much. Whoever waits decides how long.
    pub(crate) async fn admit(self: &Arc<Self>, call: Option<&NodeCall>, at_least: u64) -> Admission {
        let door = &self.door;
        let share = if call.is_some() { &door.node_calls } else { &door.share };
        let weight = self.loaded.weight;
        if (call.is_some() || door.queued.load(Ordering::Acquire) == 0)
            && let Ok(promised) = self.promise(call.is_some(), at_least)
        {
            let promise = Promise(self, promised);
            if let Some(slot) = share.try_take(weight) {
                return Admission { shared: self.clone(), promised: promise.keep(), _slot: slot };
            }
        }
        if let Some(call) = call {
            call.set_waits(true);
        }
        let promise = Promise(self, self.wait_for_memory(call.is_some(), at_least).await);
        let slot = self.wait_for_slot(share, weight).await;
        if let Some(call) = call {
            call.set_waits(false);
        }
        Admission { shared: self.clone(), promised: promise.keep(), _slot: slot }
    }

    async fn wait_for_slot(&self, share: &Arc<Share>, weight: Weight) -> Slot {
        let mut slot = pin!(share.take(weight));
        if let Poll::Ready(slot) = futures::poll!(&mut slot) {
            return slot;
        }
        // From here on it is seen to wait, so that none is parked behind its back.
        self.engine.growth().parked().for_slot(share, share.none_is_free(weight));
        slot.await
    }

    async fn wait_for_memory(&self, node_call: bool, at_least: u64) -> u64 {
        let door = &self.door;
        let _first = node_call.then(|| First(Waiting::new(&door.node_calls_queued), self));
        let _queued = (!node_call).then(|| Waiting::new(&door.queued));
        let _turn = if node_call { None } else { Some(door.turn.lock().await) };
        loop {
            let level = match self.promise(node_call, at_least) {
                Ok(promised) => return promised,
                Err(level) => level,
            };
            let mut promised = None;
            let look = |_: &Ledger| {
                self.engine.growth().parked().for_memory(&self.ledger, level);
                promised = self.promise(node_call, at_least).ok();
                promised.is_some()
            };
            self.ledger.changed(Resource::Memory, level, look).await;
            if let Some(promised) = promised {
                return promised;
            }
        }
    }

    /// Promises memory for an instance, or says whose limit stands in the way. One that would be alone is let in whatever
    /// it may need: whether it fits is seen when it grows. What is held for calls that wait to be let in is no instance's.
    fn promise(&self, node_call: bool, at_least: u64) -> Result<u64, Level> {
        let door = &self.door;
        if !node_call && door.node_calls_queued.load(Ordering::SeqCst) > 0 {
            return Err(Level::Container);
        }
        let need = door.need().max(at_least);
        let waiting = if door.promised.load(Ordering::SeqCst) == 0 { self.ledger.used(Resource::Memory) } else { 0 };
        for level in [Level::Node, Level::Pod] {
            let at = self.ledger.at(level);
            let (mut used, limit) = (at.used(Resource::Memory), at.limit(Resource::Memory));
            if level == Level::Node {
                // Guests that live and wait for more go first.
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
        let fits = |promised: u64| promised == 0 || promised.max(used).saturating_add(need) <= limit;
        let add = |promised: u64| fits(promised).then(|| promised + need);
        match door.promised.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add) {
            Ok(_) => Ok(need),
            Err(_) => Err(Level::Container),
        }
    }
}

/// A call of the node that waits before all requests; when it waits no more they look again.
struct First<'a>(Waiting<'a>, &'a Shared);

impl Drop for First<'_> {
    fn drop(&mut self) {
        let Self(waiting, shared) = self;
        waiting.end();
        shared.ledger.wake(Resource::Memory);
    }
}

/// What an instance needs at least that was refused memory, where others held it: alone it may well fit.
pub(crate) fn fits_alone(limiter: &StoreLimiter, shared: &Shared) -> Option<u64> {
    let exceeded = limiter.exceeded()?;
    let own = limiter.held_bytes();
    let need = own.checked_add(exceeded.wanted)?;
    let limit = shared.ledger.at(exceeded.level).limit(Resource::Memory);
    (exceeded.used > own && need <= limit).then_some(need)
}
