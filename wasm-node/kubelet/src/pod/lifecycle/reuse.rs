//! Parses `reuse.coracle.dev/<container>`: the reuse of a server's instances (docs/contract.md §4). Pure.

use std::time::Duration;

use machinery_api::duration;
use runtime_api::{REUSE_COUNT_DEFAULT, REUSE_IDLE_DEFAULT, Reuse};

/// The maximum number of requests per instance.
const COUNT_MAX: u32 = 1_000_000;
/// The maximum idle time of an instance between two requests.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// Parses `count=128,idle=1s` in any order; omitted parts have these defaults.
pub(in crate::pod) fn parse(text: &str) -> Result<Reuse, String> {
    let (mut count, mut idle) = (None, None);
    for part in text.split(',').map(str::trim) {
        let is_duplicate = match part.split_once('=') {
            Some(("count", value)) => match value.parse() {
                Ok(value) if (1..=COUNT_MAX).contains(&value) => count.replace(value).is_some(),
                _ => return Err(format!("{part:?}: count is a whole number from 1 to {COUNT_MAX}")),
            },
            Some(("idle", value)) => match duration::parse_unsigned(value) {
                Some(value) if value > Duration::ZERO && value <= IDLE_MAX => idle.replace(value).is_some(),
                _ => return Err(format!("{part:?}: idle is a duration from 1ms to 1h")),
            },
            _ => return Err(format!("{part:?} is neither count=NUMBER nor idle=DURATION, as in count=128,idle=1s")),
        };
        if is_duplicate {
            return Err(format!("{text:?} sets the same key twice"));
        }
    }
    Ok(Reuse { count: count.unwrap_or(REUSE_COUNT_DEFAULT), idle: idle.unwrap_or(REUSE_IDLE_DEFAULT) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_are_read_or_refused() {
        let reuse = |count, millis| Ok(Reuse { count, idle: Duration::from_millis(millis) });
        for (text, want) in [
            ("count=128,idle=1s", reuse(128, 1000)),
            ("idle=500ms, count=2", reuse(2, 500)),
            ("count=1", reuse(1, 1000)),
            ("idle=1h", reuse(128, 3_600_000)),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
        for text in [
            "",
            "yes",
            "count",
            "count=0",
            "count=-1",
            "count=1000001",
            "idle=0s",
            "idle=2h",
            "idle=1",
            "count=2,",
            "count=2,count=3",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
