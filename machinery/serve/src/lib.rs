//! The serving kit: what every server of this process is built from, and the seam between those who call and those who answer.
//!
//! - [`accept`]: the one accept loop: limits, strangers going first, drain.
//! - [`connection`]: HTTP on a connection of a server that strangers reach.
//! - [`descriptors`]: the process's file descriptors, shared out by class.
//! - [`net`]: `Dial` and `Serve`, the seam between guests' calls, the data plane and pods.
//! - [`plain`]: a server of the process itself over plain HTTP.
//! - [`unread`]: what becomes of a request's body that nobody read.
//!
//! Absent on purpose: the Kubernetes client (`machinery-client`): who serves doesn't need one for it.
#![warn(missing_docs)]

pub mod accept;
pub mod connection;
pub mod descriptors;
mod hooked;
pub mod net;
pub mod plain;
mod seats;
pub mod unread;
