//! Out of JSON (a `JSONSchemaProps`, normalised) into the form that objects are read and checked by.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::formats::Format;
use super::pattern::{self, Pattern};
use super::rules::{self, Rules};
use super::{DEPTH_MAX, NODES_MAX, PATTERNS_BYTES_MAX};

/// What a value is.
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
}

impl Type {
    /// As upstream's sentences list it.
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
        }
    }
}

/// How a list merges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Listed {
    #[default]
    Atomic,
    Set,
    Map(Box<[Box<str>]>),
}

/// What an object may hold beside its properties.
#[derive(Debug, Default)]
pub(crate) enum Additional {
    #[default]
    Unsaid,
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

/// What stands somewhere at or below a schema, so that walks that look for it need not go there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Has {
    pub(crate) defaults: bool,
    pub(crate) unique_lists: bool,
    pub(crate) embedded: bool,
    pub(crate) rules: bool,
}

/// One schema, compiled.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(crate) kind: Type,
    pub(crate) preserves: bool,
    pub(crate) embedded: bool,
    pub(crate) nullable: bool,
    pub(crate) default: Option<Value>,
    pub(crate) listed: Listed,
    pub(crate) rules: Option<Rules>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) properties: BTreeMap<Box<str>, Schema>,
    pub(crate) additional: Additional,
    pub(crate) checks: Checks,
    pub(crate) has: Has,
}

/// What a value must be beside its type.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) format: Option<Format>,
    pub(crate) maximum: Option<f64>,
    pub(crate) exclusive_maximum: bool,
    pub(crate) minimum: Option<f64>,
    pub(crate) exclusive_minimum: bool,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) max_length: Option<i64>,
    pub(crate) min_length: Option<i64>,
    pub(crate) pattern: Option<Pattern>,
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

/// Why a schema is not compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It nests deeper than [`DEPTH_MAX`].
    TooDeep,
    /// It holds more than [`NODES_MAX`].
    TooLarge,
    /// Its patterns take more than [`PATTERNS_BYTES_MAX`].
    Patterns,
    /// A pattern is none: which, and why.
    Pattern(String, String),
}

impl std::fmt::Display for Problem {
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

struct Compiler {
    nodes: usize,
    pattern_bytes: usize,
}

/// Compiles a schema.
pub(crate) fn compile(schema: &Value) -> Result<Schema, Problem> {
    Compiler { nodes: 0, pattern_bytes: 0 }.schema(schema, 0)
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
    fn schema(&mut self, schema: &Value, depth: usize) -> Result<Schema, Problem> {
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(Problem::TooDeep);
        }
        if self.nodes > NODES_MAX {
            return Err(Problem::TooLarge);
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
            _ => Type::Any,
        };
        let keys = list(map, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(Into::into);
        let listed = match text(map, "x-kubernetes-list-type") {
            "set" => Listed::Set,
            "map" => Listed::Map(keys.collect()),
            _ => Listed::Atomic,
        };
        let mut made = Schema {
            kind,
            preserves: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            nullable: flag(map, "nullable"),
            default: map.get("default").filter(|default| !default.is_null()).cloned(),
            listed,
            rules: rules::compile(schema, depth == 0),
            items: None,
            properties: BTreeMap::new(),
            additional: Additional::Unsaid,
            checks: self.checks(map, kind, depth)?,
            has: Has::default(),
        };
        if let Some(items) = map.get("items").filter(|items| items.is_object()) {
            made.items = Some(Box::new(self.schema(items, depth + 1)?));
        }
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            made.properties.insert(name.as_str().into(), self.schema(property, depth + 1)?);
        }
        made.additional = match map.get("additionalProperties") {
            Some(Value::Bool(allowed)) => Additional::Allowed(*allowed),
            Some(schema @ Value::Object(_)) => Additional::Schema(Box::new(self.schema(schema, depth + 1)?)),
            _ => Additional::Unsaid,
        };
        made.has = has(&made, !list(map, "x-kubernetes-validations").is_empty());
        Ok(made)
    }

    fn checks(&mut self, map: &Map<String, Value>, kind: Type, depth: usize) -> Result<Checks, Problem> {
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let whole = |key: &str| map.get(key).and_then(Value::as_i64);
        let pattern = match text(map, "pattern") {
            "" => None,
            given => {
                let (made, bytes) = pattern::compile(given).map_err(|why| Problem::Pattern(given.to_owned(), why))?;
                self.pattern_bytes += bytes;
                if self.pattern_bytes > PATTERNS_BYTES_MAX {
                    return Err(Problem::Patterns);
                }
                Some(made)
            }
        };
        let mut several = |key: &str| -> Result<Vec<Schema>, Problem> {
            list(map, key).iter().map(|schema| self.schema(schema, depth + 1)).collect()
        };
        let (all_of, any_of, one_of) = (several("allOf")?, several("anyOf")?, several("oneOf")?);
        let not = match map.get("not").filter(|not| not.is_object()) {
            Some(not) => Some(Box::new(self.schema(not, depth + 1)?)),
            None => None,
        };
        Ok(Checks {
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

fn has(schema: &Schema, rules: bool) -> Has {
    let below = schema.items.as_deref().into_iter().chain(schema.properties.values()).chain(schema.additional.schema());
    let own = Has {
        defaults: schema.default.is_some(),
        unique_lists: schema.listed != Listed::Atomic,
        embedded: schema.embedded,
        rules,
    };
    below.fold(own, |all, below| Has {
        defaults: all.defaults || below.has.defaults,
        unique_lists: all.unique_lists || below.has.unique_lists,
        embedded: all.embedded || below.has.embedded,
        rules: all.rules || below.has.rules,
    })
}
