//! `Warning` headers, bounded so that clients accept them: Go's HTTP client rejects a response with 1 MB of headers,
//! others far less. Bound and truncation are upstream's (`WithWarningRecorder`); the number of omitted warnings is
//! added.

use std::collections::BTreeSet;

use http::HeaderValue;

/// The maximum number of characters of all warnings, above which each is truncated.
const CHARACTERS_MAX: usize = 4096;
/// The maximum number of characters of a truncated warning.
const CUT_CHARACTERS_MAX: usize = 256;

/// The header values, without duplicates.
pub(super) fn headers(warnings: &[String]) -> Vec<HeaderValue> {
    let mut seen = BTreeSet::new();
    let new: Vec<&str> =
        warnings.iter().map(String::as_str).filter(|text| !text.is_empty() && seen.insert(*text)).collect();
    let all: usize = new.iter().map(|text| text.chars().count()).sum();
    if all <= CHARACTERS_MAX {
        return new.into_iter().filter_map(header).collect();
    }
    let (mut written, mut out) = (0, Vec::new());
    for text in &new {
        if written >= CHARACTERS_MAX {
            break;
        }
        let end = text.char_indices().nth(CUT_CHARACTERS_MAX).map_or(text.len(), |(at, _)| at);
        written += text[..end].chars().count();
        out.extend(header(&text[..end]));
    }
    if out.len() < new.len() {
        out.extend(header(&format!("{} more warnings are not shown", new.len() - out.len())));
    }
    out
}

/// One header's value.
fn header(text: &str) -> Option<HeaderValue> {
    let mut quoted = String::with_capacity(text.len() + 10);
    quoted.push_str("299 - \"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => quoted.push(' '),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    HeaderValue::from_bytes(quoted.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: &[HeaderValue]) -> Vec<&str> {
        values.iter().map(|v| std::str::from_utf8(v.as_bytes()).unwrap()).collect()
    }

    #[test]
    fn warnings_are_quoted_and_given_once() {
        let given = ["a \"b\" \\c\n".to_owned(), String::new(), "d".into(), "a \"b\" \\c\n".into()];
        assert_eq!(texts(&headers(&given)), ["299 - \"a \\\"b\\\" \\\\c \"", "299 - \"d\""]);
    }

    /// v1.36.3's response to a Pod with 500 equal ports (48 warnings of 86 characters and more), and to 40 unknown
    /// fields with names of 300 characters (16 truncated warnings).
    #[test]
    fn the_bound_is_upstreams_and_truncation_is_marked() {
        let port = |a: usize, b: usize| {
            format!("spec.containers[0].ports[{a}]: duplicate port definition with spec.containers[0].ports[{b}]")
        };
        let ports: Vec<String> = (1..500).flat_map(|a| (0..a).map(move |b| port(a, b))).collect();
        let cut = headers(&ports);
        assert_eq!(cut.len(), 48 + 1);
        assert!(texts(&cut)[47].contains(&port(10, 2)), "{}", texts(&cut)[47]);
        assert_eq!(texts(&cut)[48], format!("299 - \"{} more warnings are not shown\"", ports.len() - 48));
        let long: Vec<String> = (0..40).map(|n| format!("unknown field \"{}{n}\"", "\u{fc}".repeat(300))).collect();
        let cut = headers(&long);
        assert_eq!((cut.len(), texts(&cut)[0].chars().count()), (16 + 1, CUT_CHARACTERS_MAX + "299 - \"\"".len() + 1));
        // A few warnings are not truncated, whatever their length.
        assert_eq!(headers(&["x".repeat(4096)])[0].len(), 4096 + 8);
    }
}
