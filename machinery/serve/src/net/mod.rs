//! `Dial` and `Serve`: the interface between guests' calls, the data plane and pods.
//!
//! The data plane (`proxy`) implements [`Dial`]; a pod's sandbox (`wasm-node`) implements [`Serve`]; [`PodNetwork`]
//! connects them, so that neither depends on the other. A request between two pods of one process crosses no socket:
//! the parsed request is passed to `Serve`. Each side knows the other's identity ([`Caller`], [`Origin`]).
//!
//! - [`http`]: HTTP over a byte stream, for any server of requests.

mod duplex;
pub mod http;
mod names;
mod pipe;
mod pods;
mod reset;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};

pub use duplex::{BufferAccount, PIPE_BYTES, PIPE_FREE_BYTES, PipeEnd};
use machinery_api::ObjectKey;
pub use names::{NamePolicy, PodNames};
pub use pipe::open_pipe;
pub use pods::{AddrInUse, Attached, Listen, PodNetwork, RemotePods, Scope, is_pod_loopback};
pub use stream::{DATAGRAMS_WAITING_MAX, DatagramPipe, Io, Stream};

/// Why a body or an exchange broke.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body without content. It needs no allocation.
#[must_use]
pub fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The caller's identity: determines policy, names without a namespace, and node-local choices.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The node on which the call is made.
    pub node: Arc<str>,
    /// The calling pod's namespace: completes short names.
    pub namespace: Arc<str>,
    /// The calling pod's name; empty for a process of the host.
    pub pod: Arc<str>,
    /// The calling pod's IP, if any.
    pub ip: Option<IpAddr>,
    /// DNS settings of the caller.
    pub names: Arc<PodNames>,
}

/// Why a call got no response. The data plane never makes up a response to a guest's call.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name exists neither in cluster DNS nor outside.
    #[error("no such host: {0}")]
    NameNotFound(String),
    /// The Service or pod has no ready endpoint.
    #[error("no endpoint is ready for {0}")]
    NoEndpoint(String),
    /// Policy forbids the call (also: the host's loopback and link-local addresses).
    #[error("connections to {0} are not allowed")]
    Denied(String),
    /// The peer refused or broke the connection.
    #[error("connection to {address} failed: {source}")]
    Connection {
        /// The peer's address.
        address: String,
        /// The cause.
        source: BoxError,
    },
    /// The deadline passed.
    #[error("{0} did not answer in time")]
    Timeout(String),
}

/// Transport protocol of a port. TCP and UDP ports are independent.
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

/// The calling side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A pod.
    Pod(Caller),
    /// A process outside the cluster, with its socket's address.
    Host(SocketAddr),
    /// The kubelet of the callee's node: probes and hooks.
    Node,
}

/// A call's metadata for the callee: the caller, the called address, and the Service.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The caller.
    pub peer: Peer,
    /// The chosen address of the callee.
    pub local: SocketAddr,
    /// The Service, unless the caller named the pod itself.
    pub via: Option<Arc<ServicePort>>,
}

/// A rejected call. `T` is the offered request or stream; it is returned unread, so that it can be offered to another
/// endpoint.
#[derive(Debug)]
pub enum CallRejected<T> {
    /// The callee is terminating or gone.
    Gone(Box<T>),
    /// The callee is at its concurrency limit.
    Busy(Box<T>),
    /// A policy of this name denies it.
    Denied(Arc<str>),
    /// Nothing of this kind listens on the address.
    Closed,
}

impl<T> CallRejected<T> {
    /// The callee is terminating or gone: `offered` is returned unread.
    pub fn gone(offered: T) -> Self {
        Self::Gone(Box::new(offered))
    }

    /// The callee is at its concurrency limit: `offered` is returned unread.
    pub fn busy(offered: T) -> Self {
        Self::Busy(Box::new(offered))
    }

    /// The same rejection with another value in place of the offered one.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> CallRejected<U> {
        match self {
            Self::Gone(offered) => CallRejected::gone(f(*offered)),
            Self::Busy(offered) => CallRejected::busy(f(*offered)),
            Self::Denied(policy) => CallRejected::Denied(policy),
            Self::Closed => CallRejected::Closed,
        }
    }
}

/// The destination of a stream or of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name or an address, as written by a pod.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The result of a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedName {
    /// The fully qualified name, completed by the caller's search path; without a trailing dot.
    pub name: String,
    /// The addresses in order of preference; empty for a reverse look-up.
    pub addresses: Vec<IpAddr>,
}

/// Reaches names and addresses for a caller. The same rules apply to all methods.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// Sends one HTTP request (absolute URI) and returns the response's head with its streamed body.
    async fn http(&self, caller: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError>;

    /// Opens a stream of bytes.
    async fn stream(&self, _: &Caller, to: &Target) -> Result<Stream, DialError> {
        Err(DialError::Denied(format!("{}:{}", to.host, to.port)))
    }

    /// Opens a datagram pipe.
    async fn datagrams(&self, _: &Caller, to: &Target) -> Result<DatagramPipe, DialError> {
        Err(DialError::Denied(format!("{}:{}", to.host, to.port)))
    }

    /// The addresses of a name for the caller, or the name of an address.
    async fn resolve(&self, _: &Caller, name: &str) -> Result<ResolvedName, DialError> {
        Err(DialError::NameNotFound(name.to_owned()))
    }

    /// Starts TLS as a client on `stream`, which leads to the server of this name or address, with the authorities of HTTPS
    /// requests. The timeout is the caller's.
    async fn start_tls(&self, server: &str, _: Stream) -> Result<Stream, BoxError> {
        Err(format!("no TLS to {server}: this network has no authorities").into())
    }

    /// The caller's first name server, if any.
    fn name_server(&self, _: &Caller) -> Option<IpAddr> {
        None
    }
}

/// A server on an address of a pod.
#[async_trait::async_trait]
pub trait Serve: Send + Sync + 'static {
    /// Whether it understands requests itself. A server of bytes doesn't: its connections are passed on as they are
    /// ([`Serve::stream`]), and a request reaches it over a connection of its own ([`http::request_over_pipe`]).
    fn speaks_http(&self) -> bool {
        true
    }

    /// What [`Serve::speaks_http`] returns for the server at `at`: a server of another process is asked there. `None` if it
    /// isn't known.
    async fn find_out_http(&self, _at: SocketAddr) -> Option<bool> {
        Some(self.speaks_http())
    }

    /// Serves one HTTP request. Failures of the guest are responses (502, 503, 504 with `coracle-reason`).
    ///
    /// # Errors
    /// If the request was rejected.
    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>>;

    /// Serves a stream of bytes to its end: as HTTP by default. Dropping the future closes the stream.
    ///
    /// # Errors
    /// If the stream was rejected. A server that accepts connections later rejects before it waits for anything, so that
    /// callers can go to another one.
    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        http::serve_stream(self, from, stream).await;
        Ok(())
    }

    /// Opens a stream to a server of another process, whose transport is the stream: its end and its reset are the
    /// callee's. `None` for a server of this process, which [takes](Serve::stream) one end of a pipe.
    ///
    /// # Errors
    /// If the stream was rejected: nothing was sent.
    async fn connect(&self, _: &Origin) -> Option<Result<Stream, CallRejected<()>>> {
        None
    }

    /// Serves one caller's datagrams.
    ///
    /// # Errors
    /// If they were rejected.
    fn datagrams(&self, _: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        Err(CallRejected::Closed)
    }

    /// Whether it serves on at a takeover of its process, when the node's agent has ended.
    fn outlives_agent(&self) -> bool {
        false
    }
}
