//! The kubelet: runs pods of WebAssembly modules as upstream's runs containers.
//!
//! - [`config`]: what the API tells containers.
//! - [`image`]: pulling, verifying and caching images.
//! - [`node`]: the agent: registers its Node and runs the pods that are bound to it ([`node::run`]).
//! - [`pod`]: one pod's life, decided in one step function, done by one worker.
//! - [`spec`]: what a pod's spec says of its containers together.
//! - [`volume`], [`log`], [`server`]: what pods read, what they write, and the kubelet API.
//!
//! Absent on purpose: the Wasm runtime (`wasm-runtime`), the registry (`oci-registry`), processes and namespaces of the
//! kernel.

#[cfg(test)]
extern crate alloc;

pub mod config;
pub mod image;
mod latest;
pub mod log;
mod mailbox;
pub mod node;
pub mod pod;
pub mod server;
pub mod spec;
pub(crate) mod static_pods;
pub mod volume;
