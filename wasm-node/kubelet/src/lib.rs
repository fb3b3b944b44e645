//! The kubelet: runs pods of WebAssembly modules as upstream's runs containers.
//!
//! - [`config`]: the containers' configuration from the API.
//! - [`options`]: what the user configures.
//! - [`node`]: the agent, which registers its Node and runs the pods that are bound to it ([`node::run`]).
//! - [`pod`]: the lifecycle of one pod: a pure step function decides, one worker acts.
//! - `responses`: measures the responses of containers, by caller and Service.
//! - [`spec`]: functions of a pod's spec, across its containers.
//! - [`volume`], [`log`], [`server`]: volumes, container logs, and the kubelet API.
//!
//! Absent on purpose: the Wasm runtime (`wasm-runtime`), pulls and layers of images (`images`), processes and namespaces of the
//! kernel.

#[cfg(test)]
extern crate alloc;

mod checkpoint;
pub mod config;
mod latest;
pub mod log;
mod mailbox;
pub mod node;
pub mod options;
pub mod pod;
mod responses;
pub mod server;
pub mod spec;
pub(crate) mod static_pods;
pub mod volume;
