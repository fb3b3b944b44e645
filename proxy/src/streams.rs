//! Streams of bytes to pods: through a pipe to one of this process, over the tunnel to one of another node.

use std::net::SocketAddr;
use std::sync::Arc;

use machinery_serve::net::{
    CallRejected, Caller, DialError, Origin, Peer, Protocol, Serve, ServicePort, Stream, Target,
};
use tokio_util::sync::CancellationToken;

use crate::http::forward::{pick_endpoint, refused};
use crate::state::ProxyState;
use crate::table::{Endpoint, PortRoute};

impl ProxyState {
    /// Opens a stream to an endpoint of a route. An endpoint of another node that doesn't take it is skipped.
    pub(crate) async fn stream_to_endpoint(
        &self,
        caller: &Caller,
        route: &Arc<PortRoute>,
        to: &Target,
    ) -> Result<Stream, DialError> {
        let named = || format!("{}:{}", to.host, to.port);
        let found = |at: SocketAddr| self.network.find(at.ip(), Protocol::Tcp, at.port());
        let mut tried: Vec<SocketAddr> = Vec::new();
        loop {
            let usable = |endpoint: &Endpoint| {
                let at = endpoint.address();
                !tried.contains(&at) && (found(at).is_some() || self.may_dial(route, at))
            };
            let endpoint = pick_endpoint(self, route, caller.ip, usable);
            let at = endpoint.ok_or_else(|| DialError::NoEndpoint(named()))?.address();
            let Some(serve) = found(at) else { return self.egress.stream(caller, vec![at], &to.host).await };
            match open_stream(serve, origin_of(caller, at, route.via.clone())).await {
                Ok(stream) => return Ok(stream),
                Err(CallRejected::Gone(_) | CallRejected::Busy(_)) => tried.push(at),
                Err(rejected) => return Err(not_opened(&rejected, at)),
            }
        }
    }
}

/// The origin of a pod's call.
pub(crate) fn origin_of(caller: &Caller, at: SocketAddr, via: Option<Arc<ServicePort>>) -> Origin {
    Origin { peer: Peer::Pod(caller.clone()), local: at, via }
}

/// Opens a stream to a pod: over the tunnel to another node, else through a pipe.
pub(crate) async fn open_stream(serve: Arc<dyn Serve>, origin: Origin) -> Result<Stream, CallRejected<()>> {
    match serve.connect(&origin).await {
        Some(opened) => opened,
        None => Ok(pipe_to(serve, origin)),
    }
}

/// Opens a pipe to a pod of this process, which serves the other end like a socket.
pub(crate) fn pipe_to(serve: Arc<dyn Serve>, origin: Origin) -> Stream {
    let (near, far) = Stream::pipe();
    let gone = CancellationToken::new();
    let near = near.holding(gone.clone().drop_guard());
    // A rejected pipe is dropped: the caller sees the connection close.
    tokio::spawn(
        async move { gone.run_until_cancelled(serve.stream(origin, far)).await.map(|done| done.map_err(drop)) },
    );
    near
}

/// The error of a stream or of datagrams that no pod took.
pub(crate) fn not_opened(rejected: &CallRejected<()>, address: impl ToString) -> DialError {
    match rejected {
        CallRejected::Denied(policy) => DialError::Denied(format!("{} (policy {policy})", address.to_string())),
        CallRejected::Gone(_) | CallRejected::Busy(_) | CallRejected::Closed => refused(address),
    }
}
