//! Pods: what is decided about one ([`state`], [`status`], [`unsupported`], [`settings`]: pure), the
//! worker that does it ([`worker`] and what it calls), and what the pods of one node share ([`shared`]).

pub mod addresses;
pub mod admit;
mod ask;
pub(crate) mod attached;
pub mod backoff;
pub mod cell;
pub mod check;
mod compiling;
pub mod event;
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
