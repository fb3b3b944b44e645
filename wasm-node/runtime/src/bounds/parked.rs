//! Instances that wait for a next request ([`crate::engine`]'s warm ones). They hold memory and slots and do nothing, so they
//! are given up as soon as anybody else lacks what they hold: nobody waits, fails or traps for want of it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use runtime_api::ledger::{Ledger, Level};

use super::slots::Share;

/// One container's parked instances.
pub(crate) trait Park: Send + Sync {
    /// What is held there is held here.
    fn ledger(&self) -> &Arc<Ledger>;
    /// Whose slots they have.
    fn share(&self) -> &Arc<Share>;
    /// Drops all of them; whether there were any.
    fn give_up(&self) -> bool;
}

/// All containers of the process that may have some.
#[derive(Default)]
pub(crate) struct Parked(Mutex<Vec<Weak<dyn Park>>>);

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").finish_non_exhaustive()
    }
}

impl Parked {
    /// One more container that may park instances, for as long as it lives.
    pub(crate) fn add(&self, park: Weak<dyn Park>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|park| park.strong_count() > 0);
        all.push(park);
    }

    /// Gives up what stands in the way of a container whose memory is short at a level; whether anything was.
    pub(crate) fn for_memory(&self, of: &Ledger, level: Level) -> bool {
        let at = std::ptr::from_ref(of.at(level));
        self.give_up(|park| std::ptr::eq(park.ledger().at(level), at))
    }

    /// The same for a container that lacks a slot: all of the class where none is free, else its own namespace's share.
    pub(crate) fn for_slot(&self, of: &Share, none_is_free: bool) -> bool {
        self.give_up(|park| if none_is_free { park.share().is_of_class(of) } else { park.share().is_beside(of) })
    }

    fn give_up(&self, stands_in_the_way: impl Fn(&dyn Park) -> bool) -> bool {
        let some: Vec<Arc<dyn Park>> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).filter(|park| stands_in_the_way(&**park)).collect()
        };
        // Without the lock: what is dropped wakes others.
        some.iter().filter(|park| park.give_up()).count() > 0
    }
}
