//! Sizes and times for people. Pure.

const SECONDS_PER_MINUTE: u64 = 60;
const SECONDS_PER_HOUR: u64 = 60 * SECONDS_PER_MINUTE;
/// The seconds of a day.
pub(crate) const SECONDS_PER_DAY: u64 = 24 * SECONDS_PER_HOUR;

/// Bytes with a binary unit: `512 B`, `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut amount = count as f64;
    let mut unit = "B";
    for larger in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{count} B") } else { format!("{amount:.1} {unit}") }
}

/// A duration in its largest whole unit: `3 d`, `5 h`, `12 min`, `40 s`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..SECONDS_PER_MINUTE => format!("{seconds} s"),
        SECONDS_PER_MINUTE..SECONDS_PER_HOUR => format!("{} min", seconds / SECONDS_PER_MINUTE),
        SECONDS_PER_HOUR..SECONDS_PER_DAY => format!("{} h", seconds / SECONDS_PER_HOUR),
        _ => format!("{} d", seconds / SECONDS_PER_DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_a_unit() {
        let sizes = [0, 1023, 1024, 1536, 5 << 30, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB", "16.0 EiB"]);
        let times = [0, 59, 60, 3599, 3600, 86_399, 86_400, 40 * 86_400].map(duration);
        assert_eq!(times, ["0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "40 d"]);
    }
}
