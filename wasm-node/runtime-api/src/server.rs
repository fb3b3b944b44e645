//! Words between a server and whoever calls it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Marks a request as one of the node's own calls, a probe or a hook (in its extensions, which no client sets). Such
/// calls have permits, slots and a turn of their own: they never wait for requests, only for memory.
#[derive(Debug, Clone, Default)]
pub struct NodeCall(Arc<AtomicBool>);

impl NodeCall {
    /// Whether it still waits for memory or a slot, so that nothing was asked of the guest yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Says so: for the runtime.
    pub fn set_waits(&self, waits: bool) {
        self.0.store(waits, Ordering::Release);
    }
}

/// What a trial says about a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trial {
    /// An instance was made.
    Sound,
    /// None can be made: why.
    Broken(String),
    /// There was no room for one beside those that live, which says nothing.
    NoRoom,
}
