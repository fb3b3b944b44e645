//! Carrying a session: bytes between a client's streams and a guest's pipes, a terminal between them where one was asked
//! for, and the end.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt as _;
use runtime_api::pipe::{PipeReader, PipeWriter, pipe};
use runtime_api::{LogSink, Session, StdStream, Stdio, StopSignal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::options::Options;
use super::terminal::{self, LineDiscipline, shown};
use super::wire::Streams;
use crate::server::output::Output;

/// What is sent to a client at once.
const PIECE_BYTES_MAX: usize = 32 << 10;
/// What the node itself has to say of a session: an error with its backtrace.
const LAST_LINES_BYTES_MAX: usize = 16 << 10;

/// Keeps the node's own lines for the session's end: a client may be slow, and whoever logs does not wait.
#[derive(Default)]
pub(super) struct LastLines(Mutex<Vec<u8>>);

impl LogSink for LastLines {
    fn write(&self, _: StdStream, bytes: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = LAST_LINES_BYTES_MAX - lines.len();
        lines.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl LastLines {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// This side's ends of a guest's pipes.
pub(super) struct Ends {
    stdin: Option<PipeWriter>,
    stdout: Option<PipeReader>,
    stderr: Option<PipeReader>,
}

/// Pipes for what a client has asked for: the guest's ends, and this side's. A terminal's outputs are one.
pub(super) fn pipes(options: &Options) -> (Stdio, Ends) {
    let when = |is_asked: bool| if is_asked { Some(pipe()).unzip() } else { (None, None) };
    let ((to, stdin), (stdout, out), (mut stderr, err)) =
        (when(options.stdin), when(options.stdout), when(options.stderr));
    if options.tty {
        stderr.clone_from(&stdout);
    }
    (Stdio { stdin, stdout, stderr, terminal: options.tty }, Ends { stdin: to, stdout: out, stderr: err })
}

/// A session that was let in.
pub(super) struct Begun {
    pub(super) session: Box<dyn Session>,
    pub(super) ends: Ends,
    pub(super) log: Arc<LastLines>,
    /// Where a terminal was asked for.
    pub(super) terminal: Option<LineDiscipline>,
    /// The container is no more.
    pub(super) gone: CancellationToken,
}

/// Carries a session to its end, and tells the client of it.
pub(super) async fn carry(begun: Begun, streams: Streams) {
    let Begun { session, ends, log, terminal, gone } = begun;
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
        let output = forward(ends.stdout, stdout.as_ref(), is_terminal);
        let error_output = forward(ends.stderr, stderr.as_ref(), false);
        let input = async {
            if let (Some(from), Some(to)) = (stdin, ends.stdin) {
                match terminal {
                    Some(line) => type_in(from, to, stdout.as_ref(), line, interrupt).await,
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
        let last_lines = if is_terminal { shown(&last_lines) } else { last_lines };
        let _ = output.send(last_lines.into()).await;
    }
    tell(Streams { stdin: None, stdout, stderr, errors, form }, outcome.exit_code).await;
}

/// The end of a session that never began: why, and the exit code that says so.
pub(super) async fn refuse(streams: Streams, words: String, code: i32) {
    if let Some(output) = streams.stderr.as_ref().or(streams.stdout.as_ref()) {
        let _ = output.send(words.into()).await;
    }
    tell(streams, code).await;
}

pub(super) async fn tell(streams: Streams, code: i32) {
    let told = async {
        if let Some(status) = streams.form.tell(code) {
            streams.errors.send(status).await?;
        }
        streams.finish().await
    };
    // Where the client is gone there is nobody to tell.
    let _ = told.await;
}

/// From a guest to the client, to the guest's end.
pub(super) async fn forward(from: Option<PipeReader>, to: Option<&Output>, is_terminal: bool) {
    let (Some(from), Some(to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        let bytes = if is_terminal { shown(&bytes).into() } else { bytes };
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

/// From the client to a guest, until one of them ends.
pub(super) async fn feed(mut from: mpsc::Receiver<Bytes>, to: PipeWriter) {
    while let Some(bytes) = from.recv().await {
        if to.send(bytes).await.is_err() {
            return;
        }
    }
}

/// The same through a terminal.
pub(super) async fn type_in(
    mut from: mpsc::Receiver<Bytes>,
    to: PipeWriter,
    echo: Option<&Output>,
    mut line: LineDiscipline,
    interrupt: oneshot::Sender<StopSignal>,
) {
    // Bytes for the guest since the last ^C that it was told of, itself counted.
    let mut since: Option<usize> = None;
    while let Some(bytes) = from.recv().await {
        let typed = line.take(&bytes);
        if let Some(echo) = echo
            && send(echo, typed.echo.into()).await.is_err()
        {
            return;
        }
        // A guest that takes ^C itself and has not read the one before does not look.
        let interrupt_at = typed.input.iter().rposition(|byte| *byte == terminal::INTERRUPT);
        let unheard = interrupt_at.is_some() && since.is_some_and(|since| to.unread() >= since);
        since = match interrupt_at {
            Some(at) => Some(typed.input.len() - at),
            None => since.map(|since| since + typed.input.len()),
        };
        if !unheard && !typed.input.is_empty() && to.send(typed.input.into()).await.is_err() {
            return;
        }
        if typed.interrupted || unheard {
            let _ = interrupt.send(StopSignal::Interrupt);
            // Its pipe stays open meanwhile: the end of its input would be another reason to end.
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

    /// A line that waits behind a ^C that was read is no sign of a guest that doesn't look.
    #[tokio::test]
    async fn only_a_guest_that_left_a_ctrl_c_unread_is_interrupted() {
        let (keys, from) = mpsc::channel(1);
        let (to, guest) = pipe();
        let (interrupt, mut interrupted) = oneshot::channel();
        let terminal = tokio::spawn(type_in(from, to, None, LineDiscipline::new(true), interrupt));
        for (typed, reads) in [("\x03", true), ("loop\r", false), ("\x03", false), ("more\r", false)] {
            keys.send(typed.into()).await.unwrap();
            if reads {
                assert_eq!(guest.recv().await.unwrap(), typed);
            }
        }
        // The channel takes one: the ones before were looked at when the second next is in.
        keys.send("\r".into()).await.unwrap();
        keys.send("\r".into()).await.unwrap();
        assert!(interrupted.try_recv().is_err());
        keys.send("\x03".into()).await.unwrap();
        assert!(matches!(interrupted.await, Ok(StopSignal::Interrupt)));
        terminal.abort();
    }
}
