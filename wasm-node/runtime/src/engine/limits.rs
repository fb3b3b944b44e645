//! What one container may use: the limits of its spec, and the store limiter that charges what its instances
//! take to the ledger. Growth over the budget traps; a guest never sees a refused `memory.grow`.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use runtime_api::ledger::{Exceeded, Ledger, Level, Resource};

/// Requests that may wait for a permit of one pod: enough for any burst that could be served within a minute, few
/// enough that a flood of clients holds little memory.
pub(crate) const QUEUED_REQUESTS_MAX: usize = 4096;

/// Handles (wasi resources) one instance may hold. A request needs some ten; a command that walks a tree some hundred.
pub(crate) const RESOURCE_TABLE_ENTRIES_MAX: usize = 1024;
/// Open files and folders of one instance: each is a descriptor of the whole process.
pub(crate) const OPEN_FILES_MAX: usize = 256;
/// Bytes one host call may copy out of a guest (wasmtime's default is 128 MiB). Larger writes come in pieces.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 2 << 20;
/// The same for preview 1, where a larger read or write fails as a whole instead of coming in pieces. The copy is at most
/// what the guest has in its own memory, and a command is one instance.
pub(crate) const PREVIEW1_HOSTCALL_BYTES_MAX: usize = 32 << 20;
/// In-memory size of one set of HTTP fields: twice what common servers take on the wire.
pub(crate) const HTTP_FIELDS_BYTES_MAX: usize = 32 << 10;
/// Random bytes per call (wasmtime's default is 64 MiB).
pub(crate) const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// One chunk of an outgoing body: with the one buffered beside it, 128 KiB per body in flight.
pub(crate) const BODY_CHUNK_BYTES: usize = 64 << 10;
/// Outgoing requests of one container at once.
pub(crate) const OUTGOING_REQUESTS_MAX: u64 = 128;
/// Core instances of one store: a component of components needs tens, a bomb thousands.
pub(crate) const CORE_INSTANCES_MAX: usize = 64;
/// Linear memories of one store.
pub(crate) const MEMORIES_MAX: usize = 16;
/// Tables of one store.
pub(crate) const TABLES_MAX: usize = 32;
/// Elements of one table; the largest seen in the wild is a debug build with some 10,000.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// What one element of a table costs.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// Charges one store's growth to its container's budget and gives everything back when the store is dropped.
#[derive(Debug)]
pub(crate) struct StoreLimiter {
    ledger: Arc<Ledger>,
    guest_bytes: u64,
    host_bytes: u64,
    exceeded: Option<Exceeded>,
}

impl StoreLimiter {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, guest_bytes: 0, host_bytes: 0, exceeded: None }
    }

    /// What this store was refused, if anything: decides `OOMKilled` whatever error the guest ended with.
    pub(crate) fn exceeded(&self) -> Option<&Exceeded> {
        self.exceeded.as_ref()
    }

    /// What this store holds.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.guest_bytes + self.host_bytes
    }

    /// Sets what the host holds for this guest (handles, fields, buffered bodies); false when that is over the budget.
    pub(crate) fn set_host_bytes(&mut self, bytes: u64) -> bool {
        if bytes > self.host_bytes {
            if let Err(exceeded) = self.ledger.take(Resource::Memory, bytes - self.host_bytes) {
                self.exceeded = Some(exceeded);
                return false;
            }
        } else {
            self.ledger.give(Resource::Memory, self.host_bytes - bytes);
        }
        self.host_bytes = bytes;
        true
    }

    fn grow_to(&mut self, current: usize, desired: usize, max: Option<usize>, unit: u64) -> wasmtime::Result<bool> {
        let bytes = (desired.saturating_sub(current) as u64).saturating_mul(unit);
        match self.ledger.take(Resource::Memory, bytes) {
            // Within the budget but over the module's own maximum: -1 is the answer wasm defines for that.
            Ok(()) if max.is_some_and(|max| desired > max) => {
                self.ledger.give(Resource::Memory, bytes);
                Ok(false)
            }
            Ok(()) => {
                self.guest_bytes += bytes;
                Ok(true)
            }
            Err(exceeded) => {
                self.exceeded = Some(exceeded.clone());
                Err(wasmtime::Error::new(exceeded))
            }
        }
    }
}

impl Drop for StoreLimiter {
    fn drop(&mut self) {
        self.ledger.give(Resource::Memory, self.guest_bytes + self.host_bytes);
    }
}

impl ResourceLimiter for StoreLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.grow_to(current, desired, maximum, 1)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        // The growth was charged and then failed in the system: a trap, never -1. A growth over the module's own
        // maximum was refused above and comes here uncharged.
        if self.exceeded.is_none() && error.downcast_ref::<std::io::Error>().is_some() {
            self.exceeded = Some(Exceeded {
                resource: Resource::Memory,
                level: Level::Container,
                // More than there is, so that nobody waits for others to give it back.
                wanted: u64::MAX,
                used: self.ledger.used(Resource::Memory),
                limit: self.ledger.limit(Resource::Memory),
            });
            return Err(error.context("the system has no memory for this growth"));
        }
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX && maximum.is_none_or(|maximum| maximum >= TABLE_ELEMENTS_MAX) {
            // The node's own bound, not the module's: a trap, as for memory. A pool gives it as the table's maximum.
            let exceeded = Exceeded {
                resource: Resource::Memory,
                level: Level::Container,
                wanted: (desired as u64).saturating_mul(TABLE_ELEMENT_BYTES),
                used: current as u64 * TABLE_ELEMENT_BYTES,
                limit: TABLE_ELEMENTS_MAX as u64 * TABLE_ELEMENT_BYTES,
            };
            self.exceeded = Some(exceeded.clone());
            return Err(wasmtime::Error::new(exceeded).context("one table has grown too large"));
        }
        self.grow_to(current, desired, maximum, TABLE_ELEMENT_BYTES)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_share_one_budget_and_give_back() {
        let node = Ledger::node();
        let container = Ledger::container(&Ledger::pod(&node));
        container.set_limit(Resource::Memory, 1 << 20);
        let used = |ledger: &Ledger| ledger.used(Resource::Memory);
        let mut a = StoreLimiter::new(container.clone());
        let mut b = StoreLimiter::new(container.clone());
        assert!(a.memory_growing(0, 700 << 10, None).unwrap());
        assert!(b.memory_growing(0, 700 << 10, None).is_err(), "two stores, one budget");
        assert!(b.exceeded().is_some() && a.exceeded().is_none());
        assert_eq!(used(&node), 700 << 10, "a refused growth charges nobody");
        drop(a);
        assert!(b.memory_growing(0, 700 << 10, None).unwrap());
        assert!(!b.set_host_bytes(400 << 10), "host buffers count too");
        drop(b);
        assert_eq!((used(&container), used(&node)), (0, 0));
        assert_eq!(container.peak(Resource::Memory), 700 << 10);
    }
}
