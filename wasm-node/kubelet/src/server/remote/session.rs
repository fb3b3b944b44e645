//! Runs a session: copies bytes between a client's streams and a guest's pipes, through a terminal if requested, and
//! reports the end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use runtime_api::pipe::{PipeReader, PipeWriter, pipe};
use runtime_api::{LogSink, Session, StdStream, Stdio, StopSignal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::options::Options;
use super::terminal::{self, LineDiscipline, terminal_output};
use super::wire::Streams;
use crate::server::output::Output;

/// Maximum bytes sent to a client at once.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// Maximum bytes of the node's own messages in a session: an error with its backtrace.
const LAST_LINES_BYTES_MAX: usize = 16 << 10;

/// Buffers the node's own lines until the session's end: a client may be slow, and a log sink must not block.
#[derive(Default)]
pub(super) struct LastLines(Mutex<Vec<u8>>);

impl LogSink for LastLines {
    fn write(&self, _: StdStream, bytes: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = LAST_LINES_BYTES_MAX - lines.len();
        lines.extend_from_slice(&bytes[..bytes.len().min(free)]);
    }
}

impl LastLines {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// This side's ends of a guest's pipes.
pub(super) struct HostPipes {
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// Creates the pipes of a session: the guest's ends, and this side's. A terminal has one output pipe.
pub(super) fn pipes(options: &Options) -> (Stdio, HostPipes) {
    let when = |is_requested: bool| if is_requested { Some(pipe()).unzip() } else { (None, None) };
    let ((to, stdin), (stdout, out), (mut stderr, err)) =
        (when(options.stdin), when(options.stdout), when(options.stderr));
    if options.tty {
        stderr.clone_from(&stdout);
    }
    (Stdio { stdin, stdout, stderr, terminal: options.tty }, HostPipes { stdin: to, stdout: out, stderr: err })
}

/// A session that was started.
pub(super) struct StartedSession {
    pub(super) session: Box<dyn Session>,
    pub(super) host_pipes: HostPipes,
    pub(super) log: Arc<LastLines>,
    /// The terminal, if requested.
    pub(super) terminal: Option<LineDiscipline>,
    /// Cancelled when the container is removed.
    pub(super) gone: CancellationToken,
}

/// Runs a session to its end, and reports it to the client.
pub(super) async fn run_session(started: StartedSession, streams: Streams) {
    let StartedSession { session, host_pipes, log, terminal, gone } = started;
    let is_terminal = terminal.is_some();
    let (interrupt, interrupted) = oneshot::channel();
    let stop = async move {
        tokio::select! {
            () = gone.cancelled() => StopSignal::Kill,
            Ok(signal) = interrupted => signal,
        }
    };
    let Streams { stdin, stdout, stderr, errors, form } = streams;
    let outcome = {
        let output = forward(host_pipes.stdout, stdout.as_ref(), is_terminal);
        let error_output = forward(host_pipes.stderr, stderr.as_ref(), false);
        let input = async {
            if let (Some(from), Some(to)) = (stdin, host_pipes.stdin) {
                match terminal {
                    Some(line) => feed_terminal(from, to, stdout.as_ref(), line, interrupt).await,
                    None => feed(from, to).await,
                }
            }
            std::future::pending::<()>().await;
        };
        let ran = futures::future::join3(session.run(stop.boxed()), output, error_output);
        tokio::select! {
            (outcome, ..) = ran => outcome,
            () = input => return,
        }
    };
    let last_lines = log.take();
    if !last_lines.is_empty()
        && let Some(output) = stderr.as_ref().or(stdout.as_ref())
    {
        let last_lines = if is_terminal { terminal_output(&last_lines) } else { last_lines };
        let _ = output.send(last_lines.into()).await;
    }
    send_status(Streams { stdin: None, stdout, stderr, errors, form }, outcome.exit_code).await;
}

/// Ends a session that failed to start: sends the error and its exit code.
pub(super) async fn fail(streams: Streams, message: String, code: i32) {
    if let Some(output) = streams.stderr.as_ref().or(streams.stdout.as_ref()) {
        let _ = output.send(message.into()).await;
    }
    send_status(streams, code).await;
}

pub(super) async fn send_status(streams: Streams, code: i32) {
    let sent = async {
        if let Some(status) = streams.form.message(code) {
            streams.errors.send(status).await?;
        }
        streams.finish().await
    };
    // Without a client the status has no reader.
    let _ = sent.await;
}

/// Copies a guest's output to the client until the guest's end.
pub(super) async fn forward(from: Option<PipeReader>, to: Option<&Output>, is_terminal: bool) {
    let (Some(from), Some(to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        let bytes = if is_terminal { terminal_output(&bytes).into() } else { bytes };
        if send(to, bytes).await.is_err() {
            return;
        }
    }
}

async fn send(to: &Output, mut bytes: Bytes) -> io::Result<()> {
    while !bytes.is_empty() {
        to.send(bytes.split_to(bytes.len().min(PIECE_BYTES_MAX))).await?;
    }
    Ok(())
}

/// Copies the client's input to a guest until either end closes.
pub(super) async fn feed(mut from: mpsc::Receiver<Bytes>, to: PipeWriter) {
    while let Some(bytes) = from.recv().await {
        if to.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Like [`feed`], through a terminal.
pub(super) async fn feed_terminal(
    mut from: mpsc::Receiver<Bytes>,
    to: PipeWriter,
    echo: Option<&Output>,
    mut line: LineDiscipline,
    interrupt: oneshot::Sender<StopSignal>,
) {
    // Bytes for the guest from its last ^C on, including that.
    let mut since: Option<usize> = None;
    while let Some(bytes) = from.recv().await {
        let typed = line.take(&bytes);
        if let Some(echo) = echo
            && send(echo, typed.echo.into()).await.is_err()
        {
            return;
        }
        // A guest that handles ^C itself, but has not read the previous one, is stuck.
        let interrupt_at = typed.input.iter().rposition(|byte| *byte == terminal::INTERRUPT);
        let is_stuck = interrupt_at.is_some() && since.is_some_and(|since| to.unread() >= since);
        since = match interrupt_at {
            Some(at) => Some(typed.input.len() - at),
            None => since.map(|since| since + typed.input.len()),
        };
        if !is_stuck && !typed.input.is_empty() && to.send(typed.input.into()).await.is_err() {
            return;
        }
        if typed.interrupted || is_stuck {
            let _ = interrupt.send(StopSignal::Interrupt);
            // The pipe stays open meanwhile: end of input would be another reason for the guest to exit.
            return std::future::pending().await;
        }
        if typed.ended {
            return;
        }
    }
    let rest = line.finish();
    if !rest.is_empty() {
        let _ = to.send(rest.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line that waits behind a ^C that was read doesn't show that the guest is stuck.
    #[tokio::test]
    async fn only_a_guest_that_left_a_ctrl_c_unread_is_interrupted() {
        let (keys, from) = mpsc::channel(1);
        let (to, guest) = pipe();
        let (interrupt, mut interrupted) = oneshot::channel();
        let terminal = tokio::spawn(feed_terminal(from, to, None, LineDiscipline::new(true), interrupt));
        for (typed, reads) in [("\x03", true), ("loop\r", false), ("\x03", false), ("more\r", false)] {
            keys.send(typed.into()).await.unwrap();
            if reads {
                assert_eq!(guest.recv().await.unwrap(), typed);
            }
        }
        // The channel holds one message: the earlier ones are processed when the second next is in.
        keys.send("\r".into()).await.unwrap();
        keys.send("\r".into()).await.unwrap();
        assert!(interrupted.try_recv().is_err());
        keys.send("\x03".into()).await.unwrap();
        assert!(matches!(interrupted.await, Ok(StopSignal::Interrupt)));
        terminal.abort();
    }
}
