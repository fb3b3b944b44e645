//! Merge behaviour of a value by its type: atomic or granular, and the identity of list items.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::path::PathElement;
use crate::types::Text;
use crate::{Field, Kind, ListType, Type, TypeRef, Types};

/// A type's merge behaviour.
#[derive(Clone, Copy)]
pub(super) struct Shape<'a> {
    pub(super) types: &'a Types,
    pub(super) of: ShapeKind<'a>,
    /// Whether an object is atomic.
    pub(super) atomic: bool,
    /// Whether objects keep undeclared fields, as inherited from an ancestor.
    loose: bool,
}

/// The kind of a value.
#[derive(Clone, Copy)]
pub(super) enum ShapeKind<'a> {
    Scalar(&'a Kind),
    Struct(&'a Type),
    Map(&'a Kind),
    List(&'a Kind, Items<'a>),
    /// By the value itself: objects are granular, lists are atomic.
    Deduced,
    /// Anything, and atomic.
    Untyped,
}

/// The identity of list items.
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

/// Go's printed zero value of a kind.
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

/// A field in printed form, whether or not its value was filled in.
pub(super) fn printed<'v>(field: &Field, value: Option<&'v Value>) -> Option<&'v Value> {
    if field.keeps_null() && value.is_some_and(Value::is_null) {
        return value;
    }
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
        (Kind::Bool, Value::Bool(set)) => !set,
        (Kind::Int32 | Kind::Int64 | Kind::Double, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Kind::List(_), Value::Array(items)) => items.is_empty(),
        (Kind::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    };
    match (empty, field.omit_empty) {
        (true, true) => None,
        _ => Some(value),
    }
}

impl<'a> Shape<'a> {
    /// The shape of whole objects.
    pub(super) fn root(found: TypeRef<'a>) -> Self {
        let shape = Self { types: found.types, of: ShapeKind::Deduced, atomic: false, loose: false };
        shape.of_type(found.of)
    }

    fn with(self, of: ShapeKind<'a>) -> Self {
        Self { of, atomic: false, ..self }
    }

    fn of_type(self, of: &'a Type) -> Self {
        match &of.scalar {
            Some(Kind::Any) if of.name.ends_with(".RawExtension") => self.with(ShapeKind::Untyped),
            Some(kind) => self.of_kind(kind),
            None => {
                let loose = self.loose || of.preserves_unknown;
                Self { types: self.types, of: ShapeKind::Struct(of), atomic: of.atomic, loose }
            }
        }
    }

    /// The shape of a list's items or a map's values.
    pub(super) fn of_kind(self, kind: &'a Kind) -> Self {
        match kind {
            Kind::Object(id) => self.of_type(self.types.get(*id)),
            Kind::Any => self.with(ShapeKind::Deduced),
            // Without a Go struct it is a value without a type, which validation rejects if it is a list or an object.
            Kind::IntOrString if self.types.is_extension() => self.with(ShapeKind::Deduced),
            Kind::List(inner) => self.with(ShapeKind::List(inner, Items::Atomic)),
            Kind::Map(inner) => self.with(ShapeKind::Map(inner)),
            scalar => self.with(ShapeKind::Scalar(scalar)),
        }
    }

    /// The shape of a declared field.
    pub(super) fn of_field(self, field: &'a Field) -> Self {
        let shape = match &field.kind {
            Kind::List(inner) => self.with(ShapeKind::List(inner, items(field))),
            Kind::Any if field.go == Some("runtime.RawExtension") => self.with(ShapeKind::Untyped),
            kind => self.of_kind(kind),
        };
        Self { atomic: !field.granular && (shape.atomic || field.atomic), ..shape }
    }

    /// The shape of an object's member and its declared field; `None` if it isn't allowed.
    pub(super) fn member(self, name: &str) -> Option<(Self, Option<&'a Field>)> {
        match self.of {
            ShapeKind::Struct(of) => match of.field(name) {
                Some(field) => Some((self.of_field(field), Some(field))),
                // An object without declared fields accepts any.
                None => (self.loose || of.fields.is_empty()).then(|| (self.with(ShapeKind::Deduced), None)),
            },
            ShapeKind::Map(kind) => Some((self.of_kind(kind), None)),
            ShapeKind::Deduced | ShapeKind::Untyped => Some((self, None)),
            _ => None,
        }
    }

    /// Whether objects may have undeclared fields.
    pub(super) fn is_loose(self) -> bool {
        matches!(self.of, ShapeKind::Struct(of) if self.loose || of.fields.is_empty())
    }

    /// Whether a value is atomic; a value of unknown type may be.
    pub(super) fn is_leaf(self) -> bool {
        match self.of {
            ShapeKind::Scalar(_) | ShapeKind::Untyped | ShapeKind::List(_, Items::Atomic) => true,
            ShapeKind::Struct(_) | ShapeKind::Map(_) => self.atomic,
            ShapeKind::List(..) | ShapeKind::Deduced => false,
        }
    }

    /// Whether a value is empty: no members or items, and no fields that are always printed.
    pub(super) fn is_empty(self, value: Option<&Value>, prints: bool) -> bool {
        match value {
            None | Some(Value::Null) => true,
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(map)) => {
                map.is_empty()
                    && !matches!(self.of, ShapeKind::Struct(of) if prints && of.fields.iter().any(|f| printed(f, None).is_some()))
            }
            Some(_) => false,
        }
    }

    /// The path element of a list item.
    pub(super) fn item(self, item: &Value) -> Result<PathElement, String> {
        let ShapeKind::List(kind, items) = self.of else {
            return Err("invalid indexing of non-associative list".into());
        };
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
            ShapeKind::Struct(of) => Some(of),
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
            let names: Vec<String> = names.iter().map(|name| machinery_api::selector::go_quoted(name)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values \
                 for any key fields)",
                names.join(" ")
            ));
        }
        Ok(PathElement::key(keys))
    }
}

/// The merge behaviour of a list: by its list type, else by strategic merge.
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
