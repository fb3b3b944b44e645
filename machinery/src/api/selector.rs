//! Label and field selectors: upstream's grammars with upstream's messages, and matching.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Why a selector is refused; the sentence is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

fn refuse<T>(message: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(message.into()))
}

/// How a requirement relates its key and its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`, also true without the key
    NotIn,
    /// `key=a`
    Equals,
    /// `key==a`
    DoubleEquals,
    /// `key!=a`, also true without the key
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One condition on labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The relation.
    pub operator: Operator,
    /// Sorted, without doubles.
    pub values: Vec<String>,
}

/// Conditions on labels, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Matches no object at all (an absent `metav1.LabelSelector`).
    nothing: bool,
}

/// Anything that has labels to look up.
pub trait Labels {
    /// The label's value.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labels for serde_json::Map<String, serde_json::Value> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(serde_json::Value::as_str)
    }
}

impl Labels for serde_json::Value {
    /// Of an object's `metadata.labels`.
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Self::as_str)
    }
}

/// Longest name of a label key and longest label value, in bytes.
const LABEL_BYTES_MAX: usize = 63;
/// Longest DNS subdomain, in bytes.
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

/// What is wrong with a DNS subdomain (RFC 1123), in upstream's words; empty if nothing.
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

/// What is wrong with a label's key (a qualified name), in upstream's words; empty if nothing.
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

/// What is wrong with a label's value, in upstream's words; empty if nothing.
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
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl Requirement {
    /// Checks what upstream checks; the message names `key` and `values` as it does.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, SelectorError> {
        let mut problems = Vec::new();
        let key_problems = label_key_problems(key);
        if !key_problems.is_empty() {
            problems.push(format!("key: Invalid value: {}: {}", go_quoted(key), key_problems.join("; ")));
        }
        let listed = || {
            let quoted: Vec<String> = values.iter().map(|v| go_quoted(v)).collect();
            format!("[{}]", quoted.join(","))
        };
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                problems
                    .push("values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into());
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => problems.push(
                format!("values: Invalid value: {}: exact-match compatibility requires one single value", listed()),
            ),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => problems.push(format!(
                "values: Invalid value: {}: values set must be empty for exists and does not exist",
                listed()
            )),
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    problems.push(format!(
                        "values: Invalid value: {}: for 'Gt', 'Lt' operators, exactly one value is required",
                        listed()
                    ));
                }
                for (at, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    problems.push(format!(
                        "values[{at}]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        go_quoted(value)
                    ));
                }
            }
            _ => {}
        }
        for (at, value) in values.iter().enumerate() {
            let value_problems = label_value_problems(value);
            if !value_problems.is_empty() {
                problems.push(format!(
                    "values[{at}][{key}]: Invalid value: {}: {}",
                    go_quoted(value),
                    value_problems.join("; ")
                ));
            }
        }
        match problems.len() {
            0 => Ok(Self { key: key.into(), operator, values }),
            1 => refuse(problems.swap_remove(0)),
            _ => refuse(format!("[{}]", problems.join(", "))),
        }
    }

    /// Whether labels meet the condition.
    #[must_use]
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        let found = labels.label(&self.key);
        let listed = || found.is_some_and(|value| self.values.iter().any(|v| v == value));
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => listed(),
            Operator::NotIn | Operator::NotEquals => !listed(),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
                match (number(found), number(self.values.first().map(String::as_str))) {
                    (Some(a), Some(b)) if self.operator == Operator::GreaterThan => a > b,
                    (Some(a), Some(b)) => a < b,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl LabelSelector {
    /// Matches everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Parser { tokens: scan(text), at: 0 }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From `metav1.LabelSelector` as JSON; absent or null matches nothing, an empty one everything.
    pub fn from_value(selector: Option<&serde_json::Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(|v| v.as_object()).into_iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![text(value)])?);
        }
        for expression in selector.get("matchExpressions").and_then(|v| v.as_array()).into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return refuse(format!("{} is not a valid label selector operator", go_quoted(other))),
            };
            let values: BTreeSet<String> =
                expression.get("values").and_then(|v| v.as_array()).into_iter().flatten().map(text).collect();
            let key = expression["key"].as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, operator, values.into_iter().collect())?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From `{key: value}` (a Service's selector); no check of the labels, as upstream.
    pub fn from_labels<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut requirements: Vec<Requirement> = labels
            .into_iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::Equals, values: vec![v.into()] })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// The conditions, by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether every object matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether labels meet every condition.
    #[must_use]
    pub fn matches(&self, labels: &(impl Labels + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether an object's `metadata.labels` meet every condition.
    #[must_use]
    pub fn matches_object(&self, object: &serde_json::Value) -> bool {
        self.matches(object.pointer("/metadata/labels").unwrap_or(&serde_json::Value::Null))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, requirement) in self.requirements.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    End,
    Word,
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Not,
    Greater,
    Less,
    Open,
    Close,
    Comma,
}

type Token<'a> = (Kind, Cow<'a, str>);

fn symbol(text: &str) -> Option<Kind> {
    Some(match text {
        ")" => Kind::Close,
        "," => Kind::Comma,
        "!" => Kind::Not,
        "==" => Kind::DoubleEquals,
        "=" => Kind::Equals,
        ">" => Kind::Greater,
        "<" => Kind::Less,
        "!=" => Kind::NotEquals,
        "(" => Kind::Open,
        _ => return None,
    })
}

fn scan(text: &str) -> Vec<Token<'_>> {
    let bytes = text.as_bytes();
    let special = |b: u8| b"=!(),><".contains(&b);
    let blank = |b: u8| b" \t\r\n".contains(&b);
    let (mut tokens, mut at) = (Vec::new(), 0);
    loop {
        while at < bytes.len() && blank(bytes[at]) {
            at += 1;
        }
        // A NUL ends the text, as upstream's scanner has it.
        if at >= bytes.len() || bytes[at] == 0 {
            tokens.push((Kind::End, "".into()));
            return tokens;
        }
        let start = at;
        if special(bytes[at]) {
            let mut found = None;
            while at < bytes.len() && special(bytes[at]) {
                match symbol(&text[start..=at]) {
                    Some(kind) => found = Some(kind),
                    None if found.is_some() => break,
                    None => {}
                }
                at += 1;
            }
            tokens.push(match found {
                Some(kind) => (kind, text[start..at].into()),
                None => (Kind::Error, format!("error expected: keyword found '{}'", &text[start..at]).into()),
            });
        } else {
            while at < bytes.len() && bytes[at] != 0 && !special(bytes[at]) && !blank(bytes[at]) {
                at += 1;
            }
            let word = &text[start..at];
            let kind = match word {
                "in" => Kind::In,
                "notin" => Kind::NotIn,
                _ => Kind::Word,
            };
            tokens.push((kind, word.into()));
            // Upstream's scanner swallows a NUL that ends a word.
            if bytes.get(at) == Some(&0) {
                at += 1;
            }
        }
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The token here, keywords read as words (which they are anywhere but in an operator's place).
    fn peek(&self) -> Token<'a> {
        let (kind, text) = self.tokens.get(self.at).cloned().unwrap_or((Kind::End, "".into()));
        (if matches!(kind, Kind::In | Kind::NotIn) { Kind::Word } else { kind }, text)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            let (kind, text) = self.peek();
            match kind {
                Kind::Word | Kind::Not => {
                    let requirement = self
                        .requirement()
                        .map_err(|e| SelectorError(format!("unable to parse requirement: {}", e.0)))?;
                    requirements.push(requirement);
                    let (kind, text) = self.next();
                    match kind {
                        Kind::End => return Ok(requirements),
                        Kind::Comma => {
                            let (kind, text) = self.peek();
                            if !matches!(kind, Kind::Word | Kind::Not) {
                                return refuse(format!("found '{text}', expected: identifier after ','"));
                            }
                        }
                        _ => return refuse(format!("found '{text}', expected: ',' or 'end of string'")),
                    }
                }
                Kind::End => return Ok(requirements),
                _ => return refuse(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut kind, mut key) = self.next();
        let negated = kind == Kind::Not;
        if negated {
            (kind, key) = self.next();
        }
        if kind != Kind::Word {
            return refuse(format!("found '{key}', expected: identifier"));
        }
        let problems = label_key_problems(&key);
        if !problems.is_empty() {
            return refuse(format!("<nil>: Invalid value: {}: {}", go_quoted(&key), problems.join("; ")));
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (kind, text) = self.tokens.get(self.at).cloned().unwrap_or((Kind::End, "".into()));
        self.at += 1;
        let operator = match kind {
            Kind::In => Operator::In,
            Kind::NotIn => Operator::NotIn,
            Kind::Equals => Operator::Equals,
            Kind::DoubleEquals => Operator::DoubleEquals,
            Kind::NotEquals => Operator::NotEquals,
            Kind::Greater => Operator::GreaterThan,
            Kind::Less => Operator::LessThan,
            _ => return refuse(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        Requirement::new(&key, operator, values.into_iter().collect())
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Kind::Word, text) => Ok(text.into_owned()),
            (_, text) => refuse(format!("found '{text}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (kind, text) = self.next();
        if kind != Kind::Open {
            return refuse(format!("found '{text}' expected: '('"));
        }
        let (kind, text) = self.peek();
        match kind {
            Kind::Word | Kind::Comma => {
                let values = self.value_list()?;
                if self.next().0 != Kind::Close {
                    return refuse(format!("found '{text}', expected: ')'"));
                }
                Ok(values)
            }
            Kind::Close => {
                self.next();
                Ok(BTreeSet::from([String::new()]))
            }
            _ => refuse(format!("found '{text}', expected: ',', ')' or identifier")),
        }
    }

    fn value_list(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Kind::Word, text) => {
                    values.insert(text.into_owned());
                    match self.peek() {
                        (Kind::Comma, _) => {}
                        (Kind::Close, _) => return Ok(values),
                        (_, text) => return refuse(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Kind::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Kind::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Kind::Comma => {
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, text) => return refuse(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }
}

/// One condition on a field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldRequirement {
    /// Such as `metadata.name`.
    pub field: String,
    /// Equal, or not.
    pub equal: bool,
    /// Without escapes.
    pub value: String,
}

/// Conditions on fields, all of which must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    /// The conditions.
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; `\`, `,` and `=` in values are escaped by a backslash.
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
            requirements.push(FieldRequirement { field: field.into(), equal, value: unescape(value)? });
        }
        Ok(Self { requirements })
    }

    /// Whether every object matches.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether every condition holds; an unknown field reads as empty.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Cow<'a, str>) -> bool {
        self.requirements.iter().all(|r| (value_of(&r.field) == r.value.as_str()) == r.equal)
    }

    /// The value that the selector pins a field to.
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
            // Upstream prints the character's number.
            ',' | '=' => {
                return refuse(format!("invalid field selector: unescaped character in value: {}", c as u32));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn printed_forms_and_messages_are_upstreams() {
        for (text, expected) in [
            ("", Ok("")),
            ("a=b", Ok("a=b")),
            ("b==c, a", Ok("a,b==c")),
            ("!a,b in (y, x)", Ok("!a,b in (x,y)")),
            ("a notin ()", Ok("a notin ()")),
            ("a in (,)", Ok("a in ()")),
            ("a!=", Ok("a!=")),
            ("a>1,b<2", Ok("a>1,b<2")),
            ("in in (in)", Ok("in in (in)")),
            ("x in (foo,,baz)", Ok("x in (,baz,foo)")),
            ("a=b,", Err("found '', expected: identifier after ','")),
            (",", Err("found ',', expected: !, identifier, or 'end of string'")),
            ("a b", Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt")),
            ("a=b c", Err("found 'c', expected: ',' or 'end of string'")),
            ("a in b", Err("unable to parse requirement: found 'b' expected: '('")),
            ("a in (b", Err("unable to parse requirement: found '', expected: ',' or ')'")),
            ("!", Err("unable to parse requirement: found '', expected: identifier")),
            (
                "a>b",
                Err(
                    "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
                ),
            ),
        ] {
            let found = LabelSelector::parse(text).map(|s| s.to_string()).map_err(|e| e.0);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{text}");
        }
        let error = LabelSelector::parse("-a=b").unwrap_err().0;
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"),
            "{error}"
        );
    }

    #[test]
    fn matching() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        for (text, expected) in [
            ("a", true),
            ("!a", false),
            ("a=1,b=", true),
            ("a!=1", false),
            ("c!=1", true),
            ("c notin (x)", true),
            ("a in (0,1)", true),
            ("a>0", true),
            ("b>0", false),
            ("c", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), expected, "{text}");
        }
        let pod = json!({"metadata": {"labels": {"app": "x"}}});
        let by = |selector: serde_json::Value| LabelSelector::from_value(Some(&selector)).unwrap().matches_object(&pod);
        assert!(by(json!({})) && by(json!({"matchLabels": {"app": "x"}})));
        assert!(!by(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x", "y"]}]})));
        assert!(!LabelSelector::from_value(None).unwrap().matches_object(&pod));
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running,,x==\\,\\=\\\\").unwrap();
        assert_eq!(selector.to_string(), "metadata.name=a,status.phase!=Running,x=\\,\\=\\\\");
        assert_eq!(selector.exact("x"), Some(",=\\"));
        for (text, message) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a=\\b", "invalid field selector: invalid escape sequence: \\b"),
            ("a=b\\", "invalid field selector: invalid escape sequence: \\"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err().0, message);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_printing_settles(text in "[a-c!=<>(), \u{e9}\\\\inot]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let printed = selector.to_string();
                prop_assert_eq!(LabelSelector::parse(&printed).unwrap().to_string(), printed);
            }
            if let Ok(selector) = FieldSelector::parse(&text) {
                let mut again = FieldSelector::parse(&selector.to_string()).unwrap().requirements;
                let mut first = selector.requirements;
                let key = |r: &FieldRequirement| (r.field.clone(), r.equal, r.value.clone());
                (again.sort_by_key(key), first.sort_by_key(key)).0;
                prop_assert_eq!(again, first);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
            let _ = (LabelSelector::parse(&text), FieldSelector::parse(&text));
        }
    }
}
