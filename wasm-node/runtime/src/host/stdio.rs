//! `wasi:cli/stdin`, `stdout`, `stderr` and the terminal interfaces: an empty input and outputs into the container's
//! log, or a session's pipes. A guest blocks on a full pipe, but never on a log.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
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
        // Used by WASI 0.3 only, which this node doesn't run.
        Box::new(NoInput)
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

struct NoInput;

impl AsyncRead for NoInput {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
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
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        if let OutputTarget::Log(log, stream) = &self.to {
            log.write(*stream, taken);
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
