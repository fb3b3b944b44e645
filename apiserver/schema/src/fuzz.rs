//! Fuzz targets of request bodies: well-formed protobuf, JSON against YAML, and JSON by arbitrary schemas.

use std::sync::LazyLock;

use bolero::{Driver, ValueGenerator, check, produce};
use serde_json::{Value, json};

use super::Media;
use super::decode::{FieldValidation, Target, body};
use super::{built_in, default, encode, normalise, structural};
use crate::patch::{self, PatchKind};
use machinery_api::key::GroupVersionKind;

/// Kinds that together cover all type features: maps, quantities, times, keyed lists, embedded JSON.
static KINDS: LazyLock<[Target<'static>; 7]> = LazyLock::new(|| {
    [
        ("", "Pod"),
        ("", "Service"),
        ("", "Secret"),
        ("", "Node"),
        ("apps", "Deployment"),
        ("batch", "Job"),
        ("coordination.k8s.io", "Lease"),
    ]
    .map(|(group, kind)| Target::kind(group, "v1", kind).expect("a kind of the table"))
});

/// Nested messages: well-formed, with arbitrary meaning.
struct Message;

const NUMBERS: u32 = 24;
const DEPTH: usize = 6;
const FIELDS: usize = 6;

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number > 127 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes_field(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn message<D: Driver>(driver: &mut D, depth: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for _ in 0..(0..FIELDS).generate(driver)? {
        let number = (1..NUMBERS).generate(driver)?;
        match (0..8_u8).generate(driver)? {
            0 => {
                varint(u64::from(number) << 3, &mut out);
                varint(produce::<u64>().generate(driver)?, &mut out);
            }
            1 => {
                varint(u64::from(number) << 3 | 1, &mut out);
                out.extend(produce::<[u8; 8]>().generate(driver)?);
            }
            2 => {
                varint(u64::from(number) << 3 | 5, &mut out);
                out.extend(produce::<[u8; 4]>().generate(driver)?);
            }
            3 => bytes_field(number, produce::<String>().generate(driver)?.as_bytes(), &mut out),
            4 => bytes_field(number, &produce::<Vec<u8>>().generate(driver)?, &mut out),
            _ if depth < DEPTH => bytes_field(number, &message(driver, depth + 1)?, &mut out),
            _ => {}
        }
    }
    Some(out)
}

impl ValueGenerator for Message {
    type Output = Vec<u8>;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Vec<u8>> {
        message(driver, 0)
    }
}

/// JSON values with field names of real objects.
struct Json;

const NAMES: [&str; 12] = [
    "metadata",
    "spec",
    "labels",
    "name",
    "containers",
    "template",
    "replicas",
    "ports",
    "status",
    "a",
    "items",
    "limits",
];

fn value<D: Driver>(driver: &mut D, depth: usize) -> Option<Value> {
    Some(match (0..9_u8).generate(driver)? {
        0 => Value::Null,
        1 => json!(produce::<bool>().generate(driver)?),
        2 => json!(produce::<i64>().generate(driver)?),
        // Letters that are plain in YAML too.
        3 => {
            let letters = produce::<Vec<u8>>().generate(driver)?;
            json!(letters.iter().map(|letter| char::from(b' ' + letter % 95)).collect::<String>())
        }
        4 if depth < DEPTH => {
            let count = (0..4_usize).generate(driver)?;
            Value::Array((0..count).map(|_| value(driver, depth + 1)).collect::<Option<_>>()?)
        }
        _ if depth < DEPTH => {
            let mut map = serde_json::Map::new();
            for _ in 0..(0..5_usize).generate(driver)? {
                let name = NAMES[(0..NAMES.len()).generate(driver)?];
                map.insert(name.into(), value(driver, depth + 1)?);
            }
            Value::Object(map)
        }
        _ => json!("x"),
    })
}

impl ValueGenerator for Json {
    type Output = Value;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Value> {
        value(driver, 0)
    }
}

/// OpenAPI schemas, of which most are structural.
struct Schemas;

fn schema<D: Driver>(driver: &mut D, depth: usize) -> Option<Value> {
    const TYPES: [&str; 6] = ["object", "array", "string", "integer", "number", "boolean"];
    const FLAGS: [&str; 4] = [
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-int-or-string",
        "x-kubernetes-embedded-resource",
        "additionalProperties",
    ];
    let types = if depth < DEPTH { &TYPES[..] } else { &TYPES[2..] };
    let of = types[(0..types.len()).generate(driver)?];
    let mut map = serde_json::Map::from_iter([("type".to_owned(), json!(of))]);
    match of {
        "object" => {
            let mut properties = serde_json::Map::new();
            for _ in 0..(0..4_usize).generate(driver)? {
                let name = NAMES[(0..NAMES.len()).generate(driver)?];
                properties.insert(name.into(), schema(driver, depth + 1)?);
            }
            map.insert("properties".into(), properties.into());
        }
        "array" => {
            map.insert("items".into(), schema(driver, depth + 1)?);
            map.insert("x-kubernetes-list-map-keys".into(), json!(["name"]));
            let list = ["atomic", "set", "map", "bag"][(0..4_usize).generate(driver)?];
            map.insert("x-kubernetes-list-type".into(), json!(list));
        }
        _ => {}
    }
    if (0..4_u8).generate(driver)? == 0 {
        map.insert(FLAGS[(0..FLAGS.len()).generate(driver)?].into(), json!(true));
    }
    if (0..4_u8).generate(driver)? == 0 {
        map.insert("default".into(), value(driver, DEPTH - 1)?);
    }
    Some(Value::Object(map))
}

impl ValueGenerator for Schemas {
    type Output = Value;

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Value> {
        Some(json!({"type": "object", "properties": {"spec": schema(driver, 0)?, "items": schema(driver, 0)?}}))
    }
}

/// A decoded object must be JSON, and stable under normalisation.
fn settles(target: &Target<'_>, object: &Value) {
    let text = object.to_string();
    assert_eq!(serde_json::from_str::<Value>(&text).ok().as_ref(), Some(object), "{text}");
    let mut once = object.clone();
    if normalise(target.schema, &mut once).is_ok() {
        let mut twice = once.clone();
        assert!(normalise(target.schema, &mut twice).is_ok());
        assert_eq!(once, twice);
        survives_protobuf(target, &once);
    }
}

/// An encoded object must decode to itself, and encode to the same bytes.
fn survives_protobuf(target: &Target<'_>, object: &Value) {
    if target.schema.of.message.is_empty() {
        return;
    }
    let written = encode::enveloped(target.schema, object);
    let Ok(decoded) = body(&written, Media::Protobuf, target, FieldValidation::Ignore) else {
        panic!("not read back: {object}")
    };
    let mut read = decoded.object;
    normalise(target.schema, &mut read).expect("what is read is normal");
    let again = encode::enveloped(target.schema, &read);
    assert!(again == written, "{object}\n{read}");
}

#[test]
fn any_message_is_decoded_or_refused() {
    check!().with_generator((Message, 0..KINDS.len())).for_each(|(message, kind)| {
        let target = &KINDS[*kind];
        let api_version = target.group_version().to_string();
        let mut meta = Vec::new();
        bytes_field(1, api_version.as_bytes(), &mut meta);
        bytes_field(2, target.kind.as_bytes(), &mut meta);
        let mut envelope = b"k8s\0".to_vec();
        bytes_field(1, &meta, &mut envelope);
        bytes_field(2, message, &mut envelope);
        if let Ok(decoded) = body(&envelope, Media::Protobuf, target, FieldValidation::Warn) {
            settles(target, &decoded.object);
        }
    });
}

#[test]
fn json_is_the_same_as_yaml() {
    check!().with_generator((Json, Json, 0..KINDS.len())).for_each(|(spec, metadata, kind)| {
        let target = &KINDS[*kind];
        let api_version = target.group_version().to_string();
        let object = json!({"apiVersion": api_version, "kind": target.kind, "metadata": metadata, "spec": spec});
        let text = object.to_string();
        let read = |media| body(text.as_bytes(), media, target, FieldValidation::Ignore);
        let (json, yaml) = (read(Media::Json), read(Media::Yaml));
        assert_eq!(json.as_ref().ok(), yaml.as_ref().ok(), "{text}: {json:?} {yaml:?}");
        if let Ok(decoded) = json {
            settles(target, &decoded.object);
        }
    });
}

#[test]
fn a_schema_is_made_into_types_or_refused() {
    let of = GroupVersionKind { group: "x.example.com", version: "v1", kind: "Widget" };
    check!().with_generator((Schemas, Json, Json)).for_each(|(schema, spec, items)| {
        let Ok(types) = structural(built_in(), of, schema) else { return };
        let GroupVersionKind { group, version, kind } = of;
        let target = Target { group, version, kind, schema: types.get() };
        let text = json!({"metadata": {"name": "w"}, "spec": spec, "items": items}).to_string();
        let Ok(decoded) = body(text.as_bytes(), Media::Json, &target, FieldValidation::Warn) else { return };
        settles(&target, &decoded.object);
        let mut once = decoded.object;
        default(target.schema, &mut once);
        let mut twice = once.clone();
        default(target.schema, &mut twice);
        assert_eq!(once, twice, "{schema}");
        if let Ok(patched) = patch::apply(PatchKind::Strategic, text.as_bytes(), &once, &target, FieldValidation::Warn)
        {
            assert!(patched.object.is_object(), "{schema}");
        }
    });
}
