//! Patterns of file names and of `case`: `*`, `?`, `[a-z]`, `[!a]`, and `\` before what stands for itself. Pure.

/// Whether a pattern matches the whole text. Takes no longer than the product of both lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` doesn't fit: after it, one byte of text later.
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

/// Past one element of the pattern, and how many bytes of text it took.
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

/// Past the set that begins at `from`, and whether the byte is in it; none where it does not end.
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
