//! Glob patterns of `KEYS`, `SCAN` and `CONFIG GET`: `*`, `?`, `[a-z]`, `[^a]`, `\x`.

/// Whether a text matches. The time is at most the product of both lengths: only the last `*` is tried again.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star = None;
    loop {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
                continue;
            }
            None if from == text.len() => return true,
            None => {}
            Some(_) => {
                let one = text.get(from).and_then(|byte| one(&pattern[at..], *byte));
                if let Some(used) = one {
                    at += used;
                    from += 1;
                    continue;
                }
            }
        }
        match &mut star {
            Some((after, begin)) if *begin < text.len() => {
                *begin += 1;
                (at, from) = (*after, *begin);
            }
            _ => return false,
        }
    }
}

/// The length of the pattern's first element, if the byte matches it.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => class(rest, byte).map(|used| used + 1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// The length of a class after its `[`, if the byte matches it. An open class ends with the pattern.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let negated = pattern.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut matched = false;
    loop {
        let (low, used) = match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', escaped, ..] => (*escaped, 2),
            [literal, ..] => (*literal, 1),
        };
        at += used;
        let high = match &pattern[at..] {
            [b'-', high, ..] if used == 1 => {
                at += 2;
                *high
            }
            _ => low,
        };
        matched |= (low.min(high)..=low.max(high)).contains(&byte);
    }
    (matched != negated).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcbd", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hbllo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("*a*b*", "xxaxxbxx", true),
            ("[ab", "a", true),
            ("abc", "ab", false),
            ("ab", "abc", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_are_no_work() {
        assert!(!matches("a*".repeat(50).as_bytes(), &[b'a'; 40]));
        assert!(!matches("*a".repeat(100).as_bytes(), &[[b'a'; 90].as_slice(), b"b"].concat()));
    }
}
