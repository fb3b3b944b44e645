//! Elements of a field path (field name, keys of a list item, value of a set item, index), in upstream's order and
//! format.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde_json::{Number, Value};

/// The key fields of a list item with their values, by name.
pub type Keys = [(Arc<str>, Value)];

/// One step of a path.
#[derive(Debug, Clone)]
pub enum PathElement {
    /// A field of an object, or a key of a map.
    Field(Arc<str>),
    /// The list item with these keys.
    Key(Arc<Keys>),
    /// The set item with this value.
    Value(Arc<Value>),
    /// The list item at this index.
    Index(i64),
}

impl PathElement {
    /// A field.
    #[must_use]
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The list item with these keys.
    #[must_use]
    pub fn key(mut keys: Vec<(Arc<str>, Value)>) -> Self {
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(keys.into())
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_keys(a, b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

fn compare_keys(a: &Keys, b: &Keys) -> Ordering {
    for ((name, value), (other_name, other)) in a.iter().zip(b) {
        let order = name.cmp(other_name).then_with(|| compare_values(value, other));
        if order.is_ne() {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// Upstream's order of arbitrary values: numbers, strings, booleans, lists, maps, null.
#[must_use]
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let differs = a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|order| order.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let one = |((key, value), (other_key, other)): ((&String, &Value), (&String, &Value))| {
                key.cmp(other_key).then_with(|| compare_values(value, other))
            };
            let differs = a.iter().zip(b).map(one).find(|order| order.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (a, b) => rank(a).cmp(&rank(b)),
    }
}

/// Compares exact values: rounding integers to floats would make two of them equal to a third and not to each other.
fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    // Adding zero maps -0 to 0.
    let float = |number: &Number| number.as_f64().unwrap_or_default() + 0.0;
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => compare_with_float(a, float(b)),
        (None, Some(b)) => compare_with_float(b, float(a)).reverse(),
        (None, None) => float(a).total_cmp(&float(b)),
    }
}

fn compare_with_float(whole: i64, float: f64) -> Ordering {
    // -2^63 is the smallest i64, and a float.
    const SMALLEST: f64 = -9_223_372_036_854_775_808.0;
    if float < SMALLEST {
        return Ordering::Greater;
    }
    if float >= -SMALLEST {
        return Ordering::Less;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
    let below = float.floor() as i64;
    let has_fraction = float.floor() < float;
    whole.cmp(&below).then(false.cmp(&has_fraction))
}

/// Whether two values are equal by upstream's rules, in which `1` equals `1.0`.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    a == b || compare_values(a, b).is_eq()
}

/// A value in a path's format.
fn shown(value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        Value::String(text) => f.write_str(&machinery_api::selector::go_quoted(text)),
        Value::Null => f.write_str("null"),
        other => write!(f, "{other}"),
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                f.write_char('[')?;
                for (i, (name, value)) in keys.iter().enumerate() {
                    if i > 0 {
                        f.write_char(',')?;
                    }
                    write!(f, "{name}=")?;
                    shown(value, f)?;
                }
                f.write_char(']')
            }
            Self::Value(value) => {
                f.write_str("[=")?;
                shown(value, f)?;
                f.write_char(']')
            }
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// A path in messages' format.
#[must_use]
pub fn printed(path: &[PathElement]) -> String {
    path.iter().fold(String::new(), |mut out, element| {
        // Writing into a String cannot fail.
        let _ = write!(out, "{element}");
        out
    })
}
