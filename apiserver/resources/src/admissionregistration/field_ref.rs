//! The syntax of a JSONPath that names a field of a policy, as upstream's parser reports its faults. What is within
//! brackets is not parsed.

/// The first fault of a path, in upstream's words.
pub(super) fn error(path: &str) -> Option<String> {
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            ' ' | '@' | '$' => &rest[1..],
            '.' if rest.starts_with("..") => &rest[2..],
            '.' => rest[1..].trim_start_matches(is_within),
            '[' => match rest.split_once(']') {
                Some((_, after)) => after,
                None => return Some("unterminated array".into()),
            },
            '+' | '-' | '0'..='9' => {
                let text = &rest[1..];
                let end = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
                let number = &rest[..=end];
                if number.parse::<i64>().is_err()
                    && (number.matches('.').count() != 1 || number.parse::<f64>().is_err())
                {
                    return Some(format!("cannot parse number {number}"));
                }
                &rest[end + 1..]
            }
            c if c == '_' || c.is_alphanumeric() => rest.trim_start_matches(is_within),
            other => return Some(format!("unrecognized character in action: U+{:04X} '{other}'", u32::from(other))),
        };
    }
    None
}

/// Whether a character continues a name.
fn is_within(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::error;

    #[test]
    fn faults_have_upstreams_texts() {
        for (path, why) in [
            ("spec.validations[0].expression", None),
            ("$.spec['x']", None),
            ("-a", Some("cannot parse number -")),
            ("10.0.0.1", Some("cannot parse number 10.0.0.1")),
            ("2001:db8::1", Some("unrecognized character in action: U+003A ':'")),
            ("../up", Some("unrecognized character in action: U+002F '/'")),
            ("$(X)", Some("unrecognized character in action: U+0028 '('")),
            ("99", None),
            ("http://h/p", None),
        ] {
            assert_eq!(error(path).as_deref(), why, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_text_ends(path in "[-+.$@\\[\\] a9é/]{0,12}") {
            let _ = error(&path);
        }
    }
}
