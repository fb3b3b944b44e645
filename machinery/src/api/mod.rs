//! Pure vocabulary of the Kubernetes API: no IO, no clock, no client.

pub mod error;
pub mod key;
pub mod names;
pub mod placement;
pub mod quantity;
pub mod selector;
pub mod time;

pub use error::{ApiError, Cause, Status};
pub use key::{GroupVersionKind, GroupVersionResource, ObjectKey, ObjectName, ResourceVersion, StorageKey, Uid};
