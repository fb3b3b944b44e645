//! Formats the time at the beginning of each log line.

use jiff::Timestamp;
use jiff::tz::Offset;

/// Formats a time to the nanosecond like `%Y-%m-%dT%H:%M:%S.%9fZ `. Interpreting that pattern took longer than all
/// other work of a line.
pub(super) fn stamp(at: Timestamp) -> [u8; 31] {
    let at = Offset::UTC.to_datetime(at);
    let mut text = *b"0000-00-00T00:00:00.000000000Z ";
    let two = |number: i8| u32::try_from(number).unwrap_or(0);
    let parts = [
        (0..4, u32::try_from(at.year()).unwrap_or(0)),
        (5..7, two(at.month())),
        (8..10, two(at.day())),
        (11..13, two(at.hour())),
        (14..16, two(at.minute())),
        (17..19, two(at.second())),
        (20..29, u32::try_from(at.subsec_nanosecond()).unwrap_or(0)),
    ];
    for (place, mut rest) in parts {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stamp_is_the_time_to_the_nanosecond(second in -62_167_219_200_i64..=253_402_207_200, nanosecond in 0..1_000_000_000) {
            let at = Timestamp::new(second, nanosecond).unwrap();
            let wanted = at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ ").to_string();
            prop_assert_eq!(stamp(at).escape_ascii().to_string(), wanted);
        }
    }
}
