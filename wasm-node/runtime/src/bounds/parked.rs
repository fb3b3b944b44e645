//! Idle instances ([`crate::engine`]'s warm ones). They hold memory and slots without working, so they are evicted as soon as
//! another guest lacks either: none waits, fails or traps because of them.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use runtime_api::ledger::{Ledger, Level};

use super::slots::Share;

/// One container's idle instances.
pub(crate) trait IdleInstances: Send + Sync {
    /// The ledger that they are charged to.
    fn ledger(&self) -> &Arc<Ledger>;
    /// The share that their slots belong to.
    fn share(&self) -> &Arc<Share>;
    /// Evicts all of them; returns whether there were any.
    fn evict(&self) -> bool;
}

/// All containers of the process that may have idle instances.
#[derive(Default)]
pub(crate) struct IdleRegistry(Mutex<Vec<Weak<dyn IdleInstances>>>);

impl std::fmt::Debug for IdleRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").finish_non_exhaustive()
    }
}

impl IdleRegistry {
    /// Registers a container for as long as it lives.
    pub(crate) fn add(&self, park: Weak<dyn IdleInstances>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|park| park.strong_count() > 0);
        all.push(park);
    }

    /// Evicts idle instances that hold memory of a container's exhausted level; returns whether any were evicted.
    pub(crate) fn evict_for_memory(&self, of: &Ledger, level: Level) -> bool {
        let at = std::ptr::from_ref(of.at(level));
        self.evict(|park| std::ptr::eq(park.ledger().at(level), at))
    }

    /// The same for a container without a slot: all of the class if none is free, else its own namespace's.
    pub(crate) fn evict_for_slot(&self, of: &Share, exhausted: bool) -> bool {
        self.evict(|park| if exhausted { park.share().is_of_class(of) } else { park.share().is_same_namespace(of) })
    }

    fn evict(&self, in_the_way: impl Fn(&dyn IdleInstances) -> bool) -> bool {
        let some: Vec<Arc<dyn IdleInstances>> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).filter(|park| in_the_way(&**park)).collect()
        };
        // Outside the lock: the eviction wakes waiters.
        some.iter().filter(|park| park.evict()).count() > 0
    }
}
