//! No input makes the decoder panic, spin, or allocate more than its bounds.

use bytes::BytesMut;

use super::{DATA_BYTES_MAX, Decoder, HEADERS_BYTES_MAX};

#[test]
fn frames() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|input: &Vec<u8>| {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(&input[..]));
        let mut before = buffer.len();
        while let Ok(Some(_)) = decoder.decode(&mut buffer) {
            assert!(buffer.len() < before, "each frame takes bytes");
            before = buffer.len();
        }
        assert!(buffer.capacity() <= input.len().max(64) * 2 + DATA_BYTES_MAX.max(HEADERS_BYTES_MAX) + 64);
    });
}

/// With a head that passes the first checks, so that payloads are reached.
#[test]
fn control_frames() {
    bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(kind, payload): &(u8, Vec<u8>)| {
        let payload = &payload[..payload.len().min(HEADERS_BYTES_MAX)];
        let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        let mut buffer = BytesMut::from(&[0x80, 3, 0, kind % 10, 0, length[1], length[2], length[3]][..]);
        buffer.extend_from_slice(payload);
        let _ = Decoder::default().decode(&mut buffer);
    });
}
