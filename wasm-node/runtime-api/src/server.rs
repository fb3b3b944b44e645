//! The marker of the node's own calls to a server, and the result of a trial instantiation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Marks a request as one of the node's own calls, a probe or a hook (in its extensions, which no client sets). Such
/// calls have separate permits, slots and scheduling: they never wait for requests, only for memory.
#[derive(Debug, Clone, Default)]
pub struct NodeCall(Arc<AtomicBool>);

impl NodeCall {
    /// Whether it still waits for memory or a slot, so that the guest has not been called yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Called by the runtime.
    pub fn set_waits(&self, waits: bool) {
        self.0.store(waits, Ordering::Release);
    }
}

/// Result of a trial instantiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialOutcome {
    /// An instance was created.
    Sound,
    /// No instance can be created, with the reason.
    Broken(String),
    /// No memory or slot beside the live instances: no statement about the module.
    NoCapacity,
}
