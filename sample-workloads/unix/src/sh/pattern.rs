//! Patterns of file names and of `case`: `*`, `?`, `[a-z]`, `[!a]`, and `\` before a literal character. Pure.

/// Whether a pattern matches the whole text. Time is bounded by the product of both lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Backtracking position after a mismatch: after the last `*`, one byte of text later.
    let mut again: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = if p < pattern.len() && pattern[p] == b'*' {
            again = Some((p + 1, t));
            p += 1;
            continue;
        } else {
            one(pattern, p, text, t)
        };
        match (step, again) {
            (Some((next, read)), _) => (p, t) = (next, t + read),
            (None, Some((star, from))) => {
                (p, t) = (star, from + 1);
                again = Some((star, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The position after one element of the pattern, and the matched bytes of text.
fn one(pattern: &[u8], p: usize, text: &[u8], t: usize) -> Option<(usize, usize)> {
    let byte = text[t];
    match pattern.get(p)? {
        b'?' => {
            // A whole character.
            let length = (t + 1..text.len()).take_while(|at| text[*at] & 0xc0 == 0x80).count() + 1;
            Some((p + 1, length))
        }
        b'[' => match set(pattern, p + 1, byte) {
            Some((end, fits)) => fits.then_some((end, 1)),
            None => (byte == b'[').then_some((p + 1, 1)),
        },
        b'\\' if p + 1 < pattern.len() => (pattern[p + 1] == byte).then_some((p + 2, 1)),
        other => (*other == byte).then_some((p + 1, 1)),
    }
}

/// The position after the set from `from`, and whether it contains the byte; none for an unterminated set.
fn set(pattern: &[u8], from: usize, byte: u8) -> Option<(usize, bool)> {
    let not = matches!(pattern.get(from), Some(b'!' | b'^'));
    let first = from + usize::from(not);
    let (mut at, mut found) = (first, false);
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((at + 1, found != not));
        }
        if pattern.get(at + 1) == Some(&b'-') && pattern.get(at + 2).is_some_and(|high| *high != b']') {
            found |= (low..=pattern[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= low == byte;
            at += 1;
        }
    }
}
