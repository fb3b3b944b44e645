//! Durations in the syntax of Go's `time.ParseDuration`, which flags, annotations, schedules and CEL share. Takes a text,
//! returns nanoseconds; the messages are Go's.

use std::time::Duration;

use crate::selector::go_quoted as quoted;

/// Units with their nanoseconds; micro has two code points.
const UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// The magnitude of the smallest `i64`, in nanoseconds.
const MAGNITUDE_MAX_NS: u64 = 1 << 63;

/// Parses a duration such as `1h30m` or `-1.5s` into nanoseconds.
///
/// # Errors
/// Go's message if the text is no duration or exceeds an `i64`.
pub fn parse_nanos(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quoted(text));
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let whole_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, after) = rest.split_at(whole_end);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quoted(text)));
        }
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {} in duration {}", quoted(unit), quoted(text)));
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // Eighteen digits exceed a nanosecond's precision in any unit.
        let digits = &fraction[..fraction.len().min(18)];
        let ten = u128::from(10_u64.pow(u32::try_from(digits.len()).unwrap_or(0)));
        let part = u128::from(digits.parse::<u64>().unwrap_or(0)) * u128::from(*scale) / ten;
        let amount = whole.checked_mul(*scale).and_then(|whole| whole.checked_add(u64::try_from(part).ok()?));
        let amount = amount.ok_or_else(invalid)?;
        sum = sum.checked_add(amount).filter(|sum| *sum <= MAGNITUDE_MAX_NS).ok_or_else(invalid)?;
        rest = next;
    }
    match (i64::try_from(sum), text.starts_with('-')) {
        (Ok(sum), false) => Ok(sum),
        (Ok(sum), true) => Ok(-sum),
        (Err(_), true) => Ok(i64::MIN),
        (Err(_), false) => Err(invalid()),
    }
}

/// Parses a duration without a sign.
#[must_use]
pub fn parse_unsigned(text: &str) -> Option<Duration> {
    if text.starts_with(['+', '-']) {
        return None;
    }
    parse_nanos(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, want) in
            [("2s", 2000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("0", 0), ("1h", 3_600_000)]
        {
            assert_eq!(parse_unsigned(text), Some(Duration::from_millis(want)), "{text}");
        }
        for text in ["", "2", "s", "2 s", "-2s", "2x", "1..2s"] {
            assert_eq!(parse_unsigned(text), None, "{text}");
        }
    }

    #[test]
    fn signs_and_limits_are_those_of_an_i64() {
        assert_eq!(parse_nanos("-.5s"), Ok(-500_000_000));
        assert_eq!(parse_nanos("+1\u{b5}s"), Ok(1000));
        assert_eq!(parse_nanos("-9223372036854775808ns"), Ok(i64::MIN));
        assert_eq!(
            parse_nanos("9223372036854775808ns").unwrap_err(),
            "time: invalid duration \"9223372036854775808ns\""
        );
        assert_eq!(parse_nanos("1").unwrap_err(), "time: missing unit in duration \"1\"");
        assert_eq!(parse_nanos("1x").unwrap_err(), "time: unknown unit \"x\" in duration \"1x\"");
    }
}
