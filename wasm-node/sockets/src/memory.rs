//! The memory of connections' buffers, charged to the container that fills them.

use std::sync::Arc;

use machinery_serve::net::BufferAccount;
use runtime_api::ledger::{Ledger, Resource, ResourceGuard};

/// Buffers grow while the container uses less than half of its memory limit: the rest is its guests'. Beyond, connections go on with
/// small buffers.
#[derive(Debug)]
pub(crate) struct BufferMemory(Arc<Ledger>);

impl BufferMemory {
    pub(crate) fn new(container: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self(container.clone()))
    }

    /// Whether buffers may take this many bytes.
    pub(crate) fn has(&self, bytes: usize) -> bool {
        let after = self.0.used(Resource::Memory).saturating_add(bytes as u64);
        after <= self.0.limit(Resource::Memory) / 2
    }

    /// Charges bytes until the guard is dropped; `None`: there are none to spare.
    pub(crate) fn hold(&self, bytes: usize) -> Option<ResourceGuard> {
        self.has(bytes).then(|| self.0.try_hold(Resource::Memory, bytes as u64).ok()).flatten()
    }
}

impl BufferAccount for BufferMemory {
    fn take(&self, bytes: usize) -> bool {
        self.has(bytes) && self.0.take(Resource::Memory, bytes as u64).is_ok()
    }

    fn give(&self, bytes: usize) {
        self.0.give(Resource::Memory, bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_take_no_more_than_half_of_the_memory() {
        let ledger = Ledger::container(&Ledger::pod(&Ledger::node()));
        ledger.set_limit(Resource::Memory, 100);
        let memory = BufferMemory::new(&ledger);
        assert!(memory.take(30));
        let held = memory.hold(20).unwrap();
        assert!(!memory.take(1) && memory.hold(1).is_none() && !memory.has(1));
        memory.give(30);
        drop(held);
        assert_eq!(ledger.used(Resource::Memory), 0);
    }
}
