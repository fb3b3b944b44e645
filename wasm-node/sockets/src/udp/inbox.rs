//! Datagrams that wait for the guest. A full inbox loses what arrives, as a full socket does.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::task::AtomicWaker;
use runtime_api::ledger::{Ledger, Resource, ResourceGuard};

use crate::SocketError;

/// Maximum bytes of waiting datagrams of one socket (Linux' `rmem_default`).
const INBOX_BYTES_MAX: usize = 212_992;
/// Host memory of a waiting datagram besides its data.
const DATAGRAM_BYTES: usize = 128;

/// A received datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Its data.
    pub data: Bytes,
    /// Its sender.
    pub from: SocketAddr,
}

/// The inbox of a socket.
pub(super) struct Inbox {
    ledger: Arc<Ledger>,
    queue: Mutex<Queue>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Queue {
    datagrams: VecDeque<(Datagram, [ResourceGuard; 2])>,
    bytes: usize,
    /// The only sender, where the guest has set one.
    only: Option<SocketAddr>,
    error: Option<SocketError>,
}

impl Inbox {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, queue: Mutex::default(), waker: AtomicWaker::new() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a datagram, unless the inbox or a quota is full, or another sender is expected.
    pub(super) fn push(&self, datagram: Datagram) {
        let bytes = datagram.data.len() + DATAGRAM_BYTES;
        let mut queue = self.queue();
        if queue.only.is_some_and(|only| only != datagram.from) {
            return;
        }
        if queue.bytes + bytes > INBOX_BYTES_MAX {
            self.ledger.count_rejection_by_socket(Resource::Datagrams);
            return;
        }
        let hold = |resource, amount| self.ledger.hold(resource, amount).ok();
        let held = hold(Resource::Datagrams, 1).zip(hold(Resource::Memory, bytes as u64));
        let Some((count, memory)) = held else { return };
        queue.bytes += bytes;
        queue.datagrams.push_back((datagram, [count, memory]));
        drop(queue);
        self.waker.wake();
    }

    /// Records that the only remote address can't be reached: the next call of the guest returns it.
    pub(super) fn fail(&self, from: SocketAddr, error: SocketError) {
        let mut queue = self.queue();
        if queue.only == Some(from) {
            queue.error = Some(error);
            drop(queue);
            self.waker.wake();
        }
    }

    /// The recorded error, once.
    pub(super) fn take_error(&self) -> Option<SocketError> {
        self.queue().error.take()
    }

    /// Expects datagrams of one sender, or of all. Those of others are lost.
    pub(super) fn restrict(&self, only: Option<SocketAddr>) {
        let mut queue = self.queue();
        (queue.only, queue.error) = (only, None);
        queue.datagrams.retain(|(datagram, _)| only.is_none_or(|only| only == datagram.from));
        queue.bytes = queue.datagrams.iter().map(|(datagram, _)| datagram.data.len() + DATAGRAM_BYTES).sum();
    }

    pub(super) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Datagram, SocketError>> {
        self.waker.register(cx.waker());
        let mut queue = self.queue();
        if let Some((datagram, _)) = queue.datagrams.pop_front() {
            queue.bytes -= datagram.data.len() + DATAGRAM_BYTES;
            return Poll::Ready(Ok(datagram));
        }
        queue.error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)))
    }

    pub(super) fn poll_receivable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        let queue = self.queue();
        if queue.datagrams.is_empty() && queue.error.is_none() { Poll::Pending } else { Poll::Ready(()) }
    }
}
