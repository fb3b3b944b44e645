//! Decodes string and bytes literals: escapes, raw and triple-quoted strings. The input is one token.

/// The value of a string token, or of a bytes token without its `b`.
pub(super) fn unescape(token: &[char], bytes: bool) -> Result<Vec<u8>, &'static str> {
    let mut chars: Vec<char> = Vec::with_capacity(token.len());
    let mut before = ' ';
    for c in token {
        match c {
            '\r' => chars.push('\n'),
            '\n' if before == '\r' => {}
            c => chars.push(*c),
        }
        before = *c;
    }
    let mut rest = chars.as_slice();
    let raw = matches!(rest.first(), Some('r' | 'R'));
    if raw {
        rest = &rest[1..];
    }
    let triple = rest.len() >= 6 && (rest.starts_with(&['"'; 3]) || rest.starts_with(&['\''; 3]));
    let quotes = if triple { 3 } else { 1 };
    let inside = rest.get(quotes..rest.len().saturating_sub(quotes)).ok_or("unable to unescape string")?;
    let mut value = Vec::with_capacity(inside.len());
    let mut at = 0;
    while at < inside.len() {
        if raw || inside[at] != '\\' {
            push(&mut value, inside[at]);
            at += 1;
        } else {
            at += escape(&inside[at..], bytes, &mut value)?;
        }
    }
    Ok(value)
}

fn push(value: &mut Vec<u8>, c: char) {
    value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Decodes one escape sequence at the front and returns its length in characters.
fn escape(text: &[char], bytes: bool, value: &mut Vec<u8>) -> Result<usize, &'static str> {
    let c = *text.get(1).ok_or("unable to unescape string, found '\\' as last character")?;
    let plain = match c {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => c as u8,
        'x' | 'X' => return number(text, 2, 2, 16, bytes, value),
        'u' | 'U' if bytes => return Err("unable to unescape string"),
        'u' => return number(text, 2, 4, 16, false, value),
        'U' => return number(text, 2, 8, 16, false, value),
        '0'..='3' => {
            return number(text, 1, 3, 8, bytes, value).map_err(|error| match error {
                "unable to unescape string" => "unable to unescape octal sequence in string",
                error => error,
            });
        }
        _ => return Err("unable to unescape string"),
    };
    value.push(plain);
    Ok(2)
}

fn number(
    text: &[char],
    from: usize,
    digits: usize,
    base: u32,
    bytes: bool,
    value: &mut Vec<u8>,
) -> Result<usize, &'static str> {
    let digits = text.get(from..from + digits).ok_or("unable to unescape string")?;
    let mut code = 0u32;
    for digit in digits {
        code = code << base.trailing_zeros() | digit.to_digit(base).ok_or("unable to unescape string")?;
    }
    if bytes {
        value.push(code as u8);
    } else {
        push(value, char::from_u32(code).ok_or("invalid unicode code point")?);
    }
    Ok(from + digits.len())
}
