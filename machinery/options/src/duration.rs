//! Parses durations in the syntax of upstream's flags, `1m30s`; a plain number is seconds.

use std::time::Duration;

use jiff::SignedDuration;

/// Parses a duration.
///
/// # Errors
/// If it isn't a duration or is negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    // Forms that jiff accepts and Go doesn't (`PT5S`, `2 days`) are rejected.
    let go = |letter: char| letter.is_ascii_digit() || ".hmsunµ".contains(letter);
    let read = Some(text).filter(|text| text.chars().all(go)).and_then(|text| text.parse::<SignedDuration>().ok());
    read.and_then(|read| Duration::try_from(read).ok()).ok_or_else(|| "not a duration such as 5s or 1m30s".to_owned())
}

/// Parses a positive duration.
///
/// # Errors
/// If it isn't a duration or isn't positive.
pub fn some_time(text: &str) -> Result<Duration, String> {
    duration(text)?
        .checked_sub(Duration::from_nanos(1))
        .map_or_else(|| Err("must be more than nothing".to_owned()), |less| Ok(less + Duration::from_nanos(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos_or_seconds() {
        let millis = |text: &str| duration(text).map(|duration| duration.as_millis());
        let read: Vec<_> = ["5", "0", "5s", "1m30s", "1.5s", "250ms", "1h"].map(millis).into_iter().flatten().collect();
        assert_eq!(read, [5000, 0, 5000, 90_000, 1500, 250, 3_600_000]);
        for wrong in ["", "s", "5x", "-5s", "PT5S", "2 days", "1e3", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(some_time("0s").is_err() && some_time("1ns").is_ok());
    }
}
