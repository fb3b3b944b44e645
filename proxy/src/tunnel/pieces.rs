//! A queue of received or sent bytes without a cost for each small piece: those are copied together. Pure.
//!
//! A stream's window bounds its bytes, not its frames: 128 KiB of single bytes would otherwise take many times their
//! size.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces below this size are copied into one buffer; larger ones are kept without a copy.
const SMALL_BYTES: usize = 1024;

/// Bytes in order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    whole: VecDeque<Bytes>,
    /// Small pieces after those of `whole`.
    tail: BytesMut,
    bytes: usize,
}

impl Pieces {
    /// The number of queued bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= SMALL_BYTES {
                self.whole.push_back(self.tail.split().freeze());
            }
            return;
        }
        if !self.tail.is_empty() {
            self.whole.push_back(self.tail.split().freeze());
        }
        self.whole.push_back(piece);
    }

    /// The next bytes, in no particular size.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let piece = match self.whole.pop_front() {
            Some(piece) => piece,
            None if self.tail.is_empty() => return None,
            None => self.tail.split().freeze(),
        };
        self.bytes -= piece.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_small_pieces_are_joined() {
        let mut pieces = Pieces::default();
        let sizes = (0..3000).map(|_| 1).chain([5000, 1, 1, 1024, 3]);
        let sent: Vec<Bytes> = sizes.enumerate().map(|(n, size)| Bytes::from(vec![n as u8; size])).collect();
        sent.iter().for_each(|piece| pieces.push(piece.clone()));
        assert_eq!(pieces.bytes(), sent.iter().map(Bytes::len).sum::<usize>());
        let mut received = Vec::new();
        while let Some(piece) = pieces.pop() {
            received.push(piece);
        }
        assert_eq!((received.concat(), pieces.bytes()), (sent.concat(), 0));
        assert!(received.len() < 10, "{}", received.len());
    }
}
