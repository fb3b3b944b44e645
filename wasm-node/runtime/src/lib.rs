//! The container runtime: compiles, limits and runs WebAssembly modules. The only crate that uses wasmtime, and the
//! only one of the node with `unsafe` code. A kubelet uses it through `runtime-api`, which it implements.
//!
//! - [`clock_sync`]: whether the machine's clock is synchronised.
//! - [`engine`]: compiling, limits, running commands, serving HTTP.
//! - [`host`]: the table of host interfaces that guests may import.
//! - [`program`]: pages of the program's own file.
//! - `plugin`: exports of a component without `run` and without a handler, and their values as text.
//!
//! Absent on purpose: Kubernetes (pods, probes, image names), and sockets of a guest's own.

pub(crate) mod bounds;
pub mod clock_sync;
pub mod engine;
pub mod host;
pub mod options;
pub(crate) mod plugin;
pub mod program;
