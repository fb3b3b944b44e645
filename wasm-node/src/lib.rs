//! The node: runs pods of WebAssembly modules as a kubelet runs containers.
//!
//! - [`engine`]: everything that names wasmtime: compiling, limits, running commands, serving HTTP.
//! - [`host`]: the one table of host interfaces that guests may import.
//! - [`image`]: pulling, verifying and caching images, and the built-in registry.
//! - [`node`]: the agent: registers its Node and runs the pods that are bound to it ([`node::run`]).
//! - [`pod`]: one pod's life, decided in one step function, done by one worker.
//! - [`volume`], [`log`], [`server`]: what pods read, what they write, and the kubelet API.
//!
//! Absent on purpose: sockets of a guest's own, processes and namespaces of the kernel, and any crate beside
//! `machinery`.

pub mod engine;
mod flights;
pub mod host;
pub mod image;
pub mod log;
pub mod node;
pub mod pod;
pub mod server;
pub mod volume;
