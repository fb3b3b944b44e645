//! Storage of objects: the store with etcd's semantics, and the watch cache, the one in-memory copy of every object.
//!
//! The only crate with the stored format. Absent on purpose: the meaning of objects, HTTP, selector syntax.

pub mod cache;
pub mod options;
pub mod store;
