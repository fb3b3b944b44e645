//! Requests that a decision needs before it can be made, as data: metrics, scales and other resources that can't be
//! watched. The driver runs them and repeats the decision with the results; a test supplies the results.

use std::any::Any;
use std::sync::Arc;

use serde_json::Value;

/// A request whose result a decision needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// GET of a path with its query.
    Get(String),
    /// PUT of an object to a path: a write whose result decides how the pass continues.
    Put(String, Value),
}

/// State that a controller keeps for a key from one pass to the next, or through the rounds of one pass. It doesn't
/// survive the process: a decision must be correct without it.
#[derive(Clone)]
pub struct ReconcilerState(Arc<dyn Any + Send + Sync>);

impl ReconcilerState {
    /// Wraps a value.
    pub fn of<T: Send + Sync + 'static>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The value, if it is of this type.
    #[must_use]
    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl std::fmt::Debug for ReconcilerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReconcilerState")
    }
}

impl PartialEq for ReconcilerState {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
