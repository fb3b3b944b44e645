//! Absolute numbers or percentages (`maxSurge`, `minAvailable` …), as upstream's `intstr` reads them.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The rounding of a percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// The number, or the percentage of `total`; never negative.
pub(crate) fn scaled_value(of: &IntOrString, total: i32, round: Round) -> i32 {
    match of {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.max(0).saturating_mul(total.max(0).into());
            let whole = match round {
                Round::Up => product.saturating_add(99) / 100,
                Round::Down => product / 100,
            };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_rounded_as_requested_and_bounded() {
        let text = |text: &str| IntOrString::String(text.into());
        for (of, total, up, down) in [
            (IntOrString::Int(3), 10, 3, 3),
            (IntOrString::Int(-3), 10, 0, 0),
            (text("25%"), 10, 3, 2),
            (text("100%"), 7, 7, 7),
            (text("-5%"), 10, 0, 0),
            (text("nonsense"), 10, 0, 0),
            (text("9223372036854775807%"), i32::MAX, i32::MAX, i32::MAX),
        ] {
            assert_eq!(
                (scaled_value(&of, total, Round::Up), scaled_value(&of, total, Round::Down)),
                (up, down),
                "{of:?} of {total}"
            );
        }
    }
}
