//! Timestamps of the years 1 to 9999, Go's durations, and time zones. Values out of range are errors.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::Res;
use crate::error::EvalError;

/// The first and last second of the years 1 to 9999.
pub(crate) const FIRST_SECOND: i64 = -62_135_596_800;
pub(crate) const LAST_SECOND: i64 = 253_402_300_799;

/// An instant of the years 1 to 9999, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    second: i64,
    nanosecond: u32,
}

impl Timestamp {
    /// From seconds since 1970 and nanoseconds; `None` if out of range.
    pub fn new(second: i64, nanosecond: u32) -> Option<Self> {
        let fits = (FIRST_SECOND..=LAST_SECOND).contains(&second) && nanosecond < 1_000_000_000;
        fits.then_some(Self { second, nanosecond })
    }

    pub(crate) fn from_nanoseconds(total: i128) -> Option<Self> {
        let second = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
        Self::new(second, total.rem_euclid(1_000_000_000) as u32)
    }

    /// Whether it is Go's zero time.
    pub(crate) fn is_zero_time(self) -> bool {
        self.second == FIRST_SECOND && self.nanosecond == 0
    }

    pub(crate) fn second(self) -> i64 {
        self.second
    }

    pub(crate) fn nanoseconds(self) -> i128 {
        i128::from(self.second) * 1_000_000_000 + i128::from(self.nanosecond)
    }

    /// The date and time at an offset, in seconds. Instants past the last year saturate.
    fn civil_at(self, offset: i64) -> DateTime {
        let since = SignedDuration::new(self.second + offset, self.nanosecond as i32);
        DateTime::constant(1970, 1, 1, 0, 0, 0, 0).saturating_add(since)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}Z", self.civil_at(0))
    }
}

/// Parses a duration such as `1h2m3.5s` into nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    machinery_api::duration::parse_nanos(text).ok()
}

/// Seconds, with as many decimals as needed.
pub(crate) fn format_duration(nanoseconds: i64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let rest = nanoseconds % 1_000_000_000;
    format!("{}s", seconds as f64 + rest as f64 / 1e9)
}

/// Parses RFC 3339 within the years 1 to 9999.
pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let digits = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let punctuated = bytes.len() >= 20 && bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b'T';
    if !punctuated || bytes[13] != b':' || bytes[16] != b':' || !bytes[..4].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let fraction = text[19..].strip_prefix(['.', ',']).map_or("", |rest| {
        let length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        &rest[..length]
    });
    let zone = if bytes[19] == b'.' || bytes[19] == b',' { text.get(20 + fraction.len()..)? } else { &text[19..] };
    let mut nanoseconds = 0i64;
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.as_bytes().get(place).map_or(0, |digit| i64::from(digit - b'0'));
    }
    let offset = match zone.as_bytes() {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = zone.get(1..3)?.parse::<u8>().ok()? as i64 * 60 + zone.get(4..6)?.parse::<u8>().ok()? as i64;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let date_time = DateTime::new(
        digits(0, 4)? as i16,
        digits(5, 7)?.try_into().ok()?,
        digits(8, 10)?.try_into().ok()?,
        digits(11, 13)?.try_into().ok()?,
        digits(14, 16)?.try_into().ok()?,
        digits(17, 19)?.try_into().ok()?,
        nanoseconds as i32,
    )
    .ok()?;
    let since = date_time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
    let second = since.as_nanos().div_euclid(1_000_000_000) as i64 - offset * 60;
    Timestamp::new(second, nanoseconds as u32)
}

/// The local time in a zone: a name, or an offset like `-08:00`.
pub(crate) fn in_zone(time: Timestamp, zone: Option<&str>) -> Res<DateTime> {
    let Some(zone) = zone else { return Ok(time.civil_at(0)) };
    let Some((hours, minutes)) = zone.split_once(':') else {
        if matches!(zone, "" | "UTC") {
            return Ok(time.civil_at(0));
        }
        let found = machinery_api::time::time_zone(zone).map_err(EvalError::new)?;
        // Zones are known up to a day before the last instant.
        let near = jiff::Timestamp::new(time.second, 0).unwrap_or(jiff::Timestamp::MAX);
        return Ok(time.civil_at(found.to_offset(near).seconds().into()));
    };
    let number = |text: &str| {
        text.parse::<i32>().map_err(|_| EvalError::new(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if zone.starts_with('-') { -minutes } else { minutes };
    let seconds = hours.saturating_mul(3600).saturating_add(minutes.saturating_mul(60));
    let offset = Offset::from_seconds(seconds).map_err(|_| EvalError::new(format!("unknown time zone {zone}")))?;
    Ok(time.civil_at(offset.seconds().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(parse_duration("1h2m3.5s"), Some(3_723_500_000_000));
        assert_eq!(parse_duration("-.5s"), Some(-500_000_000));
        assert_eq!(parse_duration("0"), Some(0));
        for wrong in ["", "1", "s", "1x", "-", "9999999999999h", "1.s.", "1d"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(parse_duration("-9223372036854775808ns"), Some(i64::MIN));
        assert_eq!(format_duration(3_723_500_000_000), "3723.5s");
        let time = parse_timestamp("2023-01-01T00:00:00.5+01:30").expect("a time");
        assert_eq!(time.to_string(), "2022-12-31T22:30:00.5Z");
        let last = parse_timestamp("9999-12-31T23:59:59.999999999Z").expect("the last moment");
        assert_eq!(last.to_string(), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(Timestamp::new(FIRST_SECOND, 0).expect("the first").to_string(), "0001-01-01T00:00:00Z");
        for wrong in [
            "2023-01-01",
            "2023-13-01T00:00:00Z",
            "2023-01-01T00:00:00",
            "0000-01-01T00:00:00Z",
            "+023-01-01T00:00:00Z",
        ] {
            assert_eq!(parse_timestamp(wrong), None, "{wrong}");
        }
    }
}
