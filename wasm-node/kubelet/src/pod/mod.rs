//! Pods: the pure decisions, the worker that performs them ([`worker`] and its helpers), and the data that the pods of
//! one node share ([`shared`]).
//!
//! The decisions are machines with a `step` function: the lifecycle ([`state`]), the writes of the status
//! ([`status_writer`]), its projection ([`projection`], [`status`]), the first actions of a resumed pod
//! ([`first_actions`]), an in-place resize ([`resize`]), and steps of the wall clock ([`clock`]).

pub mod addresses;
pub mod admit;
pub(crate) mod attached;
pub mod backoff;
pub mod check;
mod clock;
mod compiling;
pub mod container;
pub mod event;
mod first_actions;
mod handler;
pub(crate) mod handover;
mod host_ports;
mod hosts_file;
mod listen;
mod message;
mod names;
pub mod node_facts;
mod object;
pub mod order;
mod probe;
pub(crate) mod program;
mod projection;
pub(crate) mod resize;
mod reuse;
mod runner;
pub(crate) mod sandbox;
mod serve;
pub(crate) mod session_tmp;
pub mod settings;
pub(crate) mod shared;
pub mod shutdown;
pub mod stage;
mod start;
mod start_latency;
pub mod state;
pub mod status;
mod status_writer;
mod stop;
pub(crate) mod totals;
pub mod unsupported;
mod variables;
pub(crate) mod worker;
