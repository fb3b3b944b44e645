//! A process takes over the listening sockets of the running one with the same data folder, and no request is dropped
//! (docs/decisions/0112-takeover.md). The exchange itself is [`machinery_serve::handover`].
//!
//! - [`control`]: the socket of a running process, at which the next one asks for its sockets.
//! - [`taking`]: the start of a process with `--takeover`.
//! - [`resumption`]: the pods that have to run again before their listeners accept.

#[cfg(unix)]
mod control;
pub(crate) mod resumption;
mod taking;

use std::time::Duration;

pub(crate) use taking::{TakenOver, take};

/// Time of requests in flight at the process that gives its sockets away. Those that last longer are cut.
pub(crate) const REQUESTS_MAX: Duration = Duration::from_secs(10);
/// Time within which the process that gives its sockets away ends: its requests, its components' and its store's stop (5 s,
/// contract.md §2), and a margin.
#[cfg(unix)]
const END_MAX: Duration = Duration::from_secs(30);

#[cfg(unix)]
pub(crate) use control::listen;

/// Systems without Unix sockets hand nothing over.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) struct HandoverRequests;

#[cfg(not(unix))]
impl HandoverRequests {
    pub(crate) async fn committed(&mut self) -> NoHandover {
        std::future::pending().await
    }
}

/// Never happens.
#[cfg(not(unix))]
pub(crate) enum NoHandover {}

#[cfg(not(unix))]
impl NoHandover {
    pub(crate) fn keep_until_exit(self) {
        match self {}
    }
}

/// No control socket.
#[cfg(not(unix))]
pub(crate) fn listen(_: &machinery_env::Env, _: &crate::data_dir::DataDir) -> HandoverRequests {
    HandoverRequests
}
