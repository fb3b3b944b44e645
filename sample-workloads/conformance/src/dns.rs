//! DNS messages of a client: queries, and answers as text. Pure.
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

/// Maximum pointers of a name: a hostile message has loops.
const JUMPS_MAX: usize = 16;
const HEAD_BYTES: usize = 12;
/// Maximum bytes of a name in a message (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 255;

const TYPES: [(&str, u16); 8] =
    [("A", 1), ("NS", 2), ("CNAME", 5), ("SOA", 6), ("PTR", 12), ("TXT", 16), ("AAAA", 28), ("SRV", 33)];

pub fn type_of(name: &str) -> Option<u16> {
    TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, number)| *number)
}

/// An answer's record, in the form of zone files.
#[derive(Debug, PartialEq)]
pub struct Record {
    pub name: String,
    pub ttl: u32,
    pub kind: String,
    pub data: String,
}

#[derive(Debug, PartialEq)]
pub struct Reply {
    pub code: u8,
    pub is_truncated: bool,
    pub answers: Vec<Record>,
}

/// The query for a name; `None` if it is no name.
pub fn query(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::from([(id >> 8) as u8, id as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.').filter(|_| name != ".") {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    if bytes.len() - HEAD_BYTES >= NAME_BYTES_MAX {
        return None;
    }
    bytes.push(0);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&[0, 1]);
    Some(bytes)
}

/// The reverse name of an address; other names unchanged.
pub fn reversed(name: &str) -> String {
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        let [a, b, c, d] = ip.octets();
        format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
    } else if let Ok(ip) = name.parse::<Ipv6Addr>() {
        let digits: String = ip.octets().iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4)).collect();
        format!("{digits}ip6.arpa.")
    } else {
        name.to_owned()
    }
}

fn two(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The name at an offset, with a dot at its end, and the offset behind it.
fn name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut text, mut end, mut jumps, mut total) = (String::new(), None, 0, 0);
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => break,
            64.. => {
                jumps += 1;
                if length < 0xc0 || jumps > JUMPS_MAX {
                    return None;
                }
                end = end.or(Some(at + 2));
                at = usize::from(two(bytes, at)? & 0x3fff);
            }
            _ => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                total += 1 + length;
                if total >= NAME_BYTES_MAX {
                    return None;
                }
                text.push_str(&String::from_utf8_lossy(label));
                text.push('.');
                at += 1 + length;
            }
        }
    }
    if text.is_empty() {
        text.push('.');
    }
    Some((text, end.unwrap_or(at + 1)))
}

/// Reads the reply to a query; `None` if it is another's or malformed.
pub fn reply(bytes: &[u8], id: u16) -> Option<Reply> {
    let flags = two(bytes, 2)?;
    if two(bytes, 0)? != id || flags & 0x8000 == 0 {
        return None;
    }
    let mut at = HEAD_BYTES;
    for _ in 0..two(bytes, 4)? {
        at = name(bytes, at)?.1 + 4;
    }
    let mut answers = Vec::new();
    for _ in 0..two(bytes, 6)? {
        let (owner, after) = name(bytes, at)?;
        let kind = two(bytes, after)?;
        let ttl = u32::from(two(bytes, after + 4)?) << 16 | u32::from(two(bytes, after + 6)?);
        let length = usize::from(two(bytes, after + 8)?);
        let from = after + 10;
        at = from + length;
        let data = data(bytes, kind, from, bytes.get(from..at)?)?;
        let known = TYPES.iter().find(|(_, number)| *number == kind);
        let kind = known.map_or_else(|| format!("TYPE{kind}"), |(name, _)| (*name).to_owned());
        answers.push(Record { name: owner, ttl, kind, data });
    }
    Some(Reply { code: (flags & 15) as u8, is_truncated: flags & 0x0200 != 0, answers })
}

fn data(bytes: &[u8], kind: u16, from: usize, raw: &[u8]) -> Option<String> {
    Some(match kind {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(raw).ok()?).to_string(),
        28 => Ipv6Addr::from(<[u8; 16]>::try_from(raw).ok()?).to_string(),
        2 | 5 | 12 => name(bytes, from)?.0,
        33 => {
            let target = name(bytes, from + 6)?.0;
            format!("{} {} {} {target}", two(raw, 0)?, two(raw, 2)?, two(raw, 4)?)
        }
        16 => {
            let length = usize::from(*raw.first()?);
            format!("\"{}\"", String::from_utf8_lossy(raw.get(1..=length)?))
        }
        _ => format!("\\# {}", raw.len()),
    })
}

/// A resolver's settings (`resolv.conf(5)`).
#[derive(Debug, PartialEq)]
pub struct Settings {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub ndots: usize,
}

impl Settings {
    pub fn parse(text: &str) -> Self {
        let mut settings = Self { servers: Vec::new(), searches: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace().map(ToOwned::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => settings.servers.extend(words.next()),
                Some("search") => settings.searches = words.collect(),
                Some("options") => {
                    let ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    settings.ndots = ndots.unwrap_or(settings.ndots);
                }
                _ => {}
            }
        }
        settings
    }

    /// The names to query for one, in order.
    pub fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return Vec::from([name.to_owned()]);
        }
        let searched = self.searches.iter().map(|domain| format!("{name}.{domain}"));
        let mut all: Vec<String> = searched.collect();
        let plain_at = if name.matches('.').count() >= self.ndots { 0 } else { all.len() };
        all.insert(plain_at, name.to_owned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_and_its_reply() {
        let asked = query(7, "a.example", 1).unwrap();
        assert_eq!(asked, b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01");
        let mut answered = asked.clone();
        answered[2] |= 0x80;
        answered[7] = 2;
        answered.extend_from_slice(b"\xc0\x0c\0\x05\0\x01\0\0\0\x1e\0\x04\x01b\xc0\x0e");
        answered.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01");
        let read = reply(&answered, 7).unwrap();
        let texts: Vec<_> = read.answers.iter().map(|record| (record.kind.as_str(), record.data.as_str())).collect();
        assert_eq!(texts, [("CNAME", "b.example."), ("A", "10.0.0.1")]);
        assert_eq!((read.answers[0].name.as_str(), read.answers[0].ttl), ("a.example.", 30));
        assert_eq!(reply(&answered, 8), None, "another's");
        for length in 0..answered.len() {
            assert_eq!(reply(&answered[..length], 7), None, "{length}");
        }
    }

    #[test]
    fn hostile_names_end() {
        let mut looped = query(1, "a", 1).unwrap();
        looped[2] |= 0x80;
        looped[7] = 1;
        let at = looped.len() as u8;
        looped.extend_from_slice(&[0xc0, at, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]);
        assert_eq!(reply(&looped, 1), None);
        for (labels, is_read) in [(3, true), (4, false)] {
            let mut long = query(1, "a", 1).unwrap();
            long[2] |= 0x80;
            long[7] = 1;
            (0..labels).for_each(|_| long.extend_from_slice(&[63; 64]));
            long.extend_from_slice(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]);
            assert_eq!(reply(&long, 1).is_some(), is_read, "{labels}");
        }
        assert_eq!(query(1, "a..b", 1), None);
        assert_eq!(query(1, &"a.".repeat(200), 1), None);
        assert_eq!(query(1, &"a".repeat(64), 1), None);
        assert_eq!(query(1, ".", 2).map(|bytes| bytes.len()), Some(17));
    }

    #[test]
    fn names_are_searched_as_by_the_c_library() {
        let settings = Settings::parse("nameserver 10.0.0.10\nsearch ns.svc svc\noptions ndots:2 edns0\n");
        assert_eq!(settings.servers, ["10.0.0.10"]);
        assert_eq!(settings.candidates("web"), ["web.ns.svc", "web.svc", "web"]);
        assert_eq!(settings.candidates("a.b.c"), ["a.b.c", "a.b.c.ns.svc", "a.b.c.svc"]);
        assert_eq!(settings.candidates("web."), ["web."]);
        assert_eq!(reversed("10.0.0.1"), "1.0.0.10.in-addr.arpa.");
        assert!(reversed("2001:db8::1").ends_with(".8.b.d.0.1.0.0.2.ip6.arpa."));
    }
}
