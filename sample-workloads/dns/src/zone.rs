//! Zone files: a subset of RFC 1035 §5, one record a line.
//!
//! ```text
//! $ORIGIN example.test.
//! $TTL 60
//! @        A    192.0.2.1
//! www  300 A    192.0.2.2
//! text     TXT  "hello world"
//! ```
use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Seconds for which resolvers keep a record without a TTL of its own.
const TTL_S: u32 = 60;
/// Maximum bytes of a name on the wire (RFC 1035 §2.3.4), and of one label.
const NAME_BYTES_MAX: usize = 255;
const LABEL_BYTES_MAX: usize = 63;
/// Maximum bytes of a string of a TXT record.
const TEXT_BYTES_MAX: usize = 255;
/// Maximum records of a zone.
const RECORDS_MAX: usize = 10_000;

pub const TYPE_A: u16 = 1;
pub const TYPE_TXT: u16 = 16;
pub const TYPE_AAAA: u16 = 28;

/// A name on the wire, in lower case: labels with their lengths, and the root's 0.
pub type Name = Vec<u8>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: u16,
    pub ttl_s: u32,
    pub data: Vec<u8>,
}

/// The records of a zone by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Zone {
    pub origin: Name,
    pub records: BTreeMap<Name, Vec<Record>>,
}

impl Zone {
    /// # Errors
    /// The first line that isn't one of a zone, with its number.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut origin, mut ttl_s, mut records) = (None, TTL_S, BTreeMap::<Name, Vec<Record>>::new());
        let mut count = 0;
        for (index, line) in text.lines().enumerate() {
            let wrong = |problem: &str| format!("line {}: {problem}", index + 1);
            let words = words(line).map_err(wrong)?;
            match (words.as_slice(), &origin) {
                ([], _) => {}
                ([Word::Bare("$ORIGIN"), Word::Bare(name)], _) => origin = Some(absolute(name, &[0]).map_err(wrong)?),
                ([Word::Bare("$TTL"), Word::Bare(seconds)], _) => {
                    ttl_s = seconds.parse().map_err(|_| wrong("$TTL must be a number of seconds"))?;
                }
                (_, None) => return Err(wrong("$ORIGIN must come first")),
                (words, Some(origin)) => {
                    let (name, record) = record(words, origin, ttl_s).map_err(wrong)?;
                    if !name.ends_with(origin) {
                        return Err(wrong("the name is outside of the zone"));
                    }
                    count += 1;
                    if count > RECORDS_MAX {
                        return Err(wrong(&format!("the zone has more than {RECORDS_MAX} records")));
                    }
                    records.entry(name).or_default().push(record);
                }
            }
        }
        Ok(Self { origin: origin.ok_or("no $ORIGIN")?, records })
    }
}

#[derive(Debug, Clone, Copy)]
enum Word<'a> {
    Bare(&'a str),
    Quoted(&'a str),
}

/// The words of a line up to a comment.
fn words(line: &str) -> Result<Vec<Word<'_>>, &'static str> {
    let (mut words, mut rest) = (Vec::new(), line.trim_start());
    while !rest.is_empty() && !rest.starts_with(';') {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (text, after) = quoted.split_once('"').ok_or("a quote has no end")?;
            words.push(Word::Quoted(text));
            rest = after;
        } else {
            let end = rest.find(|letter: char| letter.is_whitespace() || letter == ';').unwrap_or(rest.len());
            words.push(Word::Bare(&rest[..end]));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

/// `NAME [TTL] [IN] TYPE DATA…`
fn record(words: &[Word<'_>], origin: &[u8], ttl_s: u32) -> Result<(Name, Record), &'static str> {
    let wanted = "expected NAME [TTL] [IN] A|AAAA|TXT DATA";
    let [Word::Bare(name), rest @ ..] = words else { return Err(wanted) };
    let name = absolute(name, origin)?;
    let (ttl_s, rest) = match rest {
        [Word::Bare(ttl_s), after @ ..] if ttl_s.bytes().all(|byte| byte.is_ascii_digit()) => {
            (ttl_s.parse().map_err(|_| "the TTL is too large")?, after)
        }
        _ => (ttl_s, rest),
    };
    let rest = if let [Word::Bare("IN"), after @ ..] = rest { after } else { rest };
    let [Word::Bare(kind), data @ ..] = rest else { return Err(wanted) };
    let (kind, data) = match (*kind, data) {
        ("A", [Word::Bare(ip)]) => {
            let ip: core::net::Ipv4Addr = ip.parse().map_err(|_| "not an IPv4 address")?;
            (TYPE_A, ip.octets().to_vec())
        }
        ("AAAA", [Word::Bare(ip)]) => {
            let ip: core::net::Ipv6Addr = ip.parse().map_err(|_| "not an IPv6 address")?;
            (TYPE_AAAA, ip.octets().to_vec())
        }
        ("TXT", [_, ..]) => {
            let mut out = Vec::new();
            for Word::Bare(text) | Word::Quoted(text) in data {
                if text.len() > TEXT_BYTES_MAX {
                    return Err("a text has more than 255 bytes");
                }
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
            (TYPE_TXT, out)
        }
        _ => return Err(wanted),
    };
    Ok((name, Record { kind, ttl_s, data }))
}

/// A name on the wire. One without a dot at its end is below `origin`, `@` is `origin`.
fn absolute(name: &str, origin: &[u8]) -> Result<Name, &'static str> {
    if name == "@" {
        return Ok(origin.to_owned());
    }
    let (labels, end) = match name.strip_suffix('.') {
        Some(labels) => (labels, &[0][..]),
        None => (name, origin),
    };
    let mut out = Vec::new();
    for label in labels.split('.').filter(|_| !labels.is_empty()) {
        if label.is_empty() || label.len() > LABEL_BYTES_MAX {
            return Err("a label has from 1 to 63 bytes");
        }
        out.push(label.len() as u8);
        out.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    out.extend_from_slice(end);
    if out.len() > NAME_BYTES_MAX { Err("a name has at most 255 bytes") } else { Ok(out) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "$ORIGIN Example.test. ; a comment\n$TTL 30\n\n@ A 192.0.2.1\nwww 300 IN A 192.0.2.2\nwww A 192.0.2.3\ntext TXT \"hello world\" b\nsix.deep AAAA 2001:db8::1\n";

    #[test]
    fn a_zone_has_its_records() {
        let zone = Zone::parse(TEXT).unwrap();
        assert_eq!(zone.origin, b"\x07example\x04test\0");
        let www = &zone.records[&b"\x03www\x07example\x04test\0"[..]];
        let record = |kind, ttl_s, data: &[u8]| Record { kind, ttl_s, data: data.to_vec() };
        assert_eq!(www, &[record(TYPE_A, 300, &[192, 0, 2, 2]), record(TYPE_A, 30, &[192, 0, 2, 3])]);
        let text = &zone.records[&b"\x04text\x07example\x04test\0"[..]];
        assert_eq!(text, &[record(TYPE_TXT, 30, b"\x0bhello world\x01b")]);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, expected) in [
            ("", "no $ORIGIN"),
            ("a A 1.2.3.4", "line 1: $ORIGIN must come first"),
            ("$ORIGIN a.\nb A 1.2.3", "line 2: not an IPv4 address"),
            ("$ORIGIN a.\nb.c. A 1.2.3.4", "line 2: the name is outside of the zone"),
            ("$ORIGIN a.\nb MX 1 c", "line 2: expected NAME [TTL] [IN] A|AAAA|TXT DATA"),
            ("$ORIGIN a.\nb TXT \"c", "line 2: a quote has no end"),
            ("$ORIGIN a..b.", "line 1: a label has from 1 to 63 bytes"),
            ("$ORIGIN a.\nb 99999999999 A 1.2.3.4", "line 2: the TTL is too large"),
        ] {
            assert_eq!(Zone::parse(text).unwrap_err(), expected);
        }
    }
}
