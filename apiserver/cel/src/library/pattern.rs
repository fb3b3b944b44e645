//! Go's `regexp` syntax on Rust's `regex`, with bounds on the compiled size.

use regex::{Regex, RegexBuilder};

use crate::limits::PATTERN_BYTES;

/// Perl character classes, which are ASCII in Go.
const CLASSES: &[(char, &str)] = &[('d', "0-9"), ('w', "0-9A-Za-z_"), ('s', "\\t\\n\\x0c\\r ")];

/// Compiles a Go pattern.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern);
    let compiled = RegexBuilder::new(&translated).size_limit(PATTERN_BYTES).nest_limit(100).build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("error parsing regexp: expression too large: `{pattern}`"),
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            // Go's wording of the most frequent errors.
            let last = match &*last {
                "unclosed group" => "missing closing )",
                "unopened group" => "unexpected )",
                "unclosed character class" => "missing closing ]",
                "repetition operator missing expression" => "missing argument to repetition operator",
                other => other,
            };
            format!("error parsing regexp: {last}: `{pattern}`")
        }
    })
}

/// Translates Go's pattern syntax to that of `regex`.
pub fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut class = 0usize;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('Q') if class == 0 => {
                    let rest: String = chars.clone().collect();
                    let literal = rest.split("\\E").next().unwrap_or_default().to_owned();
                    translated.push_str(&regex::escape(&literal));
                    let taken = literal.chars().count() + if rest.len() > literal.len() { 2 } else { 0 };
                    chars.nth(taken.wrapping_sub(1)).filter(|_| taken > 0);
                }
                Some(letter) => escaped(letter, class > 0, &mut translated),
                None => translated.push('\\'),
            },
            '[' if class == 0 => {
                class = 1;
                translated.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    translated.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    translated.push_str("\\]");
                }
            }
            '[' if chars.peek() == Some(&':') => {
                translated.push('[');
                // Copies a named class up to its end.
                for c in chars.by_ref() {
                    translated.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' => translated.push_str("\\["),
            ']' if class > 0 => {
                class = 0;
                translated.push(']');
            }
            '&' | '~' if class > 0 => {
                translated.push('\\');
                translated.push(c);
            }
            c => translated.push(c),
        }
    }
    translated
}

fn escaped(letter: char, in_class: bool, translated: &mut String) {
    let lower = letter.to_ascii_lowercase();
    if let Some((_, members)) = CLASSES.iter().find(|(name, _)| *name == lower) {
        match (lower == letter, in_class) {
            (true, true) => translated.push_str(members),
            (true, false) => translated.push_str(&format!("[{members}]")),
            (false, _) => translated.push_str(&format!("[^{members}]")),
        }
        return;
    }
    if matches!(letter, 'b' | 'B') && !in_class {
        translated.push_str(&format!("(?-u:\\{letter})"));
        return;
    }
    translated.push('\\');
    translated.push(letter);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        let matches = |pattern: &str, text: &str| compile(pattern).expect(pattern).is_match(text);
        assert!(matches(r"^\d+$", "12"));
        assert!(!matches(r"^\d+$", "١٢"));
        assert!(matches(r"^[\w.]+$", "a_1."));
        assert!(matches(r"^[]a]$", "]"));
        assert!(matches(r"^[a[]$", "["));
        assert!(matches(r"^[a&&b]+$", "a&b"));
        assert!(matches(r"^\Qa.b\E$", "a.b"));
        assert!(!matches(r"^\Qa.b\E$", "axb"));
        assert!(matches(r"^[[:alpha:]]+$", "ab"));
        assert!(matches(r"^[^\s]$", "x"));
        assert!(matches("\\bfoo\\b", "a foo b"));
        assert!(compile("(a{1000}){1000}").expect_err("large").contains("too large"));
        assert!(compile("(").is_err());
    }
}
