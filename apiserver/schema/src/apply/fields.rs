//! FieldsV1: the JSON form of a field set, `{"f:spec":{"f:ports":{".":{},"k:{\"port\":80}":{}}}}`.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::path::PathElement;
use super::set::{Node, Set};

/// Maximum depth of a set: that of JSON parsing.
const DEPTH_MAX: usize = 120;

/// The JSON of a value inside a key, with HTML characters escaped as upstream does.
fn inner_json(value: &Value) -> String {
    let mut out = value.to_string();
    if out.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        for (plain, escaped) in
            [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")]
        {
            out = out.replace(plain, escaped);
        }
    }
    out
}

/// An element's text such as `f:name`, unquoted.
fn element_text(element: &PathElement) -> String {
    match element {
        PathElement::Field(name) => format!("f:{name}"),
        PathElement::Key(keys) => {
            let mut out = "k:{".to_owned();
            for (i, (name, value)) in keys.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(&**name).to_string());
                out.push(':');
                out.push_str(&inner_json(value));
            }
            out.push('}');
            out
        }
        PathElement::Value(value) => format!("v:{}", inner_json(value)),
        PathElement::Index(at) => format!("i:{at}"),
    }
}

/// Appends a JSON string.
fn write_quoted(text: &str, out: &mut String) {
    out.push('"');
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push_str(text);
        out.push('"');
        return;
    }
    out.pop();
    out.push_str(&Value::from(text).to_string());
}

/// Appends an element as an object's key.
pub(super) fn write_element(element: &PathElement, out: &mut String) {
    match element {
        PathElement::Field(name) => write_field(name, out),
        other => write_quoted(&element_text(other), out),
    }
}

/// Appends a field's name as an object's key.
pub(super) fn write_field(name: &str, out: &mut String) {
    if name.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push_str("\"f:");
        out.push_str(name);
        out.push('"');
    } else {
        write_quoted(&format!("f:{name}"), out);
    }
}

/// Encodes a set.
#[must_use]
pub fn encode(set: &Set) -> String {
    fn write(set: &Set, itself: bool, out: &mut String) {
        out.push('{');
        let mut first = true;
        let mut comma = |out: &mut String| {
            if !std::mem::take(&mut first) {
                out.push(',');
            }
        };
        if itself {
            comma(out);
            out.push_str("\".\":{}");
        }
        for node in &set.nodes {
            comma(out);
            write_element(&node.element, out);
            out.push(':');
            match &node.below {
                Some(below) => write(below, node.member, out),
                None => out.push_str("{}"),
            }
        }
        out.push('}');
    }
    let mut out = String::new();
    write(set, false, &mut out);
    out
}

/// Parses a set; the error describes the fault.
pub fn decode(text: &str) -> Result<Set, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = Level { depth: 0 }.deserialize(&mut reader).and_then(|read| reader.end().map(|()| read));
    read.map(|(set, _)| set).map_err(|error| error.to_string())
}

/// Parses a set from a JSON value.
pub fn decode_value(value: &Value) -> Result<Set, String> {
    Level { depth: 0 }.deserialize(value).map(|(set, _)| set).map_err(|error| error.to_string())
}

/// Deserializes one level: the set, and whether its owner is a member.
struct Level {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = (Set, bool);

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = (Set, bool);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of path elements")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok((Set::default(), true))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if self.depth > DEPTH_MAX {
            return Err(A::Error::custom("exceeded max depth"));
        }
        let mut nodes = Vec::new();
        let mut itself = false;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if key == "." {
                map.next_value::<IgnoredAny>()?;
                itself = true;
                continue;
            }
            // Elements of an unknown kind (of a future version) are dropped.
            let Some(element) = element(&key).map_err(A::Error::custom)? else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let (below, member) = map.next_value_seed(Level { depth: self.depth + 1 })?;
            if !member && below.is_empty() {
                continue;
            }
            nodes.push(Node { element, member, below: (!below.is_empty()).then(|| Arc::new(below)) });
        }
        let set = Set::of_nodes(nodes);
        let member = itself || set.is_empty();
        Ok((set, member))
    }
}

/// Parses an element such as `f:name`; `None` for an unknown kind.
fn element(text: &str) -> Result<Option<PathElement>, String> {
    let bytes = text.as_bytes();
    if bytes.len() < 2 {
        return Err("parsing key as path element: key must be 2 characters long:".into());
    }
    if bytes[1] != b':' {
        return Err(format!("parsing key as path element: missing colon: {text}"));
    }
    let rest = text.get(2..).unwrap_or_default();
    let wrong = |error: &dyn fmt::Display| format!("parsing key as path element: {error}");
    Ok(match bytes[0] {
        b'f' => Some(PathElement::field(rest)),
        b'v' => Some(PathElement::Value(Arc::new(first_value(rest)?))),
        b'k' => {
            let Value::Object(keys) = first_value(rest)? else { return Err(wrong(&"expected an object of keys")) };
            Some(PathElement::key(keys.into_iter().map(|(name, value)| (name.into(), value)).collect()))
        }
        b'i' => Some(PathElement::Index(rest.parse().map_err(|_| wrong(&format!("invalid index {rest}")))?)),
        _ => None,
    })
}

/// The first value of a text: upstream ignores the rest, and reads an empty text as null.
fn first_value(text: &str) -> Result<Value, String> {
    match serde_json::Deserializer::from_str(text).into_iter::<Value>().next() {
        None => Ok(Value::Null),
        Some(Ok(Value::Object(map))) => Ok(Value::Object(map.into_iter().collect::<Map<_, _>>())),
        Some(read) => read.map_err(|error| format!("parsing key as path element: {error}")),
    }
}
