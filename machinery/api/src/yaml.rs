//! Reads YAML (and JSON) files written by people: configurations, manifests.

use serde::de::DeserializeOwned;
use serde_saphyr::UserMessageFormatter;

/// Parses the only document of a file.
///
/// # Errors
/// If it isn't YAML, has several documents or duplicate keys, or another structure: one line with the position.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        // Without the snippet and the value: it may be a password, and logs are line-based.
        let reported = error.without_snippet().render_with_formatter(&UserMessageFormatter);
        without_texts(&reported).split_whitespace().collect::<Vec<_>>().join(" ")
    })
}

/// serde's message without the unexpected text (`string "…"`).
fn without_texts(reported: &str) -> String {
    const BEFORE: &str = "string \"";
    let (mut out, mut rest) = (String::new(), reported);
    while let Some(at) = rest.find(BEFORE) {
        out.push_str(&rest[..at]);
        out.push_str("a string");
        let text = &rest[at + BEFORE.len()..];
        let mut escaped = false;
        let end = text.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        rest = end.map_or("", |(end, _)| &text[end + 1..]);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_file_parses_or_yields_a_one_line_error() {
        assert_eq!(read::<Value>("a: [1, x]\n").unwrap(), json!({"a": [1, "x"]}));
        for (text, reported) in [
            ("a: 1\na: 2\n", "a"),
            ("a: 1\n---\nb: 2\n", "document"),
            ("a: [1\nb: 2\n", "line 2"),
            ("a: *nobody\n", "line 1"),
        ] {
            let error = read::<Value>(text).unwrap_err();
            assert!(error.contains(reported) && !error.contains('\n') && error.contains("line"), "{text:?}: {error}");
            assert!(!error.contains("from_str") && !error.contains("Options"), "for who wrote the file: {error}");
        }
    }

    #[test]
    fn errors_do_not_quote_the_file() {
        let text = "password:\n  secret: 'hunter2 \"quoted\" \\ more'\n  x: [\n";
        for text in [text, "password: 'hunter2 \"quoted\" \\ more'\n"] {
            let error = read::<std::collections::BTreeMap<String, u32>>(text).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains("quoted") && !error.contains("more"), "{error}");
        }
        let reported = without_texts("a: invalid type: string \"x\\\"y\", expected u32; string \"z");
        assert_eq!(reported, "a: invalid type: a string, expected u32; a string");
    }
}
