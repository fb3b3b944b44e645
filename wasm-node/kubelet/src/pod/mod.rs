//! Pods: the pure decisions ([`state`], [`status`], [`unsupported`], [`settings`]), the worker that performs
//! them ([`worker`] and its helpers), and the state that the pods of one node share ([`shared`]).

pub mod addresses;
pub mod admit;
pub(crate) mod attached;
pub mod backoff;
pub mod check;
mod clock;
mod compiling;
pub mod container;
pub mod event;
mod handler;
mod host_ports;
mod hosts_file;
mod listen;
mod message;
mod names;
pub mod node_facts;
pub mod order;
mod probe;
pub(crate) mod program;
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
pub mod state;
pub mod status;
mod stop;
pub(crate) mod totals;
pub mod unsupported;
pub(crate) mod worker;
