//! OpenAPI schemas of types, for each type that a document's paths reference.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::openapi::reference;
use super::{declared, descriptions};
use apiserver_schema::{Field, Kind, ListType, Type, TypeRef, Types};

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The scope of a document.
#[derive(Debug, Clone, Copy)]
pub(super) enum DocumentScope<'a> {
    /// One group version, which restricts the kinds listed for types shared by several groups.
    Group(&'a str, &'a str),
    /// Everything that is served.
    All,
}

/// Passes the schema of each type, and of the types it references, to `take` once.
pub(super) fn schemas(mut pending: Vec<TypeRef<'_>>, of: DocumentScope<'_>, emit: &mut dyn FnMut(&str, Value)) {
    fn refer<'a>(types: &'a Types, kind: &Kind, wire: Option<&str>, pending: &mut Vec<TypeRef<'a>>) {
        let named = match kind {
            Kind::Object(id) => return pending.push(types.refer(*id)),
            Kind::List(inner) | Kind::Map(inner) => return refer(types, inner, wire, pending),
            Kind::Quantity | Kind::Amount => QUANTITY,
            Kind::Time => TIME,
            Kind::MicroTime => MICRO_TIME,
            Kind::IntOrString => INT_OR_STRING,
            Kind::Any => any(types, wire),
            _ => return,
        };
        pending.extend(types.by_name(named));
    }
    let mut seen: HashSet<&str> = HashSet::new();
    while let Some(found) = pending.pop() {
        if !seen.insert(&found.of.name) {
            continue;
        }
        emit(&found.of.name, schema(found, of));
        for field in &found.of.fields {
            refer(found.types, &field.kind, field.wire.as_deref(), &mut pending);
        }
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

fn schema(found: TypeRef<'_>, of: DocumentScope<'_>) -> Value {
    let (types, found) = (found.types, found.of);
    let mut out = match &*found.name {
        QUANTITY => {
            json!({ "description": descriptions::of_type(found), "oneOf": [{ "type": "string" }, { "type": "number" }] })
        }
        TIME | MICRO_TIME => {
            json!({ "description": descriptions::of_type(found), "type": "string", "format": "date-time" })
        }
        INT_OR_STRING => {
            json!({ "description": descriptions::of_type(found), "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        name if name.ends_with(".JSON") || name.contains(".JSONSchemaPropsOr") => {
            json!({ "description": descriptions::of_type(found) })
        }
        _ if found.scalar.is_some() => json!({ "description": descriptions::of_type(found), "type": "object" }),
        _ => {
            json!({ "description": descriptions::of_type(found), "type": "object", "properties": properties(types, found) })
        }
    };
    let fact =
        |facts: &'static [(&str, &str)]| facts.iter().find(|(name, _)| *name == &*found.name).map(|(_, fact)| *fact);
    let required: Vec<&str> = match fact(declared::REQUIRED) {
        Some(fields) => fields.split(' ').collect(),
        None => found.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect(),
    };
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if let Some(unions) = fact(declared::UNIONS).and_then(|json| serde_json::from_str::<Value>(json).ok()) {
        out["x-kubernetes-unions"] = unions;
    }
    if found.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if found.preserves_unknown {
        out["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    let kinds: Vec<Value> = types
        .kinds()
        .filter(|k| std::ptr::eq(types.get(k.id), found))
        .map(|k| json!({ "group": k.group, "version": k.version, "kind": k.kind }))
        .collect();
    // Options and watch events belong to every group; a document lists only its own.
    let several = kinds.len() > 1;
    let own = |k: &Value| match of {
        DocumentScope::All => true,
        DocumentScope::Group(group, version) => k["group"] == "" || (k["group"] == group && k["version"] == version),
    };
    let kinds: Vec<Value> = kinds.into_iter().filter(|k| !several || own(k)).collect();
    if !kinds.is_empty() {
        out["x-kubernetes-group-version-kind"] = kinds.into();
    }
    out
}

fn properties(types: &Types, found: &Type) -> Value {
    let mut properties = Map::new();
    for field in &found.fields {
        let mut described = property(types, field, descriptions::of_field(found, field));
        let of_field = |facts: &'static [(&str, &str, &'static str)]| {
            let fact = facts.iter().find(|(of, name, _)| *of == &*found.name && *name == field.name);
            fact.map(|(_, _, json)| *json)
        };
        if let Some(default) = of_field(declared::DEFAULTS).and_then(|json| serde_json::from_str(json).ok()) {
            described["default"] = default;
        }
        if let Some(json) = of_field(declared::OTHERS)
            && let (Some(described), Ok(mut more)) = (described.as_object_mut(), serde_json::from_str(json))
        {
            described.append(&mut more);
        }
        properties.insert(field.name.as_ref().into(), described);
    }
    properties.into()
}

/// The type of a field that holds arbitrary values, by its protobuf message.
fn any<'a>(types: &'a Types, wire: Option<&str>) -> &'a str {
    let bare = wire.map(|wire| wire.strip_prefix("map<string,").and_then(|w| w.strip_suffix('>')).unwrap_or(wire));
    let bare = bare.map(|wire| wire.strip_prefix("repeated ").unwrap_or(wire));
    bare.and_then(|message| types.by_message(message)).map_or(RAW, |found| &found.name)
}

fn shape(types: &Types, kind: &Kind, wire: Option<&str>, pointer: bool) -> Value {
    let referred = |name: &str| {
        if pointer {
            json!({ "allOf": [reference(name)] })
        } else {
            json!({ "allOf": [reference(name)], "default": {} })
        }
    };
    match kind {
        Kind::String => json!({ "type": "string" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Int32 => json!({ "type": "integer", "format": "int32" }),
        Kind::Int64 => json!({ "type": "integer", "format": "int64" }),
        Kind::Double => json!({ "type": "number", "format": "double" }),
        Kind::Bytes => json!({ "type": "string", "format": "byte" }),
        Kind::Quantity | Kind::Amount => json!({ "allOf": [reference(QUANTITY)] }),
        Kind::Time => json!({ "allOf": [reference(TIME)] }),
        Kind::MicroTime => json!({ "allOf": [reference(MICRO_TIME)] }),
        Kind::IntOrString => json!({ "allOf": [reference(INT_OR_STRING)] }),
        Kind::Any => json!({ "allOf": [reference(any(types, wire))] }),
        Kind::Object(id) => referred(&types.get(*id).name),
        Kind::List(inner) => json!({ "type": "array", "items": element(types, inner, wire) }),
        Kind::Map(inner) => json!({ "type": "object", "additionalProperties": element(types, inner, wire) }),
    }
}

fn element(types: &Types, kind: &Kind, wire: Option<&str>) -> Value {
    let mut out = match kind {
        Kind::Quantity | Kind::Amount => reference(QUANTITY),
        Kind::Any => reference(any(types, wire)),
        Kind::Time => reference(TIME),
        Kind::MicroTime => reference(MICRO_TIME),
        Kind::IntOrString => reference(INT_OR_STRING),
        other => shape(types, other, wire, false),
    };
    if let Some(zero) = zero(kind) {
        out["default"] = zero;
    }
    out
}

/// Go's zero value of types other than pointers and structs.
fn zero(kind: &Kind) -> Option<Value> {
    match kind {
        Kind::String => Some("".into()),
        Kind::Bool => Some(false.into()),
        Kind::Int32 | Kind::Int64 | Kind::Double => Some(0.into()),
        _ => None,
    }
}

fn property(types: &Types, field: &Field, about: &str) -> Value {
    let mut out = match (&field.kind, field.wire.as_deref()) {
        // Fields with arbitrary values have a message, except in custom types.
        (Kind::Any, None) if field.number == 0 => json!({ "x-kubernetes-preserve-unknown-fields": true }),
        (kind, wire) => shape(types, kind, wire, field.pointer),
    };
    if let Some(map) = out.as_object_mut().filter(|_| !about.is_empty()) {
        map.insert("description".into(), about.into());
    }
    let holder = match (&field.kind, out.get("items").is_some()) {
        (Kind::List(_), true) => &mut out["items"],
        _ => &mut out,
    };
    if !field.enumeration.is_empty() {
        holder["enum"] = json!(field.enumeration);
    }
    let always = || if field.pointer || field.omit_empty { None } else { zero(&field.kind) };
    if let Some(default) = field.default.clone().or_else(always) {
        out["default"] = default;
    }
    let list = match &field.list {
        ListType::Unsaid => None,
        ListType::Atomic => Some("atomic"),
        ListType::Set => Some("set"),
        ListType::Map(keys) => {
            out["x-kubernetes-list-map-keys"] = json!(keys);
            Some("map")
        }
    };
    if let Some(list) = list {
        out["x-kubernetes-list-type"] = list.into();
    }
    if field.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(key) = &field.merge_key {
        out["x-kubernetes-patch-merge-key"] = json!(key);
    }
    let strategies: Vec<&str> =
        [(field.merges, "merge"), (field.replaces, "replace"), (field.retains_keys, "retainKeys")]
            .into_iter()
            .filter_map(|(applies, name)| applies.then_some(name))
            .collect();
    if !strategies.is_empty() {
        out["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_schema::built_in;

    #[test]
    fn declared_fields_are_there() {
        for (name, field, json) in declared::DEFAULTS.iter().chain(declared::OTHERS) {
            assert!(built_in().by_name(name).unwrap().of.field(field).is_some(), "{name} {field}");
            assert!(serde_json::from_str::<Value>(json).is_ok(), "{name} {field}");
        }
    }

    #[test]
    fn declared_facts_are_those_of_the_built_in() {
        for (name, fields) in declared::REQUIRED {
            let found = built_in().by_name(name).unwrap_or_else(|| panic!("no type {name}")).of;
            let mut sorted: Vec<&str> = fields.split(' ').collect();
            sorted.sort_unstable();
            let required: Vec<&str> = found.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
            assert_eq!(sorted, required, "{name}");
        }
        for (name, unions) in declared::UNIONS {
            assert!(built_in().by_name(name).is_some() && serde_json::from_str::<Value>(unions).is_ok(), "{name}");
        }
    }
}
