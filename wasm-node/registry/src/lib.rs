//! The built-in OCI registry, and the content-addressed blobs that it shares with a node's pulls.
//!
//! - [`blobs`]: the store: a blob is there whole, durable and named by its digest, or not at all.
//! - [`reference`]: names of images, parsed by the rules of the distribution project.
//! - [`distribution`]: OCI's distribution API over the store.
//!
//! Absent on purpose: a Wasm runtime and a Kubernetes client. What a module is, only the node knows.

pub mod blobs;
pub mod distribution;
pub mod reference;

pub use blobs::BlobStore;
pub use distribution::Credentials;
