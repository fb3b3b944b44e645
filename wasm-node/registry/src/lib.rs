//! The built-in OCI registry, and its content-addressed blobs, which a node's pulls share.
//!
//! - [`blobs`]: the store: a blob is either complete, durable and named by its digest, or absent.
//! - [`reference`]: image names, parsed by the rules of the distribution project.
//! - [`distribution`]: OCI's distribution API over the store.
//! - [`endpoint`]: what a cluster's registry and its clients agree on.
//!
//! Absent on purpose: a Wasm runtime and a Kubernetes client. Only the node interprets modules.

pub mod blobs;
pub mod distribution;
pub mod endpoint;
pub mod reference;

pub use blobs::BlobStore;
pub use distribution::Credentials;
