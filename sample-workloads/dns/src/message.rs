//! Queries and responses of DNS as bytes (RFC 1035, RFC 6891).
use crate::zone::{Record, Zone};
use alloc::vec::Vec;

const HEADER_BYTES: usize = 12;
/// Maximum bytes of a response over UDP to a query that doesn't say otherwise (RFC 1035 §4.2.1).
const UDP_BYTES: usize = 512;
/// The size in UDP that this server offers, and the most that it uses: no fragments (RFC 9715).
const UDP_BYTES_MAX: usize = 1232;
const TCP_BYTES_MAX: usize = 65_535;
/// Seconds for which resolvers remember that a name doesn't exist.
const NEGATIVE_TTL_S: u32 = 30;

const CLASS_IN: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const TYPE_ANY: u16 = 255;
/// A name that is the question's: a pointer to the byte after the header.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER_BYTES as u8];

const FLAG_RESPONSE: u16 = 1 << 15;
const FLAG_AUTHORITATIVE: u16 = 1 << 10;
const FLAG_TRUNCATED: u16 = 1 << 9;
const FLAG_RECURSION_DESIRED: u16 = 1 << 8;
const OPCODE: u16 = 0xf << 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    Malformed = 1,
    NoName = 3,
    NotSupported = 4,
    Refused = 5,
}

/// The way of a query, which bounds its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

struct Question<'a> {
    /// With its type and class, as it was received.
    bytes: &'a [u8],
    /// In lower case.
    name: Vec<u8>,
    kind: u16,
    class: u16,
    /// The size in UDP that the client takes, if the query has EDNS.
    udp_bytes: Option<u16>,
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The end of a name without pointers.
fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// The only question, and the EDNS record behind it.
fn question(query: &[u8]) -> Option<Question<'_>> {
    let [questions, answers, authorities, additional] = [4, 6, 8, 10].map(|at| number(query, at).unwrap_or(0));
    if (questions, answers, authorities) != (1, 0, 0) {
        return None;
    }
    let name_end = name_end(query, HEADER_BYTES).filter(|end| end - HEADER_BYTES <= 255)?;
    let (kind, class) = (number(query, name_end)?, number(query, name_end + 2)?);
    let end = name_end + 4;
    // The root's name, the type, the size as class.
    let has_edns = additional > 0 && query.get(end) == Some(&0) && number(query, end + 1) == Some(TYPE_OPT);
    Some(Question {
        bytes: &query[HEADER_BYTES..end],
        name: query[HEADER_BYTES..name_end].to_ascii_lowercase(),
        kind,
        class,
        udp_bytes: has_edns.then(|| number(query, end + 3)).flatten(),
    })
}

/// The response to a query; `None` for what is none, which must have no response.
pub fn respond(zone: &Zone, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let flags = number(query, 2).filter(|flags| query.len() >= HEADER_BYTES && flags & FLAG_RESPONSE == 0)?;
    let question = question(query);
    let mut response = Response::new(query, flags, question.as_ref());
    let Some(question) = question else {
        let code = if flags & OPCODE == 0 { Code::Malformed } else { Code::NotSupported };
        return Some(response.finish(code));
    };
    if flags & OPCODE != 0 {
        return Some(response.finish(Code::NotSupported));
    }
    if question.class != CLASS_IN || !is_below(&question.name, &zone.origin) {
        return Some(response.finish(Code::Refused));
    }
    response.flags |= FLAG_AUTHORITATIVE;
    let max = match (transport, question.udp_bytes) {
        (Transport::Tcp, _) => TCP_BYTES_MAX,
        (Transport::Udp, None) => UDP_BYTES,
        (Transport::Udp, Some(bytes)) => usize::from(bytes).clamp(UDP_BYTES, UDP_BYTES_MAX),
    };
    let records = zone.records.get(&question.name);
    for record in records.into_iter().flatten() {
        if question.kind != record.kind && question.kind != TYPE_ANY {
            continue;
        }
        if !response.answer(record, max) {
            response.flags |= FLAG_TRUNCATED;
            break;
        }
    }
    // A name that others are below exists.
    let exists = records.is_some() || zone.records.keys().any(|name| is_below(name, &question.name));
    if response.answers == 0 && response.flags & FLAG_TRUNCATED == 0 {
        response.authority(zone);
    }
    Some(response.finish(if exists || question.name == zone.origin { Code::Ok } else { Code::NoName }))
}

/// Whether a name is another or below it: a common end that begins at a label.
fn is_below(name: &[u8], of: &[u8]) -> bool {
    let mut rest = name;
    while rest.len() > of.len() {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    rest == of
}

struct Response {
    bytes: Vec<u8>,
    flags: u16,
    answers: u16,
    authorities: u16,
    has_edns: bool,
}

impl Response {
    fn new(query: &[u8], flags: u16, question: Option<&Question<'_>>) -> Self {
        let mut bytes = query[..2].to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(question.map_or(&[], |question| question.bytes));
        bytes[5] = question.is_some().into();
        let flags = FLAG_RESPONSE | flags & (OPCODE | FLAG_RECURSION_DESIRED);
        let has_edns = question.is_some_and(|question| question.udp_bytes.is_some());
        Self { bytes, flags, answers: 0, authorities: 0, has_edns }
    }

    fn record(&mut self, name: &[u8], kind: u16, ttl_s: u32, data: &[u8]) {
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.bytes.extend_from_slice(&ttl_s.to_be_bytes());
        self.bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(data);
    }

    /// Adds a record if the response then has at most `max` bytes, with the EDNS record.
    fn answer(&mut self, record: &Record, max: usize) -> bool {
        const FIXED_BYTES: usize = QUESTION_NAME.len() + 10;
        const EDNS_BYTES: usize = 11;
        let fits = self.bytes.len() + FIXED_BYTES + record.data.len() + EDNS_BYTES <= max;
        if fits {
            self.record(&QUESTION_NAME, record.kind, record.ttl_s, &record.data);
            self.answers += 1;
        }
        fits
    }

    /// Adds the zone's SOA record, whose last number is the time of a negative response (RFC 2308).
    fn authority(&mut self, zone: &Zone) {
        let mut data = [zone.origin.as_slice(), &zone.origin].concat();
        for number in [1, 3600, 600, 86_400, NEGATIVE_TTL_S] {
            data.extend_from_slice(&u32::to_be_bytes(number));
        }
        self.record(&zone.origin, TYPE_SOA, NEGATIVE_TTL_S, &data);
        self.authorities += 1;
    }

    fn finish(mut self, code: Code) -> Vec<u8> {
        if self.has_edns {
            self.bytes.push(0);
            self.bytes.extend_from_slice(&TYPE_OPT.to_be_bytes());
            self.bytes.extend_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
            self.bytes.extend_from_slice(&[0; 6]);
            self.bytes[11] = 1;
        }
        self.bytes[2..4].copy_from_slice(&(self.flags | code as u16).to_be_bytes());
        self.bytes[6..8].copy_from_slice(&self.answers.to_be_bytes());
        self.bytes[8..10].copy_from_slice(&self.authorities.to_be_bytes());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::{TYPE_A, TYPE_AAAA, TYPE_TXT, tests::TEXT};

    fn query(name: &[u8], kind: u16) -> Vec<u8> {
        let head = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00";
        [head, name, &kind.to_be_bytes(), &[0, 1]].concat()
    }

    fn counts(response: &[u8]) -> (u16, [u16; 3]) {
        (number(response, 2).unwrap(), [6, 8, 10].map(|at| number(response, at).unwrap()))
    }

    fn udp(query: &[u8]) -> Vec<u8> {
        respond(&Zone::parse(TEXT).unwrap(), query, Transport::Udp).unwrap()
    }

    #[test]
    fn names_have_their_records() {
        let response = udp(&query(b"\x03WwW\x07example\x04test\0", TYPE_A));
        assert_eq!(counts(&response), (0x8500, [2, 0, 0]));
        assert!(response.starts_with(b"\x12\x34") && response.windows(4).any(|bytes| bytes == b"\x03WwW"));
        assert!(response.ends_with(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 3]));
        let response = udp(&query(b"\x04text\x07example\x04test\0", TYPE_TXT));
        assert!(response.ends_with(b"\x00\x0e\x0bhello world\x01b"));
    }

    #[test]
    fn what_is_missing_is_denied_with_the_zones_authority() {
        let other = |name: &[u8], kind| counts(&udp(&query(name, kind)));
        assert_eq!(other(b"\x04none\x07example\x04test\0", TYPE_A), (0x8503, [0, 1, 0]));
        assert_eq!(other(b"\x03www\x07example\x04test\0", TYPE_TXT), (0x8500, [0, 1, 0]));
        assert_eq!(other(b"\x04deep\x07example\x04test\0", TYPE_AAAA), (0x8500, [0, 1, 0]));
        assert_eq!(other(b"\x07example\x03com\0", TYPE_A), (0x8105, [0, 0, 0]));
        assert_eq!(other(b"\x0bbigexample\x04test\0", TYPE_A).0 & 0xf, 1); // a label that ends beyond the message
    }

    #[test]
    fn edns_bounds_the_response() {
        let long: String = (0..20).map(|n| format!("big TXT \"{}{n}\"\n", "x".repeat(100))).collect();
        let zone = Zone::parse(&format!("$ORIGIN t.\n{long}")).unwrap();
        let plain = query(b"\x03big\x01t\0", TYPE_TXT);
        let mut edns = [plain.as_slice(), b"\0\0\x29\x10\0\0\0\0\0\0\0"].concat();
        edns[11] = 1;
        for (query, transport, max, has_edns, truncated) in [
            (&plain, Transport::Udp, 512, 0, true),
            (&edns, Transport::Udp, 1232, 1, true),
            (&edns, Transport::Tcp, 65_535, 1, false),
        ] {
            let response = respond(&zone, query, transport).unwrap();
            let (flags, [answers, _, additional]) = counts(&response);
            assert!(response.len() <= max && response.len() > max.min(2000) - 200, "{}", response.len());
            assert_eq!((additional, flags & FLAG_TRUNCATED != 0, answers == 20), (has_edns, truncated, !truncated));
        }
    }

    /// Any bytes have a response of an error code, or none.
    #[test]
    fn hostile_queries_are_harmless() {
        let zone = Zone::parse(TEXT).unwrap();
        let good = query(b"\x03www\x07example\x04test\0", TYPE_A);
        for length in 0..good.len() {
            let response = respond(&zone, &good[..length], Transport::Udp);
            assert_eq!(response.is_some(), length >= HEADER_BYTES);
            assert!(response.is_none_or(|response| counts(&response).0 & 0xf == 1));
        }
        for at in 0..good.len() {
            for byte in 0..=255 {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = respond(&zone, &bad, Transport::Tcp);
            }
        }
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(respond(&zone, &response, Transport::Udp), None);
        let mut update = good;
        update[2] |= 5 << 3;
        assert_eq!(counts(&respond(&zone, &update, Transport::Udp).unwrap()).0 & 0xf, 4);
    }
}
