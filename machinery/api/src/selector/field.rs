//! Field selectors: parses the query parameter, matches fields of an object, and prints the selector with escapes.

use std::fmt;

use super::{SelectorError, refuse};

/// One condition on a field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// Such as `metadata.name`.
    pub field: String,
    /// True for equal, false for not equal.
    pub equal: bool,
    /// Unescaped.
    pub value: String,
}

/// Conditions on fields, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    /// The conditions.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldRequirement {
    /// `field=value`.
    pub fn equals(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self { field: field.into(), equal: true, value: value.into() }
    }
}

impl From<FieldRequirement> for FieldSelector {
    fn from(one: FieldRequirement) -> Self {
        Self { requirements: vec![one] }
    }
}

impl FieldSelector {
    /// Parses `a=b,c!=d`; `\`, `,` and `=` in values are escaped by a backslash.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for term in terms(text) {
            let Some(at) = term.find("!=").into_iter().chain(term.find('=')).min() else {
                return refuse(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let (field, rest) = term.split_at(at);
            let (equal, value) = match (rest.strip_prefix("!="), rest.strip_prefix("==")) {
                (Some(value), _) => (false, value),
                (_, Some(value)) => (true, value),
                _ => (true, &rest[1..]),
            };
            let value = unescape(value)?;
            // A term with only an operator matches everything.
            if !(field.is_empty() && value.is_empty()) {
                requirements.push(FieldRequirement { field: field.into(), equal, value });
            }
        }
        Ok(Self { requirements })
    }

    /// Whether every object matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether every condition holds; an unknown field reads as empty.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> &'a str) -> bool {
        self.requirements.iter().all(|r| (value_of(&r.field) == r.value) == r.equal)
    }

    /// The value to which the selector restricts a field.
    #[must_use]
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, r) in self.requirements.iter().enumerate() {
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{}{}{}{value}", if at > 0 { "," } else { "" }, r.field, if r.equal { "=" } else { "!=" })?;
        }
        Ok(())
    }
}

/// The terms between unescaped commas, sorted, without empty ones.
fn terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms.retain(|t| !t.is_empty());
    terms.sort_unstable();
    terms
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let (mut out, mut characters) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return refuse(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return refuse("invalid field selector: invalid escape sequence: \\"),
            },
            // Upstream prints the character's code.
            ',' | '=' => {
                return refuse(format!("invalid field selector: unescaped character in value: {}", c as u32));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}
