//! A connection's streams: one task reads frames and dispatches bytes to their streams, another writes the streams'
//! frames.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use machinery_env::Env;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::empty_messages::{EmptyMessages, TooMany};

use super::frame::{Decoder, Encoder, Frame, Headers, SpdyError, status};

/// Maximum concurrent streams of a connection: a browser's page over a forwarded port needs a dozen.
pub const STREAMS_MAX: usize = 256;
/// Buffered pieces of a stream. When it is full, the connection's other streams wait too, as in Kubernetes' own.
const PIECES_WAITING_MAX: usize = 16;
/// Queued outgoing frames of all streams.
const FRAMES_WAITING_MAX: usize = 32;
/// Size of one read.
const READ_BYTES: usize = 32 << 10;
/// Maximum bytes of frames joined into one write.
const WRITE_BYTES: usize = 64 << 10;

/// A stream opened by the client.
#[derive(Debug)]
pub struct SpdyStream {
    /// Its id on the connection.
    pub id: u32,
    /// The client's headers.
    pub headers: Headers,
    /// The client's data; ends when the client finishes or resets the stream, or is gone.
    pub incoming: mpsc::Receiver<Bytes>,
    /// The writer to the client.
    pub outgoing: SpdyWriter,
}

/// Writes to a stream. Dropped before `finish`, it resets the stream.
#[derive(Debug)]
pub struct SpdyWriter {
    id: u32,
    frames: mpsc::Sender<Frame>,
    finished: bool,
    _seat: OwnedSemaphorePermit,
}

impl SpdyWriter {
    /// Sends bytes; waits while the connection is congested.
    ///
    /// # Errors
    /// If the connection is gone, or the stream was finished.
    pub async fn send(&self, bytes: Bytes) -> io::Result<()> {
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.write(Frame::Data { id: self.id, fin: false, bytes }).await
    }

    /// Half-closes the stream.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        self.write(Frame::Data { id: self.id, fin: true, bytes: Bytes::new() }).await
    }

    /// Resets the stream in both directions.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn reset(mut self) -> io::Result<()> {
        self.finished = true;
        self.write(Frame::Reset { id: self.id, status: status::CANCEL }).await
    }

    /// Waits until all data sent on the connection so far has been written.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn drained(&self) -> io::Result<()> {
        let all = self.frames.reserve_many(self.frames.max_capacity()).await;
        all.map(drop).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn write(&self, frame: Frame) -> io::Result<()> {
        self.frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for SpdyWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: a drop can't wait.
            let _ = self.frames.try_send(Frame::Reset { id: self.id, status: status::CANCEL });
        }
    }
}

/// Serves a client's connection until it ends, breaks, or is silent for `idle`. Streams accepted by `accept` are sent
/// to `opened`; others are reset.
///
/// # Errors
/// If the connection breaks, or the client violates the protocol.
pub async fn serve<S>(
    io: S,
    idle: Duration,
    env: &Env,
    accept: impl Fn(&Headers) -> bool,
    opened: mpsc::Sender<SpdyStream>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (read, write) = tokio::io::split(io);
    let (outgoing, frames) = mpsc::channel(FRAMES_WAITING_MAX);
    let activity = AtomicU64::new(0);
    let mut session = Session {
        decoder: Decoder::default(),
        streams: HashMap::new(),
        newest: 0,
        seats: Arc::new(Semaphore::new(STREAMS_MAX)),
        outgoing,
        opened,
        empty: EmptyMessages::new(env.elapsed()),
        activity: &activity,
        idle,
        env,
    };
    tokio::select! {
        done = session.read(read, accept) => done,
        done = write_frames(write, frames, &activity) => done,
    }
}

struct Session<'a> {
    decoder: Decoder,
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    newest: u32,
    seats: Arc<Semaphore>,
    outgoing: mpsc::Sender<Frame>,
    opened: mpsc::Sender<SpdyStream>,
    empty: EmptyMessages,
    activity: &'a AtomicU64,
    idle: Duration,
    env: &'a Env,
}

impl Session<'_> {
    async fn read(&mut self, mut read: impl AsyncRead + Unpin, accept: impl Fn(&Headers) -> bool) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            while let Some(frame) = self.decoder.decode(&mut buffer).map_err(invalid)? {
                self.take(frame, &accept).await?;
            }
            let seen = self.activity.load(Ordering::Relaxed);
            buffer.reserve(READ_BYTES);
            match self.env.timeout(self.idle, read.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                // Outgoing data keeps a connection alive too.
                Err(_) if self.activity.load(Ordering::Relaxed) != seen => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Whether a frame opens, feeds or ends a stream.
    fn is_of_stream(&self, frame: &Frame) -> bool {
        match frame {
            Frame::SynStream { .. } => true,
            Frame::Data { id, fin, bytes } => self.streams.contains_key(id) && (*fin || !bytes.is_empty()),
            Frame::Reset { id, .. } => self.streams.contains_key(id),
            Frame::Headers { id, fin, .. } => *fin && self.streams.contains_key(id),
            Frame::Ping(_) | Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ignored => false,
        }
    }

    async fn take(&mut self, frame: Frame, accept: impl Fn(&Headers) -> bool) -> io::Result<()> {
        let env = self.env;
        if !self.is_of_stream(&frame) && !self.empty.charge(|| env.elapsed()) {
            return Err(io::Error::other(TooMany));
        }
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, headers, accept).await,
            Frame::Data { id, fin, bytes } => {
                if let Some(stream) = self.streams.get(&id) {
                    if !bytes.is_empty() {
                        // Without a reader the bytes are dropped.
                        let sent = self.env.timeout(self.idle, stream.send(bytes)).await;
                        sent.map(drop).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
                    }
                    if fin {
                        self.streams.remove(&id);
                    }
                }
                Ok(())
            }
            Frame::Reset { id, .. } => {
                self.streams.remove(&id);
                Ok(())
            }
            Frame::Headers { id, fin, .. } => {
                if fin {
                    self.streams.remove(&id);
                }
                Ok(())
            }
            // Clients' ids are odd; an even id answers a ping of ours, and we send none.
            Frame::Ping(id) if id % 2 == 1 => self.send_frame(Frame::Ping(id)).await,
            Frame::Ping(_) | Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ignored => Ok(()),
        }
    }

    async fn open(
        &mut self,
        id: u32,
        fin: bool,
        headers: Headers,
        accept: impl Fn(&Headers) -> bool,
    ) -> io::Result<()> {
        if id.is_multiple_of(2) || id <= self.newest {
            return self.send_frame(Frame::Reset { id, status: status::PROTOCOL_ERROR }).await;
        }
        self.newest = id;
        // Closed streams don't count.
        self.streams.retain(|_, stream| !stream.is_closed());
        let seat = self.seats.clone().try_acquire_owned();
        let (Ok(seat), true) = (seat, accept(&headers)) else {
            return self.send_frame(Frame::Reset { id, status: status::REFUSED_STREAM }).await;
        };
        self.send_frame(Frame::SynReply { id, fin: false, headers: Headers::default() }).await?;
        let (bytes, incoming) = mpsc::channel(PIECES_WAITING_MAX);
        if !fin {
            self.streams.insert(id, bytes);
        }
        let outgoing = SpdyWriter { id, frames: self.outgoing.clone(), finished: false, _seat: seat };
        self.opened
            .send(SpdyStream { id, headers, incoming, outgoing })
            .await
            .map_err(|_| io::ErrorKind::ConnectionAborted.into())
    }

    async fn send_frame(&self, frame: Frame) -> io::Result<()> {
        self.outgoing.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

async fn write_frames(
    mut write: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
    activity: &AtomicU64,
) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        encoder.encode(&frame, &mut buffer).map_err(invalid)?;
        while buffer.len() < WRITE_BYTES
            && let Ok(frame) = frames.try_recv()
        {
            encoder.encode(&frame, &mut buffer).map_err(invalid)?;
        }
        write.write_all_buf(&mut buffer).await?;
        write.flush().await?;
        activity.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn invalid(error: SpdyError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::empty_messages::EMPTY_MESSAGES_MAX;

    const IDLE: Duration = Duration::from_secs(60);

    /// A client that sends and receives frames.
    struct Client {
        io: DuplexStream,
        encoder: Encoder,
        decoder: Decoder,
        buffer: BytesMut,
    }

    impl Client {
        async fn send(&mut self, frame: Frame) {
            let mut out = BytesMut::new();
            self.encoder.encode(&frame, &mut out).unwrap();
            self.io.write_all(&out).await.unwrap();
        }

        async fn recv(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    return None;
                }
            }
        }

        async fn open(&mut self, id: u32, name: &str) -> Option<Frame> {
            let headers = Headers(vec![("name".into(), name.into())]);
            self.send(Frame::SynStream { id, fin: false, headers }).await;
            self.recv().await
        }
    }

    fn start() -> (Client, mpsc::Receiver<SpdyStream>, tokio::task::JoinHandle<io::Result<()>>) {
        let (own, other) = tokio::io::duplex(64 << 10);
        let (opened, streams) = mpsc::channel(1);
        let accept = |headers: &Headers| headers.get("Name").is_some_and(|name| name != "refused");
        let session = tokio::spawn(async move { serve(other, IDLE, &Env::real(), accept, opened).await });
        let client =
            Client { io: own, encoder: Encoder::default(), decoder: Decoder::default(), buffer: BytesMut::new() };
        (client, streams, session)
    }

    fn data(id: u32, fin: bool, bytes: &'static str) -> Frame {
        Frame::Data { id, fin, bytes: Bytes::from_static(bytes.as_bytes()) }
    }

    #[tokio::test]
    async fn streams_are_opened_used_in_both_directions_and_finished() {
        let (mut client, mut streams, session) = start();
        let taken = |id| Some(Frame::SynReply { id, fin: false, headers: Headers::default() });
        assert_eq!(client.open(1, "a").await, taken(1));
        let mut a = streams.recv().await.unwrap();
        assert_eq!(client.open(3, "b").await, taken(3));
        let mut b = streams.recv().await.unwrap();
        client.send(data(3, false, "to b")).await;
        client.send(data(1, true, "to a")).await;
        assert_eq!(a.incoming.recv().await.unwrap(), "to a");
        assert_eq!(a.incoming.recv().await, None);
        assert_eq!(b.incoming.recv().await.unwrap(), "to b");
        a.outgoing.send(Bytes::from_static(b"from a")).await.unwrap();
        a.outgoing.finish().await.unwrap();
        assert!(a.outgoing.send(Bytes::from_static(b"more")).await.is_err());
        assert_eq!(client.recv().await, Some(data(1, false, "from a")));
        assert_eq!(client.recv().await, Some(data(1, true, "")));
        client.send(Frame::Reset { id: 3, status: status::CANCEL }).await;
        assert_eq!(b.incoming.recv().await, None);
        drop(b);
        assert_eq!(client.recv().await, Some(Frame::Reset { id: 3, status: status::CANCEL }));
        client.send(Frame::Ping(5)).await;
        assert_eq!(client.recv().await, Some(Frame::Ping(5)));
        drop(client);
        session.await.unwrap().unwrap();
    }

    /// Pings, empty pieces and resets of unknown streams, without end: the connection ends.
    #[tokio::test]
    async fn floods_of_empty_frames_end_the_connection() {
        for frame in
            [Frame::Ping(1), Frame::Ping(2), data(1, false, ""), Frame::Reset { id: 9, status: status::CANCEL }]
        {
            let (mut client, mut streams, session) = start();
            client.open(1, "a").await;
            let _a = streams.recv().await.unwrap();
            let mut flood = BytesMut::new();
            for _ in 0..2 * EMPTY_MESSAGES_MAX {
                client.encoder.encode(&frame, &mut flood).unwrap();
            }
            let _ = client.io.write_all(&flood).await;
            let error = session.await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "too many messages without content", "{frame:?}");
        }
    }

    #[tokio::test]
    async fn unaccepted_streams_are_reset() {
        let (mut client, mut streams, _session) = start();
        let reset = |id, status| Some(Frame::Reset { id, status });
        assert_eq!(client.open(1, "refused").await, reset(1, status::REFUSED_STREAM));
        assert_eq!(client.open(2, "even").await, reset(2, status::PROTOCOL_ERROR));
        assert_eq!(client.open(1, "used").await, reset(1, status::PROTOCOL_ERROR));
        let mut live = Vec::new();
        for n in 0..u32::try_from(STREAMS_MAX).unwrap() {
            assert!(matches!(client.open(3 + 2 * n, "one of many").await, Some(Frame::SynReply { .. })));
            live.push(streams.recv().await.unwrap());
        }
        assert_eq!(client.open(2001, "one too many").await, reset(2001, status::REFUSED_STREAM));
        live.pop().unwrap().outgoing.reset().await.unwrap();
        assert!(matches!(client.recv().await, Some(Frame::Reset { .. })));
        assert!(matches!(client.open(2003, "in its place").await, Some(Frame::SynReply { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_and_one_that_is_sent_to_does_not() {
        let (mut client, mut streams, session) = start();
        client.open(1, "a").await;
        let a = streams.recv().await.unwrap();
        tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        a.outgoing.send(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(client.recv().await, Some(data(1, false, "x")));
        tokio::time::advance(Duration::from_secs(2)).await;
        a.outgoing.send(Bytes::from_static(b"y")).await.unwrap();
        assert_eq!(client.recv().await, Some(data(1, false, "y")));
        assert_eq!(session.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn another_protocol_ends_the_session_with_an_error() {
        let (mut client, _streams, session) = start();
        client.io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(session.await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
