//! A connection's streams: one task reads frames and hands bytes to their streams, another writes what the streams send.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::frame::{Decoder, Encoder, Frame, Headers, SpdyError, status};

/// Streams that live at once on a connection: a browser's page over a forwarded port takes a dozen.
pub const STREAMS_MAX: usize = 256;
/// Pieces of a stream that wait to be read. Then the connection's other streams wait, too, as in Kubernetes' own.
const PIECES_WAITING_MAX: usize = 16;
/// Frames of all streams that wait to be written.
const FRAMES_WAITING_MAX: usize = 32;
/// What is read at once.
const READ_BYTES: usize = 32 << 10;
/// Frames are gathered up to this for one write.
const WRITE_BYTES: usize = 64 << 10;

/// A stream that the client has opened.
#[derive(Debug)]
pub struct SpdyStream {
    /// Its number on the connection.
    pub id: u32,
    /// What the client says it is for.
    pub headers: Headers,
    /// What the client sends; ends when it has no more, has reset the stream, or is gone.
    pub incoming: mpsc::Receiver<Bytes>,
    /// The way to the client.
    pub outgoing: SpdyWriter,
}

/// What is sent on a stream. Dropped before its end, it resets the stream.
#[derive(Debug)]
pub struct SpdyWriter {
    id: u32,
    frames: mpsc::Sender<Frame>,
    finished: bool,
    _seat: OwnedSemaphorePermit,
}

impl SpdyWriter {
    /// Sends bytes; waits while the connection is slow.
    ///
    /// # Errors
    /// The connection is gone, or the stream was finished.
    pub async fn send(&self, bytes: Bytes) -> io::Result<()> {
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.write(Frame::Data { id: self.id, fin: false, bytes }).await
    }

    /// Nothing more will be sent.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        self.write(Frame::Data { id: self.id, fin: true, bytes: Bytes::new() }).await
    }

    /// Ends the stream in both directions.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn reset(mut self) -> io::Result<()> {
        self.finished = true;
        self.write(Frame::Reset { id: self.id, status: status::CANCEL }).await
    }

    /// Waits until all that was sent on the connection so far is on its way.
    ///
    /// # Errors
    /// The connection is gone.
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
            // Best effort: whoever drops a stream unfinished has no time to wait.
            let _ = self.frames.try_send(Frame::Reset { id: self.id, status: status::CANCEL });
        }
    }
}

/// Serves a client's connection until it ends, breaks, or has been silent for `idle`. Streams that `accept` lets in are
/// sent to `opened`; others are reset.
///
/// # Errors
/// The connection broke, or the client doesn't speak SPDY.
pub async fn serve<S>(
    io: S,
    idle: Duration,
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
        activity: &activity,
        idle,
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
    activity: &'a AtomicU64,
    idle: Duration,
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
            match tokio::time::timeout(self.idle, read.read_buf(&mut buffer)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
                // What is being sent keeps a connection alive, too.
                Err(_) if self.activity.load(Ordering::Relaxed) != seen => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    async fn take(&mut self, frame: Frame, accept: impl Fn(&Headers) -> bool) -> io::Result<()> {
        match frame {
            Frame::SynStream { id, fin, headers } => self.open(id, fin, headers, accept).await,
            Frame::Data { id, fin, bytes } => {
                if let Some(stream) = self.streams.get(&id) {
                    if !bytes.is_empty() {
                        // Where nobody reads any more, its bytes go nowhere.
                        let sent = tokio::time::timeout(self.idle, stream.send(bytes)).await;
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
            // Numbers of the client are odd; an even one answers a ping of ours, and there is none.
            Frame::Ping(id) if id % 2 == 1 => self.answer(Frame::Ping(id)).await,
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
            return self.answer(Frame::Reset { id, status: status::PROTOCOL_ERROR }).await;
        }
        self.newest = id;
        // The streams of which nobody reads any more make room.
        self.streams.retain(|_, stream| !stream.is_closed());
        let seat = self.seats.clone().try_acquire_owned();
        let (Ok(seat), true) = (seat, accept(&headers)) else {
            return self.answer(Frame::Reset { id, status: status::REFUSED_STREAM }).await;
        };
        self.answer(Frame::SynReply { id, fin: false, headers: Headers::default() }).await?;
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

    async fn answer(&self, frame: Frame) -> io::Result<()> {
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

    const IDLE: Duration = Duration::from_secs(60);

    /// A client at the frames' level.
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
        let session = tokio::spawn(async move { serve(other, IDLE, accept, opened).await });
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

    #[tokio::test]
    async fn what_is_not_taken_is_reset() {
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
