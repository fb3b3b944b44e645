//! What every component of Coracle shares, and nothing else.
//!
//! - [`accept`]: taking connections within a bound, strangers going first.
//! - [`api`]: pure vocabulary of the Kubernetes API (keys, errors, selectors, quantities, names). No IO, no clock.
//! - [`descriptors`]: the process's file descriptors, shared out by class.
//! - [`env`]: the one clock and the one source of randomness and ids, handed in everywhere.
//! - [`net`]: `Dial` and `Serve`, the seam between guests' calls, the data plane and pods.
//! - [`serve`]: what every HTTP server of the process shares.
//! - [`shared`]: values that many objects have in common, held once.
//! - `client` and `runtime` (feature `client`): how components other than the apiserver see and change the cluster.
//!
//! Absent on purpose: anything that names wasmtime, sled, etcd, clap or an environment variable.
#![warn(missing_docs)]

pub mod accept;
pub mod api;
#[cfg(feature = "client")]
pub mod client;
pub mod descriptors;
pub mod env;
pub mod net;
#[cfg(feature = "client")]
pub mod runtime;
pub mod serve;
pub mod shared;
