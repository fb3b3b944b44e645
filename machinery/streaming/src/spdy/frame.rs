//! Encodes and decodes frames. Pure. Invariant: a peer's bytes cost no more than the bounds below, whatever they
//! contain.

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Maximum payload of a received data frame: kubectl sends 32 KiB at once.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// Maximum size of a header block, compressed or not: Kubernetes' streams have three headers.
pub const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Maximum payload of a control frame.
const CONTROL_BYTES_MAX: usize = HEADERS_BYTES_MAX + 16;

const HEAD_BYTES: usize = 8;
const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const ID: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is reset (§2.6.3).
pub mod status {
    /// The frame is invalid.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// The stream is unknown.
    pub const INVALID_STREAM: u32 = 2;
    /// The stream is rejected unread.
    pub const REFUSED_STREAM: u32 = 3;
    /// The opener cancels the stream.
    pub const CANCEL: u32 = 5;
}

/// Header names, in lower case as on the wire, with values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of a name, case-insensitive.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its number: odd for a client's.
        id: u32,
        /// No data will follow from the opener.
        fin: bool,
        /// The opener's headers.
        headers: Headers,
    },
    /// Accepts a stream of the peer.
    SynReply {
        /// Its number.
        id: u32,
        /// No data will follow from the acceptor.
        fin: bool,
        /// The acceptor's headers.
        headers: Headers,
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        id: u32,
        /// Nothing will follow.
        fin: bool,
        /// The additional headers.
        headers: Headers,
    },
    /// Ends a stream in both directions.
    Reset {
        /// Its number.
        id: u32,
        /// See [`status`].
        status: u32,
    },
    /// Requests a ping with the same id.
    Ping(u32),
    /// Streams after `last` are rejected.
    GoAway {
        /// The last accepted stream.
        last: u32,
        /// 0 for no error.
        status: u32,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        id: u32,
        /// Whether they are the last.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// A frame without meaning here: settings, windows, types of later versions.
    Ignored,
}

/// A protocol error of the peer. The connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// Another protocol, or another version.
    #[error("a frame of SPDY version {0}, where 3 is spoken")]
    Version(u16),
    /// The frame is over the size limit.
    #[error("a frame of {0} bytes is longer than what is taken")]
    TooLong(usize),
    /// The payload's length is wrong for its type.
    #[error("a frame of type {0} has a payload of the wrong length")]
    Length(u16),
    /// The header block is invalid or expands beyond its limit.
    #[error("a header block can't be read: {0}")]
    HeaderBlock(&'static str),
}

/// Decodes frames. The header blocks of a connection are one compressed stream: use one decoder a connection.
#[derive(Debug)]
pub struct Decoder {
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Takes the next frame off `buffer`; `None` while it is incomplete.
    ///
    /// # Errors
    /// If the peer violates the protocol or a limit.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = buffer.first_chunk::<HEAD_BYTES>().copied() else { return Ok(None) };
        let first = u16::from_be_bytes([head[0], head[1]]);
        let flags = head[4];
        let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        let control = first & CONTROL != 0;
        if control && first & !CONTROL != VERSION {
            return Err(SpdyError::Version(first & !CONTROL));
        }
        let most = if control { CONTROL_BYTES_MAX } else { DATA_BYTES_MAX };
        if length > most {
            return Err(SpdyError::TooLong(length));
        }
        if buffer.len() < HEAD_BYTES + length {
            buffer.reserve(HEAD_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEAD_BYTES);
        let payload = buffer.split_to(length).freeze();
        let fin = flags & FIN != 0;
        if control {
            self.control(u16::from_be_bytes([head[2], head[3]]), fin, payload).map(Some)
        } else {
            let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) & ID;
            Ok(Some(Frame::Data { id, fin, bytes: payload }))
        }
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, SpdyError> {
        let wants = |payload: &Bytes, exact: bool, bytes: usize| {
            let fits = if exact { payload.len() == bytes } else { payload.len() >= bytes };
            if fits { Ok(()) } else { Err(SpdyError::Length(kind)) }
        };
        Ok(match kind {
            SYN_STREAM => {
                wants(&payload, false, 10)?;
                let id = payload.get_u32() & ID;
                payload.advance(6); // the stream it belongs to, its priority, its slot
                Frame::SynStream { id, fin, headers: self.headers(&payload)? }
            }
            SYN_REPLY | HEADERS => {
                wants(&payload, false, 4)?;
                let id = payload.get_u32() & ID;
                let headers = self.headers(&payload)?;
                if kind == HEADERS { Frame::Headers { id, fin, headers } } else { Frame::SynReply { id, fin, headers } }
            }
            RST_STREAM => {
                wants(&payload, true, 8)?;
                Frame::Reset { id: payload.get_u32() & ID, status: payload.get_u32() }
            }
            PING => {
                wants(&payload, true, 4)?;
                Frame::Ping(payload.get_u32())
            }
            GOAWAY => {
                wants(&payload, true, 8)?;
                Frame::GoAway { last: payload.get_u32() & ID, status: payload.get_u32() }
            }
            _ => Frame::Ignored,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    /// A block ends at a flush, not at the end of the compressed stream: all of it is read, and its output is bounded.
    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let bad = |why| SpdyError::HeaderBlock(why);
        let mut rest = block;
        let mut out = Vec::with_capacity(HEADERS_BYTES_MAX.min(1024.max(block.len() * 4)));
        loop {
            let (read, written) = (self.inflate.total_in(), out.len());
            let done = self.inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let used = usize::try_from(self.inflate.total_in() - read).unwrap_or(usize::MAX);
            rest = rest.get(used..).unwrap_or_default();
            match done {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&DICTIONARY).map_err(|_| bad("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(bad("not compressed by zlib")),
                Ok(Status::StreamEnd) if !rest.is_empty() => return Err(bad("bytes after its end")),
                Ok(_) => {}
            }
            let full = out.len() == out.capacity();
            if rest.is_empty() && !full {
                return Ok(out);
            }
            if full {
                if out.len() >= HEADERS_BYTES_MAX {
                    return Err(bad("too long"));
                }
                let more = out.len().min(HEADERS_BYTES_MAX - out.len());
                out.reserve_exact(more.max(1));
            } else if used == 0 && out.len() == written {
                return Err(bad("cut off"));
            }
        }
    }
}

/// Parses a block's names and values.
fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    const SHORT: SpdyError = SpdyError::HeaderBlock("cut off");
    let number = |block: &mut &[u8]| block.try_get_u32().map_err(|_| SHORT);
    let text = |block: &mut &[u8]| {
        let length = usize::try_from(number(block)?).map_err(|_| SHORT)?;
        let (text, rest) = block.split_at_checked(length).ok_or(SHORT)?;
        *block = rest;
        String::from_utf8(text.to_vec()).map_err(|_| SpdyError::HeaderBlock("not UTF-8"))
    };
    let count = number(&mut block)?;
    let mut headers = Vec::new();
    // Each takes eight bytes at least: a false count fails early.
    for _ in 0..count {
        headers.push((text(&mut block)?, text(&mut block)?));
    }
    if block.is_empty() { Ok(Headers(headers)) } else { Err(SpdyError::HeaderBlock("bytes after its end")) }
}

/// Encodes frames: one encoder a connection, as for [`Decoder`].
#[derive(Debug)]
pub struct Encoder {
    deflate: Compress,
    begun: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { deflate: Compress::new(Compression::best(), true), begun: false }
    }
}

impl Encoder {
    /// Appends a frame to `out`.
    ///
    /// # Errors
    /// If headers or data are over the limits; then nothing was written.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.block(headers)?;
                head(out, SYN_STREAM, *fin, 10 + block.len());
                out.put_u32(id & ID);
                out.put_slice(&[0; 6]);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } | Frame::Headers { id, fin, headers } => {
                let block = self.block(headers)?;
                let kind = if matches!(frame, Frame::SynReply { .. }) { SYN_REPLY } else { HEADERS };
                head(out, kind, *fin, 4 + block.len());
                out.put_u32(id & ID);
                out.put_slice(&block);
            }
            Frame::Reset { id, status } => {
                head(out, RST_STREAM, false, 8);
                out.put_u32(id & ID);
                out.put_u32(*status);
            }
            Frame::Ping(id) => {
                head(out, PING, false, 4);
                out.put_u32(*id);
            }
            Frame::GoAway { last, status } => {
                head(out, GOAWAY, false, 8);
                out.put_u32(last & ID);
                out.put_u32(*status);
            }
            Frame::Data { id, fin, bytes } => {
                if bytes.len() > DATA_BYTES_MAX {
                    return Err(SpdyError::TooLong(bytes.len()));
                }
                out.put_u32(id & ID);
                out.put_u8(if *fin { FIN } else { 0 });
                out.put_uint(bytes.len() as u64, 3);
                out.put_slice(bytes);
            }
            Frame::Ignored => {}
        }
        Ok(())
    }

    fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        plain.put_u32(number(headers.0.len()));
        for (name, value) in &headers.0 {
            for text in [&name.to_ascii_lowercase(), value] {
                plain.put_u32(number(text.len()));
                plain.put_slice(text.as_bytes());
            }
        }
        if plain.len() > HEADERS_BYTES_MAX / 2 {
            return Err(SpdyError::TooLong(plain.len()));
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.deflate.set_dictionary(&DICTIONARY).map_err(|_| SpdyError::HeaderBlock("no dictionary"))?;
        }
        // Capacity for incompressible data and the flush.
        let mut block = Vec::with_capacity(plain.len() * 2 + 64);
        let before = self.deflate.total_in();
        let done = self.deflate.compress_vec(&plain, &mut block, FlushCompress::Sync);
        let all = usize::try_from(self.deflate.total_in() - before).ok() == Some(plain.len());
        if done.is_err() || !all || block.len() == block.capacity() {
            return Err(SpdyError::HeaderBlock("can't be compressed"));
        }
        Ok(block)
    }
}

fn head(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    out.put_u8(if fin { FIN } else { 0 });
    out.put_uint(length as u64, 3);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(of: &[(&str, &str)]) -> Headers {
        Headers(of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn frames() -> Vec<Frame> {
        let data = headers(&[("streamtype", "data"), ("port", "8080"), ("requestid", "0")]);
        let error = headers(&[("streamtype", "error"), ("port", "8080"), ("requestid", "0")]);
        vec![
            Frame::SynStream { id: 1, fin: false, headers: error },
            Frame::SynStream { id: 3, fin: true, headers: data },
            Frame::SynReply { id: 1, fin: false, headers: Headers::default() },
            Frame::Headers { id: 3, fin: true, headers: headers(&[("a", "b")]) },
            Frame::Reset { id: 3, status: status::CANCEL },
            Frame::Ping(7),
            Frame::GoAway { last: 3, status: 0 },
            Frame::Data { id: 3, fin: true, bytes: Bytes::from_static(b"hello") },
            Frame::Data { id: 5, fin: false, bytes: Bytes::new() },
        ]
    }

    fn encoded(frames: &[Frame]) -> BytesMut {
        let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
        frames.iter().for_each(|frame| encoder.encode(frame, &mut out).unwrap());
        out
    }

    #[test]
    fn frames_are_read_in_any_pieces() {
        let bytes = encoded(&frames());
        for step in [1, 2, 7, 64, bytes.len()] {
            let (mut decoder, mut buffer, mut read) = (Decoder::default(), BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, frames(), "in pieces of {step}");
        }
    }

    #[test]
    fn excess_data_is_rejected_before_it_is_stored() {
        let refused = |bytes: &[u8]| Decoder::default().decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 0]), SpdyError::Version(2));
        assert_eq!(refused(b"GET / HT"), SpdyError::TooLong(0x20_4854));
        assert_eq!(refused(&[0, 0, 0, 1, 0, 0x10, 0, 1]), SpdyError::TooLong(DATA_BYTES_MAX + 1));
        assert_eq!(refused(&[0x80, 3, 0, 6, 0, 0, 0, 3, 1, 1, 1]), SpdyError::Length(PING));
        let mut unknown = BytesMut::from(&[0x80, 3, 0, 99, 0, 0, 0, 1, 1][..]);
        assert_eq!(Decoder::default().decode(&mut unknown), Ok(Some(Frame::Ignored)));
    }

    #[test]
    fn a_header_block_that_unpacks_to_too_much_is_refused() {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&DICTIONARY).unwrap();
        let mut bomb = Vec::with_capacity(8192);
        deflate.compress_vec(&vec![0; 4 << 20], &mut bomb, FlushCompress::Sync).unwrap();
        let mut frame = BytesMut::new();
        head(&mut frame, SYN_REPLY, false, 4 + bomb.len());
        frame.put_u32(1);
        frame.put_slice(&bomb);
        assert_eq!(Decoder::default().decode(&mut frame), Err(SpdyError::HeaderBlock("too long")));
    }

    proptest! {
        #[test]
        fn headers_of_many_streams_share_one_stream_of_compression(
            all in prop::collection::vec(prop::collection::vec(("[a-z:-]{0,12}", "\\PC{0,40}"), 0..6), 1..8)
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for (id, headers) in (1u32..).zip(all) {
                let frame = Frame::SynStream { id, fin: false, headers: Headers(headers) };
                let mut buffer = BytesMut::new();
                encoder.encode(&frame, &mut buffer).unwrap();
                prop_assert_eq!(decoder.decode(&mut buffer).unwrap(), Some(frame));
                prop_assert!(buffer.is_empty());
            }
        }
    }
}
