//! The streams of a session, over either wire: SPDY streams named by a header, or numbered channels of a WebSocket.

use std::io;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use machinery_streaming::spdy::{self, Headers, SpdyStream};
use machinery_streaming::websocket::{self, Channels};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::options::Options;
use super::status::StatusForm;
use crate::server::output::Output;
use crate::server::upgrade::{self, Upgrade};

/// A client has this long to open its streams (upstream's `DefaultStreamCreationTimeout`).
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// When all has been said, a client has this long to take the connection's end.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that wait to be taken.
const OPENED_WAITING_MAX: usize = 8;
/// Pieces of input that wait for the guest.
const PIECES_WAITING_MAX: usize = 2;

/// WebSocket's subprotocols: v5 knows the end of a stream.
const CHANNELS_V5: &str = "v5.channel.k8s.io";
const CHANNELS_V4: &str = "v4.channel.k8s.io";
/// Before v4 a session's end is words, and nothing where all went well; a client that names no protocol means this one.
const CHANNELS_V1: &str = "channel.k8s.io";
const UNNAMED: &str = "";
/// Which of v5's channels says that another one ends.
const CLOSE: u8 = 255;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;

/// How the streams come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Spdy,
    Channels { ends: bool, form: StatusForm },
}

/// What both sides speak, and the headers that say so.
pub(super) fn choose(headers: &HeaderMap) -> Result<(HeaderMap, Wire), Box<Response>> {
    let by_websocket = [CHANNELS_V5, CHANNELS_V4, CHANNELS_V1, UNNAMED];
    let (answer, upgrade) = upgrade::negotiate(headers, &by_websocket, &[CHANNELS_V4])?;
    let wire = match upgrade {
        Upgrade::Spdy(_) => Wire::Spdy,
        Upgrade::WebSocket(protocol) => Wire::Channels {
            ends: protocol == CHANNELS_V5,
            form: if matches!(protocol, CHANNELS_V1 | UNNAMED) { StatusForm::Words } else { StatusForm::Object },
        },
    };
    Ok((answer, wire))
}

/// The streams that a client has asked for.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) errors: Output,
    /// How they are told of the end.
    pub(super) form: StatusForm,
}

impl Streams {
    /// Ends all that goes to the client.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        for output in [self.stdout.as_mut(), self.stderr.as_mut(), Some(&mut self.errors)].into_iter().flatten() {
            output.finish().await?;
        }
        match &self.errors {
            Output::Spdy(errors) => errors.drained().await,
            Output::Channel(..) => Ok(()),
        }
    }
}

/// Has `serve` serve the streams; both end with the client, or when nothing has moved for `idle`.
pub(super) async fn run<F: Future<Output = ()>>(
    io: TokioIo<Upgraded>,
    (wire, idle): (Wire, Duration),
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    match wire {
        Wire::Spdy => by_spdy(io, idle, options, serve).await,
        Wire::Channels { ends, form } => by_channels(io, (ends, form, idle), options, serve).await,
    }
}

fn kind(headers: &Headers) -> Option<&str> {
    headers.get("streamtype").filter(|kind| matches!(*kind, "error" | "stdin" | "stdout" | "stderr" | "resize"))
}

/// Streams as they are opened.
#[derive(Default)]
struct Opened {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    errors: Option<Output>,
    /// Ways to the client that nothing goes: a stream whose half is dropped would be reset.
    silent: Vec<Output>,
}

impl Opened {
    fn take(&mut self, stream: SpdyStream, options: &Options) {
        let outgoing = Output::Spdy(stream.outgoing);
        match kind(&stream.headers) {
            Some("stdin") => {
                if options.stdin && self.stdin.is_none() {
                    self.stdin = Some(stream.incoming);
                }
                self.silent.push(outgoing);
            }
            Some("stdout") if options.stdout && self.stdout.is_none() => self.stdout = Some(outgoing),
            Some("stderr") if options.stderr && self.stderr.is_none() => self.stderr = Some(outgoing),
            Some("error") if self.errors.is_none() => self.errors = Some(outgoing),
            // A terminal's sizes, which no guest can ask for yet: read no more, as its incoming half is dropped here.
            _ => self.silent.push(outgoing),
        }
    }

    /// Whether all that `options` name are there.
    fn streams(&mut self, options: &Options) -> Option<Streams> {
        let here = self.stdin.is_some() == options.stdin
            && self.stdout.is_some() == options.stdout
            && self.stderr.is_some() == options.stderr;
        let errors = if here { self.errors.take()? } else { return None };
        Some(Streams {
            stdin: self.stdin.take(),
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
            errors,
            form: StatusForm::Object,
        })
    }
}

async fn by_spdy<F: Future<Output = ()>>(
    io: impl AsyncRead + AsyncWrite,
    idle: Duration,
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    let (opening, mut opened) = mpsc::channel(OPENED_WAITING_MAX);
    let session = spdy::serve(io, idle, |headers| kind(headers).is_some(), opening);
    let work = async {
        let mut all = Opened::default();
        let deadline = tokio::time::Instant::now() + CREATION_TIMEOUT;
        let streams = loop {
            if let Some(streams) = all.streams(options) {
                break streams;
            }
            let next = tokio::time::timeout_at(deadline, opened.recv()).await;
            let Ok(Some(stream)) = next else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for client to create streams"));
            };
            all.take(stream, options);
        };
        let serving = serve(streams);
        tokio::pin!(serving);
        loop {
            tokio::select! {
                () = &mut serving => break,
                Some(stream) = opened.recv() => all.silent.push(Output::Spdy(stream.outgoing)),
            }
        }
        for silent in &mut all.silent {
            silent.finish().await?;
        }
        Ok(())
    };
    tokio::pin!(session);
    tokio::select! {
        done = &mut session => return done,
        done = work => done?,
    }
    tokio::time::timeout(LAST_WORDS_TIMEOUT, session).await.unwrap_or(Ok(()))
}

async fn by_channels<F: Future<Output = ()>>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    (ends, form, idle): (bool, StatusForm, Duration),
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    let (Channels { mut incoming, outgoing }, session) = websocket::channels(io, idle);
    let (to_stdin, stdin) = mpsc::channel(PIECES_WAITING_MAX);
    let output = |channel| Output::Channel(channel, outgoing.clone());
    let streams = Streams {
        stdin: options.stdin.then_some(stdin),
        stdout: options.stdout.then(|| output(STDOUT)),
        stderr: options.stderr.then(|| output(STDERR)),
        errors: output(ERROR),
        form,
    };
    if !ends {
        // Upstream says so to clients of the older protocol: the session is there.
        let first = [(options.stdout, STDOUT), (options.stderr, STDERR), (true, ERROR)];
        let first = first.iter().find(|(is_asked, _)| *is_asked).map_or(ERROR, |(_, channel)| *channel);
        let _ = outgoing.send((first, Bytes::new())).await;
    }
    drop(outgoing);
    let receives = async move {
        let mut to_stdin = options.stdin.then_some(to_stdin);
        // A terminal's sizes come too, and no guest can ask for them yet.
        while let Some((channel, bytes)) = incoming.recv().await {
            match channel {
                STDIN if !bytes.is_empty() => {
                    if let Some(to) = &to_stdin {
                        // Where the guest reads no more, its input goes nowhere.
                        let _ = to.send(bytes).await;
                    }
                }
                CLOSE if ends && *bytes == [STDIN] => to_stdin = None,
                _ => {}
            }
        }
        std::future::pending().await
    };
    tokio::pin!(session);
    tokio::select! {
        done = &mut session => return done,
        () = receives => {}
        () = serve(streams) => {}
    }
    // What was said last is still on its way, to a client that may be slow.
    tokio::time::timeout(idle, session).await.unwrap_or(Ok(()))
}
