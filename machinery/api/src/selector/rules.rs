//! Validation of label keys, label values and DNS subdomains with upstream's messages, and Go's quoting.

/// Maximum bytes of a label key's name and of a label value.
const LABEL_BYTES_MAX: usize = 63;
/// Maximum bytes of a DNS subdomain.
const SUBDOMAIN_BYTES_MAX: usize = 253;

fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(inner) && bytes.last().is_some_and(inner) && bytes.iter().all(|b| inner(b) || *b == b'-')
}

/// The errors of a DNS subdomain (RFC 1123), with upstream's messages.
#[must_use]
pub fn subdomain_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > SUBDOMAIN_BYTES_MAX {
        problems.push(format!("must be no more than {SUBDOMAIN_BYTES_MAX} bytes"));
    }
    if !text.split('.').all(is_dns_label) {
        problems.push(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .into(),
        );
    }
    problems
}

/// The errors of a label key (a qualified name), with upstream's messages.
#[must_use]
pub fn label_key_problems(key: &str) -> Vec<String> {
    const CHARACTERS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                              alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                              validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut problems = Vec::new();
    let name = match key.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(subdomain_problems(prefix).into_iter().map(|p| format!("prefix part {p}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {CHARACTERS} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > LABEL_BYTES_MAX {
        problems.push(format!("name part must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !is_label_name(name) {
        problems.push(format!("name part {CHARACTERS}"));
    }
    problems
}

/// The errors of a label value, with upstream's messages.
#[must_use]
pub fn label_value_problems(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        problems.push(format!("must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !value.is_empty() && !is_label_name(value) {
        problems.push(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
             validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
                .into(),
        );
    }
    problems
}

/// A string as Go's `%q` prints it.
#[must_use]
pub fn go_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x10000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push('"');
    out
}

/// Whether Go prints a character unescaped: letters, marks, digits, punctuation, symbols, and the ASCII space only.
#[must_use]
pub fn is_printable(c: char) -> bool {
    // Rust escapes the same characters, and also marks at a text's beginning.
    let mut text = [b'a', 0, 0, 0, 0];
    let end = 1 + c.encode_utf8(&mut text[1..]).len();
    matches!(c, ' '..='~') || std::str::from_utf8(&text[..end]).is_ok_and(|text| text.escape_debug().count() == 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_as_go_quotes() {
        for (text, quoted) in [
            ("a b", r#""a b""#),
            ("\"\\'", r#""\"\\'""#),
            ("\0\u{7}\u{8}\t\n\u{b}\u{c}\r\u{1b}\u{7f}", r#""\x00\a\b\t\n\v\f\r\x1b\x7f""#),
            ("\u{80}\u{a0}\u{ad}\u{200b}\u{2028}\u{feff}", r#""\u0080\u00a0\u00ad\u200b\u2028\ufeff""#),
            ("é日e\u{301}\u{fffd}😀", "\"é日e\u{301}\u{fffd}😀\""),
            ("\u{e000}\u{10ffff}\u{e0001}", r#""\ue000\U0010ffff\U000e0001""#),
        ] {
            assert_eq!(go_quoted(text), quoted);
        }
        let printed: String = ('\0'..='\u{a1}').filter(|c| is_printable(*c)).collect();
        let ascii: String = (' '..='~').collect();
        assert_eq!(printed, ascii + "\u{a1}");
    }
}
