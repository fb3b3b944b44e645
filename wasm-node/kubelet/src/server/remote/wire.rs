//! The streams of a session, over either transport: SPDY streams named by a header, or numbered channels of a
//! WebSocket.

use std::io;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use machinery_env::Env;
use machinery_streaming::spdy::{self, Headers, SpdyStream};
use machinery_streaming::websocket::{self, Channels};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::options::Options;
use super::status::StatusForm;
use crate::server::output::Output;
use crate::server::upgrade::{self, Upgrade};

/// Maximum time for a client to open its streams (upstream's `DefaultStreamCreationTimeout`).
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time for the client to read the connection's end after the session's end.
const FINAL_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum opened streams that wait to be accepted.
const OPENED_QUEUED_MAX: usize = 8;
/// Maximum queued chunks of input for the guest.
const CHUNKS_QUEUED_MAX: usize = 2;

/// WebSocket's subprotocols: v5 can end a single stream.
const CHANNELS_V5: &str = "v5.channel.k8s.io";
const CHANNELS_V4: &str = "v4.channel.k8s.io";
/// Before v4 a session's end is a message, empty for success. A client without a protocol gets this one.
const CHANNELS_V1: &str = "channel.k8s.io";
const UNNAMED: &str = "";
/// The v5 channel that announces the end of another one.
const CLOSE: u8 = 255;
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;

/// The transport of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Spdy,
    Channels { ends: bool, form: StatusForm },
}

/// Negotiates the protocol; returns it with the response's headers.
pub(super) fn choose(headers: &HeaderMap) -> Result<(HeaderMap, Wire), Box<Response>> {
    let by_websocket = [CHANNELS_V5, CHANNELS_V4, CHANNELS_V1, UNNAMED];
    let (answer, upgrade) = upgrade::negotiate(headers, &by_websocket, &[CHANNELS_V4])?;
    let wire = match upgrade {
        Upgrade::Spdy(_) => Wire::Spdy,
        Upgrade::WebSocket(protocol) => Wire::Channels {
            ends: protocol == CHANNELS_V5,
            form: if matches!(protocol, CHANNELS_V1 | UNNAMED) { StatusForm::Message } else { StatusForm::Object },
        },
    };
    Ok((answer, wire))
}

/// The streams that a client has requested.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) errors: Output,
    /// The form of the final status.
    pub(super) form: StatusForm,
}

impl Streams {
    /// Ends all streams to the client.
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

/// Runs `serve` with the streams; both end with the client, or after `idle` without any traffic.
pub(super) async fn run<F: Future<Output = ()>>(
    io: TokioIo<Upgraded>,
    env: &Env,
    (wire, idle): (Wire, Duration),
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    match wire {
        Wire::Spdy => run_spdy(io, env, idle, options, serve).await,
        Wire::Channels { ends, form } => run_channels(io, env, (ends, form, idle), options, serve).await,
    }
}

fn kind(headers: &Headers) -> Option<&str> {
    headers.get("streamtype").filter(|kind| matches!(*kind, "error" | "stdin" | "stdout" | "stderr" | "resize"))
}

/// The streams opened so far.
#[derive(Default)]
struct OpenStreams {
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    errors: Option<Output>,
    /// Unused outgoing halves: dropping one would reset its stream.
    unused: Vec<Output>,
}

impl OpenStreams {
    fn add(&mut self, stream: SpdyStream, options: &Options) {
        let outgoing = Output::Spdy(stream.outgoing);
        match kind(&stream.headers) {
            Some("stdin") => {
                if options.stdin && self.stdin.is_none() {
                    self.stdin = Some(stream.incoming);
                }
                self.unused.push(outgoing);
            }
            Some("stdout") if options.stdout && self.stdout.is_none() => self.stdout = Some(outgoing),
            Some("stderr") if options.stderr && self.stderr.is_none() => self.stderr = Some(outgoing),
            Some("error") if self.errors.is_none() => self.errors = Some(outgoing),
            // Terminal sizes, which no guest can query yet: dropping the incoming half discards them.
            _ => self.unused.push(outgoing),
        }
    }

    /// Returns the streams once all that `options` name are open.
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

async fn run_spdy<F: Future<Output = ()>>(
    io: impl AsyncRead + AsyncWrite,
    env: &Env,
    idle: Duration,
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    let (opening, mut opened) = mpsc::channel(OPENED_QUEUED_MAX);
    let session = spdy::serve(io, idle, env, |headers| kind(headers).is_some(), opening);
    let work = async {
        let mut all = OpenStreams::default();
        let deadline = env.deadline(CREATION_TIMEOUT);
        let streams = loop {
            if let Some(streams) = all.streams(options) {
                break streams;
            }
            let next = env.timeout_at(deadline, opened.recv()).await;
            let Ok(Some(stream)) = next else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "timed out waiting for client to create streams"));
            };
            all.add(stream, options);
        };
        let serving = serve(streams);
        tokio::pin!(serving);
        loop {
            tokio::select! {
                () = &mut serving => break,
                Some(stream) = opened.recv() => all.unused.push(Output::Spdy(stream.outgoing)),
            }
        }
        for output in &mut all.unused {
            output.finish().await?;
        }
        Ok(())
    };
    tokio::pin!(session);
    tokio::select! {
        done = &mut session => return done,
        done = work => done?,
    }
    env.timeout(FINAL_READ_TIMEOUT, session).await.unwrap_or(Ok(()))
}

async fn run_channels<F: Future<Output = ()>>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send,
    env: &Env,
    (ends, form, idle): (bool, StatusForm, Duration),
    options: &Options,
    serve: impl FnOnce(Streams) -> F,
) -> io::Result<()> {
    let (Channels { mut incoming, outgoing }, session) = websocket::channels(io, idle, env.clone());
    let (to_stdin, stdin) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let output = |channel| Output::Channel(channel, outgoing.clone());
    let streams = Streams {
        stdin: options.stdin.then_some(stdin),
        stdout: options.stdout.then(|| output(STDOUT)),
        stderr: options.stderr.then(|| output(STDERR)),
        errors: output(ERROR),
        form,
    };
    if !ends {
        // Upstream sends these empty messages to clients of the older protocol: the session has started.
        let first = [(options.stdout, STDOUT), (options.stderr, STDERR), (true, ERROR)];
        let first = first.iter().find(|(is_requested, _)| *is_requested).map_or(ERROR, |(_, channel)| *channel);
        let _ = outgoing.send((first, Bytes::new())).await;
    }
    drop(outgoing);
    let receives = async move {
        let mut to_stdin = options.stdin.then_some(to_stdin);
        // Terminal sizes are discarded: no guest can query them yet.
        while let Some((channel, bytes)) = incoming.recv().await {
            match channel {
                STDIN if !bytes.is_empty() => {
                    if let Some(to) = &to_stdin {
                        // Input is discarded if the guest doesn't read it.
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
    // The last bytes may still be in transit to a slow client.
    env.timeout(idle, session).await.unwrap_or(Ok(()))
}
