//! The static types of expressions. The type of an invalid expression is assignable to all others, so that a mistake is
//! reported once.

mod declared;
mod names;
mod schema;
mod unify;

use std::fmt;
use std::sync::Arc;

pub use declared::{DeclType, Shape};
pub use names::{escape, unescape};
pub use schema::{Declared, Schema, from_schema, from_schema_at, preserves_unknown};
pub(crate) use schema::{Format, ListKind, SchemaKind};
pub(crate) use unify::{Unifier, shift};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    Dyn,
    /// The type of an expression with an error. It is assignable to everything, so that a mistake is reported once.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    Optional(Arc<Type>),
    /// The type of a type.
    Type(Option<Arc<Type>>),
    /// A library type without fields, by its name.
    Opaque(Arc<str>),
    /// An object type with fields, by its name.
    Struct(Arc<str>),
    /// A type parameter that inference resolves.
    Param(u32),
}

impl Type {
    pub fn list(item: Type) -> Self {
        Self::List(Arc::new(item))
    }

    pub fn map(key: Type, value: Type) -> Self {
        Self::Map(Arc::new((key, value)))
    }

    pub fn optional(value: Type) -> Self {
        Self::Optional(Arc::new(value))
    }

    pub fn object(name: &str) -> Self {
        Self::Struct(name.into())
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Scalar types with a fixed size.
    pub(crate) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Optional(inner) => inner.is_scalar(),
            _ => false,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = match self {
            Self::Dyn => "dyn",
            Self::Error => "!error!",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "duration",
            Self::Timestamp => "timestamp",
            Self::Type(None) => "type",
            Self::List(item) => return write!(f, "list({item})"),
            Self::Map(entry) => return write!(f, "map({}, {})", entry.0, entry.1),
            Self::Optional(value) => return write!(f, "optional_type({value})"),
            Self::Type(Some(of)) => return write!(f, "type({of})"),
            Self::Opaque(name) | Self::Struct(name) => name,
            Self::Param(number) => return write!(f, "_var{number}"),
        };
        f.write_str(plain)
    }
}
