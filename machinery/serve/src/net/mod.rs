//! `Dial` and `Serve`: the seam between guests' calls, the data plane and pods.
//!
//! The data plane (`proxy`) implements [`Dial`]; a pod's sandbox (`wasm-node`) implements [`Serve`]; both meet in
//! [`PodNetwork`], so that neither names the other. A request between two pods of one process crosses no socket:
//! it is handed to `Serve` as it was parsed. Each side knows who the other is ([`Caller`], [`Origin`]).
//!
//! - [`framing`]: what of a message's head may go from one connection to another. Pure.
//! - [`http`]: HTTP over a byte stream, for whatever answers requests.
//! - [`unverified`]: TLS to a server whose certificate nobody can check.

pub mod framing;
pub mod http;
mod names;
mod pods;
mod reset;
mod stream;
pub mod unverified;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use machinery_api::ObjectKey;
pub use names::{NamePolicy, PodNames};
pub use pods::{AddrInUse, Attached, Listen, PodNetwork, RemotePods, Scope};
pub use stream::{DATAGRAMS_WAITING_MAX, DatagramPipe, Io, PIPE_BYTES, Stream};

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
    /// By what the names are resolved that it calls.
    pub names: Arc<PodNames>,
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

/// A transport protocol of a port. Ports of the two have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Streams of bytes, HTTP included.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// The Service.
    pub service: ObjectKey,
    /// The Service port's number.
    pub port: u16,
}

/// Who is at the calling end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A pod.
    Pod(Caller),
    /// A process that is not of the cluster, with its socket's address.
    Host(SocketAddr),
    /// The agent of the callee's own node: probes and hooks.
    Node,
}

/// What a callee may know of a call: who makes it, on which of its addresses, through what.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Who calls.
    pub peer: Peer,
    /// The callee's address that was chosen.
    pub local: SocketAddr,
    /// The Service that the caller named, where it didn't name the pod itself.
    pub via: Option<Arc<ServicePort>>,
}

/// A call that was not taken. `T` is what was offered; it comes back where nothing of it was seen, so that it can be
/// offered to another endpoint.
#[derive(Debug)]
pub enum Refused<T> {
    /// The callee is stopping, or gone.
    Gone(Box<T>),
    /// The callee has as much to do as it may.
    Busy(Box<T>),
    /// A policy of this name forbids it.
    Denied(Arc<str>),
    /// Nothing of this kind is served on the address.
    Closed,
}

impl<T> Refused<T> {
    /// The callee is stopping, or gone: `offered` was not looked at.
    pub fn gone(offered: T) -> Self {
        Self::Gone(Box::new(offered))
    }

    /// The callee has as much to do as it may: `offered` was not looked at.
    pub fn busy(offered: T) -> Self {
        Self::Busy(Box::new(offered))
    }
}

/// Where a stream or datagrams go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name or an address, as a pod would write it.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What a look-up found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The name with its domain, where the caller's search path had one that was meant; without a dot at its end.
    pub name: String,
    /// In the order in which they should be tried; none where an address was looked up and has this name.
    pub addresses: Vec<IpAddr>,
}

/// Reaches names and addresses on behalf of a caller. All of it is subject to the same rules.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// Sends one HTTP request (absolute URI) and returns the response's head with its streamed body.
    async fn http(&self, caller: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError>;

    /// Opens a stream of bytes.
    async fn stream(&self, _: &Caller, to: &Target) -> Result<Stream, DialError> {
        Err(DialError::Denied(format!("{}:{}", to.host, to.port)))
    }

    /// Opens a way for datagrams.
    async fn datagrams(&self, _: &Caller, to: &Target) -> Result<DatagramPipe, DialError> {
        Err(DialError::Denied(format!("{}:{}", to.host, to.port)))
    }

    /// The addresses that a name has for the caller, or the name that an address has.
    async fn resolve(&self, _: &Caller, name: &str) -> Result<Found, DialError> {
        Err(DialError::NameNotFound(name.to_owned()))
    }

    /// Who is asked first for names of the caller, where anybody is.
    fn name_server(&self, _: &Caller) -> Option<IpAddr> {
        None
    }
}

/// What answers on an address of a pod.
#[async_trait::async_trait]
pub trait Serve: Send + Sync + 'static {
    /// Answers one HTTP request. Failures of the guest are responses (502, 503, 504 with `coracle-reason`).
    ///
    /// # Errors
    /// The request was not taken.
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, Refused<Request<Body>>>;

    /// Takes a stream of bytes to its end: HTTP, where nothing else is served.
    ///
    /// # Errors
    /// The stream was not taken.
    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), Refused<Stream>> {
        http::serve_stream(self, from, stream).await;
        Ok(())
    }

    /// Takes datagrams of one caller.
    ///
    /// # Errors
    /// They were not taken.
    fn datagrams(&self, _: &Origin) -> Result<DatagramPipe, Refused<()>> {
        Err(Refused::Closed)
    }
}
