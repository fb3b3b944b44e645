//! `Dial` and `Serve`: the seam between guests' calls, the data plane and pods.
//!
//! The data plane (`proxy`) implements [`Dial`]; a pod's sandbox (`wasm-node`) implements [`Serve`]; both meet in
//! [`PodNetwork`], so that neither names the other. A request between two pods of one process crosses no socket:
//! it is handed to `Serve` as it was parsed.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::watch;

/// Why a body or an exchange broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Who calls: decides policy, names without a namespace, and node-local choices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The node on which the call is made.
    pub node: Arc<str>,
    /// The calling pod's namespace: where short names are looked up.
    pub namespace: Arc<str>,
    /// The calling pod's name; empty for a process of the host.
    pub pod: Arc<str>,
    /// The calling pod's IP, where it has one.
    pub ip: Option<IpAddr>,
}

/// Why a call got no response. The data plane never invents a response of its own for a guest's call.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name doesn't exist in cluster DNS, and is not one of the outside.
    #[error("no such host: {0}")]
    NameNotFound(String),
    /// The Service or pod has no endpoint that could answer.
    #[error("no endpoint is ready for {0}")]
    NoEndpoint(String),
    /// Policy forbids the call (also: the host's loopback and link-local addresses).
    #[error("connections to {0} are not allowed")]
    Denied(String),
    /// The peer refused or broke the connection.
    #[error("connection to {address} failed: {source}")]
    Connection {
        /// Where to.
        address: String,
        /// What broke.
        source: BoxError,
    },
    /// The deadline passed first.
    #[error("{0} did not answer in time")]
    Timeout(String),
}

/// Reaches names and addresses on behalf of a caller.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// Sends one HTTP request (absolute URI) and returns the response's head with its streamed body.
    async fn http(&self, caller: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError>;
}

/// What answers on a pod's IP and port.
#[async_trait::async_trait]
pub trait Serve: Send + Sync {
    /// Answers one HTTP request. Failures of the guest are responses (502, 503, 504 with `coracle-reason`).
    async fn http(&self, request: Request<Body>) -> Response<Body>;
}

type Pods = HashMap<(IpAddr, u16), Arc<dyn Serve>>;

/// The pods of this process by address, and which of them a routing table of this process still names.
#[derive(Clone)]
pub struct PodNetwork {
    pods: Arc<RwLock<Pods>>,
    routed: Arc<watch::Sender<BTreeSet<IpAddr>>>,
}

impl Default for PodNetwork {
    fn default() -> Self {
        Self { pods: Arc::default(), routed: Arc::new(watch::Sender::new(BTreeSet::new())) }
    }
}

impl std::fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodNetwork").finish_non_exhaustive()
    }
}

impl PodNetwork {
    /// Makes `serve` answer on `ip:port`; the former one at that address is replaced.
    pub fn attach(&self, ip: IpAddr, port: u16, serve: Arc<dyn Serve>) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert((ip, port), serve);
    }

    /// Nothing answers on `ip:port` any more.
    pub fn detach(&self, ip: IpAddr, port: u16) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(&(ip, port));
    }

    /// What answers on `ip:port` in this process.
    #[must_use]
    pub fn find(&self, ip: IpAddr, port: u16) -> Option<Arc<dyn Serve>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&(ip, port)).cloned()
    }

    /// The data plane publishes every pod IP that its routing table names, each time the table changes.
    pub fn publish_routes(&self, ips: BTreeSet<IpAddr>) {
        self.routed.send_replace(ips);
    }

    /// Waits until no routing table of this process names `ip` (at once where there is no data plane).
    pub async fn until_unrouted(&self, ip: IpAddr) {
        let mut routed = self.routed.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = routed.wait_for(|ips| !ips.contains(&ip)).await;
    }
}
