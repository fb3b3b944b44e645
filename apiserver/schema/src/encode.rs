//! Encodes objects as Kubernetes protobuf by the table's field numbers, byte for byte as upstream's generated code. A
//! message is written from its end to its beginning, so that each length is known when it is written.

use std::sync::{Arc, LazyLock};

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::protobuf::{AnyJsonMessage, MAGIC};
use super::table::built_in;
use super::types::{Field, Kind, KindFact, SharedType, Text, Type, TypeId, TypeRef, Types};
use machinery_api::key::GroupVersion;
use machinery_api::time::{self, Precision};

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

/// The type of an object by its kind and version: a built-in one, or PartialObjectMetadata; `None` for one without
/// protobuf.
#[must_use]
pub fn type_of(object: &Value) -> Option<TypeRef<'static>> {
    let (api_version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    let GroupVersion { group, version } = GroupVersion::parse(api_version);
    let found = match group {
        "meta.k8s.io" => PARTIAL.iter().find(|shared| shared.get().of.short() == kind).map(SharedType::get),
        // Discovery documents may have no version.
        _ => built_in().of_kind(group, if version.is_empty() { "v1" } else { version }, kind),
    };
    found.filter(|found| !found.of.message.is_empty())
}

/// An object as a response's body: `runtime.Unknown` with its type.
#[must_use]
pub fn enveloped(found: TypeRef<'_>, object: &Value) -> Vec<u8> {
    let mut out = Backwards::default();
    envelope(found, object, &mut out);
    out.forwards()
}

/// A watch event: its length in four bytes, and `WatchEvent`.
#[must_use]
pub fn watch_event(kind: &str, found: TypeRef<'_>, object: &Value) -> Vec<u8> {
    let mut out = Backwards::default();
    envelope(found, object, &mut out);
    // RawExtension{raw: the object}
    out.close(1, 0);
    out.close(2, 0);
    out.text(1, kind);
    let length = u32::try_from(out.0.len()).unwrap_or(u32::MAX);
    out.raw(&length.to_be_bytes());
    out.forwards()
}

/// The end of a list's envelope after the last item: empty content encoding and content type.
pub const LIST_END: &[u8] = b"\x1a\0\x22\0";

/// The beginning of a list that is written in pieces: `list` without its items, and the total size `items` of its items
/// as encoded by [`item`].
#[must_use]
pub fn list_head(found: TypeRef<'_>, list: &Value, items: usize) -> Vec<u8> {
    let mut out = Backwards::default();
    object_of(found, list, &mut out);
    out.varint((out.0.len() + items) as u64);
    out.tag(2, BYTES);
    type_meta(list, &mut out);
    out.raw(MAGIC);
    out.forwards()
}

/// Encodes one list item.
pub fn item(found: TypeRef<'_>, object: &Value, out: &mut Vec<u8>) {
    let mut item = Backwards::default();
    object_of(found, object, &mut item);
    item.close(2, 0);
    out.extend(item.0.iter().rev());
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn type_meta(object: &Value, out: &mut Backwards) {
    let start = out.0.len();
    out.text(2, text(object, "kind"));
    out.text(1, text(object, "apiVersion"));
    out.close(1, start);
}

fn envelope(found: TypeRef<'_>, object: &Value, out: &mut Backwards) {
    out.text(4, "");
    out.text(3, "");
    let raw = out.0.len();
    object_of(found, object, out);
    out.close(2, raw);
    type_meta(object, out);
    out.raw(MAGIC);
}

fn object_of(found: TypeRef<'_>, object: &Value, out: &mut Backwards) {
    static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    Writing { types: found.types, out }.message(found.of, object.as_object().unwrap_or(&NOTHING));
}

/// A buffer filled from the end to the beginning.
#[derive(Default)]
struct Backwards(Vec<u8>);

impl Backwards {
    fn forwards(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().rev());
    }

    fn varint(&mut self, mut number: u64) {
        let start = self.0.len();
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
        self.0[start..].reverse();
    }

    fn tag(&mut self, number: u32, wire: u32) {
        self.varint(u64::from(number << 3 | wire));
    }

    /// Wraps the bytes written since `start` as a field.
    fn close(&mut self, number: u32, start: usize) {
        self.varint((self.0.len() - start) as u64);
        self.tag(number, BYTES);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        let start = self.0.len();
        self.raw(bytes);
        self.close(number, start);
    }

    fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    fn int(&mut self, number: u32, value: i64) {
        self.varint(value.cast_unsigned());
        self.tag(number, VARINT);
    }
}

struct Writing<'a> {
    types: &'a Types,
    out: &'a mut Backwards,
}

type Object = Map<String, Value>;

impl Writing<'_> {
    fn message(&mut self, found: &Type, object: &Object) {
        let mut above = u32::MAX;
        for (number, at) in found.by_number.iter().rev() {
            self.inlined(found, object, *number..above);
            let field = &found.fields[usize::from(*at)];
            self.field(*number, field, field.wire.as_deref(), object.get(&*field.name));
            above = *number;
        }
        self.inlined(found, object, 0..above);
    }

    /// Messages whose fields are inlined in the object: field numbers of a range.
    fn inlined(&mut self, found: &Type, object: &Object, numbers: std::ops::Range<u32>) {
        for (number, name) in found.inline.iter().rev().filter(|(number, _)| numbers.contains(number)) {
            let start = self.out.0.len();
            if let Some(other) = self.types.by_message(name) {
                self.message(other, object);
            } else if let Some(message) = self.types.message(name) {
                let mut fields: Vec<_> = message.fields.iter().collect();
                fields.sort_by_key(|(_, number, _)| std::cmp::Reverse(*number));
                for (name, number, _) in fields {
                    if let Some(field) = found.field(name) {
                        self.field(*number, field, field.wire.as_deref(), object.get(*name));
                    }
                }
            }
            self.out.close(*number, start);
        }
    }

    fn field(&mut self, number: u32, field: &Field, wire: Option<&str>, value: Option<&Value>) {
        match (&field.kind, value.filter(|value| !value.is_null())) {
            (Kind::List(_) | Kind::Map(_) | Kind::Bytes, None) => {}
            (_, None) if field.pointer => {}
            (kind @ Kind::List(_), Some(list)) if wire.is_some_and(|wire| !wire.starts_with("repeated ")) => {
                self.value(number, kind, wire, list);
            }
            (Kind::List(inner), Some(list)) => {
                let wire = wire.and_then(|wire| wire.strip_prefix("repeated "));
                for value in list.as_array().into_iter().flatten().rev() {
                    self.value(number, inner, wire, value);
                }
            }
            (Kind::Map(inner), Some(map)) => {
                let wire = wire.and_then(|w| w.strip_prefix("map<string,")).and_then(|w| w.strip_suffix('>'));
                for (key, value) in map.as_object().into_iter().flatten().rev() {
                    let start = self.out.0.len();
                    self.value(2, inner, wire, value);
                    self.out.text(1, key);
                    self.out.close(number, start);
                }
            }
            (kind, value) => self.value(number, kind, wire, value.unwrap_or(&Value::Null)),
        }
    }

    /// Encodes a value; null is Go's zero.
    fn value(&mut self, number: u32, kind: &Kind, wire: Option<&str>, value: &Value) {
        let start = self.out.0.len();
        match kind {
            Kind::String => self.out.text(number, value.as_str().unwrap_or_default()),
            Kind::Bool => self.out.int(number, i64::from(value.as_bool().unwrap_or_default())),
            Kind::Int32 | Kind::Int64 => self.out.int(number, value.as_i64().unwrap_or_default()),
            Kind::Double => {
                self.out.raw(&value.as_f64().unwrap_or_default().to_bits().to_le_bytes());
                self.out.tag(number, FIXED64);
            }
            Kind::Bytes => {
                let text = value.as_str().unwrap_or_default();
                self.out.bytes(number, &base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default());
            }
            Kind::Quantity | Kind::Amount => {
                self.out.text(1, value.as_str().unwrap_or("0"));
                self.out.close(number, start);
            }
            Kind::Time | Kind::MicroTime => {
                let precision = if *kind == Kind::Time { Precision::Seconds } else { Precision::Micros };
                if let Some(at) = value.as_str().and_then(|text| time::parse(text, precision).ok()) {
                    self.time(at, precision);
                }
                self.out.close(number, start);
            }
            Kind::IntOrString => {
                self.out.text(3, value.as_str().unwrap_or_default());
                self.out.int(2, value.as_i64().unwrap_or_default());
                self.out.int(1, i64::from(value.is_string()));
                self.out.close(number, start);
            }
            Kind::Any => {
                self.any(wire, value);
                self.out.close(number, start);
            }
            Kind::Object(id) => {
                if let Some(object) = value.as_object() {
                    self.message(self.types.get(*id), object);
                } else {
                    self.message(self.types.get(*id), &Map::new());
                }
                self.out.close(number, start);
            }
            // The field `items` of a wrapping message.
            Kind::List(inner) => {
                for value in value.as_array().into_iter().flatten().rev() {
                    self.value(1, inner, None, value);
                }
                self.out.close(number, start);
            }
            Kind::Map(_) => {}
        }
    }

    fn time(&mut self, at: Timestamp, precision: Precision) {
        let (mut seconds, mut nanos) = (at.as_second(), at.subsec_nanosecond());
        if nanos < 0 {
            // Before 1970: the fraction counts forward, as in Go.
            (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
        }
        self.out.int(2, if precision == Precision::Seconds { 0 } else { i64::from(nanos) });
        self.out.int(1, seconds);
    }

    /// Encodes a value of any JSON, by its message type.
    fn any(&mut self, wire: Option<&str>, value: &Value) {
        let schema = |writing: &mut Self, number, value: &Value| {
            let start = writing.out.0.len();
            let types = writing.types;
            if let (Some(found), Some(object)) = (types.by_message(AnyJsonMessage::SCHEMA), value.as_object()) {
                writing.message(found, object);
                writing.out.close(number, start);
            }
        };
        match (AnyJsonMessage::of(wire), value) {
            (_, Value::Null) | (AnyJsonMessage::Nothing, _) => {}
            (AnyJsonMessage::Json, _) => self.out.text(1, &value.to_string()),
            (AnyJsonMessage::SchemaOrBool, Value::Bool(allows)) => self.out.int(1, i64::from(*allows)),
            (AnyJsonMessage::SchemaOrBool, _) => {
                schema(self, 2, value);
                self.out.int(1, 1);
            }
            (AnyJsonMessage::SchemaOrSchemas, Value::Array(list)) => {
                list.iter().rev().for_each(|value| schema(self, 2, value))
            }
            (AnyJsonMessage::SchemaOrTexts, Value::Array(list)) => {
                list.iter().rev().for_each(|value| self.value(2, &Kind::String, None, value));
            }
            (AnyJsonMessage::SchemaOrSchemas | AnyJsonMessage::SchemaOrTexts, _) => schema(self, 1, value),
        }
    }
}

/// PartialObjectMetadata and its list in both versions: no published schema has them.
static PARTIAL: LazyLock<Vec<SharedType>> = LazyLock::new(|| {
    let of = |name: &str| built_in().id(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"));
    let (Some(object), Some(list)) = (of("ObjectMeta"), of("ListMeta")) else { return Vec::new() };
    let first = built_in().own.len() as u32;
    let field = |name: &'static str, number, kind| Field { number, ..Field::new(Text::Borrowed(name), kind) };
    let made = |name: &str, fields: Vec<Field>| Type {
        message: format!("k8s.io.apimachinery.pkg.apis.meta.v1.{name}").into(),
        by_number: fields.iter().enumerate().map(|(at, field)| (field.number, at as u16)).collect(),
        fields,
        ..Type::object(name, Vec::new())
    };
    let items = Kind::List(Box::new(Kind::Object(TypeId(first))));
    let own = vec![
        made("PartialObjectMetadata", vec![field("metadata", 1, Kind::Object(object))]),
        made("PartialObjectMetadataList", vec![field("metadata", 1, Kind::Object(list)), field("items", 2, items)]),
    ];
    let by_name = own.iter().zip(first..).map(|(made, id)| (made.name.clone(), TypeId(id))).collect();
    let kinds = Vec::<KindFact>::new();
    let types = Arc::new(Types { base: Some(built_in().clone()), first, own, by_name, kinds, ..Types::default() });
    types.own.iter().filter_map(|made| SharedType::named(&types, &made.name)).collect()
});

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::json;

    use super::super::Media;
    use super::super::decode::{self, FieldValidation, Target};
    use super::super::normalise;
    use super::*;

    /// Upstream's fixtures: each stable kind with every field set, also in the form of older releases (made by
    /// `golden`).
    fn golden() -> Vec<(Value, Vec<u8>)> {
        let mut text = String::new();
        GzDecoder::new(&include_bytes!("golden.jsonl.gz")[..]).read_to_string(&mut text).unwrap();
        let read = |line: &str| {
            let mut fact: Value = serde_json::from_str(line).unwrap();
            let text = fact["protobuf"].as_str().unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            (fact["json"].take(), bytes)
        };
        text.lines().map(read).collect()
    }

    fn hex_around(bytes: &[u8], at: usize) -> String {
        let from = at.saturating_sub(24);
        String::from_utf8_lossy(&bytes[from..bytes.len().min(at + 24)]).escape_debug().to_string()
    }

    #[test]
    fn every_kind_is_written_as_upstream_writes_it() {
        let mut known = 0;
        for (object, bytes) in golden() {
            let Some(found) = type_of(&object) else { continue };
            known += 1;
            let written = enveloped(found, &object);
            let at = written.iter().zip(&bytes).position(|(a, b)| a != b).unwrap_or(written.len().min(bytes.len()));
            assert!(
                written == bytes,
                "{} {} at {at}:\n{}\n{}",
                object["apiVersion"],
                object["kind"],
                hex_around(&written, at),
                hex_around(&bytes, at)
            );
        }
        assert!(known > 90, "{known} forms of kinds have fixtures");
    }

    #[test]
    fn encoded_objects_are_decoded() {
        for (object, bytes) in golden() {
            let Some(found) = type_of(&object) else { continue };
            let GroupVersion { group, version } = GroupVersion::parse(object["apiVersion"].as_str().unwrap());
            let kind = object["kind"].as_str().unwrap();
            let target = Target { group, version, kind, schema: found };
            let read = |bytes: &[u8], media| {
                let mut object = decode::body(bytes, media, &target, FieldValidation::Ignore).unwrap().object;
                normalise(found, &mut object).unwrap();
                object
            };
            let (of_json, of_protobuf) =
                (read(object.to_string().as_bytes(), Media::Json), read(&bytes, Media::Protobuf));
            assert_eq!(of_protobuf, of_json, "{kind}");
        }
    }

    #[test]
    fn schemas_of_definitions_round_trip() {
        let schema = json!({
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "x-kubernetes-list-map-keys": ["a"],
            "x-kubernetes-validations": [{"rule": "true"}],
            "properties": { "a": { "additionalProperties": { "type": "string" } }, "b": { "additionalProperties": true },
                "c": { "items": { "type": "string" } }, "d": { "default": { "x": 1 }, "enum": [1, "a"] } },
        });
        let object = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "a.b.c" },
            "spec": { "group": "b.c", "scope": "Cluster", "names": { "plural": "a", "kind": "A" }, "versions": [{ "name": "v1",
                "served": true, "storage": true, "subresources": { "status": {} }, "schema": { "openAPIV3Schema": schema } }] },
        });
        let target = Target::kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let bytes = enveloped(target.schema, &object);
        let read = decode::body(&bytes, Media::Protobuf, &target, FieldValidation::Strict).unwrap().object;
        let version = &read["spec"]["versions"][0];
        assert_eq!(version["schema"]["openAPIV3Schema"], schema);
        assert_eq!(version["subresources"]["status"], json!({}));
    }

    #[test]
    fn pieces_of_a_list_are_the_list() {
        let items =
            [json!({ "metadata": { "name": "a" } }), json!({ "metadata": { "name": "b" }, "data": { "k": "v" } })];
        let list = json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "7" }, "items": items });
        let found = type_of(&list).unwrap();
        let item_type = type_of(&json!({ "apiVersion": "v1", "kind": "ConfigMap" })).unwrap();
        let mut written = Vec::new();
        items.iter().for_each(|object| item(item_type, object, &mut written));
        let mut head = list.clone();
        head["items"].take();
        let mut pieces = list_head(found, &head, written.len());
        pieces.append(&mut written);
        pieces.extend_from_slice(LIST_END);
        assert_eq!(pieces, enveloped(found, &list));
        let target = Target { group: "", version: "v1", kind: "ConfigMapList", schema: found };
        let read =
            |bytes: &[u8]| decode::body(bytes, Media::Protobuf, &target, FieldValidation::Ignore).unwrap().object;
        assert_eq!(read(&pieces), read(&enveloped(found, &list)));
        assert_eq!(read(&pieces)["items"][1]["data"], json!({ "k": "v" }));
    }

    #[test]
    fn metadata_alone_has_a_message() {
        let object =
            json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": { "name": "a" } });
        let bytes = enveloped(type_of(&object).unwrap(), &object);
        assert!(bytes.starts_with(b"k8s\0\x0a\x27\x0a\x0emeta.k8s.io/v1\x12\x15PartialObjectMetadata\x12"));
        let event = watch_event("ADDED", type_of(&object).unwrap(), &object);
        assert_eq!(usize::try_from(u32::from_be_bytes(event[..4].try_into().unwrap())).unwrap(), event.len() - 4);
        assert!(event[4..].starts_with(b"\x0a\x05ADDED\x12") && event.ends_with(b"\x1a\0\x22\0"));
        assert!(type_of(&json!({ "apiVersion": "x.example.com/v1", "kind": "Widget" })).is_none());
    }
}
