//! Where objects live: the store with etcd's semantics, and the watch cache, the one in-memory copy of every object.
//!
//! The only crate that knows how objects are stored. Absent on purpose: what objects mean, HTTP, selector syntax.

pub mod cache;
pub mod store;
