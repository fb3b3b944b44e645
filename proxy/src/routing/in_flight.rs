//! In-flight counts of endpoints: the load that the endpoint picker compares.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// In-flight requests and connections of an endpoint.
#[derive(Debug, Clone, Default)]
pub struct InFlightCount(Arc<AtomicUsize>);

impl InFlightCount {
    /// The number in flight.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more until the guard is dropped.
    #[must_use]
    pub fn start(&self) -> InFlightGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        InFlightGuard(self.0.clone())
    }
}

/// Guard of one in-flight request or connection.
#[derive(Debug)]
pub struct InFlightGuard(Arc<AtomicUsize>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
