//! Durations in Go's form: `1m30s`, `1.5s`, `300ms`, `0`. Pure.

const UNITS: [(&str, f64); 7] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];
/// 100 years: more than any use of a duration here.
const NANOSECONDS_MAX: f64 = 100.0 * 365.0 * 24.0 * 3600e9;

/// Nanoseconds of a duration that is not negative.
pub fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == &rest[..unit])?;
        total += number * nanoseconds;
        rest = &rest[unit..];
    }
    (!text.is_empty() && total <= NANOSECONDS_MAX).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::nanoseconds;

    #[test]
    fn durations_are_gos() {
        let read =
            [("0", 0), ("3s", 3_000_000_000), ("1m30s", 90_000_000_000), ("1.5s", 1_500_000_000), ("10ms", 10_000_000)];
        for (text, expected) in read {
            assert_eq!(nanoseconds(text), Some(expected), "{text}");
        }
        for text in ["", "3", "s", "-1s", "1d", "1s ", ".", "1e9h", "9999999h9999999999999999999h"] {
            assert_eq!(nanoseconds(text), None, "{text}");
        }
    }
}
