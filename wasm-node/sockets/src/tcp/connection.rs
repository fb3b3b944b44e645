//! An open connection. Reads and writes are polls of the guest; bytes that the peer doesn't take at once are sent by a task, so
//! that they leave although the guest does something else.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use machinery_env::Env;
use machinery_serve::net::Stream;
use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};

use crate::context::SocketGuard;
use crate::limits::{BUFFER_BYTES_MAX, LINGER_MAX, SCARCE_BUFFER_BYTES};
use crate::memory::BufferMemory;
use crate::{SocketContext, SocketError};

/// Bytes that are read from the transport at once, through the stack.
const READ_PIECE_BYTES: usize = 8 << 10;

/// An open connection; clones are the same one. It closes when the last is dropped.
#[derive(Clone)]
pub struct Connection {
    state: Arc<Open>,
}

/// What a connection needs besides its stream.
pub(super) struct ConnectionState<'a> {
    pub(super) context: &'a SocketContext,
    pub(super) guard: Arc<SocketGuard>,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

struct Open {
    env: Env,
    local: SocketAddr,
    remote: SocketAddr,
    guard: Arc<SocketGuard>,
    buffers: Arc<BufferMemory>,
    reads: Mutex<Reads>,
    writes: Arc<Writes>,
}

/// The read direction.
enum Reads {
    Open(ReadHalf<Stream>),
    /// The end or the failure was read, or the guest shut the direction down.
    Ended(Option<SocketError>),
}

/// The write direction.
struct Writes {
    state: Mutex<WriteState>,
    /// The guest's, while a task sends.
    waker: AtomicWaker,
}

enum WriteState {
    /// All bytes are with the transport.
    Idle(WriteHalf<Stream>),
    /// A task sends the rest of a write; `shut`: it shuts the direction down then.
    Sending { shut: bool },
    /// Shut down by the guest, or failed.
    Ended(Option<SocketError>),
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("remote", &self.state.remote).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(stream: Stream, state: ConnectionState<'_>) -> Self {
        let (reads, writes) = tokio::io::split(stream);
        let ConnectionState { context, guard, local, remote } = state;
        let writes = Writes { state: Mutex::new(WriteState::Idle(writes)), waker: AtomicWaker::new() };
        let reads = Mutex::new(Reads::Open(reads));
        let (env, buffers, writes) = (context.env.clone(), context.buffers.clone(), Arc::new(writes));
        let state = Open { env, local, remote, guard, buffers, reads, writes };
        Self { state: Arc::new(state) }
    }

    /// The own address.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.state.local
    }

    /// The peer's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.state.remote
    }

    /// Reads at most `max` bytes (and at most 64 KiB); none are the end.
    ///
    /// # Errors
    /// If the connection failed.
    pub fn poll_read(&self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Bytes, SocketError>> {
        let mut reads = lock(&self.state.reads);
        let half = match &mut *reads {
            Reads::Open(half) => half,
            Reads::Ended(None) => return Poll::Ready(Ok(Bytes::new())),
            Reads::Ended(Some(error)) => return Poll::Ready(Err(*error)),
        };
        match poll_read_bytes(Pin::new(half), cx, max.clamp(1, BUFFER_BYTES_MAX)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok((bytes, next))) => {
                if let Some(error) = next {
                    *reads = Reads::Ended(Some(SocketError::of_io(&error)));
                } else if bytes.is_empty() {
                    *reads = Reads::Ended(None);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Ready(Err(error)) => {
                let error = SocketError::of_io(&error);
                *reads = Reads::Ended(Some(error));
                Poll::Ready(Err(error))
            }
        }
    }

    /// Ends the read direction: later reads return the end.
    pub fn shut_reads(&self) {
        *lock(&self.state.reads) = Reads::Ended(None);
    }

    /// The number of bytes that [`Connection::write`] takes now: 0 while earlier ones are being sent, few while the container has no
    /// memory for buffers.
    ///
    /// # Errors
    /// If the direction was shut down ([`SocketError::ConnectionAborted`]) or failed.
    pub fn writable(&self) -> Result<usize, SocketError> {
        match &*lock(&self.state.writes.state) {
            WriteState::Idle(_) if self.state.buffers.has(BUFFER_BYTES_MAX) => Ok(BUFFER_BYTES_MAX),
            WriteState::Idle(_) => Ok(SCARCE_BUFFER_BYTES),
            WriteState::Sending { shut: false } => Ok(0),
            WriteState::Sending { shut: true } => Err(SocketError::ConnectionAborted),
            WriteState::Ended(error) => Err(error.unwrap_or(SocketError::ConnectionAborted)),
        }
    }

    /// Sends bytes, as many as [`Connection::writable`] has permitted. Memory that became scarce since then takes no permission back.
    ///
    /// # Errors
    /// If they are more than [`BUFFER_BYTES_MAX`] or earlier ones are being sent, or if the direction was shut down or failed.
    pub fn write(&self, mut bytes: Bytes) -> Result<(), SocketError> {
        if bytes.len() > BUFFER_BYTES_MAX || self.writable()? == 0 {
            return Err(SocketError::WouldBlock);
        }
        let mut state = lock(&self.state.writes.state);
        let WriteState::Idle(half) = &mut *state else { return Err(SocketError::WouldBlock) };
        // What the transport takes at once needs no task. A rest is the task's, which has a waker of its own.
        let mut cx = Context::from_waker(Waker::noop());
        while !bytes.is_empty() {
            match Pin::new(&mut *half).poll_write(&mut cx, &bytes) {
                Poll::Ready(Ok(0)) => {
                    *state = WriteState::Ended(Some(SocketError::ConnectionReset));
                    return Err(SocketError::ConnectionReset);
                }
                Poll::Ready(Ok(count)) => drop(bytes.split_to(count)),
                Poll::Ready(Err(error)) => {
                    let error = SocketError::of_io(&error);
                    *state = WriteState::Ended(Some(error));
                    return Err(error);
                }
                Poll::Pending => break,
            }
        }
        let is_flushed = bytes.is_empty() && matches!(Pin::new(half).poll_flush(&mut cx), Poll::Ready(Ok(())));
        if !is_flushed
            && let WriteState::Idle(half) = std::mem::replace(&mut *state, WriteState::Sending { shut: false })
        {
            drop(state);
            self.send(half, bytes);
        }
        Ok(())
    }

    /// Waits until all bytes are with the transport, or the direction has ended.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.writes.waker.register(cx.waker());
        match &*lock(&self.state.writes.state) {
            WriteState::Sending { .. } => Poll::Pending,
            WriteState::Idle(_) | WriteState::Ended(_) => Poll::Ready(()),
        }
    }

    /// Ends the write direction once all bytes are sent: the peer reads the end.
    pub fn shut_writes(&self) {
        let mut state = lock(&self.state.writes.state);
        match std::mem::replace(&mut *state, WriteState::Sending { shut: true }) {
            WriteState::Idle(half) => {
                drop(state);
                self.send(half, Bytes::new());
            }
            WriteState::Sending { .. } => {}
            WriteState::Ended(error) => *state = WriteState::Ended(error),
        }
    }

    /// Sends the rest of a write. The socket counts until this ends, at most [`LINGER_MAX`] after the guest has closed it.
    fn send(&self, half: WriteHalf<Stream>, bytes: Bytes) {
        let (writes, guard, env) = (self.state.writes.clone(), self.state.guard.clone(), self.state.env.clone());
        let open = Arc::downgrade(&self.state);
        // A small rest is a part of the socket's own bytes.
        let charged = self.state.buffers.hold(bytes.len());
        tokio::spawn(async move {
            let _held = (guard, charged);
            let mut sending = std::pin::pin!(send(writes, half, bytes));
            // While the guest has the connection open, a peer that doesn't read is the guest's to wait for.
            loop {
                if env.timeout(LINGER_MAX, sending.as_mut()).await.is_ok() || open.strong_count() == 0 {
                    return;
                }
            }
        });
    }
}

/// Writes the rest, and returns the half or shuts it down.
async fn send(writes: Arc<Writes>, mut half: WriteHalf<Stream>, bytes: Bytes) {
    let mut sent = async {
        half.write_all(&bytes).await?;
        half.flush().await
    }
    .await;
    drop(bytes);
    let shut = |state: &WriteState| matches!(state, WriteState::Sending { shut: true });
    let shuts = {
        let mut state = lock(&writes.state);
        if sent.is_ok() && !shut(&state) {
            *state = WriteState::Idle(half);
            None
        } else {
            Some(half)
        }
    };
    if let Some(mut half) = shuts {
        if sent.is_ok() {
            sent = half.shutdown().await;
        }
        let error = sent.err().map(|error| SocketError::of_io(&error));
        *lock(&writes.state) = WriteState::Ended(error);
    }
    writes.waker.wake();
}

/// Reads what has arrived, at most `max` bytes; with an error that came after them. The bytes go through the stack: a poll of an idle
/// connection allocates nothing.
fn poll_read_bytes(
    mut half: Pin<&mut ReadHalf<Stream>>,
    cx: &mut Context<'_>,
    max: usize,
) -> Poll<io::Result<(Bytes, Option<io::Error>)>> {
    let mut piece = [MaybeUninit::uninit(); READ_PIECE_BYTES];
    let mut into = ReadBuf::uninit(&mut piece[..max.min(READ_PIECE_BYTES)]);
    ready!(half.as_mut().poll_read(cx, &mut into))?;
    if into.remaining() > 0 || max <= READ_PIECE_BYTES {
        return Poll::Ready(Ok((Bytes::copy_from_slice(into.filled()), None)));
    }
    let mut bytes = BytesMut::with_capacity(max);
    bytes.extend_from_slice(into.filled());
    while bytes.len() < max {
        let mut into = ReadBuf::uninit(&mut piece[..(max - bytes.len()).min(READ_PIECE_BYTES)]);
        match half.as_mut().poll_read(cx, &mut into) {
            Poll::Ready(Ok(())) if !into.filled().is_empty() => bytes.extend_from_slice(into.filled()),
            Poll::Ready(Err(error)) => return Poll::Ready(Ok((bytes.freeze(), Some(error)))),
            // An end is the next read's as well.
            Poll::Ready(Ok(())) | Poll::Pending => break,
        }
    }
    Poll::Ready(Ok((bytes.freeze(), None)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
