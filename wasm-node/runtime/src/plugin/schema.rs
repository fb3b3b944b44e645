//! A plugin's self-description over HTTP: JSON Schema (draft 2020-12) of each function's arguments and result, and OpenAPI 3.1,
//! which uses the same. The forms are those of `json`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::types::{Description, Function, Labels, Shape, TypeId, resource_word};

/// A schema of more types than this refers to named ones instead of repeating them.
const INLINE_TYPES_MAX: usize = 200;
/// Maximum bytes of both documents: a plugin of thousands of functions has some megabytes.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// The documents of `GET /` and `GET /openapi.json`.
pub(crate) struct Texts {
    pub(crate) functions: Vec<u8>,
    pub(crate) openapi: Vec<u8>,
}

/// Describes all functions. `title` names the plugin.
///
/// # Errors
/// The documents would be too long.
pub(crate) fn texts(description: &Description, title: &str) -> Result<Texts, String> {
    let too_long = || format!("the schemas of its functions take more than {TEXT_BYTES_MAX} bytes");
    let mut left = TEXT_BYTES_MAX;
    let mut functions: Vec<String> = Vec::new();
    for function in &description.functions {
        let text = listed(description, function).to_string();
        left = left.checked_sub(text.len()).ok_or_else(too_long)?;
        functions.push(text);
    }
    let functions = format!("{{\"functions\":[{}]}}", functions.join(",")).into_bytes();
    let openapi = openapi(description, title).to_string().into_bytes();
    if openapi.len() > left { Err(too_long()) } else { Ok(Texts { functions, openapi }) }
}

fn listed(description: &Description, function: &Function) -> Value {
    let whole = |make: &dyn Fn(&mut Schemas<'_>) -> Value, types: &[TypeId]| {
        let mut schemas = Schemas::new(description, "#/$defs/", size(description, types) > INLINE_TYPES_MAX);
        let mut schema = make(&mut schemas);
        if let (Some(object), Some(definitions)) = (schema.as_object_mut(), schemas.definitions()) {
            object.insert("$defs".into(), definitions);
        }
        schema
    };
    let results: Vec<TypeId> = function.result.into_iter().collect();
    json!({
        "name": function.full_name(),
        "parameters": whole(&|schemas| schemas.parameters(function), &function.parameter_types),
        "result": whole(&|schemas| schemas.maybe(function.result), &results),
    })
}

/// Number of types in a schema without references; counts up to the threshold only.
fn size(description: &Description, types: &[TypeId]) -> usize {
    let mut open: Vec<TypeId> = types.to_vec();
    let mut count = 0;
    while let Some(ty) = open.pop() {
        count += 1;
        if count > INLINE_TYPES_MAX {
            break;
        }
        open.extend(description.shape(ty).parts().into_iter().take(INLINE_TYPES_MAX));
    }
    count
}

fn openapi(description: &Description, title: &str) -> Value {
    let mut schemas = Schemas::new(description, "#/components/schemas/", true);
    let mut paths = Map::new();
    for function in &description.functions {
        let (parameters, result) = (schemas.parameters(function), schemas.maybe(function.result));
        let error = || json!({"$ref": "#/components/responses/Error"});
        let failed = || json!({"$ref": "#/components/responses/Failed"});
        let wave = json!({"schema": {"type": "string"}});
        let operation = json!({
            "operationId": function.full_name(),
            "requestBody": {
                "required": !function.parameter_types.is_empty(),
                "content": {"application/json": {"schema": parameters}, "application/x-wave": wave.clone()},
            },
            "responses": {
                "200": {
                    "description": "The result.",
                    "content": {"application/json": {"schema": result}, "application/x-wave": wave},
                },
                "400": error(),
                "404": error(),
                "413": error(),
                "502": failed(),
                "503": failed(),
                "504": failed(),
            },
        });
        paths.insert(format!("/{}", path(&function.full_name())), json!({"post": operation}));
    }
    let mut components = json!({
        "responses": {
            "Error": {
                "description": "The call was not made.",
                "content": {"application/json": {"schema": {
                    "type": "object",
                    "properties": {"error": {"type": "string"}},
                    "required": ["error"],
                }}},
            },
            "Failed": {
                "description": "The call was made and did not come to its end.",
                "headers": {"coracle-reason": {"schema": {"type": "string"}}},
            },
        },
    });
    if let (Some(object), Some(definitions)) = (components.as_object_mut(), schemas.definitions()) {
        object.insert("schemas".into(), definitions);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": components,
    })
}

/// A function's name as a path: percent-encodes characters that a path can't contain (RFC 3986 §3.3).
fn path(name: &str) -> String {
    name.replace('[', "%5B").replace(']', "%5D")
}

/// Schemas of one document.
struct Schemas<'a> {
    description: &'a Description,
    prefix: &'static str,
    /// Defines named types once and refers to them.
    by_name: bool,
    names: HashMap<TypeId, String>,
    defined: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    fn new(description: &'a Description, prefix: &'static str, by_name: bool) -> Self {
        Self { description, prefix, by_name, names: HashMap::new(), defined: BTreeMap::new() }
    }

    fn definitions(self) -> Option<Value> {
        (!self.defined.is_empty()).then(|| Value::Object(self.defined.into_iter().collect()))
    }

    fn parameters(&mut self, function: &Function) -> Value {
        self.object(&function.parameters, &function.parameter_types)
    }

    fn object(&mut self, labels: &Labels, types: &[TypeId]) -> Value {
        let required: Vec<&String> = labels
            .names()
            .iter()
            .zip(types)
            .filter(|(_, ty)| !matches!(self.description.shape(**ty), Shape::Option(_)))
            .map(|(name, _)| name)
            .collect();
        let required = json!(required);
        let properties: Map<String, Value> =
            labels.names().iter().zip(types).map(|(name, ty)| (name.clone(), self.of(*ty))).collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }

    /// `null` without a type.
    fn maybe(&mut self, ty: Option<TypeId>) -> Value {
        ty.map_or_else(|| json!({"type": "null"}), |ty| self.of(ty))
    }

    fn of(&mut self, id: TypeId) -> Value {
        let ty = self.description.ty(id);
        // An unnamed type may still be used a thousand times: a list of lists of lists.
        let referred = self.by_name && (ty.name.is_some() || !ty.shape.parts().is_empty());
        if !referred {
            return self.shape(id);
        }
        let name = match self.names.get(&id) {
            Some(name) => name.clone(),
            None => {
                let name = self.fresh(id);
                self.names.insert(id, name.clone());
                let schema = self.shape(id);
                self.defined.insert(name.clone(), schema);
                name
            }
        };
        json!({"$ref": format!("{}{name}", self.prefix)})
    }

    /// A unique name for a type, of the characters that OpenAPI allows.
    fn fresh(&self, id: TypeId) -> String {
        let ty = self.description.ty(id);
        let Some(own) = &ty.name else { return format!("{}-{}", ty.shape.word(), id.0) };
        let full = if ty.interface.is_empty() { own.clone() } else { format!("{}.{own}", ty.interface) };
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '.' };
        let name: String = full.chars().map(plain).collect();
        let taken = self.names.values().any(|known| *known == name);
        if taken { format!("{name}-{}", id.0) } else { name }
    }

    fn integer(minimum: i64, maximum: u64) -> Value {
        json!({"type": "integer", "minimum": minimum, "maximum": maximum})
    }

    /// Both forms are accepted; beyond 2^53 it is a string.
    fn long(minimum: i64, maximum: u64) -> Value {
        let pattern = if minimum < 0 { "^-?[0-9]+$" } else { "^[0-9]+$" };
        json!({"type": ["integer", "string"], "minimum": minimum, "maximum": maximum, "pattern": pattern})
    }

    /// An object of one member.
    fn only(name: &str, schema: Value) -> Value {
        let properties = Map::from_iter([(name.to_owned(), schema)]);
        json!({"type": "object", "properties": properties, "required": [name], "additionalProperties": false})
    }

    fn shape(&mut self, id: TypeId) -> Value {
        match self.description.shape(id) {
            Shape::Bool => json!({"type": "boolean"}),
            Shape::S8 => Self::integer(i8::MIN.into(), i8::MAX as u64),
            Shape::U8 => Self::integer(0, u8::MAX.into()),
            Shape::S16 => Self::integer(i16::MIN.into(), i16::MAX as u64),
            Shape::U16 => Self::integer(0, u16::MAX.into()),
            Shape::S32 => Self::integer(i32::MIN.into(), i32::MAX as u64),
            Shape::U32 => Self::integer(0, u32::MAX.into()),
            Shape::S64 => Self::long(i64::MIN, i64::MAX as u64),
            Shape::U64 => Self::long(0, u64::MAX),
            Shape::F32 | Shape::F64 => json!({"anyOf": [{"type": "number"}, {"enum": ["NaN", "inf", "-inf"]}]}),
            Shape::Char => json!({"type": "string", "minLength": 1, "maxLength": 1}),
            Shape::String => json!({"type": "string"}),
            Shape::Own(resource) | Shape::Borrow(resource) => {
                let what = format!("a {}, valid in its session", resource_word(resource));
                json!({"type": "string", "description": what})
            }
            Shape::List(of) if *self.description.shape(*of) == Shape::U8 => {
                let numbers = json!({"type": "array", "items": Self::integer(0, u8::MAX.into())});
                json!({"anyOf": [{"type": "string", "contentEncoding": "base64"}, numbers]})
            }
            Shape::List(of) => json!({"type": "array", "items": self.of(*of)}),
            Shape::Map(key, value) if *self.description.shape(*key) == Shape::String => {
                json!({"type": "object", "additionalProperties": self.of(*value)})
            }
            Shape::Map(key, value) => {
                let pair = [self.of(*key), self.of(*value)];
                json!({"type": "array", "items": {"type": "array", "prefixItems": pair, "items": false, "minItems": 2}})
            }
            Shape::Tuple(of) => {
                let items: Vec<Value> = of.iter().map(|ty| self.of(*ty)).collect();
                json!({"type": "array", "prefixItems": items, "items": false, "minItems": of.len()})
            }
            Shape::Record(labels, types) => self.object(labels, types),
            Shape::Enum(labels) => json!({"type": "string", "enum": labels.names()}),
            Shape::Flags(labels) => {
                let names = json!({"type": "string", "enum": labels.names()});
                json!({"type": "array", "items": names, "uniqueItems": true})
            }
            Shape::Option(of) => {
                let within = self.of(*of);
                let nested = matches!(self.description.shape(*of), Shape::Option(_));
                let within = if nested { Self::only("some", within) } else { within };
                json!({"anyOf": [within, {"type": "null"}]})
            }
            Shape::Result(ok, err) => {
                let (ok, err) = (self.maybe(*ok), self.maybe(*err));
                json!({"oneOf": [Self::only("ok", ok), Self::only("err", err)]})
            }
            Shape::Variant(labels, types) => {
                let mut cases: Vec<Value> = Vec::new();
                for (name, ty) in labels.names().iter().zip(types) {
                    let payload = self.maybe(*ty);
                    cases.push(Self::only(name, payload));
                }
                let bare = labels.names().iter().zip(types).filter(|(_, ty)| ty.is_none());
                let bare: Vec<&String> = bare.map(|(name, _)| name).collect();
                if !bare.is_empty() {
                    cases.push(json!({"type": "string", "enum": bare}));
                }
                json!({"oneOf": cases})
            }
        }
    }
}
