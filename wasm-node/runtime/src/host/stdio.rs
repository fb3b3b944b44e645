//! `wasi:cli/stdin`, `stdout`, `stderr` and the terminal interfaces: an empty input and outputs into the container's
//! log, or a session's pipes. A guest blocks on a full pipe, but never on a log.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime::component::Linker;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream, WasiCli, WasiCliView};
use wasmtime_wasi::p2::bindings::cli;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::guest::{Guest, Outputs};
use super::state::ComponentState;
use runtime_api::pipe::{PipeError, PipeReader, PipeWriter};
use runtime_api::{LogSink, StdStream};

/// Maximum bytes per write: a log stores longer lines in pieces.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// A guest's stdin.
#[derive(Clone)]
pub(crate) struct Input {
    from: Option<PipeReader>,
    is_terminal: bool,
}

impl Input {
    pub(crate) fn of(guest: &Guest) -> Self {
        Self { from: guest.stdin.clone(), is_terminal: guest.terminal && guest.stdin.is_some() }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(AsyncInput { from: self.from.clone(), waiting: Wait::default() })
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

/// A wait for a pipe, while there is one. The lock makes it `Sync`; nothing else takes it.
#[derive(Default)]
struct Wait(Mutex<Option<BoxFuture<'static, ()>>>);

impl Wait {
    /// Polls the wait; begins it with `ready` if there is none.
    fn poll(&mut self, cx: &mut Context<'_>, ready: impl FnOnce() -> BoxFuture<'static, ()>) -> Poll<()> {
        let waiting = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::task::ready!(waiting.get_or_insert_with(ready).as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(())
    }
}

/// The same input as a stream of WASI 0.3.
struct AsyncInput {
    from: Option<PipeReader>,
    waiting: Wait,
}

impl AsyncRead for AsyncInput {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(from) = &this.from else { return Poll::Ready(Ok(())) };
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match from.take(into.remaining()) {
                None => return Poll::Ready(Ok(())),
                Some(bytes) if !bytes.is_empty() => {
                    into.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                Some(_) => {
                    let from = from.clone();
                    let readable = move || async move { from.readable().await }.boxed();
                    std::task::ready!(this.waiting.poll(cx, readable));
                }
            }
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        if let Some(from) = &self.from {
            from.readable().await;
        }
    }
}

#[async_trait::async_trait]
impl InputStream for Input {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.from.as_ref().and_then(|from| from.take(size)).ok_or(StreamError::Closed)
    }
}

#[derive(Clone)]
enum OutputTarget {
    Log(Arc<dyn LogSink>, StdStream),
    Pipe(PipeWriter),
    Nowhere,
}

/// One of a guest's outputs.
#[derive(Clone)]
pub(crate) struct Output {
    to: OutputTarget,
    is_terminal: bool,
}

impl Output {
    pub(crate) fn of(guest: &Guest, stream: StdStream) -> Self {
        let Some(Outputs(stdout, stderr)) = &guest.outputs else {
            return Self { to: OutputTarget::Log(guest.log.clone(), stream), is_terminal: guest.terminal };
        };
        let pipe = match stream {
            StdStream::Stdout => stdout,
            StdStream::Stderr => stderr,
        };
        Self {
            to: pipe.clone().map_or(OutputTarget::Nowhere, OutputTarget::Pipe),
            is_terminal: guest.terminal && pipe.is_some(),
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        self.is_terminal
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(AsyncOutput { to: self.to.clone(), waiting: Wait::default() })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// The same output as a stream of WASI 0.3.
struct AsyncOutput {
    to: OutputTarget,
    waiting: Wait,
}

impl AsyncWrite for AsyncOutput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let taken = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        match &this.to {
            OutputTarget::Log(log, stream) => log.write(*stream, taken),
            OutputTarget::Pipe(pipe) => loop {
                match pipe.has_capacity() {
                    Ok(true) => {
                        pipe.write(Bytes::copy_from_slice(taken)).map_err(|_| io::ErrorKind::BrokenPipe)?;
                        break;
                    }
                    Ok(false) => {
                        let pipe = pipe.clone();
                        let writable = move || async move { pipe.writable().await }.boxed();
                        std::task::ready!(this.waiting.poll(cx, writable));
                    }
                    Err(_) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                }
            },
            OutputTarget::Nowhere => {}
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        if let OutputTarget::Pipe(pipe) = &self.to {
            pipe.writable().await;
        }
    }
}

#[async_trait::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        match &self.to {
            OutputTarget::Log(log, stream) => {
                for piece in bytes.chunks(WRITE_BYTES_MAX) {
                    log.write(*stream, piece);
                }
                Ok(())
            }
            OutputTarget::Pipe(pipe) => pipe.write(bytes).map_err(|error| match error {
                PipeError::Closed => StreamError::Closed,
                PipeError::Full => StreamError::trap("more was written than `check-write` allows"),
            }),
            OutputTarget::Nowhere => Ok(()),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match &self.to {
            OutputTarget::Pipe(pipe) => {
                let has_capacity = pipe.has_capacity().map_err(|_| StreamError::Closed)?;
                Ok(if has_capacity { WRITE_BYTES_MAX } else { 0 })
            }
            OutputTarget::Log(..) | OutputTarget::Nowhere => Ok(WRITE_BYTES_MAX),
        }
    }
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let view = ComponentState::cli;
    cli::stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::stderr::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, view)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, view)
}
