//! Pure vocabulary of the Kubernetes API for all components. Invariant: no tokio, no client, no clock.
#![warn(missing_docs)]

pub mod address_pool;
pub mod apply;
pub mod certificate_request;
pub mod duration;
pub mod error;
pub mod features;
pub mod imports;
pub mod ip;
pub mod key;
pub mod names;
pub mod order;
pub mod packed;
pub mod patch;
pub mod placement;
pub mod quantity;
pub mod quota;
pub mod requests;
pub mod schedule;
pub mod schema;
pub mod selector;
pub mod shared;
pub mod time;
pub mod unsupported;
pub mod waiting;
pub mod yaml;

pub use error::{ApiError, Cause, Status};
pub use key::{
    GroupVersion, GroupVersionKind, GroupVersionResource, ObjectKey, ObjectName, ResourceVersion, StorageKey,
    StoragePrefix, StorageScope, Uid,
};
