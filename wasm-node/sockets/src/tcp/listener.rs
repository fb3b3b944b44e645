//! A bound port: a server of the pod network that queues connections for the guest.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use http::{Request, Response};
use machinery_serve::net::http::request_over_pipe;
use machinery_serve::net::{Attached, Body, CallRejected, Origin, Peer, Protocol, Serve, Stream};
use runtime_api::ledger::{Resource, ResourceGuard};
use tokio::sync::oneshot;

use super::Bind;
use super::connection::{Connection, ConnectionState};
use super::revocable::{RevokeOnDrop, revocable};
use crate::context::SocketGuard;
use crate::{SocketContext, SocketError};

/// A bound port; dropping it frees the port and closes the connections of the backlog.
pub(super) struct Listener {
    address: SocketAddr,
    backlog: Arc<Backlog>,
    attached: Attached,
    _held: ResourceGuard,
}

/// A connection that waits for the guest.
struct Incoming {
    stream: Stream,
    peer: Peer,
    local: SocketAddr,
    guard: Arc<SocketGuard>,
}

/// The queue of a listener: the pod network's end of it.
struct Backlog {
    this: Weak<Backlog>,
    context: SocketContext,
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

/// `max` connections may wait.
#[derive(Default)]
struct Queue {
    max: usize,
    incoming: VecDeque<Incoming>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let queue = std::mem::take(&mut *self.backlog.queue());
        drop(queue);
    }
}

impl Listener {
    /// Reserves a port.
    pub(super) fn bind(context: &SocketContext, (ip, scope): Bind, port: u16) -> Result<Self, SocketError> {
        let held = context.ledger.hold(Resource::Listeners, 1)?;
        let backlog = Arc::new_cyclic(|this| {
            let (this, queue, waker) = (this.clone(), Mutex::default(), AtomicWaker::new());
            Backlog { this, context: context.clone(), queue, waker }
        });
        let serve: Arc<dyn Serve> = backlog.clone();
        let (port, attached) = context.reserve_port(scope, Protocol::Tcp, port, &serve)?;
        Ok(Self { address: SocketAddr::new(ip, port), backlog, attached, _held: held })
    }

    /// The bound address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to queue connections.
    pub(super) fn listen(&self, max: usize) {
        self.set_backlog(max);
        self.attached.open();
    }

    /// Changes the maximum of waiting connections.
    pub(super) fn set_backlog(&self, max: usize) {
        self.backlog.queue().max = max;
    }

    /// The next connection.
    pub(super) fn poll_accept(
        &self,
        context: &SocketContext,
        cx: &mut Context<'_>,
    ) -> Poll<(Connection, Arc<SocketGuard>)> {
        self.backlog.waker.register(cx.waker());
        let Some(incoming) = self.backlog.queue().incoming.pop_front() else { return Poll::Pending };
        let Incoming { stream, peer, local, guard } = incoming;
        let remote = remote_of(context, &peer, local);
        let state = ConnectionState { context, guard: guard.clone(), local, remote };
        Poll::Ready((Connection::new(stream, state), guard))
    }

    /// Waits for a connection.
    pub(super) fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.backlog.waker.register(cx.waker());
        if self.backlog.queue().incoming.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

/// The address of a peer as the guest sees it. The port of a pod's call isn't known here, so it is one of this pod's choice.
pub(crate) fn remote_of(context: &SocketContext, peer: &Peer, local: SocketAddr) -> SocketAddr {
    let ip = |ip: Option<IpAddr>| SocketAddr::new(ip.unwrap_or(local.ip()), context.next_port());
    match peer {
        Peer::Host(address) => *address,
        Peer::Pod(caller) => ip(caller.ip),
        Peer::Node => ip(None),
    }
}

impl Backlog {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a connection; returns the caller's right to it and the receiver of its end.
    fn push(
        &self,
        from: Origin,
        mut stream: Stream,
    ) -> Result<(RevokeOnDrop, oneshot::Receiver<()>), CallRejected<Stream>> {
        let mut queue = self.queue();
        if queue.incoming.len() >= queue.max {
            self.context.ledger.count_rejection_by_socket(Resource::Sockets);
            return Err(CallRejected::busy(stream));
        }
        let Ok(guard) = self.context.socket() else { return Err(CallRejected::busy(stream)) };
        stream.charge_writes(self.context.buffers.clone());
        let (stream, revoke, end) = revocable(stream);
        queue.incoming.push_back(Incoming { stream, peer: from.peer, local: from.local, guard });
        drop(queue);
        self.waker.wake();
        Ok((revoke, end))
    }
}

#[async_trait::async_trait]
impl Serve for Backlog {
    fn speaks_http(&self) -> bool {
        false
    }

    async fn http(&self, from: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        match self.this.upgrade() {
            Some(this) => request_over_pipe(this, from, request).await,
            None => Err(CallRejected::gone(request)),
        }
    }

    /// Returns when the guest has closed the connection.
    async fn stream(self: Arc<Self>, from: Origin, stream: Stream) -> Result<(), CallRejected<Stream>> {
        let (_revoke, end) = self.push(from, stream)?;
        // The guest's end holds the sender, which sends nothing.
        let _ = end.await;
        Ok(())
    }
}
