//! Warm reuse (`reuse.coracle.dev/<container>`, docs/contract.md §4): an instance that has served a request without fault is
//! parked for the next one. It serves one request at a time and ends after a number of requests or an idle time. A
//! parked instance stays charged to its container and is evicted when others lack its resources
//! ([`crate::bounds::parked`]). The node's own calls always get a new instance, so that a probe tests whether one can
//! be created.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use machinery_env::Env;
use runtime_api::Reuse;
use runtime_api::ledger::{Ledger, Level, Resource};
use tokio::time::Instant;

use super::container::ContainerState;
use super::request::{HttpExport, Instance};
use crate::bounds::growth::Growth;
use crate::bounds::parked::IdleInstances;
use crate::bounds::slots::Share;

/// Maximum handles of a parked instance: standard streams, folders, a few of its own. More indicates a leak.
const HANDLES_MAX: usize = 64;

/// An instance with its number of served requests.
pub(crate) struct WarmInstance {
    pub(crate) instance: Instance<HttpExport>,
    pub(crate) requests: u32,
}

struct ParkedInstance {
    used: WarmInstance,
    since: Instant,
}

#[derive(Default)]
struct WarmState {
    /// The last parked instance is taken first: its memory is in the caches, and the others reach their idle time.
    parked: Vec<ParkedInstance>,
    /// Whether a task expires idle instances.
    watched: bool,
    closed: bool,
}

/// One server's parked instances.
pub(crate) struct WarmPool {
    reuse: Reuse,
    ledger: Arc<Ledger>,
    share: Arc<Share>,
    growth: Arc<Growth>,
    state: Mutex<WarmState>,
}

impl WarmPool {
    /// `None` if the container's instances serve one request each.
    pub(crate) fn new(shared: &ContainerState) -> Option<Arc<Self>> {
        let reuse = shared.limits.reuse.filter(|reuse| reuse.count > 1)?;
        let warm = Arc::new(Self {
            reuse,
            ledger: shared.ledger.clone(),
            share: shared.admission.share.clone(),
            growth: shared.engine.growth().clone(),
            state: Mutex::default(),
        });
        let weak: Weak<Self> = Arc::downgrade(&warm);
        warm.growth.parked().add(weak);
        Some(warm)
    }

    fn state(&self) -> MutexGuard<'_, WarmState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a parked instance, if any.
    pub(crate) fn take(&self) -> Option<WarmInstance> {
        Some(self.state().parked.pop()?.used)
    }

    /// Parks an instance that has served a request without fault, or drops it.
    pub(crate) fn park(self: &Arc<Self>, mut used: WarmInstance, shared: &ContainerState) {
        if used.requests >= self.reuse.count || !used.instance.is_reusable(HANDLES_MAX) || self.is_short() {
            return;
        }
        let now = self.growth.env().instant();
        let watch = {
            let mut state = self.state();
            if state.closed {
                return;
            }
            state.parked.push(ParkedInstance { used, since: now });
            !std::mem::replace(&mut state.watched, true)
        };
        // A waiter that came before the parking has not evicted it.
        if self.is_short() {
            self.evict();
        }
        if watch {
            let env = self.growth.env().clone();
            shared.engine.guest_runtime().spawn(watch_idle(Arc::downgrade(self), env, now + self.reuse.idle));
        }
    }

    /// Whether another guest lacks resources of a parked instance.
    fn is_short(&self) -> bool {
        let node = self.ledger.at(Level::Node);
        let (open, most) = (node.used(Resource::Descriptors), node.limit(Resource::Descriptors));
        self.ledger.is_waited_for(Resource::Memory) || self.share.slots().has_waiters() || open > most / 2
    }

    /// Ends instances over the idle time; returns the time of the next check.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let (ended, next) = {
            let mut state = self.state();
            let fresh = state.parked.partition_point(|parked| parked.since + self.reuse.idle <= now);
            let ended: Vec<ParkedInstance> = state.parked.drain(..fresh).collect();
            let next = state.parked.first().map(|parked| parked.since + self.reuse.idle);
            state.watched = next.is_some();
            (ended, next)
        };
        drop(ended);
        next
    }

    /// Ends all parked instances and parks none any more.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.evict();
    }
}

impl IdleInstances for WarmPool {
    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn share(&self) -> &Arc<Share> {
        &self.share
    }

    fn evict(&self) -> bool {
        let all = std::mem::take(&mut self.state().parked);
        !all.is_empty()
    }
}

async fn watch_idle(warm: Weak<WarmPool>, env: Env, first: Instant) {
    let mut next = first;
    loop {
        env.sleep_until(next).await;
        let Some(warm) = warm.upgrade() else { return };
        match warm.expire(env.instant()) {
            Some(at) => next = at,
            None => return,
        }
    }
}
