//! The flows of a UDP socket by remote address: callers' ones arrive through the pod network, own ones are opened by the first
//! datagram to an address.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use machinery_serve::net::{Body, CallRejected, DatagramPipe, Origin, Serve, Target};
use runtime_api::ledger::{Resource, ResourceGuard};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::inbox::{Datagram, Inbox};
use crate::limits::{CONNECT_TIMEOUT, FLOW_BYTES, FLOW_IDLE, FLOWS_MAX, OPENING_DATAGRAMS_MAX};
use crate::tcp::remote_of;
use crate::{SocketContext, SocketError};

/// The flows of a socket.
pub(super) struct Flows {
    this: Weak<Flows>,
    context: SocketContext,
    pub(super) inbox: Inbox,
    table: Mutex<FlowTable>,
}

#[derive(Default)]
struct FlowTable {
    flows: HashMap<SocketAddr, Flow>,
    next: u64,
    is_closed: bool,
}

struct Flow {
    /// Distinguishes it from a later one of the same address.
    id: u64,
    /// The last use, since the start of the clock.
    used: Duration,
    to: FlowEnd,
    task: AbortHandle,
    _memory: ResourceGuard,
}

enum FlowEnd {
    Open(mpsc::Sender<Bytes>),
    /// Datagrams that wait for it.
    Opening(VecDeque<(Bytes, ResourceGuard)>),
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Flows {
    pub(super) fn new(context: SocketContext) -> Arc<Self> {
        let inbox = Inbox::new(context.ledger.clone());
        Arc::new_cyclic(|this| Self { this: this.clone(), context, inbox, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, FlowTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all flows.
    pub(super) fn close(&self) {
        let mut table = self.table();
        table.is_closed = true;
        table.flows.clear();
    }

    /// Keeps the flow of one remote address alone, where there is one.
    pub(super) fn restrict(&self, only: Option<SocketAddr>) {
        self.inbox.restrict(only);
        if let Some(only) = only {
            self.table().flows.retain(|remote, _| *remote == only);
        }
    }

    /// Sends a datagram on the flow of its destination, which it opens if there is none.
    pub(super) fn send(self: &Arc<Self>, to: SocketAddr, data: Bytes) -> Result<(), SocketError> {
        if let Some(error) = self.inbox.take_error() {
            return Err(error);
        }
        let now = self.context.env.elapsed();
        let mut table = self.table();
        if let Some(flow) = table.flows.get_mut(&to) {
            flow.used = now;
            match &mut flow.to {
                // A full flow loses the datagram.
                FlowEnd::Open(sender) => drop(sender.try_send(data)),
                FlowEnd::Opening(waiting) if waiting.len() < OPENING_DATAGRAMS_MAX => {
                    waiting.push_back((data, self.context.ledger.hold(Resource::Datagrams, 1)?));
                }
                FlowEnd::Opening(_) => {}
            }
            return Ok(());
        }
        let memory = self.memory()?;
        let waiting = VecDeque::from([(data, self.context.ledger.hold(Resource::Datagrams, 1)?)]);
        let id = table.next_id();
        let opened = self.clone().open(to, id);
        let task = tokio::spawn(opened).abort_handle();
        table.insert(to, Flow { id, used: now, to: FlowEnd::Opening(waiting), task, _memory: memory });
        Ok(())
    }

    /// Opens a flow, sends what waits for it, and receives until its end.
    async fn open(self: Arc<Self>, to: SocketAddr, id: u64) {
        let target = Target { host: to.ip().to_string(), port: to.port() };
        let context = &self.context;
        let opened = context.env.timeout(CONNECT_TIMEOUT, context.dial.datagrams(&context.caller, &target)).await;
        match opened.unwrap_or(Err(machinery_serve::net::DialError::Timeout(target.host))) {
            Ok(DatagramPipe { send, receive }) => {
                let waiting = match self.table().flows.get_mut(&to).filter(|flow| flow.id == id) {
                    Some(flow) => std::mem::replace(&mut flow.to, FlowEnd::Open(send.clone())),
                    None => return,
                };
                if let FlowEnd::Opening(waiting) = waiting {
                    for (data, _) in waiting {
                        let _ = send.try_send(data);
                    }
                }
                drop(send);
                self.receive(to, id, receive).await;
            }
            Err(error) => {
                self.remove(to, id);
                self.inbox.fail(to, error.into());
            }
        }
    }

    /// Receives datagrams of a flow until its other end closes it, or it isn't used for [`FLOW_IDLE`].
    async fn receive(&self, from: SocketAddr, id: u64, mut receiver: mpsc::Receiver<Bytes>) {
        let env = &self.context.env;
        loop {
            match env.timeout(FLOW_IDLE, receiver.recv()).await {
                Ok(Some(data)) => {
                    if let Some(flow) = self.table().flows.get_mut(&from).filter(|flow| flow.id == id) {
                        flow.used = env.elapsed();
                    }
                    self.inbox.push(Datagram { data, from });
                }
                Ok(None) => break,
                Err(_) => {
                    let used = self.table().flows.get(&from).filter(|flow| flow.id == id).map(|flow| flow.used);
                    if used.is_none_or(|used| env.elapsed().saturating_sub(used) >= FLOW_IDLE) {
                        break;
                    }
                }
            }
        }
        self.remove(from, id);
    }

    fn memory(&self) -> Result<ResourceGuard, SocketError> {
        self.context.ledger.hold(Resource::Memory, FLOW_BYTES).map_err(|_| SocketError::OutOfMemory)
    }

    fn remove(&self, remote: SocketAddr, id: u64) {
        let mut table = self.table();
        if table.flows.get(&remote).is_some_and(|flow| flow.id == id) {
            table.flows.remove(&remote);
        }
    }

    /// Takes a caller's flow.
    fn take(self: &Arc<Self>, origin: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        let from = remote_of(&self.context, &origin.peer, origin.local);
        let memory = self.memory().map_err(|_| CallRejected::busy(()))?;
        let (ours, theirs) = DatagramPipe::pair();
        let mut table = self.table();
        if table.is_closed {
            return Err(CallRejected::Closed);
        }
        let (id, flows) = (table.next_id(), self.clone());
        let DatagramPipe { send, receive } = ours;
        let task = tokio::spawn(async move { flows.receive(from, id, receive).await }).abort_handle();
        let (used, to) = (self.context.env.elapsed(), FlowEnd::Open(send));
        table.insert(from, Flow { id, used, to, task, _memory: memory });
        Ok(theirs)
    }
}

impl FlowTable {
    fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Adds a flow. The one that was used least recently ends if there are too many.
    fn insert(&mut self, remote: SocketAddr, flow: Flow) {
        if self.flows.len() >= FLOWS_MAX {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(remote, _)| *remote);
            oldest.and_then(|oldest| self.flows.remove(&oldest));
        }
        self.flows.insert(remote, flow);
    }
}

#[async_trait::async_trait]
impl Serve for Flows {
    fn speaks_http(&self) -> bool {
        false
    }

    async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        Err(CallRejected::Closed)
    }

    fn datagrams(&self, origin: &Origin) -> Result<DatagramPipe, CallRejected<()>> {
        self.this.upgrade().ok_or(CallRejected::Closed)?.take(origin)
    }
}
