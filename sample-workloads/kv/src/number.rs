//! Integers as the protocol writes them: decimal, and each in one form only.
use alloc::vec::Vec;

/// Digits of `i64::MIN`, with its sign.
const DIGITS_MAX: usize = 20;

/// The number that `text` is; `None` for any other form of it (`+1`, `01`, `-0`, ` 1`).
pub fn parse(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => text.len() == 1,
        [b'1'..=b'9', ..] => text.len() <= DIGITS_MAX,
        _ => false,
    };
    let text = canonical.then(|| core::str::from_utf8(text).ok()).flatten()?;
    text.parse().ok()
}

/// Appends a number.
pub fn write(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    out.extend_from_slice(&digits[at..]);
}

/// A number as text.
pub fn text(number: i64) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, number);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for number in [0, 1, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(parse(&text(number)), Some(number));
            assert_eq!(text(number), number.to_string().into_bytes());
        }
        for other in ["", "-", "+1", "01", "-0", " 1", "1 ", "9223372036854775808", "-9223372036854775809", "1.0", "a"]
        {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
