//! Pure vocabulary of the Kubernetes API for all components. Invariant: no tokio, no client, no clock.
#![warn(missing_docs)]

pub mod duration;
pub mod error;
pub mod features;
pub mod imports;
pub mod ip;
pub mod key;
pub mod names;
pub mod order;
pub mod packed;
pub mod quantity;
pub mod selector;
pub mod time;
pub mod yaml;

pub use error::{ApiError, Cause, Status};
pub use key::{
    GroupVersion, GroupVersionKind, GroupVersionResource, KeySpace, ObjectKey, ObjectName, ResourceVersion, StorageKey,
    StoragePrefix, StorageScope, Uid,
};
