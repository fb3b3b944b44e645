//! Code shared by the samples: a router, an HTTP client, sockets, files and logging.
//!
//! Everything is `no_std`: a component without the standard library has some 20 kB instead of 100.
//! It is a library to read, not a framework: for real work use `wstd` or the standard library on `wasm32-wasip2`.
#![no_std]

extern crate alloc;

mod heap;
mod runtime;

#[cfg(target_env = "p2")]
pub mod fetch;
#[cfg(target_env = "p2")]
pub mod files;
#[cfg(target_env = "p2")]
pub mod http;
#[cfg(target_env = "p2")]
pub mod net;
#[cfg(target_env = "p2")]
pub mod process;
#[cfg(target_env = "p2")]
pub mod text;

pub use alloc::{borrow::ToOwned, boxed::Box, format, string::String, string::ToString, vec, vec::Vec};

#[cfg(target_env = "p2")]
pub use wasip2;

/// Writes one line to the container's log (stdout).
#[cfg(target_env = "p2")]
#[macro_export]
macro_rules! log {
    ($($part:tt)*) => { $crate::process::print(&$crate::format!($($part)*)) };
}
