//! TCP and UDP sockets of guests over the pod network. No socket of the host is opened here: a listener is a server of
//! [`PodNetwork`](machinery_serve::net::PodNetwork), and a call goes through [`Dial`](machinery_serve::net::Dial), which holds
//! the rules for destinations.
//!
//! The host interfaces (`wasi:sockets` 0.2 and 0.3, preview 1) translate between a guest and these types; nothing here knows
//! WebAssembly. All operations are polls: a guest's thread never blocks.
//!
//! - [`context`]: whose sockets they are: address, identity, account.
//! - [`address`]: which addresses a guest may bind and call.
//! - [`tcp`]: sockets, listeners with their backlog, connections.
//! - [`udp`]: sockets and their flows.
//! - [`lookup`]: addresses of names.
//! - [`limits`]: quotas of a pod.

pub mod address;
pub mod context;
mod error;
pub mod limits;
pub mod lookup;
mod memory;
mod ports;
pub mod tcp;
pub mod udp;

pub use context::SocketContext;
pub use error::SocketError;
pub use limits::SocketLimits;
