//! The takeover of a node's process: its servers go on while the next process starts the node's pods, so that no request
//! waits for them. All else of the node ends at once, as the next process owns it: status, Lease, volumes, commands.
//!
//! A server responds to each request with an instance of its own or a free one, also as a single pod, so two processes may
//! serve one pod for a while. A command is a program with a state of its own: it never runs twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::worker::LastingPod;

/// A handle to leave the servers of the nodes of a process, and to end them.
#[derive(Clone, Default)]
pub struct Handover(Arc<HandoverState>);

#[derive(Default)]
struct HandoverState {
    begun: AtomicBool,
    lasting: Mutex<Vec<LastingPod>>,
}

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover").field("begun", &self.has_begun()).finish_non_exhaustive()
    }
}

impl Handover {
    /// From now on an agent that stops leaves its servers.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
    }

    /// Ends the servers.
    pub fn end(&self) {
        let lasting = std::mem::take(&mut *self.0.lasting.lock().unwrap_or_else(PoisonError::into_inner));
        lasting.into_iter().for_each(LastingPod::end);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    pub(crate) fn keep(&self, pod: LastingPod) {
        self.0.lasting.lock().unwrap_or_else(PoisonError::into_inner).push(pod);
    }
}
