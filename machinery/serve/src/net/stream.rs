//! Byte streams and datagrams between two ends of the pod network, over sockets, in-process pipes or tunnels.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::duplex::{BufferAccount, PipeEnd, duplex};
use crate::hooked::{Hook, Hooked};

/// Buffers of at most this total size are joined for a socket: copying costs less than a vectored write.
const JOINED_BYTES_MAX: usize = 1 << 10;
/// Queued datagrams of each direction; further ones are dropped, as by a full socket.
pub const DATAGRAMS_WAITING_MAX: usize = 64;

/// Any other bidirectional stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A stream of bytes in both directions.
pub enum Stream {
    /// A socket; two of them can be joined by the kernel.
    Tcp(TcpStream),
    /// A pipe to a pod of this process.
    Pipe(PipeEnd),
    /// Any other transport: TLS, a tunnel to another node.
    Tunnel(Box<dyn Io>),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Pipe(_) => "Pipe",
            Self::Tunnel(_) => "Tunnel",
        })
    }
}

impl Stream {
    /// The two ends of a pipe.
    #[must_use]
    pub fn pipe() -> (Self, Self) {
        let (a, b) = duplex();
        (Self::Pipe(a), Self::Pipe(b))
    }

    /// The same stream, which owns `held` until it is dropped.
    #[must_use]
    pub fn holding(self, held: impl Send + Unpin + 'static) -> Self {
        match self {
            Self::Pipe(end) => Self::Pipe(end.holding(held)),
            other => Self::Tunnel(Box::new(Hooked::new(other, DropWithStream(held)))),
        }
    }

    /// Charges what is written and waits to be read to an account, as far as that is in this process: in a pipe.
    pub fn charge_writes(&mut self, account: Arc<dyn BufferAccount>) {
        if let Self::Pipe(end) = self {
            end.charge_writes(account);
        }
    }

    fn io(&mut self) -> Pin<&mut dyn Io> {
        match self {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Pipe(stream) => Pin::new(stream),
            Self::Tunnel(stream) => Pin::new(stream),
        }
    }
}

/// Keeps a value until its stream is dropped.
struct DropWithStream<T>(T);

impl<T: Unpin> Hook<Stream> for DropWithStream<T> {
    fn on_end(&mut self, _: &Stream) {
        let Self(_held) = self;
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        if matches!(*self, Self::Tcp(_)) && bytes <= JOINED_BYTES_MAX {
            let mut joined = [0; JOINED_BYTES_MAX];
            let mut at = 0;
            for piece in pieces {
                joined[at..at + piece.len()].copy_from_slice(piece);
                at += piece.len();
            }
            return self.io().poll_write(cx, &joined[..at]);
        }
        self.io().poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Pipe(stream) => stream.is_write_vectored(),
            Self::Tunnel(stream) => stream.is_write_vectored(),
        }
    }
}

/// One caller's datagrams in both directions, both bounded. Dropping it closes both.
#[derive(Debug)]
pub struct DatagramPipe {
    /// To the other end. A datagram that doesn't fit is dropped (`try_send`).
    pub send: mpsc::Sender<Bytes>,
    /// From the other end.
    pub receive: mpsc::Receiver<Bytes>,
}

impl DatagramPipe {
    /// The two ends.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (to_b, from_a) = mpsc::channel(DATAGRAMS_WAITING_MAX);
        let (to_a, from_b) = mpsc::channel(DATAGRAMS_WAITING_MAX);
        (Self { send: to_b, receive: from_b }, Self { send: to_a, receive: from_a })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn small_pieces_are_joined_and_large_ones_sent_unchanged() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, mut client) = (Stream::Tcp(listener.accept().await.unwrap().0), client);
        for size in [1, JOINED_BYTES_MAX / 2, JOINED_BYTES_MAX, 3 * JOINED_BYTES_MAX] {
            let pieces = [vec![1; size], Vec::new(), vec![2; size]];
            let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
            assert_eq!(stream.write_vectored(&slices).await.unwrap(), 2 * size);
            let mut seen = vec![0; 2 * size];
            client.read_exact(&mut seen).await.unwrap();
            assert_eq!(seen, pieces.concat());
        }
    }
}
