//! Paths of fields in a schema, in the syntax of rules and selectable fields.

use serde_json::Value;

use crate::read::get;

/// A quoted text in Go's syntax; `None` if an escape is invalid.
fn unescaped(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let kind = rest.next()?;
        let (digits, radix) = match kind {
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='7' => (2, 8),
            _ => (0, 0),
        };
        out.push(match kind {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' => kind,
            _ if digits > 0 => {
                let begun = if radix == 8 { kind.to_digit(8)? } else { 0 };
                let code = (0..digits)
                    .try_fold(begun, |code, _| Some(code.checked_mul(radix)? + rest.next()?.to_digit(radix)?))?;
                char::from_u32(code)?
            }
            _ => return None,
        });
    }
    Some(out)
}

/// The names of a path (`.spec.a['b c']`), and the schema at its end.
pub(super) fn parse<'a>(path: &str, schema: &'a Value, brackets: bool) -> Result<(Vec<String>, &'a Value), String> {
    let (mut rest, mut found, mut names) = (path, schema, Vec::new());
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".into());
            }
            let Some(inner) = after.strip_prefix('\'') else {
                return Err(format!("expected single quoted string but got {}", token(after)));
            };
            let mut end = None;
            for (at, _) in inner.match_indices('\'') {
                if !inner[..at].ends_with('\\') {
                    end = Some(at);
                    break;
                }
            }
            let Some(end) = end else { return Err("unexpected end of JSON path".into()) };
            name = unescaped(&inner[..end]).ok_or("invalid string literal: invalid syntax")?;
            let Some(after) = inner[end + 1..].strip_prefix(']') else {
                let got = token(&inner[end + 1..]);
                let none = got.is_empty();
                return Err(if none {
                    "unexpected end of JSON path".into()
                } else {
                    format!("expected ] but got {got}")
                });
            };
            rest = after;
        } else if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len()).max(usize::from(!after.is_empty()));
            if after.is_empty() {
                return Err("unexpected end of JSON path".into());
            }
            name = after[..end].to_owned();
            rest = &after[end..];
        } else {
            return Err(format!("expected [ or . but got: {}", token(rest)));
        }
        let none = || "does not refer to a valid field".to_owned();
        let properties = get(found, "properties");
        if properties.is_object() {
            found = properties.get(&name).ok_or_else(none)?;
        } else if get(found, "additionalProperties").is_object() {
            found = get(found, "additionalProperties");
        } else {
            return Err(none());
        }
        names.push(name);
    }
    Ok((names, found))
}

fn token(text: &str) -> &str {
    let end = text.find(['.', '[', ']']).unwrap_or(text.len()).max(usize::from(!text.is_empty()));
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_read_as_go_reads_texts() {
        let schema = json!({"properties": {"a.b": {"properties": {"\u{7}'c": {}}}}});
        assert!(parse(r"['a.b']['\a\'c']", &schema, true).is_ok());
        assert!(parse(r"['a\x2eb']['\007\u0027c']", &schema, true).is_ok());
        for wrong in [r"['a\qb']", r"['a\x2']", r"['\uD800']", r"['\U99999999']", "['a.b'", "[a]", ".a.b"] {
            assert!(parse(wrong, &schema, true).is_err(), "{wrong}");
        }
    }
}
