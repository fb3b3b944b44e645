//! A process takes over the listening sockets of the running one with the same data folder, and no request is dropped
//! (docs/decisions/0112-takeover.md, docs/decisions/0126-takeover-in-layers.md). The exchange itself is [`machinery_serve::handover`].
//!
//! - [`control`]: the socket of a running process, at which the next one asks for its sockets.
//! - [`addresses`]: the addresses that a process is about to listen on.
//! - [`options`]: the flag.
//! - [`taking`]: the start of a process with `--takeover`.

mod addresses;
#[cfg(unix)]
mod control;
mod options;
mod taking;

use std::time::Duration;

pub use addresses::ListenAddress;
use machinery_serve::accept::FIRST_REQUEST_MAX;
pub use options::TakeoverFlags;
pub use taking::TakenOver;

/// Time of requests and streams of pods at the process that gives its sockets away, when the next one serves. Those that
/// last longer are cut.
pub const REQUESTS_MAX: Duration = Duration::from_secs(10);
/// Time of requests to the API server, the registry and the node agents, and to programs of pods, at the process that gives
/// its sockets away: new requests to them wait for it.
pub const CONTROL_REQUESTS_MAX: Duration = Duration::from_millis(500);
// A connection without a whole request ends by itself, before it is cut.
const _: () = assert!(FIRST_REQUEST_MAX.as_millis() < CONTROL_REQUESTS_MAX.as_millis());
/// After it, time in which the responses that have been computed are sent, and tasks end.
pub const CUT_MAX: Duration = Duration::from_millis(150);
/// Time in which the next process becomes ready. The one that gives its sockets away serves its pods' clients until then.
pub const NEXT_READY_MAX: Duration = Duration::from_secs(90);
/// Time within which the process that gives its sockets away releases its data folder: its requests, its components' and its
/// store's stop (5 s, docs/contract.md §2), and a margin for a large store.
#[cfg(unix)]
const RELEASE_MAX: Duration = Duration::from_secs(30);

#[cfg(unix)]
pub use control::{HandoverRequests, listen};
#[cfg(unix)]
pub use machinery_serve::handover::HandedOver;

/// Systems without Unix sockets hand nothing over.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct HandoverRequests;

#[cfg(not(unix))]
impl HandoverRequests {
    pub async fn committed(&mut self) -> HandedOver {
        std::future::pending().await
    }
}

/// Never happens.
#[cfg(not(unix))]
pub enum HandedOver {}

#[cfg(not(unix))]
impl HandedOver {
    pub async fn released(&self, _: &machinery_env::Env) {
        match *self {}
    }

    pub async fn taken(&self, _: &machinery_env::Env, _: Duration) -> bool {
        match *self {}
    }
}

/// No control socket.
#[cfg(not(unix))]
pub fn listen(_: &machinery_env::Env, _: &tools_command::data_dir::DataDir, _: &'static str) -> HandoverRequests {
    HandoverRequests
}
