//! Pods: what is decided about one ([`state`], [`status`], [`unsupported`], [`environment`], [`settings`]: pure), and
//! the worker that does it ([`worker`] and what it calls).

pub mod addresses;
pub mod admit;
pub mod backoff;
pub mod cell;
pub mod environment;
pub mod event;
#[cfg(test)]
mod fuzz;
mod listen;
mod message;
mod pod_http;
mod probe;
mod runner;
mod serve;
pub mod settings;
pub mod sources;
mod start;
pub mod state;
pub mod status;
mod stop;
pub mod unsupported;
pub(crate) mod worker;
