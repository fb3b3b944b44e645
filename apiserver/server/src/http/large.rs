//! Large responses are serialized and compressed on the blocking pool, one piece at a time and as fast as the client
//! reads. A list of 100,000 objects would block one of the control plane's few workers for a second, and with it
//! heartbeats and leases.

use std::io::{self, Write};

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use tokio::sync::Semaphore;

/// Responses from less stored JSON than this are serialized inline: another thread would cost more than it saves.
pub(super) const LARGE_BYTES: usize = 128 * 1024;
/// The size of a piece before compression: some 0.1 ms of copying or 3 ms of compression, and the memory that a
/// response holds.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// The maximum number of pieces in progress: it leaves one core of a small machine to other work.
const PIECES_AT_ONCE: usize = 2;

static PERMITS: Semaphore = Semaphore::const_new(PIECES_AT_ONCE);

/// Appends the next piece of a response; returns false after the last one.
pub(super) type Pieces = Box<dyn FnMut(&mut Vec<u8>) -> bool + Send>;

struct PieceStream {
    pieces: Pieces,
    encoder: Option<GzEncoder<Vec<u8>>>,
    over: bool,
}

impl PieceStream {
    /// The next bytes; empty at the end.
    fn next(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && !self.over {
            self.over = !(self.pieces)(&mut out);
            let Some(encoder) = &mut self.encoder else { continue };
            encoder.write_all(&out)?;
            if self.over {
                encoder.try_finish()?;
            }
            out = std::mem::take(encoder.get_mut());
        }
        Ok(out.into())
    }
}

/// A body from pieces, optionally compressed.
pub(super) fn body(pieces: Pieces, compresses: bool) -> Body {
    let encoder = compresses.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let state = Some(PieceStream { pieces, encoder, over: false });
    Body::from_stream(stream::try_unfold(state, |stream| async {
        let Some(mut stream) = stream else { return Ok(None) };
        // The permit is for a piece and not for the whole response: a slow client must not hold it.
        let _permit = PERMITS.acquire().await.map_err(io::Error::other)?;
        let made = tokio::task::spawn_blocking(move || stream.next().map(|piece| (piece, stream))).await;
        let (piece, stream) = made.map_err(io::Error::other)??;
        Ok::<_, io::Error>((!piece.is_empty()).then_some((piece, Some(stream))))
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use futures::StreamExt as _;

    use super::*;

    fn pieces(count: usize) -> (Pieces, Vec<u8>) {
        let piece = |n: usize| format!("{n:>width$}", width = PIECE_BYTES / 7);
        let whole = (0..count).flat_map(|n| piece(n).into_bytes()).collect();
        let mut next = 0;
        let pieces = move |out: &mut Vec<u8>| {
            out.extend(piece(next).into_bytes());
            next += 1;
            next < count
        };
        (Box::new(pieces), whole)
    }

    async fn read(body: Body) -> Result<Vec<u8>, axum::Error> {
        let mut stream = body.into_data_stream();
        let mut all = Vec::new();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn an_answer_is_the_same_in_pieces_and_packed() {
        for count in [1, 2, 30] {
            let (made, whole) = pieces(count);
            assert_eq!(read(body(made, false)).await.unwrap(), whole);
            let packed = read(body(pieces(count).0, true)).await.unwrap();
            let mut unpacked = Vec::new();
            GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
            assert_eq!(unpacked, whole);
        }
    }

    #[tokio::test]
    async fn clients_that_do_not_read_delay_no_others() {
        let mut slow = Vec::new();
        for _ in 0..4 * PIECES_AT_ONCE {
            let mut stream = body(pieces(9).0, false).into_data_stream();
            assert!(stream.next().await.unwrap().is_ok());
            slow.push(stream);
        }
        let (made, whole) = pieces(9);
        assert_eq!(read(body(made, true)).await.unwrap().is_empty(), whole.is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_no_whole_one() {
        let mut left = 2;
        let broken = body(
            Box::new(move |out| {
                left -= 1;
                assert!(left > 0, "a piece that can't be made");
                out.push(b'x');
                true
            }),
            false,
        );
        assert!(read(broken).await.is_err());
    }
}
