//! Pods: the pure decisions ([`lifecycle`]), the worker that performs them ([`worker`] and its helpers), and the data that
//! the pods of one node share ([`shared`]).

pub mod addresses;
pub mod admit;
pub(crate) mod attached;
mod compiling;
mod handler;
pub(crate) mod handover;
mod host_ports;
mod hosts_file;
pub mod lifecycle;
mod listen;
mod message;
mod names;
pub mod node_facts;
mod not_listening;
mod probe;
pub(crate) mod program;
mod runner;
pub(crate) mod sandbox;
mod serve;
pub(crate) mod session_tmp;
pub(crate) mod shared;
pub mod shutdown;
mod start;
mod stop;
pub(crate) mod totals;
pub mod unsupported;
mod variables;
pub(crate) mod worker;
