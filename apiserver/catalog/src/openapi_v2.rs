//! OpenAPI v2 of all resources in one document, for kubectl's validation and for discovery clients of all versions. It
//! is converted from the v3 descriptions part by part, gzipped, and cached as JSON and as gnostic's protobuf on first
//! use.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};

use super::openapi::{self, REFERENCE, VERSION};
use super::schemas::{DocumentScope, schemas};
use super::{Catalog, gnostic, roots};
use apiserver_schema::Types;

/// The media type of the protobuf form in responses.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const DEFINITIONS: &str = "#/definitions/";

/// The encoding of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// Gnostic's protobuf.
    Protobuf,
}

/// The document without paths and definitions.
pub(super) fn frame() -> Value {
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": VERSION },
        "securityDefinitions": {
            "BearerToken": { "description": "a bearer token", "type": "apiKey", "name": "authorization", "in": "header" },
        },
        "security": [{ "BearerToken": [] }],
    })
}

/// Builds and gzips the whole document, which takes tens of milliseconds.
pub(crate) fn build_gzipped(catalog: &Catalog, encoding: Encoding) -> io::Result<Bytes> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    match encoding {
        Encoding::Json => {
            let encode = |value: &Value| value.to_string().into_bytes();
            let parts = parts(catalog, encode, encode);
            let frame = frame();
            write!(out, "{{\"swagger\":{},\"info\":{}", frame["swagger"], frame["info"])?;
            for (name, part) in [("paths", parts.paths), ("definitions", parts.definitions)] {
                write!(out, ",\"{name}\":{{")?;
                for (at, (key, value)) in part.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(out, "{comma}{}:", Value::from(key.as_str()))?;
                    out.write_all(value)?;
                }
                out.write_all(b"}")?;
            }
            write!(out, ",\"securityDefinitions\":{},", frame["securityDefinitions"])?;
            write!(out, "\"security\":{}}}", frame["security"])?;
        }
        Encoding::Protobuf => {
            let parts = parts(catalog, gnostic::path_item, gnostic::schema);
            out.write_all(&gnostic::document(&frame(), &parts.paths, &parts.definitions))?;
        }
    }
    out.finish().map(Bytes::from)
}

/// The encoded paths and definitions.
struct Parts {
    paths: BTreeMap<String, Vec<u8>>,
    definitions: BTreeMap<String, Vec<u8>>,
}

fn parts(catalog: &Catalog, path: impl Fn(&Value) -> Vec<u8>, definition: impl Fn(&Value) -> Vec<u8>) -> Parts {
    let mut parts = Parts { paths: BTreeMap::new(), definitions: BTreeMap::new() };
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for root in roots::pages(catalog) {
        let (at, item) = root.item();
        parts.paths.insert(at, path(&path_item(item)));
        wanted.extend(root.response_type);
    }
    let mut types: Vec<&Types> = Vec::new();
    for (group, version) in openapi::groups(catalog) {
        let (paths, of_group) = openapi::paths(catalog, group, version);
        wanted.extend(of_group);
        for (at, item) in paths {
            parts.paths.insert(at, path(&path_item(item)));
        }
        for custom in openapi::customs(catalog, group, version) {
            for (name, schema) in custom.schemas_v2() {
                parts.definitions.insert(name, definition(&schema));
            }
        }
        types.extend(openapi::sets(catalog, group, version));
    }
    let find = |name: &String| types.iter().find_map(|types| types.by_name(name));
    let found = wanted.iter().filter(|name| !parts.definitions.contains_key(*name)).filter_map(find).collect();
    schemas(found, DocumentScope::All, &mut |name, mut described| {
        schema(&mut described);
        parts.definitions.insert(name.into(), definition(&described));
    });
    parts
}

/// Converts a v3 schema to v2: removes defaults and alternatives, and keeps references beside their siblings.
pub(super) fn schema(described: &mut Value) {
    let Some(map) = described.as_object_mut() else { return };
    map.remove("default");
    map.remove("nullable");
    if map.remove("oneOf").is_some() {
        map.insert("type".into(), "string".into());
    }
    if let Some(Value::Array(all)) = map.remove("allOf")
        && let Some(only) = all.into_iter().next()
        && let Some(to) = only.get("$ref")
    {
        map.insert("$ref".into(), to.clone());
    }
    if let Some(Value::String(to)) = map.get_mut("$ref")
        && let Some(name) = to.strip_prefix(REFERENCE)
    {
        *to = format!("{DEFINITIONS}{name}");
    }
    for below in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(below) {
            schema(below);
        }
    }
    for below in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        schema(below);
    }
}

/// Converts a v3 path to v2.
fn path_item(item: Value) -> Value {
    let Value::Object(item) = item else { return item };
    let converted = item.into_iter().map(|(key, value)| {
        let value = if key == "parameters" { parameters(value) } else { operation(value) };
        (key, value)
    });
    Value::Object(converted.collect())
}

fn parameters(list: Value) -> Value {
    let Value::Array(list) = list else { return list };
    list.into_iter()
        .map(|mut parameter| {
            if let Some(Value::Object(of)) = parameter.as_object_mut().and_then(|map| map.remove("schema"))
                && let Some(map) = parameter.as_object_mut()
            {
                map.extend(of);
            }
            parameter
        })
        .collect()
}

/// Takes the media types and the schema from a request or response body.
fn content(holder: &mut Value) -> (Vec<String>, Option<Value>) {
    let Some(Value::Object(content)) = holder.as_object_mut().and_then(|map| map.remove("content")) else {
        return (Vec::new(), None);
    };
    let media = content.keys().cloned().collect();
    let schema = content.into_iter().find_map(|(_, mut value)| Some(value.get_mut("schema")?.take()));
    let schema = schema.map(|mut found| {
        self::schema(&mut found);
        found
    });
    (media, schema)
}

fn operation(mut of: Value) -> Value {
    let Some(map) = of.as_object_mut() else { return of };
    let (mut produces, mut consumes) = (Vec::new(), Vec::new());
    for (_, response) in map.get_mut("responses").and_then(Value::as_object_mut).into_iter().flatten() {
        let (media, schema) = content(response);
        if let Some(schema) = schema {
            response["schema"] = schema;
            produces = media;
        }
    }
    let mut own = map.remove("parameters").map(parameters).unwrap_or_else(|| json!([]));
    if let Some(mut body) = map.remove("requestBody") {
        let (media, schema) = content(&mut body);
        consumes = media;
        let mut parameter = json!({ "name": "body", "in": "body", "schema": schema });
        if body["required"] == true {
            parameter["required"] = true.into();
        }
        if let Some(own) = own.as_array_mut() {
            own.insert(0, parameter);
        }
    }
    if own.as_array().is_some_and(|own| !own.is_empty()) {
        map.insert("parameters".into(), own);
    }
    // As upstream, if there is no request body: discovery consumes its response types, other resources anything.
    let is_resource = map.contains_key("x-kubernetes-action");
    let text = map.get("responses").is_some_and(|responses| responses["200"]["schema"]["type"] == "string");
    if consumes.is_empty() {
        consumes = if is_resource { vec!["*/*".into()] } else { produces.clone() };
    }
    map.insert("produces".into(), json!(produces));
    if is_resource || !text {
        map.insert("consumes".into(), json!(consumes));
    }
    map.insert("schemes".into(), json!(["https"]));
    of
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::tests::built_in;

    fn read(encoding: Encoding) -> Vec<u8> {
        let mut out = Vec::new();
        GzDecoder::new(&built_in().openapi(encoding)[..]).read_to_end(&mut out).unwrap();
        out
    }

    fn json() -> Value {
        serde_json::from_slice(&read(Encoding::Json)).unwrap()
    }

    /// Decodes the fields of a message: number and content. Varints have empty content.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (number, rest) = bytes.split_at(length);
            *bytes = rest;
            number.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f))
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = match tag & 7 {
                0 => {
                    varint(&mut bytes);
                    0
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                other => panic!("wire type {other}"),
            };
            let (content, rest) = bytes.split_at(length);
            bytes = rest;
            out.push((tag >> 3, content));
        }
        out
    }

    fn only<'a>(fields: &[(u64, &'a [u8])], number: u64) -> &'a [u8] {
        fields.iter().find(|(n, _)| *n == number).unwrap().1
    }

    fn named(all: &[u8], number: u64) -> Vec<(String, &[u8])> {
        let of = |content| {
            let fields = fields(content);
            (String::from_utf8(only(&fields, 1).to_vec()).unwrap(), only(&fields, 2))
        };
        fields(all).into_iter().filter(|(n, _)| *n == number).map(|(_, content)| of(content)).collect()
    }

    #[test]
    fn every_kind_is_defined_and_every_reference_resolves() {
        let document = json();
        let definitions = document["definitions"].as_object().unwrap();
        for part in document.to_string().split("#/definitions/").skip(1) {
            assert!(definitions.contains_key(part.split('"').next().unwrap()), "{}", &part[..80]);
        }
        for row in built_in().resources() {
            let of_kind = definitions[row.schema.name()]["x-kubernetes-group-version-kind"].as_array().unwrap();
            let found = |k: &Value| k["group"] == *row.group && k["version"] == *row.version && k["kind"] == *row.kind;
            assert!(of_kind.iter().any(found), "{}", row.kind);
        }
        assert!(!document.to_string().contains("#/components/"));
        let spec = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert!(spec["containers"]["items"]["$ref"].is_string() && spec["dnsPolicy"].get("default").is_none());
        assert_eq!(spec["securityContext"]["$ref"], "#/definitions/io.k8s.api.core.v1.PodSecurityContext");
        let pod = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
        assert_eq!(pod["patch"]["parameters"][0]["in"], "body");
        assert_eq!(pod["parameters"][0]["type"], "string");
    }

    #[test]
    fn the_protobuf_and_the_json_are_equal() {
        let (json, bytes) = (json(), read(Encoding::Protobuf));
        let document = fields(&bytes);
        assert_eq!(only(&document, 1), b"2.0");
        let keys = |part: &str| json[part].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        for (number, inner, part) in [(8, 2, "paths"), (9, 1, "definitions")] {
            let mut names: Vec<String> =
                named(only(&document, number), inner).into_iter().map(|(name, _)| name).collect();
            let mut expected = keys(part);
            names.sort();
            expected.sort();
            assert_eq!(names, expected);
        }
        let definitions = named(only(&document, 9), 1);
        let port = definitions.iter().find(|(name, _)| name == "io.k8s.api.core.v1.ServicePort").unwrap().1;
        let schema = fields(port);
        let properties = named(only(&schema, 25), 1);
        let names: Vec<&str> = properties.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"]);
        let target = fields(properties[5].1);
        assert_eq!(only(&target, 1), b"#/definitions/io.k8s.apimachinery.pkg.util.intstr.IntOrString");
        let protocol = fields(properties[4].1);
        assert_eq!(fields(only(&protocol, 22)), [(1, &b"string"[..])]);
        assert_eq!(protocol.iter().filter(|(number, _)| *number == 20).count(), 3);
    }
}
