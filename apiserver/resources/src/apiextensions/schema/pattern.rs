//! Patterns with the syntax of Go's `regexp`: classes are ASCII, and a bracket within a class is literal. Matching
//! takes time linear in text and pattern; a pattern with a large program is rejected.

use regex::{Regex, RegexBuilder};

use super::repetition;

/// Bound on one pattern's compiled size, in bytes.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// Minimum size of a program, including its cache of matching states.
const PROGRAM_BYTES_MIN: usize = 4 << 10;
/// Bound on the cache of matching states, in bytes per matching thread; the cache is cleared when full.
const STATES_BYTES_MAX: usize = 256 << 10;
/// Bound on a pattern's length, in bytes.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Maximum nesting of groups, as in Go.
const NEST_MAX: u32 = 250;

/// A compiled pattern, and its text.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    pub(crate) text: Box<str>,
    regex: Regex,
}

impl Pattern {
    /// Estimated size of its program: a step for each byte and each repetition, plus the minimum.
    pub(crate) fn bytes(&self) -> usize {
        PROGRAM_BYTES_MIN.max(self.text.len() * 64)
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

/// Compiles a pattern. The error is Go's message, as far as it can be reproduced.
pub(crate) fn compile(pattern: &str) -> Result<Pattern, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err("error parsing regexp: expression too large".into());
    }
    let translated = translate(&repetition::escape_literal_braces(pattern)?);
    let regex = RegexBuilder::new(&translated)
        .size_limit(PROGRAM_BYTES_MAX)
        .dfa_size_limit(STATES_BYTES_MAX)
        .nest_limit(NEST_MAX)
        .build()
        .map_err(|error| sentence(pattern, &error))?;
    Ok(Pattern { text: pattern.into(), regex })
}

/// The part that Go names in its error: a group's head up to the first invalid letter.
fn unknown_group(pattern: &str) -> &str {
    pattern.find("(?").map_or(pattern, |at| {
        let rest = &pattern[at..];
        let known = |c: char| matches!(c, 'i' | 'm' | 's' | 'U' | '-');
        let end = rest.char_indices().skip(2).find(|(_, c)| !known(*c)).map_or(rest.len(), |(i, c)| i + c.len_utf8());
        &rest[..end]
    })
}

fn sentence(pattern: &str, error: &regex::Error) -> String {
    let text = error.to_string();
    let known = [
        ("unclosed character class", "missing closing ]"),
        ("unclosed group", "missing closing )"),
        ("unopened group", "unexpected )"),
        ("repetition operator missing expression", "missing argument to repetition operator"),
        ("look-around", "invalid or unsupported Perl syntax"),
        ("backreferences", "invalid escape sequence"),
        ("unrecognized escape", "invalid escape sequence"),
        ("incomplete escape", "trailing backslash at end of expression"),
        ("exceeds size limit", "expression too large"),
    ];
    match known.iter().find(|(ours, _)| text.contains(ours)) {
        Some((_, "expression too large")) | None if matches!(error, regex::Error::CompiledTooBig(_)) => {
            "error parsing regexp: expression too large".into()
        }
        Some(("look-around", gos)) => format!("error parsing regexp: {gos}: `{}`", unknown_group(pattern)),
        Some((_, gos)) => format!("error parsing regexp: {gos}: `{pattern}`"),
        None => format!("error parsing regexp: invalid expression: `{pattern}`"),
    }
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern.chars().peekable();
    let mut class = false;
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, class, &mut out),
            '[' if class => {
                if rest.peek() == Some(&':') {
                    out.push('[')
                } else {
                    out.push_str("\\[")
                }
                if rest.peek() == Some(&':') {
                    for c in rest.by_ref() {
                        out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
            }
            '[' => {
                class = true;
                out.push('[');
                if rest.peek() == Some(&'^') {
                    out.extend(rest.next());
                }
                // A leading bracket is literal.
                if rest.peek() == Some(&']') {
                    rest.next();
                    out.push_str("\\]");
                }
            }
            ']' if class => {
                class = false;
                out.push(']');
            }
            // Class set operators, which Go doesn't have.
            '&' | '~' if class => {
                out.push('\\');
                out.push(c);
            }
            '-' if class && rest.peek() == Some(&'-') => out.push_str("\\-"),
            _ => out.push(c),
        }
    }
    out
}

fn escape(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, class: bool, out: &mut String) {
    let Some(c) = rest.next() else { return out.push('\\') };
    let (open, close) = if class { ("", "") } else { ("[", "]") };
    match c {
        'd' => out.push_str(&format!("{open}0-9{close}")),
        'w' => out.push_str(&format!("{open}0-9A-Za-z_{close}")),
        's' => out.push_str(&format!("{open}\\t\\n\\x0C\\r {close}")),
        'D' => out.push_str("[^0-9]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        'S' => out.push_str("[^\\t\\n\\x0C\\r ]"),
        'b' | 'B' if !class => out.push_str(&format!("(?-u:\\{c})")),
        'Q' if !class => {
            let text: String = rest.by_ref().collect();
            let (literal, after) = text.split_once("\\E").unwrap_or((&text, ""));
            out.push_str(&regex::escape(literal));
            out.push_str(&translate(after));
        }
        _ => {
            out.push('\\');
            out.push(c);
        }
    }
}
