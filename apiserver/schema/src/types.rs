//! Type definitions: fields, lists and their merge behaviour, maps, defaults, protobuf numbers. One immutable set has
//! the built-in types; a custom resource has a set of its own over it, with the resource's lifetime.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::unstructured::Unstructured;

/// Text of a type: static for the built-in table, else owned.
pub type Text = Cow<'static, str>;

/// Identifies a type within a set and the sets above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub(super) u32);

/// The kind of a field, of an element or of a map's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    String,
    /// true or false.
    Bool,
    /// Whole number of 32 bits.
    Int32,
    /// Whole number of 64 bits.
    Int64,
    /// Number.
    Double,
    /// Base64 text.
    Bytes,
    /// `100m`.
    Quantity,
    /// A quantity of a resource list, which upstream's defaulting rounds up to thousandths.
    Amount,
    /// `metav1.Time`.
    Time,
    /// `metav1.MicroTime`.
    MicroTime,
    /// A number or a text.
    IntOrString,
    /// Any JSON.
    Any,
    /// An object of that type ([`Types::get`]).
    Object(TypeId),
    /// A list.
    List(Box<Kind>),
    /// An object with any keys.
    Map(Box<Kind>),
}

/// How a list merges (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListType {
    /// Not declared.
    #[default]
    Unsaid,
    /// Replaced as a whole.
    Atomic,
    /// A set of distinct scalars.
    Set,
    /// Objects identified by these key fields.
    Map(Box<[Text]>),
}

/// One field of a type.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Text,
    /// The value's kind.
    pub kind: Kind,
    /// The protobuf field number; 0 for none.
    pub number: u32,
    /// The protobuf type, where [`kind`](Self::kind) doesn't determine it.
    pub wire: Option<Box<str>>,
    /// Left out of JSON when empty.
    pub omit_empty: bool,
    /// Left out of JSON when zero.
    pub omit_zero: bool,
    /// A pointer: unset and zero differ.
    pub pointer: bool,
    /// Whether it is listed as required.
    pub required: bool,
    /// The default value.
    pub default: Option<Value>,
    /// The merge behaviour of a list in server-side apply.
    pub list: ListType,
    /// An object that is replaced as a whole.
    pub atomic: bool,
    /// An object that is merged by member although its type is atomic.
    pub granular: bool,
    /// The merge key of list elements in strategic merge.
    pub merge_key: Option<Text>,
    /// Strategic merge: elements are merged, not replaced.
    pub merges: bool,
    /// Strategic merge: an object is replaced whole.
    pub replaces: bool,
    /// Strategic merge: `$retainKeys` is expected.
    pub retains_keys: bool,
    /// The allowed values.
    pub enumeration: Vec<Value>,
    /// The documentation, if its type has one.
    pub description: Option<Box<str>>,
    /// The embedded Go structs of the field, for Go's decoding errors.
    pub embedded: Option<&'static str>,
    /// The Go name of its type, where it can't be derived.
    pub(crate) go: Option<&'static str>,
}

impl Field {
    /// A field of a kind, with all other properties at their defaults.
    #[must_use]
    pub fn new(name: Text, kind: Kind) -> Self {
        Self {
            name,
            kind,
            number: 0,
            wire: None,
            omit_empty: false,
            omit_zero: false,
            pointer: false,
            required: false,
            default: None,
            list: ListType::Unsaid,
            atomic: false,
            granular: false,
            merge_key: None,
            merges: false,
            replaces: false,
            retains_keys: false,
            enumeration: Vec::new(),
            description: None,
            embedded: None,
            go: None,
        }
    }
}

impl Field {
    /// Whether null is a value of its own, not an absent one: the field is of no Go struct and of no protobuf message.
    pub(crate) fn keeps_null(&self) -> bool {
        self.pointer && self.number == 0 && self.embedded.is_none()
    }
}

/// One type.
#[derive(Debug)]
pub struct Type {
    /// As OpenAPI names it: `io.k8s.api.core.v1.Pod`.
    pub name: Box<str>,
    /// The kind of a type that isn't a JSON object.
    pub scalar: Option<Kind>,
    /// The protobuf message's full name; empty for none.
    pub message: Box<str>,
    /// Whether it is replaced as a whole in every field.
    pub atomic: bool,
    /// Whether undeclared fields are preserved.
    pub preserves_unknown: bool,
    /// The decoder of objects without a Go struct.
    pub unstructured: Option<Arc<dyn Unstructured>>,
    /// The documentation, if any.
    pub description: Option<Box<str>>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Messages whose fields are inlined in this object's JSON: number and message.
    pub inline: Vec<(u32, Box<str>)>,
    pub(super) by_number: Vec<(u32, u16)>,
}

impl Type {
    /// An object of fields, with no protobuf message.
    #[must_use]
    pub fn object(name: &str, mut fields: Vec<Field>) -> Self {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            name: name.into(),
            scalar: None,
            message: Box::default(),
            atomic: false,
            preserves_unknown: false,
            unstructured: None,
            description: None,
            fields,
            inline: Vec::new(),
            by_number: Vec::new(),
        }
    }

    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.position(name).map(|at| &self.fields[at])
    }

    /// The index of the field of that name.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.fields.binary_search_by(|field| (*field.name).cmp(name)).ok()
    }

    /// The field of that protobuf number.
    #[must_use]
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        self.by_number
            .binary_search_by_key(&number, |(n, _)| *n)
            .ok()
            .map(|at| &self.fields[usize::from(self.by_number[at].1)])
    }

    /// The last part of the name: `Pod`.
    #[must_use]
    pub fn short(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// A protobuf message without a JSON type of its own.
#[derive(Debug)]
pub struct Message {
    /// Name, number, protobuf type.
    pub fields: Vec<(&'static str, u32, Box<str>)>,
}

/// A type's group, version and kind.
#[derive(Debug)]
pub struct KindFact {
    /// Empty for core.
    pub group: Text,
    /// Version.
    pub version: Text,
    /// Kind.
    pub kind: Text,
    /// Its type.
    pub id: TypeId,
}

/// A set of types over a base set that its types may refer to.
#[derive(Debug, Default)]
pub struct Types {
    pub(super) base: Option<Arc<Types>>,
    /// The number of types in the sets below.
    pub(super) first: u32,
    pub(super) own: Vec<Type>,
    pub(super) by_name: HashMap<Box<str>, TypeId>,
    pub(super) by_message: HashMap<Box<str>, TypeId>,
    pub(super) messages: BTreeMap<Box<str>, Message>,
    pub(super) kinds: Vec<KindFact>,
}

impl Types {
    /// The type of that id.
    #[must_use]
    pub fn get(&self, id: TypeId) -> &Type {
        match &self.base {
            Some(base) if id.0 < self.first => base.get(id),
            _ => &self.own[(id.0 - self.first) as usize],
        }
    }

    /// The id of the type of that name.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied().or_else(|| self.base.as_ref()?.id(name))
    }

    /// The type of that name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<TypeRef<'_>> {
        self.id(name).map(|id| self.refer(id))
    }

    /// A type with this set.
    #[must_use]
    pub fn refer(&self, id: TypeId) -> TypeRef<'_> {
        TypeRef { types: self, of: self.get(id) }
    }

    /// The type of a protobuf message.
    #[must_use]
    pub fn by_message(&self, message: &str) -> Option<&Type> {
        match self.by_message.get(message) {
            Some(id) => Some(self.get(*id)),
            None => self.base.as_ref()?.by_message(message),
        }
    }

    /// A message without a JSON type of its own.
    #[must_use]
    pub fn message(&self, name: &str) -> Option<&Message> {
        self.messages.get(name).or_else(|| self.base.as_ref()?.message(name))
    }

    /// The type of a kind.
    #[must_use]
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeRef<'_>> {
        self.kinds()
            .find(|fact| fact.group == group && fact.version == version && fact.kind == kind)
            .map(|fact| self.refer(fact.id))
    }

    /// All kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &KindFact> {
        std::iter::successors(Some(self), |types| types.base.as_deref()).flat_map(|types| &types.kinds)
    }

    /// Whether the set is one over a base set: of types without a Go struct.
    pub(crate) fn is_extension(&self) -> bool {
        self.base.is_some()
    }

    /// The types of this set without those of its base.
    #[must_use]
    pub fn own(&self) -> &[Type] {
        &self.own
    }

    /// A kind's Go name in decoding errors.
    #[must_use]
    pub fn go_name(&self, kind: &Kind) -> String {
        match kind {
            Kind::String => "string".into(),
            Kind::Bool => "bool".into(),
            Kind::Int32 => "int32".into(),
            Kind::Int64 => "int64".into(),
            Kind::Double => "float64".into(),
            Kind::Bytes => "[]uint8".into(),
            Kind::Quantity | Kind::Amount => "resource.Quantity".into(),
            Kind::Time => "v1.Time".into(),
            Kind::MicroTime => "v1.MicroTime".into(),
            Kind::IntOrString => "intstr.IntOrString".into(),
            Kind::Any => "interface {}".into(),
            Kind::Object(id) => {
                let mut parts = self.get(*id).name.rsplit('.');
                let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
                format!("{version}.{name}")
            }
            Kind::List(inner) => format!("[]{}", self.go_name(inner)),
            Kind::Map(inner) => format!("map[string]{}", self.go_name(inner)),
        }
    }
}

/// A type with the set of its references.
#[derive(Clone, Copy)]
pub struct TypeRef<'a> {
    /// The set.
    pub types: &'a Types,
    /// The type.
    pub of: &'a Type,
}

impl fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of.name)
    }
}

impl PartialEq for TypeRef<'_> {
    /// Whether both are the same type of the same set.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.types, other.types) && std::ptr::eq(self.of, other.of)
    }
}

/// A type with shared ownership of its set. Cheap to clone.
#[derive(Clone)]
pub struct SharedType {
    types: Arc<Types>,
    id: TypeId,
}

impl SharedType {
    /// The type of that name in a set.
    #[must_use]
    pub fn named(types: &Arc<Types>, name: &str) -> Option<Self> {
        types.id(name).map(|id| Self { types: types.clone(), id })
    }

    /// The type.
    #[must_use]
    pub fn get(&self) -> TypeRef<'_> {
        self.types.refer(self.id)
    }

    /// Its OpenAPI name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.types.get(self.id).name
    }

    /// Estimated memory of its set, without base sets.
    #[must_use]
    pub fn own_bytes(&self) -> usize {
        let field = |field: &Field| {
            let list = match &field.list {
                ListType::Map(keys) => keys.iter().map(|key| size_of::<Text>() + key.len()).sum(),
                _ => 0,
            };
            let described = field.description.as_ref().map_or(0, |text| text.len());
            size_of::<Field>() + field.name.len() + list + described + size_of::<Kind>()
        };
        let own = self.types.own.iter().map(|of| {
            // The name is also a key of the index by name.
            let names = 2 * of.name.len() + size_of::<(Box<str>, TypeId)>();
            size_of::<Type>() + names + of.fields.iter().map(field).sum::<usize>()
        });
        own.sum()
    }
}

impl fmt::Debug for SharedType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
