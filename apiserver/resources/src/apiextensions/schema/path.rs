//! JSON paths of columns and fields: names after dots or in brackets, list indexes, `*`, and filters that compare a
//! path with a text. A path is parsed once; a search is bounded by the object.

use std::borrow::Cow;

use serde_json::Value;

/// Maximum number of parts of a path.
const PARTS_MAX: usize = 64;
/// Maximum number of values that a path returns.
const FOUND_MAX: usize = 10_000;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonPath(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Name(Box<str>),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Any,
    Below,
    Filter(Vec<Part>, Compare, Option<Value>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compare {
    Exists,
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl JsonPath {
    /// Parses `.spec.x[0]['y']`; `None` if the syntax isn't supported.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts = PathParser { rest: text }.parts()?;
        Some(Self(parts)).filter(|path| path.0.len() <= PARTS_MAX)
    }

    /// The matching values in an object.
    pub(crate) fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        find(&self.0, object)
    }
}

fn find<'a>(parts: &[Part], object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    for part in parts {
        let mut next = Vec::new();
        for value in found {
            step(part, value, &mut next);
            if next.len() > FOUND_MAX {
                return Vec::new();
            }
        }
        found = next;
    }
    found
}

fn step<'a>(part: &Part, value: &'a Value, into: &mut Vec<&'a Value>) {
    let at = |list: &[Value], index: i64| {
        let index = if index < 0 { index + list.len() as i64 } else { index };
        usize::try_from(index).ok()
    };
    match (part, value) {
        (Part::Name(name), Value::Object(map)) => into.extend(map.get(&**name)),
        (Part::Index(index), Value::Array(list)) => into.extend(at(list, *index).and_then(|at| list.get(at))),
        (Part::Slice(from, to, by), Value::Array(list)) => {
            let from = from.map_or(Some(0), |from| at(list, from)).unwrap_or(0);
            let to = to.map_or(Some(list.len()), |to| at(list, to)).unwrap_or(0).min(list.len());
            let by = usize::try_from(*by).unwrap_or(1).max(1);
            into.extend(list.get(from..to).unwrap_or_default().iter().step_by(by));
        }
        (Part::Any, Value::Array(list)) => into.extend(list),
        (Part::Any, Value::Object(map)) => into.extend(map.values()),
        (Part::Below, value) => below(value, into),
        (Part::Filter(path, compare, wanted), Value::Array(list)) => {
            into.extend(list.iter().filter(|item| holds(path, *compare, wanted.as_ref(), item)));
        }
        _ => {}
    }
}

fn below<'a>(value: &'a Value, into: &mut Vec<&'a Value>) {
    into.push(value);
    if into.len() > FOUND_MAX {
        return;
    }
    match value {
        Value::Object(map) => map.values().for_each(|value| below(value, into)),
        Value::Array(list) => list.iter().for_each(|value| below(value, into)),
        _ => {}
    }
}

fn holds(path: &[Part], compare: Compare, wanted: Option<&Value>, item: &Value) -> bool {
    let found = find(path, item);
    let Some(first) = found.first() else { return false };
    let Some(wanted) = wanted else { return compare == Compare::Exists };
    let order = match (first, wanted) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let Some(order) = order else { return compare == Compare::Unequal };
    match compare {
        Compare::Exists => true,
        Compare::Equal => order.is_eq(),
        Compare::Unequal => order.is_ne(),
        Compare::Less => order.is_lt(),
        Compare::AtMost => order.is_le(),
        Compare::Greater => order.is_gt(),
        Compare::AtLeast => order.is_ge(),
    }
}

struct PathParser<'a> {
    rest: &'a str,
}

impl<'a> PathParser<'a> {
    fn take(&mut self, text: &str) -> bool {
        let taken = self.rest.strip_prefix(text);
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn parts(&mut self) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        let _ = self.take("$") || self.take("@");
        while !self.rest.is_empty() {
            if parts.len() > PARTS_MAX {
                return None;
            }
            if self.take("..") {
                parts.push(Part::Below);
                if !self.rest.starts_with('[') {
                    parts.push(self.name()?);
                }
            } else if self.take(".") {
                if !self.rest.is_empty() && !self.rest.starts_with('[') {
                    parts.push(self.name()?);
                }
            } else if self.take("[") {
                let inner = self.bracketed()?;
                parts.push(inside(inner)?);
            } else {
                return None;
            }
        }
        Some(parts)
    }

    /// The text up to the closing bracket, past nested brackets and quotes.
    fn bracketed(&mut self) -> Option<&'a str> {
        let (mut depth, mut quote) = (1, None);
        for (at, c) in self.rest.char_indices() {
            match (c, quote) {
                (c, Some(q)) if c == q => quote = None,
                (_, Some(_)) => {}
                ('\'' | '"', None) => quote = Some(c),
                ('[', None) => depth += 1,
                (']', None) => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                let inner = &self.rest[..at];
                self.rest = &self.rest[at + 1..];
                return Some(inner);
            }
        }
        None
    }

    fn name(&mut self) -> Option<Part> {
        let mut name = String::new();
        let mut letters = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = letters.next() {
            match c {
                '\\' => name.extend(letters.next().map(|(_, c)| c)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                // These end a path within a template.
                '{' | '}' | ' ' | '|' | '\n' | '\r' => return None,
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        if name == "*" { Some(Part::Any) } else { Some(Part::Name(name.into())).filter(|_| end > 0) }
    }
}

fn inside(text: &str) -> Option<Part> {
    let text = text.trim();
    if text == "*" {
        return Some(Part::Any);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        return condition(filter.trim());
    }
    if let Some(name) = quoted(text) {
        return Some(Part::Name(name.into()));
    }
    if let Ok(index) = text.parse() {
        return Some(Part::Index(index));
    }
    let mut bounds = text.split(':').map(str::trim);
    let mut bound = || match bounds.next() {
        None | Some("") => Some(None),
        Some(text) => text.parse::<i64>().ok().map(Some),
    };
    let slice = Part::Slice(bound()?, bound()?, bound()?.unwrap_or(1));
    (text.contains(':') && bounds.next().is_none()).then_some(slice)
}

fn quoted(text: &str) -> Option<Cow<'_, str>> {
    let inner = ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))?;
    Some(if inner.contains('\\') { inner.replace('\\', "").into() } else { inner.into() })
}

fn condition(text: &str) -> Option<Part> {
    const OPERATORS: &[(&str, Compare)] = &[
        ("==", Compare::Equal),
        ("!=", Compare::Unequal),
        ("<=", Compare::AtMost),
        (">=", Compare::AtLeast),
        ("<", Compare::Less),
        (">", Compare::Greater),
    ];
    let found = OPERATORS
        .iter()
        .filter_map(|(sign, compare)| Some((text.find(sign)?, *sign, *compare)))
        .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())));
    let Some((at, sign, compare)) = found else {
        return Some(Part::Filter(PathParser { rest: text }.parts()?, Compare::Exists, None));
    };
    let (path, value) = (text[..at].trim(), text[at + sign.len()..].trim());
    let value = match quoted(value) {
        Some(text) => Value::String(text.into_owned()),
        None => serde_json::from_str(value).ok()?,
    };
    Some(Part::Filter(PathParser { rest: path }.parts()?, compare, Some(value)))
}

/// A value in a text column, in Go's format.
pub(crate) fn printed(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}
