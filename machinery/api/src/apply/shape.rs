//! How a value merges, from its type: what is one field whatever it holds, whose fields and items are owned one by one, and by
//! what items are told apart.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::path::PathElement;
use crate::schema::types::Text;
use crate::schema::{Field, Kind, ListType, Type, TypeRef, Types};

/// A type with how its values merge.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) types: &'a Types,
    pub(super) of: Of<'a>,
    /// Whether an object is one field.
    pub(super) atomic: bool,
    /// Whether objects keep what they don't declare, as one above them said.
    loose: bool,
}

/// What a value is.
#[derive(Clone, Copy)]
pub(super) enum Of<'a> {
    Scalar(&'a Kind),
    Struct(&'a Type),
    Map(&'a Kind),
    List(&'a Kind, Items<'a>),
    /// As the value itself is: objects are granular, lists are one field.
    Deduced,
    /// Anything, and one field.
    Untyped,
}

/// How a list's items are told apart.
#[derive(Clone, Copy)]
pub(super) enum Items<'a> {
    Atomic,
    Set,
    Keyed(&'a [Text]),
}

static NULL: Value = Value::Null;
static NO_TEXT: Value = Value::String(String::new());
static NO: Value = Value::Bool(false);
static ZERO: LazyLock<Value> = LazyLock::new(|| 0.into());
static NO_QUANTITY: LazyLock<Value> = LazyLock::new(|| "0".into());
pub(super) static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// Go's zero of a kind as it is printed.
fn zero(kind: &Kind) -> &'static Value {
    match kind {
        Kind::String => &NO_TEXT,
        Kind::Bool => &NO,
        Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => &ZERO,
        Kind::Quantity | Kind::Amount => &NO_QUANTITY,
        Kind::Object(_) => &EMPTY,
        Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::Any | Kind::List(_) | Kind::Map(_) => &NULL,
    }
}

/// A field as it is printed, whether it is filled in already or not.
pub(super) fn printed<'v>(field: &Field, value: Option<&'v Value>) -> Option<&'v Value> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        let always = matches!(
            field.kind,
            Kind::Object(_) | Kind::Quantity | Kind::Time | Kind::MicroTime | Kind::IntOrString | Kind::Any
        );
        return match (field.pointer, field.omit_empty) {
            (true, true) => None,
            (true, false) => Some(&NULL),
            _ if field.omit_zero => None,
            (false, omit) if always || !omit => Some(zero(&field.kind)),
            _ => None,
        };
    };
    let empty = match (&field.kind, value) {
        _ if field.pointer => false,
        (Kind::String | Kind::Bytes, Value::String(text)) => text.is_empty(),
        (Kind::Bool, Value::Bool(said)) => !said,
        (Kind::Int32 | Kind::Int64 | Kind::Double, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Kind::List(_), Value::Array(items)) => items.is_empty(),
        (Kind::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    };
    match (empty, field.omit_empty) {
        (true, true) => None,
        (true, false) if matches!(field.kind, Kind::List(_) | Kind::Map(_)) => Some(&NULL),
        _ => Some(value),
    }
}

impl<'a> Shape<'a> {
    /// Of whole objects.
    pub(super) fn root(found: TypeRef<'a>) -> Self {
        let shape = Self { types: found.types, of: Of::Deduced, atomic: false, loose: false };
        shape.of_type(found.of)
    }

    fn with(self, of: Of<'a>) -> Self {
        Self { of, atomic: false, ..self }
    }

    fn of_type(self, of: &'a Type) -> Self {
        match &of.scalar {
            Some(Kind::Any) if of.name.ends_with(".RawExtension") => self.with(Of::Untyped),
            Some(kind) => self.of_kind(kind),
            None => {
                let loose = self.loose || of.preserves_unknown;
                Self { types: self.types, of: Of::Struct(of), atomic: of.atomic, loose }
            }
        }
    }

    /// Of a list's items and a map's values.
    pub(super) fn of_kind(self, kind: &'a Kind) -> Self {
        match kind {
            Kind::Object(id) => self.of_type(self.types.get(*id)),
            Kind::Any => self.with(Of::Deduced),
            Kind::List(inner) => self.with(Of::List(inner, Items::Atomic)),
            Kind::Map(inner) => self.with(Of::Map(inner)),
            scalar => self.with(Of::Scalar(scalar)),
        }
    }

    /// Of a declared field.
    pub(super) fn of_field(self, field: &'a Field) -> Self {
        let shape = match &field.kind {
            Kind::List(inner) => self.with(Of::List(inner, items(field))),
            Kind::Any if field.go == Some("runtime.RawExtension") => self.with(Of::Untyped),
            kind => self.of_kind(kind),
        };
        Self { atomic: !field.granular && (shape.atomic || field.atomic), ..shape }
    }

    /// The shape of an object's member and whether it is a declared field; `None`: it may not be there.
    pub(super) fn member(self, name: &str) -> Option<(Self, Option<&'a Field>)> {
        match self.of {
            Of::Struct(of) => match of.field(name) {
                Some(field) => Some((self.of_field(field), Some(field))),
                // An object that declares nothing is free.
                None => (self.loose || of.fields.is_empty()).then(|| (self.with(Of::Deduced), None)),
            },
            Of::Map(kind) => Some((self.of_kind(kind), None)),
            Of::Deduced | Of::Untyped => Some((self, None)),
            _ => None,
        }
    }

    /// Whether objects may have what isn't declared.
    pub(super) fn is_loose(self) -> bool {
        matches!(self.of, Of::Struct(of) if self.loose || of.fields.is_empty())
    }

    /// Whether a value of it is one field, whatever it holds; a value of no known type may still be.
    pub(super) fn is_leaf(self) -> bool {
        match self.of {
            Of::Scalar(_) | Of::Untyped | Of::List(_, Items::Atomic) => true,
            Of::Struct(_) | Of::Map(_) => self.atomic,
            Of::List(..) | Of::Deduced => false,
        }
    }

    /// Whether a value holds nothing: neither members nor items, nor fields that are printed always.
    pub(super) fn is_empty(self, value: Option<&Value>, prints: bool) -> bool {
        match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(map)) => {
                map.is_empty()
                    && !matches!(self.of, Of::Struct(of) if prints && of.fields.iter().any(|f| printed(f, None).is_some()))
            }
            Some(_) => false,
        }
    }

    /// The path element of a list's item.
    pub(super) fn item(self, item: &Value) -> Result<PathElement, String> {
        let Of::List(kind, items) = self.of else { return Err("invalid indexing of non-associative list".into()) };
        match items {
            Items::Atomic => Err("invalid indexing of non-associative list".into()),
            Items::Set => match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
                value => Ok(PathElement::Value(Arc::new(value.clone()))),
            },
            Items::Keyed(keys) => self.keys(kind, keys, item),
        }
    }

    fn keys(self, kind: &'a Kind, names: &[Text], item: &Value) -> Result<PathElement, String> {
        if item.is_null() {
            return Err("associative list with keys may not have a null element".into());
        }
        if !item.is_object() {
            return Err("associative list with keys may not have non-map elements".into());
        }
        let found = match self.of_kind(kind).of {
            Of::Struct(of) => Some(of),
            _ => None,
        };
        let default = |name: &str| {
            let field = found?.field(name)?;
            let zero = || (!field.pointer && !field.omit_empty).then(|| zero(&field.kind).clone());
            field.default.clone().or_else(zero).filter(|value| !value.is_null())
        };
        let keys: Vec<(Arc<str>, Value)> = names
            .iter()
            .filter_map(|name| Some((name.as_ref().into(), item.get(&**name).cloned().or_else(|| default(name))?)))
            .collect();
        if keys.is_empty() {
            let names: Vec<String> = names.iter().map(|name| crate::selector::go_quoted(name)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
                 for any key fields)",
                names.join(" ")
            ));
        }
        Ok(PathElement::key(keys))
    }
}

/// How a list's items merge: as its type says, or else as strategic merge has it.
fn items(field: &Field) -> Items<'_> {
    match &field.list {
        ListType::Atomic => Items::Atomic,
        ListType::Set => Items::Set,
        ListType::Map(keys) => Items::Keyed(keys),
        ListType::Unsaid if !field.merges => Items::Atomic,
        ListType::Unsaid => match &field.merge_key {
            Some(key) => Items::Keyed(std::slice::from_ref(key)),
            None => Items::Set,
        },
    }
}
