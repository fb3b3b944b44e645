//! The log's frame: a numbered, checksummed group of writes. Pure; parses untrusted bytes.
//!
//! The magic's bytes occur in no UTF-8 text, and values are JSON, so clients cannot store bytes that look like a frame.

use std::sync::Arc;

use super::super::Record;
use super::super::plan::{StoredValue, Write};
use super::{ReadFirstFormat, Revision};

pub(super) const MAGIC: [u8; 4] = [0xFF, b'C', b'R', 0xFE];
pub(super) const HEADER_BYTES: usize = 40;

/// The content of a write: nothing, an object of the first format (JSON only), or a record.
const DELETED: u8 = 0;
const PLAIN: u8 = 1;
const RECORD: u8 = 2;

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    pub(super) first: Revision,
    pub(super) last: Revision,
    payload_bytes: u32,
    payload_crc: u32,
}

impl Header {
    pub(super) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload_bytes as usize
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // The store's limit keeps values far below 4 GiB.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Encodes one write (also for snapshots).
pub(super) fn encode_write(out: &mut Vec<u8>, write: &Write) {
    out.extend_from_slice(&write.revision.to_le_bytes());
    put_bytes(out, write.key.as_bytes());
    match &write.stored {
        None => out.push(DELETED),
        Some(stored) => {
            out.push(RECORD);
            out.extend_from_slice(&stored.created.to_le_bytes());
            out.extend_from_slice(&stored.expires_ms.to_le_bytes());
            out.extend_from_slice(&u32::try_from(stored.record.bytes_len()).unwrap_or(u32::MAX).to_le_bytes());
            stored.record.write_to(out);
        }
    }
}

/// Reads values from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()? as usize;
        self.take(n)
    }
}

/// The write at the front of `bytes`, and the rest; `read` makes a record of an object without a head.
pub(super) fn decode_write<'a>(bytes: &'a [u8], read: &ReadFirstFormat) -> Option<(Write, &'a [u8])> {
    let mut reader = Reader(bytes);
    let revision = reader.u64()?;
    let key: Arc<str> = std::str::from_utf8(reader.bytes()?).ok()?.into();
    let stored = match reader.take(1)? {
        [DELETED] => None,
        [form @ (PLAIN | RECORD)] => {
            let created = reader.u64()?;
            let expires_ms = reader.u64()?;
            let bytes = reader.bytes()?;
            let record = if *form == PLAIN { read(&key, bytes) } else { Record::decode(bytes)? };
            Some(StoredValue { created, expires_ms, record }.into())
        }
        _ => return None,
    };
    Some((Write { revision, key, stored }, reader.0))
}

/// Encodes a frame; `writes` are in revision order and not empty.
pub(super) fn encode(number: u64, writes: &[Write]) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    for write in writes {
        encode_write(&mut out, write);
    }
    let payload = &out[HEADER_BYTES..];
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(&writes.first().map_or(0, |write| write.revision).to_le_bytes());
    head.extend_from_slice(&writes.last().map_or(0, |write| write.revision).to_le_bytes());
    head.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    head.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
    out[..HEADER_BYTES].copy_from_slice(&head);
    out
}

/// The frame at the front of `bytes`, if its checksums match.
pub(super) fn check(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let head = bytes.get(..HEADER_BYTES)?;
    let mut reader = Reader(head);
    if reader.take(4)? != MAGIC {
        return None;
    }
    let header = Header {
        number: reader.u64()?,
        first: reader.u64()?,
        last: reader.u64()?,
        payload_bytes: reader.u32()?,
        payload_crc: reader.u32()?,
    };
    if reader.u32()? != crc32fast::hash(&head[..HEADER_BYTES - 4]) {
        return None;
    }
    let payload = bytes.get(HEADER_BYTES..header.frame_bytes())?;
    (crc32fast::hash(payload) == header.payload_crc).then_some((header, payload))
}

/// The writes of a checked payload; `None` if they contradict the header.
pub(super) fn writes(header: &Header, mut payload: &[u8], read: &ReadFirstFormat) -> Option<Vec<Write>> {
    let mut writes: Vec<Write> = Vec::new();
    while !payload.is_empty() {
        let (write, rest) = decode_write(payload, read)?;
        let follows = writes.last().map_or(write.revision == header.first, |last| {
            write.revision == last.revision || write.revision == last.revision + 1
        });
        if !follows {
            return None;
        }
        writes.push(write);
        payload = rest;
    }
    (writes.last()?.revision == header.last).then_some(writes)
}

/// Whether a valid frame numbered `number` or higher begins anywhere in `bytes`.
pub(super) fn any_from(bytes: &[u8], number: u64) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.windows(MAGIC.len()).position(|window| window == MAGIC) {
        if check(&rest[at..]).is_some_and(|(header, _)| header.number >= number) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key, its value with a time to live, and whether a new revision begins.
    type Drawn = ((String, Option<(Vec<u8>, u64)>), bool);

    fn read(_: &str, body: &[u8]) -> Record {
        Record::plain(body)
    }

    /// Encodes as the first format did.
    fn plain(write: &Write) -> Vec<u8> {
        let mut out = write.revision.to_le_bytes().to_vec();
        put_bytes(&mut out, write.key.as_bytes());
        match &write.stored {
            None => out.push(0),
            Some(stored) => {
                out.push(1);
                out.extend_from_slice(&stored.created.to_le_bytes());
                out.extend_from_slice(&stored.expires_ms.to_le_bytes());
                put_bytes(&mut out, &stored.record.body());
            }
        }
        out
    }

    fn some_writes() -> impl Strategy<Value = Vec<Write>> {
        let one = ("[a-z/]{1,12}", proptest::option::of((proptest::collection::vec(any::<u8>(), 0..40), any::<u64>())));
        proptest::collection::vec((one, any::<bool>()), 1..6).prop_map(|ops| {
            let mut revision = 7;
            let write = |((key, value), step): Drawn| {
                revision += u64::from(step);
                let stored = value.map(|(value, ttl)| {
                    StoredValue { record: Record::plain(&value), created: 1, expires_ms: ttl }.into()
                });
                Write { revision, key: key.into(), stored }
            };
            ops.into_iter().map(write).collect()
        })
    }

    proptest! {
        #[test]
        fn frames_round_trip(writes in some_writes(), number in any::<u64>()) {
            let mut bytes = encode(number, &writes);
            let len = bytes.len();
            bytes.extend_from_slice(b"what follows");
            let (header, payload) = check(&bytes).unwrap();
            prop_assert_eq!((header.number, header.frame_bytes()), (number, len));
            prop_assert_eq!(super::writes(&header, payload, &read), Some(writes));
        }

        #[test]
        fn frames_of_the_first_format_are_read(writes in some_writes()) {
            let bytes: Vec<u8> = writes.iter().flat_map(plain).collect();
            let (first, last) = (writes[0].revision, writes[writes.len() - 1].revision);
            let header = Header { number: 1, first, last, payload_bytes: 0, payload_crc: 0 };
            prop_assert_eq!(super::writes(&header, &bytes, &read), Some(writes));
        }

        #[test]
        fn no_flipped_bit_or_cut_goes_unnoticed(
            writes in some_writes(), at in any::<proptest::sample::Index>(), bit in 0u8..8, cut in any::<bool>()
        ) {
            let mut bytes = encode(3, &writes);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            prop_assert!(check(&bytes).is_none());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let header = Header { number: 1, first: 1, last: 1, payload_bytes: 0, payload_crc: 0 };
            let _ = super::writes(&header, &bytes, &read);
            prop_assert!(check(&bytes).is_none());
        }
    }
}
