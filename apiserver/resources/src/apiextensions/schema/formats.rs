//! The formats of texts and numbers that upstream checks, with the behaviour of its libraries.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

use super::compile::Type;
use crate::rules;

/// A format that is checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// The schema's spelling, which messages show.
    pub(crate) name: &'static str,
    check: Check,
}

#[derive(Debug, Clone, Copy)]
enum Check {
    Text(fn(&str) -> bool),
    Int32,
    Int64,
    Float,
    Double,
}

/// A spelling, and the check of a text.
type OfText = (&'static str, fn(&str) -> bool);

const TEXTS: &[OfText] = &[
    ("bsonobjectid", |text| text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit())),
    ("uri", is_uri),
    ("email", is_email),
    ("hostname", is_hostname),
    ("ipv4", |text| text.contains('.') && rules::parse_ip_leniently(text).is_some()),
    ("ipv6", |text| text.contains(':') && is_ip(text)),
    ("cidr", |text| rules::parse_cidr_leniently(text).is_some()),
    ("mac", is_mac),
    ("uuid", |text| UUID.is_match(text)),
    ("uuid3", |text| UUID3.is_match(text)),
    ("uuid4", |text| UUID4.is_match(text)),
    ("uuid5", |text| UUID5.is_match(text)),
    ("isbn", |text| is_isbn10(text) || is_isbn13(text)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("creditcard", is_credit_card),
    ("ssn", |text| text.len() == 11 && SSN.is_match(text)),
    ("hexcolor", |text| HEX_COLOR.is_match(text)),
    ("rgbcolor", |text| RGB_COLOR.is_match(text)),
    ("byte", |text| BASE64.is_match(text)),
    ("password", |_| true),
    ("date", is_date),
    ("duration", is_duration),
    ("datetime", is_date_time),
    ("date-time", is_date_time),
    ("k8s-short-name", |text| text.len() <= 63 && SHORT_NAME.is_match(text)),
    ("k8sshortname", |text| text.len() <= 63 && SHORT_NAME.is_match(text)),
    ("k8s-long-name", |text| text.len() <= 253 && LONG_NAME.is_match(text)),
    ("k8slongname", |text| text.len() <= 253 && LONG_NAME.is_match(text)),
];

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).expect("a pattern of ours"));
    };
}

pattern!(UUID, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID3, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$");
pattern!(UUID4, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(UUID5, "(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$");
pattern!(SSN, "^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$");
pattern!(HEX_COLOR, "^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$");
pattern!(
    RGB_COLOR,
    concat!(
        r"^rgb\([\t\n\x0C\r ]*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])[\t\n\x0C\r ]*,",
        r"[\t\n\x0C\r ]*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])[\t\n\x0C\r ]*,",
        r"[\t\n\x0C\r ]*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])[\t\n\x0C\r ]*\)$"
    )
);
pattern!(BASE64, "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$");
pattern!(SHORT_NAME, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$");
pattern!(LONG_NAME, r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$");
pattern!(HOST_LABEL, r"^[a-zA-Z0-9\p{S}\p{L}]([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?$");
pattern!(HOST_ALONE, r"^[a-zA-Z0-9\p{S}\p{L}](-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?$");
pattern!(HOST_LAST, r"^[a-zA-Z\p{L}]{2,63}$");
pattern!(
    CREDIT_CARD,
    concat!(
        "^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|",
        "3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$"
    )
);
pattern!(CLOCK, "^([0-9]{2}):([0-9]{2}):([0-9]{2})(.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$");
pattern!(AMOUNTS, "([0-9]+)[\\t\\n\\x0C\\r ]*([A-Za-zµ]+)");

impl Format {
    /// The format of a schema of a type; `None` if it has none, or an unchecked one.
    pub(crate) fn of(kind: Type, name: &str) -> Option<Self> {
        let (name, check) = match kind {
            Type::Any | Type::String => {
                let (name, check) = text_format(name)?;
                (name, Check::Text(check))
            }
            Type::Integer => match name {
                "int32" => ("int32", Check::Int32),
                "int64" => ("int64", Check::Int64),
                _ => return None,
            },
            Type::Number => match name {
                "float" => ("float", Check::Float),
                "double" => ("double", Check::Double),
                _ => return None,
            },
            _ => return None,
        };
        Some(Self { name, check })
    }

    /// Whether a text matches; number formats accept every text.
    pub(crate) fn accepts_text(self, text: &str) -> bool {
        match self.check {
            Check::Text(check) => check(text),
            _ => true,
        }
    }

    /// Whether it is a text format.
    pub(crate) fn is_text_format(self) -> bool {
        matches!(self.check, Check::Text(_))
    }
}

fn text_format(name: &str) -> Option<OfText> {
    let find = |name: &str| TEXTS.iter().find(|(known, _)| *known == name).map(|(known, check)| (*known, *check));
    // Dashes are ignored.
    find(name).or_else(|| find(&name.replace('-', "")))
}

/// Whether a format is known for a type, for upstream's warnings.
pub(crate) fn is_known(kind: &str, format: &str) -> bool {
    match kind {
        "" | "string" => text_format(format).is_some(),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

fn is_ip(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv4Addr>().is_ok()
}

/// Go's `url.ParseRequestURI`: an absolute URI or a path.
fn is_uri(text: &str) -> bool {
    if text.is_empty() || text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return false;
    }
    if text == "*" {
        return true;
    }
    let scheme_ends = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'));
    let (scheme, rest) = match scheme_ends {
        Some(0) => ("", text),
        Some(at) if text.as_bytes()[at] == b':' && text.as_bytes()[0].is_ascii_alphabetic() => {
            (&text[..at], &text[at + 1..])
        }
        _ => ("", text),
    };
    let rest = rest.split('?').next().unwrap_or_default();
    if !rest.starts_with('/') {
        // With a scheme the rest is opaque; without one the URI is invalid.
        return !scheme.is_empty() && !rest.is_empty();
    }
    let Some(authority) = rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) else {
        return is_escaped(rest);
    };
    let (authority, path) = authority.split_at(authority.find('/').unwrap_or(authority.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let port = match host.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((_, after)) => after,
            None => return false,
        },
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    let fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    let plain = !host.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}']) || host.starts_with('[');
    fine && plain && is_escaped(path)
}

fn is_escaped(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'%')
        .all(|(at, _)| bytes.get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit)))
}

/// An address, optionally with a display name.
fn is_email(text: &str) -> bool {
    let text = text.trim();
    let address = match text.strip_suffix('>').and_then(|text| text.rsplit_once('<')) {
        Some((name, address)) if !name.contains(['<', '>', '@', ',']) || name.trim().starts_with('"') => address,
        Some(_) => return false,
        None => text,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii();
    let dotted =
        |text: &str| !text.is_empty() && text.split('.').all(|part| !part.is_empty() && part.chars().all(atom));
    let quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    let literal = domain.starts_with('[') && domain.ends_with(']');
    (quoted || dotted(local)) && (literal || dotted(domain))
}

fn is_hostname(text: &str) -> bool {
    if text.len() > 255 || text.split('.').any(|part| part.len() > 63) {
        return false;
    }
    if HOST_ALONE.is_match(text) {
        return true;
    }
    let Some((labels, last)) = text.rsplit_once('.') else { return false };
    labels.split('.').all(|label| HOST_LABEL.is_match(label)) && HOST_LAST.is_match(last)
}

/// Go's `net.ParseMAC`: 6, 8 or 20 bytes with colons, dashes or dots.
fn is_mac(text: &str) -> bool {
    let parts = |separator: char, digits: usize, counts: &[usize]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len())
            && parts.iter().all(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    parts(':', 2, &[6, 8, 20]) || parts('-', 2, &[6, 8, 20]) || parts('.', 4, &[3, 4, 10])
}

fn digits_of_isbn(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0c | b'-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits_of_isbn(text);
    let Some((last, first)) = digits.split_last().filter(|(_, first)| first.len() == 9) else { return false };
    if !first.iter().all(u8::is_ascii_digit) || !(last.is_ascii_digit() || *last == b'X') {
        return false;
    }
    let sum: u32 = (1..).zip(first).map(|(at, digit)| at * u32::from(digit - b'0')).sum();
    let last = if *last == b'X' { 10 } else { u32::from(last - b'0') };
    (sum + 10 * last).is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits_of_isbn(text);
    if digits.len() != 13 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let number = |at: usize| u32::from(digits[at] - b'0');
    let sum: u32 = (0..12).map(|at| number(at) * if at % 2 == 0 { 1 } else { 3 }).sum();
    number(12) == (10 - sum % 10) % 10
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !CREDIT_CARD.is_match(&digits) {
        return false;
    }
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(at, digit)| match (u32::from(digit - b'0'), at % 2) {
            (digit, 0) => digit,
            (digit, _) => digit * 2 % 10 + digit * 2 / 10,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.is_ascii() && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let lower = text.to_lowercase();
    let mut parts = lower.split('t');
    let (Some(date), Some(time)) = (parts.next(), parts.next()) else { return false };
    let Some(found) = CLOCK.captures(time) else { return false };
    is_date(date) && &found[1] <= "23" && &found[2] <= "59" && &found[3] <= "59"
}

/// Go's durations, or amounts with longer units: `3 days`.
fn is_duration(text: &str) -> bool {
    if is_go_duration(text) {
        return true;
    }
    let mut any = false;
    for found in AMOUNTS.captures_iter(text) {
        if found[1].parse::<i64>().is_err() {
            return false;
        }
        let unit = found[2].to_lowercase();
        let exact = ["ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w", "wk"].contains(&unit.as_str());
        let begins = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
        any |= exact || begins.iter().any(|begin| unit.starts_with(begin));
    }
    any
}

fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        if digits.matches('.').count() > 1 || !digits.contains(|c: char| c.is_ascii_digit()) {
            return false;
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        if !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&&after[..end]) {
            return false;
        }
        rest = &after[end..];
        any = true;
    }
    any
}
