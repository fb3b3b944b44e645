//! Serving primitives of every server in this process, and the interface between callers and servers of the pod
//! network.
//!
//! - [`accept`]: the accept loop: limits with shares, drain.
//! - [`browsers`]: requests of pages of other sites, which a browser sends with its user's credentials. Pure.
//! - [`connection`]: HTTP on a connection of a server for untrusted clients.
//! - [`control_frames`]: a limit of HTTP/2 frames that no request pays for.
//! - [`descriptors`]: quotas of the process's file descriptors by class.
//! - [`dial`]: connections that this process opens.
//! - [`framing`]: rules for forwarding a message's head. Pure.
//! - [`guarded_body`]: a body that keeps a guard.
//! - [`hooked`]: a stream with a hook on reads and writes.
//! - [`joined`]: bodies of few, non-empty pieces, for connections.
//! - [`last_request`]: a connection's end is announced in its last response.
//! - [`log_limit`]: a limit for log lines that a peer can cause.
//! - [`net`]: `Dial` and `Serve`, the interface between guests' calls, the data plane and pods.
//! - [`plain`]: a plain HTTP server of the process itself.
//! - [`request_head`]: the head of a request that this process sends. Pure.
//! - [`sockets`]: the listening sockets of the process, which the next process may take over.
//! - [`handover`]: the exchange of the two processes.
//! - [`trace`]: spans of requests, and their context in headers.
//! - [`upgraded`]: copies between upgraded connections.
//!
//! Excluded by design: the Kubernetes client (`machinery-client`), which no server needs.
#![warn(missing_docs)]

pub mod accept;
mod batched;
pub mod browsers;
pub mod connection;
pub mod control_frames;
pub mod descriptors;
pub mod dial;
mod exchange;
pub mod framing;
pub mod guarded_body;
#[cfg(unix)]
pub mod handover;
pub mod hooked;
pub mod joined;
pub mod last_request;
pub mod log_limit;
pub mod net;
pub mod plain;
pub mod request_head;
mod seats;
pub mod sockets;
pub mod trace;
pub mod upgraded;
