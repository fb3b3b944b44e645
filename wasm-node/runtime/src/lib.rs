//! The container runtime: WebAssembly modules compiled, bounded and run. The only crate that names wasmtime, and the
//! only one of the node with `unsafe` code. A kubelet knows it by `runtime-api`, which it implements.
//!
//! - [`engine`]: compiling, limits, running commands, serving HTTP.
//! - [`host`]: the one table of host interfaces that guests may import.
//! - `plugin`: what a component without `run` and without a handler exports, and how its values travel as text.
//!
//! Absent on purpose: Kubernetes (a pod, a probe or an image's name), and sockets of a guest's own.

pub(crate) mod bounds;
pub mod engine;
pub mod host;
pub(crate) mod keyvalue;
pub(crate) mod plugin;
