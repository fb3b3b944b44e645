//! What a decision asks the server before it is made, as data: metrics, scales, whatever can be had by a request and not
//! watched. The driver asks, and decides again with the answers; a test answers itself.

use std::any::Any;
use std::sync::Arc;

use serde_json::Value;

/// A request whose answer a decision needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// GET of a path with its query.
    Get(String),
    /// PUT of an object to a path: a write whose outcome decides how the pass goes on.
    Put(String, Value),
}

/// What a controller remembers of a key from one pass to the next, or carries through the rounds of one pass. It is gone with
/// the process: a decision must be right without it.
#[derive(Clone)]
pub struct Memory(Arc<dyn Any + Send + Sync>);

impl Memory {
    /// Remembers a value.
    pub fn of<T: Send + Sync + 'static>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// What is remembered, where it is of this type.
    #[must_use]
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
