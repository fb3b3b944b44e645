//! Maps property names to CEL identifiers and back: `a-b` is `a__dash__b`.

use crate::syntax::RESERVED;

/// Words with a meaning of their own.
const KEYWORDS: [&str; 4] = ["true", "false", "null", "in"];

fn is_word(name: &str) -> bool {
    KEYWORDS.contains(&name) || RESERVED.contains(&name)
}

const ESCAPES: &[(char, &str)] = &[('.', "__dot__"), ('-', "__dash__"), ('/', "__slash__")];

/// The name of a property in an expression, if it has one.
pub fn escape(name: &str) -> Option<String> {
    if is_word(name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    if first.is_ascii_digit() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-/".contains(c)) {
        return None;
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            escaped.push_str("__underscores__");
            rest = after;
            continue;
        }
        match ESCAPES.iter().find(|(plain, _)| *plain == c) {
            Some((_, word)) => escaped.push_str(word),
            None => escaped.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(escaped)
}

/// The property behind a name in an expression, if any.
pub fn unescape(escaped: &str) -> Option<std::borrow::Cow<'_, str>> {
    if !escaped.contains("__") {
        return Some(escaped.into());
    }
    if let Some(word) = escaped.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && is_word(word)
    {
        return Some(word.to_owned().into());
    }
    let mut name = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__underscores__") {
            name.push_str("__");
            rest = after;
        } else if let Some((plain, word)) = ESCAPES.iter().find(|(_, word)| rest.starts_with(word)) {
            name.push(*plain);
            rest = &rest[word.len()..];
        } else if is_unknown_escape(rest) {
            return None;
        } else {
            name.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    Some(name.into())
}

/// `__word__` with a word that is no known escape.
fn is_unknown_escape(text: &str) -> bool {
    let Some(inside) = text.strip_prefix("__") else { return false };
    inside.find('_').is_some_and(|end| end > 0 && inside[end..].starts_with("__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (name, escaped) in [
            ("a", "a"),
            ("namespace", "__namespace__"),
            ("a-b.c/d", "a__dash__b__dot__c__slash__d"),
            ("a__b", "a__underscores__b"),
            ("_a", "_a"),
        ] {
            assert_eq!(escape(name).as_deref(), Some(escaped));
            assert_eq!(unescape(escaped).as_deref(), Some(name));
        }
        assert_eq!(escape("1a"), None);
        assert_eq!(escape("a b"), None);
        assert_eq!(escape(""), None);
        assert_eq!(unescape("a__b").as_deref(), Some("a__b"));
        assert_eq!(unescape("a__b__"), None);
    }
}
