//! Warm reuse (`reuse.coracle.dev/<container>`, contract.md §4): an instance that has answered a request without fault is
//! parked, and answers the next one. One request at a time has it; after so many, or when nobody wanted it for its idle
//! time, it ends. What it holds stays charged to its container while it is parked, and goes the moment others lack it
//! ([`crate::bounds::parked`]). Calls of the node's own always get an instance of their own, so that a probe says whether
//! one can still be made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use runtime_api::Reuse;
use runtime_api::ledger::{Ledger, Level, Resource};
use tokio::time::Instant;
use wasmtime_wasi_http::p2::bindings::Proxy;

use super::container::Shared;
use super::request::Instance;
use crate::bounds::growth::Growth;
use crate::bounds::parked::Park;
use crate::bounds::slots::Share;

/// Handles that an instance may keep between requests: its standard streams, its folders, a few of its own. One that
/// leaves more behind has leaked them.
const HANDLES_MAX: usize = 64;

/// An instance, and how many requests it has answered.
pub(crate) struct Used {
    pub(crate) instance: Instance<Proxy>,
    pub(crate) requests: u32,
}

struct Resting {
    used: Used,
    since: Instant,
}

#[derive(Default)]
struct State {
    /// The one that was parked last is taken first: what it touches is in the caches, and the others come to their idle
    /// time.
    resting: Vec<Resting>,
    /// Somebody looks for idle ones.
    watched: bool,
    closed: bool,
}

/// One server's parked instances.
pub(crate) struct Warm {
    reuse: Reuse,
    ledger: Arc<Ledger>,
    share: Arc<Share>,
    growth: Arc<Growth>,
    state: Mutex<State>,
}

impl Warm {
    /// None where the container's instances answer one request each.
    pub(crate) fn new(shared: &Shared) -> Option<Arc<Self>> {
        let reuse = shared.limits.reuse.filter(|reuse| reuse.count > 1)?;
        let warm = Arc::new(Self {
            reuse,
            ledger: shared.ledger.clone(),
            share: shared.door.share.clone(),
            growth: shared.engine.growth().clone(),
            state: Mutex::default(),
        });
        let weak: Weak<Self> = Arc::downgrade(&warm);
        warm.growth.parked().add(weak);
        Some(warm)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that rests, if there is one.
    pub(crate) fn take(&self) -> Option<Used> {
        Some(self.state().resting.pop()?.used)
    }

    /// Parks an instance that has answered a request without fault, or drops it.
    pub(crate) fn park(self: &Arc<Self>, mut used: Used, shared: &Shared) {
        if used.requests >= self.reuse.count || !used.instance.rests(HANDLES_MAX) || self.is_short() {
            return;
        }
        let now = Instant::now();
        let watch = {
            let mut state = self.state();
            if state.closed {
                return;
            }
            state.resting.push(Resting { used, since: now });
            !std::mem::replace(&mut state.watched, true)
        };
        // Who began to wait before it was parked has not seen it.
        if self.is_short() {
            self.give_up();
        }
        if watch {
            shared.engine.guest_runtime().spawn(watch_idle(Arc::downgrade(self), now + self.reuse.idle));
        }
    }

    /// Whether somebody lacks what a parked instance holds.
    fn is_short(&self) -> bool {
        let node = self.ledger.at(Level::Node);
        let (open, most) = (node.used(Resource::Descriptors), node.limit(Resource::Descriptors));
        self.ledger.is_waited_for(Resource::Memory) || self.share.slots().are_waited_for() || open > most / 2
    }

    /// Ends those that nobody has wanted for the idle time; when to look again.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let (ended, next) = {
            let mut state = self.state();
            let fresh = state.resting.partition_point(|resting| resting.since + self.reuse.idle <= now);
            let ended: Vec<Resting> = state.resting.drain(..fresh).collect();
            let next = state.resting.first().map(|resting| resting.since + self.reuse.idle);
            state.watched = next.is_some();
            (ended, next)
        };
        drop(ended);
        next
    }

    /// Ends all, and parks none any more.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.give_up();
    }
}

impl Park for Warm {
    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn share(&self) -> &Arc<Share> {
        &self.share
    }

    fn give_up(&self) -> bool {
        let all = std::mem::take(&mut self.state().resting);
        !all.is_empty()
    }
}

async fn watch_idle(warm: Weak<Warm>, first: Instant) {
    let mut next = first;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(warm) = warm.upgrade() else { return };
        match warm.expire(Instant::now()) {
            Some(at) => next = at,
            None => return,
        }
    }
}
