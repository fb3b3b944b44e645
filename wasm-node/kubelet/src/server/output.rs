//! The client's end of one direction of a stream, over SPDY or WebSocket channels.

use std::io;

use bytes::Bytes;
use machinery_streaming::spdy::SpdyWriter;
use tokio::sync::mpsc;

/// See the module.
#[derive(Debug)]
pub(super) enum Output {
    Spdy(SpdyWriter),
    Channel(u8, mpsc::Sender<(u8, Bytes)>),
}

impl Output {
    /// Sends bytes, and waits for a slow client.
    pub(super) async fn send(&self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Spdy(writer) => writer.send(bytes).await,
            Self::Channel(channel, to) => {
                to.send((*channel, bytes)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// Ends the stream. A numbered channel has no end of its own.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Spdy(writer) => writer.finish().await,
            Self::Channel(..) => Ok(()),
        }
    }
}
