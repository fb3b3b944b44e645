//! The request timeout: the client's `timeout` parameter, as a Go duration, capped by the server's own limit.

use std::time::Duration;

use machinery_api::ApiError;

use apiserver_resources::field::quoted;
use apiserver_resources::query::Query;

/// The timeout of every request that is not long-running (upstream's default).
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The timeout of a request.
pub fn of(query: &Query) -> Result<Duration, ApiError> {
    let Some(given) = query.get("timeout").filter(|t| !t.is_empty()) else { return Ok(REQUEST_TIMEOUT) };
    let seconds = parse(given)
        .map_err(|e| ApiError::BadRequest(format!("invalid timeout specified in the request URL - time: {e}")))?;
    // A missing timeout, 0, and a timeout above the limit select the server's own.
    Ok(if seconds > 0.0 && seconds < REQUEST_TIMEOUT.as_secs_f64() {
        Duration::from_secs_f64(seconds)
    } else {
        REQUEST_TIMEOUT
    })
}

/// Parses like Go's `time.ParseDuration`; the result is in seconds.
fn parse(text: &str) -> Result<f64, String> {
    let invalid = || format!("invalid duration {}", quoted(text));
    let (sign, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        if number.matches('.').count() > 1 || !number.contains(|c: char| c.is_ascii_digit()) {
            return Err(invalid());
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let factor = match unit {
            "" => return Err(format!("missing unit in duration {}", quoted(text))),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => return Err(format!("unknown unit {} in duration {}", quoted(other), quoted(text))),
        };
        seconds += number.parse::<f64>().map_err(|_| invalid())? * factor;
        rest = after;
    }
    Ok(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        assert_eq!(parse("1h15m30.918s"), Ok(4530.918));
        assert_eq!(parse("32s"), Ok(32.0));
        assert_eq!(parse("-5ms"), Ok(-0.005));
        for (bad, why) in [
            ("abc", "invalid duration \"abc\""),
            ("5", "missing unit in duration \"5\""),
            ("5x", "unknown unit \"x\" in duration \"5x\""),
            ("-", "invalid duration \"-\""),
            ("1..2s", "invalid duration \"1..2s\""),
        ] {
            assert_eq!(parse(bad).unwrap_err(), why);
        }
        assert_eq!(of(&Query::parse("timeout=2s")).unwrap(), Duration::from_secs(2));
        assert_eq!(of(&Query::parse("timeout=1h")).unwrap(), REQUEST_TIMEOUT);
    }
}
