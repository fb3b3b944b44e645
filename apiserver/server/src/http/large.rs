//! Large answers are made and packed on threads of their own, a piece at a time and as fast as the client takes them: a
//! list of a hundred thousand objects would hold one of the control plane's few workers for a second, and with it
//! heartbeats and leases.

use std::io::{self, Write};

use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use tokio::sync::Semaphore;

/// What is made of less stored JSON is made where it was asked for: another thread would cost more than it saves.
pub(super) const LARGE_BYTES: usize = 128 * 1024;
/// A piece, before packing: some 0.1 ms of copying or 3 ms of packing, and what an answer holds in memory.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that are made at once: as many as leave a small machine a core for everybody else.
const PIECES_AT_ONCE: usize = 2;

static SEATS: Semaphore = Semaphore::const_new(PIECES_AT_ONCE);

/// Appends the next piece of an answer; false: that was the last one.
pub(super) type Pieces = Box<dyn FnMut(&mut Vec<u8>) -> bool + Send>;

struct Making {
    pieces: Pieces,
    packer: Option<GzEncoder<Vec<u8>>>,
    over: bool,
}

impl Making {
    /// The next bytes; none: that was all.
    fn next(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && !self.over {
            self.over = !(self.pieces)(&mut out);
            let Some(packer) = &mut self.packer else { continue };
            packer.write_all(&out)?;
            if self.over {
                packer.try_finish()?;
            }
            out = std::mem::take(packer.get_mut());
        }
        Ok(out.into())
    }
}

/// A body out of pieces, packed on the way where that is wanted.
pub(super) fn body(pieces: Pieces, packs: bool) -> Body {
    let packer = packs.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
    let making = Some(Making { pieces, packer, over: false });
    Body::from_stream(stream::try_unfold(making, |making| async {
        let Some(mut making) = making else { return Ok(None) };
        // A seat for a piece, not for the whole answer: a slow client must not keep it.
        let _seat = SEATS.acquire().await.map_err(io::Error::other)?;
        let made = tokio::task::spawn_blocking(move || making.next().map(|piece| (piece, making))).await;
        let (piece, making) = made.map_err(io::Error::other)??;
        Ok::<_, io::Error>((!piece.is_empty()).then_some((piece, Some(making))))
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
    async fn clients_that_take_nothing_hold_up_nobody() {
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
