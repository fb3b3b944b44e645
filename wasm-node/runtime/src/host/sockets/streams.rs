//! A connection as `wasi:io` streams.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use guest_sockets::SocketError;
use guest_sockets::limits::BUFFER_BYTES_MAX;
use guest_sockets::tcp::Connection;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::codes::stream_error;
use super::no_waker;

/// The read direction.
pub(super) struct Reader {
    connection: Connection,
    /// What a `pollable` has read while it waited.
    ready: Option<Result<Bytes, SocketError>>,
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, ready: None }
    }
}

#[async_trait::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        if self.ready.is_none() {
            self.ready = Some(poll_fn(|cx| self.connection.poll_read(cx, BUFFER_BYTES_MAX)).await);
        }
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let read = match self.ready.take() {
            Some(Ok(mut bytes)) if bytes.len() > size => {
                let first = bytes.split_to(size);
                self.ready = Some(Ok(bytes));
                Ok(first)
            }
            Some(read) => read,
            None => match self.connection.poll_read(&mut no_waker(), size) {
                Poll::Pending => return Ok(Bytes::new()),
                Poll::Ready(read) => read,
            },
        };
        match read {
            Ok(bytes) if bytes.is_empty() => Err(StreamError::Closed),
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(stream_error(error)),
        }
    }
}

/// The write direction.
pub(super) struct Writer(pub(super) Connection);

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        poll_fn(|cx| self.0.poll_writable(cx)).await;
    }
}

impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return self.check_write().map(drop);
        }
        match self.0.write(bytes) {
            Err(SocketError::WouldBlock) => Err(StreamError::trap("a write beyond what check-write permitted")),
            written => written.map_err(stream_error),
        }
    }

    /// Nothing is held back: [`OutputStream::check_write`] permits no write until all bytes are sent.
    fn flush(&mut self) -> StreamResult<()> {
        self.0.writable().map(drop).map_err(stream_error)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.0.writable().map_err(stream_error)
    }
}
