//! Values, which borrow from the data that they come from.

mod collect;
mod compare;
mod json;
mod number;
mod opaque;
mod time;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::error::EvalError;

pub(crate) use collect::{Key, List, Map};
pub(crate) use compare::{concat, equal, order};
pub(crate) use json::from_json;
pub use json::to_json;
pub(crate) use number::{exact_int, format_double};
pub(crate) use opaque::{Cidr, Decision, Opaque, PathCheck, ResourceCheck};
pub(crate) use time::Timestamp;
pub(crate) use time::{format_duration, in_zone, parse_duration, parse_timestamp};
pub(crate) use url::Url;

/// The result of an evaluation step.
pub(crate) type Res<T> = Result<T, EvalError>;

/// A text, borrowed from the data or owned.
#[derive(Clone, Debug)]
pub enum Text<'d> {
    Ref(&'d str),
    Own(Arc<str>),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Text::Ref(text) => text,
            Text::Own(text) => text,
        }
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text::Own(text.into())
    }
}

#[derive(Clone, Debug)]
pub enum Value<'d> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'d>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'d>),
    Map(Map<'d>),
    /// An object that the expression constructed.
    Object(Arc<Object<'d>>),
    Optional(Option<Arc<Value<'d>>>),
    Type(Arc<str>),
    Opaque(Arc<Opaque>),
    /// Data without a schema, which can only be compared.
    Preserved(&'d Json),
    /// A policy's variables, each evaluated on first use.
    Variables,
}

/// An object of a named type.
#[derive(Clone, Debug)]
pub struct Object<'d> {
    pub name: Arc<str>,
    pub fields: BTreeMap<Arc<str>, Value<'d>>,
}

impl<'d> Value<'d> {
    pub fn text(text: impl Into<String>) -> Self {
        Value::String(Text::Own(text.into().into()))
    }

    pub(crate) fn opaque(value: Opaque) -> Self {
        Value::Opaque(Arc::new(value))
    }

    pub(crate) fn list(items: Vec<Value<'d>>) -> Self {
        Value::List(List::owned(items))
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A number, a text or a boolean.
    pub(crate) fn is_primitive(&self) -> bool {
        matches!(self, Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::String(_))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// The name of its runtime type.
    pub fn type_name(&self) -> &str {
        match self {
            Value::Null => "null_type",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Uint(_) => "uint",
            Value::Double(_) => "double",
            Value::String(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Duration(_) => "google.protobuf.Duration",
            Value::Timestamp(_) => "google.protobuf.Timestamp",
            Value::List(_) => "list",
            Value::Map(_) | Value::Variables => "map",
            Value::Object(object) => &object.name,
            Value::Optional(_) => "optional_type",
            Value::Type(_) => "type",
            Value::Opaque(value) => value.type_name(),
            Value::Preserved(_) => "unknown",
        }
    }

    /// The result of `size()`, or 1 for a value without a size.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Value::String(text) => text.chars().count() as u64,
            Value::Bytes(bytes) => bytes.len() as u64,
            Value::List(list) => list.len() as u64,
            Value::Map(map) => map.len() as u64,
            Value::Optional(Some(value)) => value.size(),
            Value::Opaque(value) => value.size(),
            _ => 1,
        }
    }
}

/// The form in error messages.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => value.fmt(f),
            Value::Int(value) => value.fmt(f),
            Value::Uint(value) => value.fmt(f),
            Value::Double(value) => f.write_str(&format_double(*value)),
            Value::String(text) => f.write_str(text),
            Value::Type(name) => f.write_str(name),
            Value::Duration(value) => f.write_str(&format_duration(*value)),
            Value::Timestamp(value) => f.write_str(&value.to_string()),
            other => f.write_str(other.type_name()),
        }
    }
}
