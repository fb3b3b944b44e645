//! Compiles a normalised JSON `JSONSchemaProps` into the form that reads and checks objects.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::formats::Format;
use super::pattern::{self, Pattern};
use super::rules::{self, Rules};
use super::{DEPTH_MAX, NODES_MAX, PATTERNS_BYTES_MAX};

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// A name that is no type: only definitions that are about to be rejected have one.
    Unknown,
}

impl Type {
    /// The name in upstream's messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer,string",
            Self::Unknown => "",
        }
    }
}

/// The merge strategy of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Box<[Box<str>]>),
}

/// `additionalProperties`.
#[derive(Debug, Default)]
pub(crate) enum Additional {
    #[default]
    Unspecified,
    Allowed(bool),
    Schema(Box<Schema>),
}

impl Additional {
    pub(crate) fn schema(&self) -> Option<&Schema> {
        match self {
            Self::Schema(schema) => Some(schema),
            _ => None,
        }
    }
}

/// Flags of a schema and everything below it, with which walks skip whole subtrees.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SchemaFlags {
    pub(crate) defaults: bool,
    pub(crate) unique_lists: bool,
    pub(crate) embedded: bool,
    pub(crate) rules: bool,
}

/// A compiled schema.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) kind: Type,
    pub(crate) preserves: bool,
    pub(crate) embedded: bool,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Box<Value>>,
    pub(crate) listed: ListType,
    pub(crate) rules: Option<Box<Rules>>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) properties: Properties,
    pub(crate) additional: Additional,
    /// `None` if the type is the only constraint, which is most common.
    pub(super) checks: Option<Box<Checks>>,
    pub(crate) has: SchemaFlags,
}

impl Schema {
    /// The constraints beside the type.
    pub(crate) fn checks(&self) -> &Checks {
        static NONE: LazyLock<Checks> = LazyLock::new(Checks::default);
        self.checks.as_deref().unwrap_or(&NONE)
    }
}

/// Properties by name in a single allocation, since most objects have few.
#[derive(Debug, Default)]
pub(crate) struct Properties(Box<[(Box<str>, Schema)]>);

impl Properties {
    pub(crate) fn get(&self, name: &str) -> Option<&Schema> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    pub(crate) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Schema> {
        self.0.iter().map(|(_, schema)| schema)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Schema)> {
        self.0.iter().map(|(name, schema)| (&**name, schema))
    }
}

/// The constraints beside the type.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The name of an unknown type.
    #[expect(clippy::box_collection, reason = "one word in a struct of which there are many, and almost never set")]
    pub(crate) unknown_type: Option<Box<String>>,
    pub(crate) format: Option<Format>,
    pub(crate) maximum: Option<f64>,
    pub(crate) exclusive_maximum: bool,
    pub(crate) minimum: Option<f64>,
    pub(crate) exclusive_minimum: bool,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) max_length: Option<i64>,
    pub(crate) min_length: Option<i64>,
    pub(crate) pattern: Option<Arc<Pattern>>,
    pub(crate) max_items: Option<i64>,
    pub(crate) min_items: Option<i64>,
    pub(crate) max_properties: Option<i64>,
    pub(crate) min_properties: Option<i64>,
    pub(crate) enumeration: Vec<Value>,
    pub(crate) required: Vec<Box<str>>,
    pub(crate) all_of: Vec<Schema>,
    pub(crate) any_of: Vec<Schema>,
    pub(crate) one_of: Vec<Schema>,
    pub(crate) not: Option<Box<Schema>>,
}

/// Why a schema doesn't compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SchemaCompileError {
    /// Deeper than [`DEPTH_MAX`].
    TooDeep,
    /// More schemas than [`NODES_MAX`].
    TooLarge,
    /// Patterns above [`PATTERNS_BYTES_MAX`].
    Patterns,
    /// An invalid pattern, and the reason.
    Pattern(String, String),
}

impl std::fmt::Display for SchemaCompileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooDeep => write!(f, "must not nest deeper than {DEPTH_MAX} schemas"),
            Self::TooLarge => write!(f, "must not hold more than {NODES_MAX} schemas"),
            Self::Patterns => write!(f, "patterns must not take more than {PATTERNS_BYTES_MAX} bytes when compiled"),
            Self::Pattern(pattern, why) => {
                write!(f, "must be a valid regular expression, but isn't: {why} in {pattern}")
            }
        }
    }
}

/// The keywords of [`Checks`].
const CHECKED: &[&str] = &[
    "format",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "multipleOf",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "enum",
    "required",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
];

struct Compiler {
    nodes: usize,
    pattern_bytes: usize,
    /// Many fields repeat a pattern; each is compiled once.
    patterns: HashMap<Box<str>, Arc<Pattern>>,
}

pub(crate) fn compile(schema: &Value) -> Result<Schema, SchemaCompileError> {
    Compiler { nodes: 0, pattern_bytes: 0, patterns: HashMap::new() }.schema(schema, 0)
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key) == Some(&Value::Bool(true))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(map: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    map.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Compiler {
    fn schema(&mut self, schema: &Value, depth: usize) -> Result<Schema, SchemaCompileError> {
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(SchemaCompileError::TooDeep);
        }
        if self.nodes > NODES_MAX {
            return Err(SchemaCompileError::TooLarge);
        }
        let empty = Map::new();
        let map = schema.as_object().unwrap_or(&empty);
        let kind = match text(map, "type") {
            _ if flag(map, "x-kubernetes-int-or-string") => Type::IntOrString,
            "object" => Type::Object,
            "array" => Type::Array,
            "string" => Type::String,
            "integer" => Type::Integer,
            "number" => Type::Number,
            "boolean" => Type::Boolean,
            "" => Type::Any,
            _ => Type::Unknown,
        };
        let keys = list(map, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(Into::into);
        let listed = match text(map, "x-kubernetes-list-type") {
            "set" => ListType::Set,
            "map" => ListType::Map(keys.collect()),
            _ => ListType::Atomic,
        };
        let mut made = Schema {
            kind,
            preserves: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            nullable: flag(map, "nullable"),
            default: map.get("default").filter(|default| !default.is_null()).cloned().map(Box::new),
            listed,
            rules: rules::compile(schema, depth == 0).map(Box::new),
            items: None,
            properties: Properties::default(),
            additional: Additional::Unspecified,
            checks: match kind == Type::Unknown || map.keys().any(|key| CHECKED.contains(&key.as_str())) {
                true => Some(Box::new(self.checks(map, kind, depth)?)),
                false => None,
            },
            has: SchemaFlags::default(),
        };
        if let Some(items) = map.get("items").filter(|items| items.is_object()) {
            made.items = Some(Box::new(self.schema(items, depth + 1)?));
        }
        let properties = map.get("properties").and_then(Value::as_object).into_iter().flatten();
        let mut properties = properties
            .map(|(name, property)| Ok((Box::from(name.as_str()), self.schema(property, depth + 1)?)))
            .collect::<Result<Vec<(Box<str>, Schema)>, SchemaCompileError>>()?;
        properties.sort_by(|(a, _), (b, _)| a.cmp(b));
        made.properties = Properties(properties.into());
        made.additional = match map.get("additionalProperties") {
            Some(Value::Bool(allowed)) => Additional::Allowed(*allowed),
            Some(schema @ Value::Object(_)) => Additional::Schema(Box::new(self.schema(schema, depth + 1)?)),
            _ => Additional::Unspecified,
        };
        made.has = has(&made, !list(map, "x-kubernetes-validations").is_empty());
        Ok(made)
    }

    fn pattern(&mut self, given: &str) -> Result<Arc<Pattern>, SchemaCompileError> {
        if let Some(known) = self.patterns.get(given) {
            return Ok(known.clone());
        }
        let made = pattern::compile(given).map_err(|why| SchemaCompileError::Pattern(given.to_owned(), why))?;
        self.pattern_bytes += made.bytes();
        if self.pattern_bytes > PATTERNS_BYTES_MAX {
            return Err(SchemaCompileError::Patterns);
        }
        let made = Arc::new(made);
        self.patterns.insert(given.into(), made.clone());
        Ok(made)
    }

    fn checks(&mut self, map: &Map<String, Value>, kind: Type, depth: usize) -> Result<Checks, SchemaCompileError> {
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let whole = |key: &str| map.get(key).and_then(Value::as_i64);
        let pattern = match text(map, "pattern") {
            "" => None,
            given => Some(self.pattern(given)?),
        };
        let mut several = |key: &str| -> Result<Vec<Schema>, SchemaCompileError> {
            list(map, key).iter().map(|schema| self.schema(schema, depth + 1)).collect()
        };
        let (all_of, any_of, one_of) = (several("allOf")?, several("anyOf")?, several("oneOf")?);
        let not = match map.get("not").filter(|not| not.is_object()) {
            Some(not) => Some(Box::new(self.schema(not, depth + 1)?)),
            None => None,
        };
        Ok(Checks {
            unknown_type: (kind == Type::Unknown).then(|| Box::new(text(map, "type").to_owned())),
            format: Format::of(kind, text(map, "format")),
            maximum: number("maximum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            minimum: number("minimum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            multiple_of: number("multipleOf"),
            max_length: whole("maxLength"),
            min_length: whole("minLength"),
            pattern,
            max_items: whole("maxItems"),
            min_items: whole("minItems"),
            max_properties: whole("maxProperties"),
            min_properties: whole("minProperties"),
            enumeration: list(map, "enum").to_vec(),
            required: list(map, "required").iter().filter_map(Value::as_str).map(Into::into).collect(),
            all_of,
            any_of,
            one_of,
            not,
        })
    }
}

fn has(schema: &Schema, rules: bool) -> SchemaFlags {
    let below = schema.items.as_deref().into_iter().chain(schema.properties.values()).chain(schema.additional.schema());
    let own = SchemaFlags {
        defaults: schema.default.is_some(),
        unique_lists: schema.listed != ListType::Atomic,
        embedded: schema.embedded,
        rules,
    };
    below.fold(own, |all, below| SchemaFlags {
        defaults: all.defaults || below.has.defaults,
        unique_lists: all.unique_lists || below.has.unique_lists,
        embedded: all.embedded || below.has.embedded,
        rules: all.rules || below.has.rules,
    })
}
