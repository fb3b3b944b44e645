//! Tests of the frames: both directions, each violation, pieces of any size.
use super::*;

const MASK: [u8; 4] = [1, 2, 3, 4];
const MAX: usize = 1000;

fn decode_pieces(bytes: &[u8], piece: usize) -> Result<Vec<Event>, Violation> {
    let mut decoder = Decoder::new(Sender::Client, MAX);
    let mut events = Vec::new();
    for mut part in bytes.chunks(piece) {
        while let Some(event) = decoder.next(&mut part)? {
            events.push(event);
        }
        assert!(part.is_empty());
    }
    Ok(events)
}

/// The same result for pieces of one byte, of some, and of all.
fn decode(bytes: &[u8]) -> Result<Vec<Event>, Violation> {
    let whole = decode_pieces(bytes, bytes.len().max(1));
    for piece in [1, 2, 3, 7] {
        assert_eq!(decode_pieces(bytes, piece), whole, "pieces of {piece} bytes");
    }
    whole
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, Opcode::Text, payload, Some(MASK));
    out[0] = first;
    out
}

fn code_of(bytes: &[u8]) -> Option<u16> {
    decode(bytes).err().map(|violation| violation.code)
}

#[test]
fn messages_are_read_in_parts_and_pieces() {
    for length in [0, 1, 125, 126, 999] {
        let text = "é".repeat(length / 2);
        assert_eq!(decode(&frame(0x81, text.as_bytes())), Ok(Vec::from([Event::Text(text)])), "{length}");
    }
    let parts =
        [frame(0x01, "a€".as_bytes().split_at(2).0), frame(0x89, b"p"), frame(0x80, "a€".as_bytes().split_at(2).1)];
    let events = Vec::from([Event::Ping(b"p".to_vec()), Event::Text("a€".into())]);
    assert_eq!(decode(&parts.concat()), Ok(events));
    assert_eq!(decode(&frame(0x82, &[0xff])), Ok(Vec::from([Event::Binary(Vec::from([0xff]))])));
    assert_eq!(
        decode(&[frame(0x8a, b"x"), frame(0x88, b"")].concat()),
        Ok(Vec::from([Event::Pong, Event::Close(None)]))
    );
}

#[test]
fn a_servers_frames_are_read_without_a_mask() {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Opcode::Binary, &[7; 70_000], None);
    let mut decoder = Decoder::new(Sender::Server, 70_000);
    assert_eq!(decoder.next(&mut bytes.as_slice()), Ok(Some(Event::Binary(Vec::from([7; 70_000])))));
    let masked = decoder.next(&mut frame(0x81, b"a").as_slice());
    assert_eq!(masked.unwrap_err().code, code::PROTOCOL);
}

#[test]
fn violations_end_the_connection_with_their_code() {
    let unmasked = [0x81, 1, b'a'];
    let long_form = [0x81, 0x80 | 126, 0, 5, 0, 0, 0, 0];
    let negative = [0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, bytes) in [
        ("reserved bit 1", frame(0xc1, b"")),
        ("reserved bit 3", frame(0x91, b"")),
        ("reserved data opcode", frame(0x83, b"")),
        ("reserved control opcode", frame(0x8b, b"")),
        ("ping in parts", frame(0x09, b"")),
        ("long ping", frame(0x89, &[0; 126])),
        ("continuation of nothing", frame(0x80, b"")),
        ("text within a text", [frame(0x01, b"a"), frame(0x81, b"b")].concat()),
        ("no mask", unmasked.to_vec()),
        ("long form", long_form.to_vec()),
        ("negative length", negative.to_vec()),
        ("half a code", frame(0x88, b"x")),
    ] {
        assert_eq!(code_of(&bytes), Some(code::PROTOCOL), "{name}");
    }
    for bad in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535u16] {
        assert_eq!(code_of(&frame(0x88, &bad.to_be_bytes())), Some(code::PROTOCOL), "{bad}");
    }
    assert_eq!(code_of(&frame(0x88, b"\x03\xe8\xff")), Some(code::INVALID));
    for text in [&b"\xff"[..], b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"] {
        assert_eq!(code_of(&frame(0x81, text)), Some(code::INVALID), "{text:?}");
    }
}

#[test]
fn a_text_is_rejected_before_its_end() {
    let mut decoder = Decoder::new(Sender::Client, MAX);
    let bytes = frame(0x81, b"abc\xffdefghi");
    assert_eq!(decoder.next(&mut &bytes[..9]), Ok(None));
    assert_eq!(decoder.next(&mut &bytes[9..10]).unwrap_err().code, code::INVALID);
}

#[test]
fn a_message_is_at_most_as_long_as_permitted() {
    assert!(decode(&frame(0x82, &[0; MAX])).is_ok());
    assert_eq!(code_of(&frame(0x82, &[0; MAX + 1])), Some(code::TOO_BIG));
    let parts = [frame(0x02, &[0; MAX]), frame(0x00, b""), frame(0x89, &[0; 125]), frame(0x80, &[0])].concat();
    assert_eq!(code_of(&parts), Some(code::TOO_BIG));
    // The length alone is enough, and none of it is allocated.
    let header = [0x82, 0x80 | 127, 0, 0, 0xff, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    assert_eq!(code_of(&header), Some(code::TOO_BIG));
}

#[test]
fn random_bytes_end_or_wait() {
    let mut seed = 1u64;
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..40)
            .map(|at| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let byte = (seed >> 56) as u8;
                // Often a frame that is nearly right.
                match at {
                    0 => byte & 0x8f,
                    1 => 0x80 | byte & 15,
                    _ => byte,
                }
            })
            .collect();
        let _ = decode(&bytes);
    }
}
