//! The node: runs pods of WebAssembly modules as a kubelet runs containers.
//!
//! - [`engine`]: everything that names wasmtime: compiling, limits, running commands, serving HTTP.
//! - [`host`]: the one table of host interfaces that guests may import.
//! - [`image`]: pulling, verifying and caching images, and the built-in registry.
//!
//! Absent on purpose: sockets of a guest's own, processes and namespaces of the kernel, and any crate beside
//! `machinery`.

pub mod engine;
pub mod host;
pub mod image;
