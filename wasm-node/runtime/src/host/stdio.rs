//! `wasi:cli/stdin`, `stdout`, `stderr` and the terminal interfaces: an empty input, and output into the container's
//! log. Never a terminal.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::Linker;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream, WasiCli, WasiCliView};
use wasmtime_wasi::p2::bindings::cli;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::state::ComponentState;
use runtime_api::{LogSink, StdStream};

/// What a guest may write at once: a log keeps whole lines longer than this in pieces.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// One of a guest's outputs.
#[derive(Clone)]
pub(crate) struct Output {
    log: Arc<dyn LogSink>,
    stream: StdStream,
}

impl Output {
    pub(crate) fn new(log: Arc<dyn LogSink>, stream: StdStream) -> Self {
        Self { log, stream }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
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
        self.log.write(self.stream, taken);
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
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        for piece in bytes.chunks(WRITE_BYTES_MAX) {
            self.log.write(self.stream, piece);
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
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
