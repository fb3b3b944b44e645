//! WebSocket (RFC 6455), server side: handshake, subprotocol negotiation, and message transport.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _, future, stream};
use http::{HeaderMap, HeaderValue, header};
use machinery_env::Env;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use crate::empty_messages::{EmptyMessages, TooMany};

/// Maximum bytes of a received message: clients write 32 KiB at once.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Interval of the server's pings. While nothing reads the incoming messages, pongs aren't read either, and only a
/// failed write shows that the client is gone.
const PING_PERIOD: Duration = Duration::from_secs(30);
/// Timeout of the client's answer to a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Buffered messages of numbered channels, outgoing and incoming: a client's may have [`MESSAGE_BYTES_MAX`].
const OUTGOING_WAITING_MAX: usize = 16;
const INCOMING_WAITING_MAX: usize = 2;

/// Why a WebSocket handshake is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The version isn't 13.
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    /// The key is missing or hasn't 16 bytes.
    #[error("Sec-WebSocket-Key is missing or is not 16 bytes in base64")]
    Key,
    /// None of the client's subprotocols is supported.
    #[error("requested protocol(s) are not supported: [{0}]; supports [{1}]")]
    Protocol(String, String),
}

/// A message to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutgoingMessage {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
}

impl From<OutgoingMessage> for Message {
    fn from(message: OutgoingMessage) -> Self {
        match message {
            OutgoingMessage::Text(text) => Self::Text(text.into()),
            OutgoingMessage::Binary(bytes) => Self::Binary(bytes),
        }
    }
}

/// The server's answer to a handshake.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// The chosen subprotocol; empty if the client named none.
    pub protocol: &'static str,
    /// The headers of the 101.
    pub headers: HeaderMap,
}

/// The protocol of a request's upgrade, if any: `websocket`, `SPDY/3.1`.
#[must_use]
pub fn upgrade_of(headers: &HeaderMap) -> Option<&str> {
    let lists = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().to_ascii_lowercase().starts_with(wanted))
    };
    if !lists(header::CONNECTION, "upgrade") {
        return None;
    }
    headers.get(header::UPGRADE)?.to_str().ok().map(str::trim).filter(|upgrade| !upgrade.is_empty())
}

/// Whether a request asks for a WebSocket.
#[must_use]
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    upgrade_of(headers).is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

/// Answers a handshake with the first of the client's subprotocols that is `supported`; an entry "" accepts a client
/// without one.
///
/// # Errors
/// See [`HandshakeError`].
pub fn handshake(headers: &HeaderMap, supported: &[&'static str]) -> Result<Handshake, HandshakeError> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(HandshakeError::Version);
    }
    // 16 bytes in base64 have 24 characters.
    let key = text(header::SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24).ok_or(HandshakeError::Key)?;
    let wanted: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .filter(|protocol| !protocol.is_empty())
        .collect();
    let named = wanted.iter().find_map(|wanted| supported.iter().find(|own| *own == wanted && !own.is_empty()));
    let unnamed = supported.iter().find(|own| own.is_empty() && wanted.is_empty());
    let protocol = *named.or(unnamed).ok_or_else(|| HandshakeError::Protocol(wanted.join(" "), supported.join(" ")))?;
    let mut answer = HeaderMap::new();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_| HandshakeError::Key)?;
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(Handshake { protocol, headers: answer })
}

async fn server<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Messages of a client, which end in an error after too many without content.
fn limited<S>(messages: S, env: Env) -> impl Stream<Item = Result<Message, Error>> + Unpin
where
    S: Stream<Item = Result<Message, Error>> + Unpin,
{
    let mut empty = EmptyMessages::new(env.elapsed());
    messages.map(move |message| {
        // A message of one byte has only the number of its channel.
        let is_empty = message.as_ref().is_ok_and(|m| m.is_ping() || m.is_pong() || m.len() <= 1 && !m.is_close());
        if is_empty && !empty.charge(|| env.elapsed()) {
            return Err(Error::Io(io::Error::other(TooMany)));
        }
        message
    })
}

/// A byte stream over a connection after the handshake; binary messages carry its bytes.
pub async fn tunnel<S: AsyncRead + AsyncWrite + Unpin + Send>(io: S, env: Env) -> impl AsyncRead + AsyncWrite + Unpin {
    let (sink, stream) = server(io).await.split();
    let pieces = limited(stream, env).filter_map(|message| future::ready(message_bytes(message)));
    let messages =
        sink.sink_map_err(io_error).with(|bytes: Bytes| future::ready(Ok::<_, io::Error>(Message::Binary(bytes))));
    tokio::io::join(StreamReader::new(pieces), SinkWriter::new(CopyToBytes::new(messages)))
}

/// The bytes of a message; `None` for control messages.
fn message_bytes(message: Result<Message, Error>) -> Option<io::Result<Bytes>> {
    match message {
        Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
        Ok(Message::Text(_)) => Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message in a tunnel"))),
        Ok(_) | Err(Error::ConnectionClosed) => None,
        Err(error) => Some(Err(io_error(error))),
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Both ends of numbered channels (`v4.channel.k8s.io`): a message's first byte is its channel.
#[derive(Debug)]
pub struct Channels {
    /// Messages of the client.
    pub incoming: mpsc::Receiver<(u8, Bytes)>,
    /// Messages to the client; the connection ends when all senders are dropped.
    pub outgoing: mpsc::Sender<(u8, Bytes)>,
}

/// Numbered channels over a connection after the handshake, and the future that drives them. The future ends with the
/// connection, or after `idle` without a message; pings don't count. Drop [`Channels::incoming`] to stop receiving.
#[must_use = "nothing moves until the future is polled"]
pub fn channels<S>(io: S, idle: Duration, env: Env) -> (Channels, impl Future<Output = io::Result<()>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (received, incoming) = mpsc::channel(INCOMING_WAITING_MAX);
    let (outgoing, mut sending) = mpsc::channel::<(u8, Bytes)>(OUTGOING_WAITING_MAX);
    let take = move |mut piece: Bytes| {
        let received = received.clone();
        async move {
            // An empty message is a client's keep-alive.
            if let Some(channel) = piece.first().copied() {
                let _ = received.send((channel, piece.split_off(1))).await;
            }
        }
    };
    let sent = stream::poll_fn(move |context| sending.poll_recv(context))
        .map(|(channel, bytes)| Ok(OutgoingMessage::Binary([&[channel], &bytes[..]].concat().into())));
    (Channels { incoming, outgoing }, transport(io, (env, Some(idle)), (message_bytes, take), sent))
}

/// Sends messages to the client over a connection after the handshake. Incoming messages of either kind are dropped; it
/// ends with the messages or with the client.
///
/// # Errors
/// If the connection or the source of the messages breaks.
pub async fn send<S>(io: S, env: &Env, messages: impl Stream<Item = io::Result<OutgoingMessage>>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let dropped = |message| match message {
        Ok(Message::Text(_)) => None,
        other => message_bytes(other),
    };
    transport(io, (env.clone(), None), (dropped, |_| future::ready(())), messages).await
}

/// Transports messages in both directions until one of them ends, or there was none for `idle`.
async fn transport<S, F>(
    io: S,
    (env, idle): (Env, Option<Duration>),
    (mut read, mut take): (impl FnMut(Result<Message, Error>) -> Option<io::Result<Bytes>>, impl FnMut(Bytes) -> F),
    outgoing: impl Stream<Item = io::Result<OutgoingMessage>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    F: Future<Output = ()>,
{
    let (mut sink, stream) = server(io).await.split();
    let mut stream = limited(stream, env.clone());
    let moved = AtomicU64::new(0);
    let reads = async {
        while let Some(message) = stream.next().await {
            if let Some(piece) = read(message) {
                take(piece?).await;
                moved.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let writes = async {
        let mut outgoing = pin!(outgoing);
        let mut pings = env.interval(PING_PERIOD);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pings.reset();
        loop {
            let message = tokio::select! {
                message = outgoing.next() => message,
                _ = pings.tick() => {
                    sink.send(Message::Ping(Bytes::new())).await.map_err(io_error)?;
                    continue;
                }
            };
            let Some(message) = message else {
                let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                return sink.send(Message::Close(Some(close))).await.map_err(io_error);
            };
            sink.send(message?.into()).await.map_err(io_error)?;
            moved.fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut reads = pin!(reads);
    tokio::select! {
        done = &mut reads => return done,
        () = wait_until_idle(&env, &moved, idle) => return Err(io::ErrorKind::TimedOut.into()),
        done = writes => done?,
    }
    // Wait for the client's close: closing a connection with unread bytes would lose the last written ones.
    env.timeout(CLOSE_TIMEOUT, reads).await.unwrap_or(Ok(()))
}

/// Waits until there was no message for `idle`.
async fn wait_until_idle(env: &Env, moved: &AtomicU64, idle: Option<Duration>) {
    let Some(idle) = idle else { return future::pending().await };
    loop {
        let before = moved.load(Ordering::Relaxed);
        env.sleep(idle).await;
        if moved.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::empty_messages::EMPTY_MESSAGES_MAX;

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    /// The example of RFC 6455, §1.3.
    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn upgrades_are_seen_as_clients_write_them() {
        assert_eq!(upgrade_of(&request(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])), Some("SPDY/3.1"));
        let listed = request(&[("connection", "keep-alive, upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade_of(&listed), Some("websocket"));
        assert!(wants_websocket(&request(&[("connection", "Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!wants_websocket(&request(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])));
        assert_eq!(upgrade_of(&request(&[("connection", "keep-alive"), ("upgrade", "websocket")])), None);
        assert_eq!(upgrade_of(&request(&[("connection", "Upgrade")])), None);
    }

    #[test]
    fn the_first_subprotocol_that_both_speak_is_chosen() {
        let answer = |protocols: &[&str], supported: &[&'static str]| {
            let mut fields = vec![KEY, VERSION];
            fields.extend(protocols.iter().map(|protocol| ("sec-websocket-protocol", *protocol)));
            handshake(&request(&fields), supported)
        };
        let chosen = answer(&["v9.channel.k8s.io, v4.channel.k8s.io"], &["", "v4.channel.k8s.io"]).unwrap();
        assert_eq!(chosen.protocol, "v4.channel.k8s.io");
        assert_eq!(chosen.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(chosen.headers["sec-websocket-protocol"], "v4.channel.k8s.io");
        let unnamed = answer(&[], &["", "v4.channel.k8s.io"]).unwrap();
        assert!(unnamed.protocol.is_empty() && !unnamed.headers.contains_key("sec-websocket-protocol"));
        let refused = answer(&["v9.channel.k8s.io"], &["", "v4.channel.k8s.io"]).unwrap_err();
        assert!(matches!(refused, HandshakeError::Protocol(..)));
        assert!(matches!(answer(&[], &["v4.channel.k8s.io"]), Err(HandshakeError::Protocol(..))));
        assert_eq!(handshake(&request(&[KEY]), &[""]).unwrap_err(), HandshakeError::Version);
        assert_eq!(handshake(&request(&[VERSION]), &[""]).unwrap_err(), HandshakeError::Key);
    }

    async fn client(io: tokio::io::DuplexStream) -> WebSocketStream<tokio::io::DuplexStream> {
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes_both_ways_and_its_end() {
        let (own, other) = tokio::io::duplex(1 << 16);
        let mut client = client(own).await;
        let mut tunnel = tunnel(other, Env::real()).await;
        client.send(Message::Binary(Bytes::from_static(b"hel"))).await.unwrap();
        client.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"lo"))).await.unwrap();
        let mut bytes = [0; 5];
        tunnel.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        tunnel.write_all(b"world").await.unwrap();
        tunnel.flush().await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            seen.push(client.next().await.unwrap().unwrap());
        }
        assert!(seen.contains(&Message::Pong(Bytes::from_static(b"?"))), "{seen:?}");
        assert!(seen.contains(&Message::Binary(Bytes::from_static(b"world"))), "{seen:?}");
        client.close(None).await.unwrap();
        assert_eq!(tunnel.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_tunnel_takes_neither_text_nor_endless_messages() {
        for message in [Message::text("x"), Message::Binary(vec![0; MESSAGE_BYTES_MAX + 1].into())] {
            let (own, other) = tokio::io::duplex(4 << 20);
            let mut client = client(own).await;
            let mut tunnel = tunnel(other, Env::real()).await;
            client.send(message).await.unwrap();
            assert!(tunnel.read(&mut [0; 8]).await.is_err());
        }
    }

    /// Pings, empty messages and messages of a channel's number alone, without end: the connection ends.
    #[tokio::test]
    async fn floods_of_empty_messages_end_the_connection() {
        for message in [Message::Ping(Bytes::new()), Message::Binary(Bytes::new()), Message::Binary("\0".into())] {
            let (own, other) = tokio::io::duplex(1 << 16);
            let (mut sink, mut answers) = client(own).await.split();
            let (mut channels, run) = channels(other, Duration::from_secs(60), Env::real());
            let run = tokio::spawn(run);
            let floods = async {
                let mut sent = 0;
                while sent < 50 * EMPTY_MESSAGES_MAX && sink.send(message.clone()).await.is_ok() {
                    sent += 1;
                }
                sent
            };
            let reads = async { while answers.next().await.is_some_and(|answer| answer.is_ok()) {} };
            let takes = async { while channels.incoming.recv().await.is_some() {} };
            let (sent, (), ()) = tokio::join!(floods, reads, takes);
            assert!(sent < 50 * EMPTY_MESSAGES_MAX, "{message:?}");
            assert_eq!(run.await.unwrap().unwrap_err().to_string(), "too many messages without content");
        }
    }

    #[tokio::test]
    async fn the_first_byte_selects_the_channel() {
        let (own, other) = tokio::io::duplex(1 << 16);
        let mut client = client(own).await;
        let (mut channels, run) = channels(other, Duration::from_secs(60), Env::real());
        let run = tokio::spawn(run);
        client.send(Message::Binary(Bytes::new())).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(b"\x02in"))).await.unwrap();
        assert_eq!(channels.incoming.recv().await.unwrap(), (2, Bytes::from_static(b"in")));
        channels.outgoing.send((3, Bytes::from_static(b"out"))).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"\x03out")));
        drop(channels);
        let close = client.next().await.unwrap().unwrap();
        assert!(matches!(close, Message::Close(Some(CloseFrame { code: CloseCode::Normal, .. }))), "{close:?}");
        // Remaining messages of the client are read and dropped; its answer to the close is the end.
        while client.next().await.is_some() {}
        run.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_channels_end_despite_pings() {
        const IDLE: Duration = Duration::from_secs(3600);
        let (own, other) = tokio::io::duplex(1 << 16);
        let mut client = client(own).await;
        let env = Env::real();
        let (mut channels, run) = channels(other, IDLE, env.clone());
        let run = tokio::spawn(run);
        let began = env.instant();
        client.send(Message::Binary(Bytes::from_static(b"\x00in"))).await.unwrap();
        channels.incoming.recv().await.unwrap();
        // Answered pings alone don't keep a session alive.
        let mut pings = 0;
        while let Some(Ok(message)) = client.next().await {
            pings += u32::from(matches!(message, Message::Ping(_)));
        }
        assert_eq!(run.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let elapsed = env.instant() - began;
        assert!(pings > 100 && elapsed < 3 * IDLE, "{pings} pings, {elapsed:?}");
    }

    #[tokio::test]
    async fn messages_are_sent_to_their_end_despite_those_of_the_client() {
        let (own, other) = tokio::io::duplex(1 << 16);
        let mut client = client(own).await;
        let sent = [OutgoingMessage::Binary(Bytes::from_static(b"one")), OutgoingMessage::Text("two".to_owned())];
        let messages = stream::iter(sent.map(Ok));
        let run = tokio::spawn(async move { send(other, &Env::real(), messages).await });
        client.send(Message::Binary(Bytes::from_static(b"ignored"))).await.unwrap();
        client.send(Message::Text("ignored".into())).await.unwrap();
        for wanted in [Message::Binary(Bytes::from_static(b"one")), Message::Text("two".into())] {
            assert_eq!(client.next().await.unwrap().unwrap(), wanted);
        }
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(Some(_))));
        while client.next().await.is_some() {}
        run.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_broken_or_unread_source_ends_the_connection() {
        let (own, other) = tokio::io::duplex(1 << 16);
        let mut reader = client(own).await;
        let run = tokio::spawn(async move {
            send(other, &Env::real(), stream::iter([Err(io::ErrorKind::UnexpectedEof.into())])).await
        });
        assert!(run.await.unwrap().is_err());
        assert!(!matches!(reader.next().await, Some(Ok(Message::Close(_)))), "no clean end");

        let (own, other) = tokio::io::duplex(1 << 16);
        let run = tokio::spawn(async move { send(other, &Env::real(), stream::pending()).await });
        let mut reader = client(own).await;
        reader.close(None).await.unwrap();
        while reader.next().await.is_some() {}
        run.await.unwrap().unwrap();
    }
}
