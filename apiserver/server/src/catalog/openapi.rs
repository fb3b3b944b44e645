//! OpenAPI v3 out of the two tables (types and resources): an index, and a document for each group and version, as
//! kubectl needs them for apply, create, diff, edit and explain.
//!
//! Documents are built when asked for and not kept: clients cache them by the hash in the index, and all of them at once
//! would be some of the largest things in memory. Descriptions are short ones of our own.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::{Catalog, declared, discovery, operations};
use apiserver_resources::ResourceInfo;
use machinery_api::schema::{Field, Kind, ListType, Type, table};

/// What a document weighs, roughly: it takes milliseconds to make.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// The version of Kubernetes' API that is described.
const VERSION: &str = "1.36";
const REFERENCE: &str = "#/components/schemas/";
pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// `/openapi/v3`: every document's path and hash.
#[must_use]
pub fn index(catalog: &Catalog) -> Bytes {
    let paths: Map<String, Value> = groups(catalog)
        .into_iter()
        .map(|(group, version)| {
            let path = path_of(group, version);
            let url = format!("/openapi/v3/{path}?hash={}", hash_of(catalog, group, version));
            (path, json!({ "serverRelativeURL": url }))
        })
        .collect();
    json!({ "paths": paths }).to_string().into()
}

/// How kubectl asks for `/openapi/v2`.
pub const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/openapi/v2`, its media type and its bytes: it has no definitions, and points to the third version. kubectl wants it there
/// for what that doesn't describe, before all a `kind: List`: it takes an absent definition for one that needs no check of its
/// own, and an absent document for a failure. The server validates each object anyhow.
#[must_use]
pub fn v2(protobuf: bool) -> (&'static str, Vec<u8>) {
    const TITLE: &str = "Kubernetes; types are described by /openapi/v3 only";
    if !protobuf {
        let info = json!({"title": TITLE, "version": discovery::VERSION});
        let document = json!({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}});
        return ("application/json", document.to_string().into_bytes());
    }
    // Length-delimited fields: Document{swagger = 1, info = 2{title = 1, version = 2}, paths = 8}.
    let field = |number: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).ok().filter(|l| *l < 0x80).expect("all of it is short and constant");
        [&[number << 3 | 2, length][..], data].concat()
    };
    let info = [field(1, TITLE.as_bytes()), field(2, discovery::VERSION.as_bytes())].concat();
    let document = [field(1, b"2.0"), field(2, &info), field(8, b"")].concat();
    ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", document)
}

/// Whether a document can be answered: as JSON, also to who asks for protobuf alone.
#[must_use]
pub fn accepts(accept: Option<&str>) -> bool {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return true };
    let kinds = accept.split(',').map(|clause| clause.split(';').next().unwrap_or("").trim());
    kinds.into_iter().any(|kind| {
        matches!(kind, "*/*" | "application/*" | "application/json")
            || kind.starts_with("application/com.github.proto-openapi.spec.")
    })
}

/// `/openapi/v3/<path>`, for `api/v1`, `apis/apps/v1` and so on.
#[must_use]
pub fn document(catalog: &Catalog, path: &str) -> Option<Bytes> {
    let (group, version) = groups(catalog).into_iter().find(|(group, version)| path_of(group, version) == path)?;
    serde_json::to_vec(&build(catalog, group, version)).ok().map(Bytes::from)
}

/// The hash of a document, without building it: the `hash` of its URL in the index, and its `ETag`.
#[must_use]
pub fn hash(catalog: &Catalog, path: &str) -> Option<String> {
    let found = groups(catalog).into_iter().find(|(g, v)| path_of(g, v) == path);
    found.map(|(group, version)| hash_of(catalog, group, version))
}

/// What all documents are made of, taken up once: half a megabyte.
static SOURCES: LazyLock<Sha512> = LazyLock::new(|| {
    let mut digest = Sha512::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(include_str!("openapi.rs"));
    digest.update(include_str!("declared.rs"));
    digest.update(include_str!("operations.rs"));
    digest.update(machinery_api::schema::table::SOURCE);
    digest
});

/// Of all that a document is made of.
fn hash_of(catalog: &Catalog, group: &str, version: &str) -> String {
    let mut digest = SOURCES.clone();
    for row in rows(catalog, group, version) {
        digest.update(format!("{} {} {:?} {:?}\n", row.plural, row.schema, row.verbs, row.subresources));
    }
    digest.update(path_of(group, version));
    hex::encode_upper(digest.finalize())
}

fn groups(catalog: &Catalog) -> BTreeSet<(&str, &str)> {
    catalog.resources().iter().map(|row| (&*row.group, &*row.version)).collect()
}

fn rows<'a>(catalog: &'a Catalog, group: &str, version: &str) -> impl Iterator<Item = &'a Arc<ResourceInfo>> {
    catalog.resources().iter().filter(move |row| &*row.group == group && &*row.version == version)
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn build(catalog: &Catalog, group: &str, version: &str) -> Value {
    let root = format!("/{}", path_of(group, version));
    let tag = format!("{}_{version}", operations::short_group(group));
    let mut paths = Map::new();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let discovery = json!({ "tags": [tag], "description": "the group's resources", "operationId": format!("get{}APIResources", operations::id(&tag)),
        "responses": operations::discovery_answers() });
    paths.insert(format!("{root}/"), json!({ "get": discovery }));
    for row in rows(catalog, group, version) {
        wanted.insert(row.schema.to_string());
        if table().by_name(&list_of(row)).is_some() {
            wanted.insert(list_of(row));
        }
        operations::describe_row(row, &root, &tag, &mut paths, &mut wanted);
    }
    let paths = Value::Object(paths);
    // Also what answers and bodies refer to that is of no row: Status, DeleteOptions …
    let text = paths.to_string();
    wanted.extend(text.split(REFERENCE).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": VERSION },
        "paths": paths,
        "components": {
            "schemas": schemas(&wanted, (group, version)),
            "securitySchemes": { "BearerToken": { "type": "apiKey", "name": "authorization", "in": "header" } },
        },
    })
}

pub(super) fn list_of(row: &ResourceInfo) -> String {
    format!("{}List", row.schema)
}

pub(super) fn reference(type_name: &str) -> Value {
    json!({ "$ref": format!("{REFERENCE}{type_name}") })
}

/// The schemas of the types and of all that they refer to.
fn schemas(wanted: &BTreeSet<String>, of: (&str, &str)) -> Value {
    fn refer(kind: &Kind, todo: &mut Vec<&'static str>) {
        match kind {
            Kind::Object(id) => todo.push(&table().get(*id).name),
            Kind::List(inner) | Kind::Map(inner) => refer(inner, todo),
            Kind::Quantity => todo.push(QUANTITY),
            Kind::Time => todo.push(TIME),
            Kind::MicroTime => todo.push(MICRO_TIME),
            Kind::IntOrString => todo.push(INT_OR_STRING),
            Kind::Any => todo.extend([FIELDS, RAW]),
            _ => {}
        }
    }
    let mut todo: Vec<&'static str> =
        wanted.iter().filter_map(|name| table().by_name(name)).map(|found| &*found.name).collect();
    let mut out = Map::new();
    while let Some(name) = todo.pop() {
        if out.contains_key(name) {
            continue;
        }
        let Some(found) = table().by_name(name) else { continue };
        out.insert(name.into(), schema(found, of));
        for field in &found.fields {
            refer(&field.kind, &mut todo);
        }
    }
    out.into()
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// `of`: the group and version that are described.
fn schema(found: &Type, of: (&str, &str)) -> Value {
    let mut out = match &*found.name {
        QUANTITY => {
            json!({ "description": "A number with a suffix: 500m, 64Mi, 2.", "oneOf": [{ "type": "string" }, { "type": "number" }] })
        }
        TIME | MICRO_TIME => json!({ "description": "A time in RFC 3339.", "type": "string", "format": "date-time" }),
        INT_OR_STRING => {
            json!({ "description": "A number or a text.", "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        _ if found.scalar.is_some() => json!({ "description": "Any object.", "type": "object" }),
        _ => {
            let mut properties = Map::new();
            for field in &found.fields {
                let mut described = property(field);
                let declared =
                    declared::DEFAULTS.iter().find(|(of, name, _)| *of == &*found.name && *name == field.name);
                if let Some(default) = declared.and_then(|(_, _, json)| serde_json::from_str(json).ok()) {
                    described["default"] = default;
                }
                properties.insert(field.name.into(), described);
            }
            json!({ "description": about_type(found), "type": "object", "properties": properties })
        }
    };
    let fact =
        |facts: &'static [(&str, &str)]| facts.iter().find(|(name, _)| *name == &*found.name).map(|(_, fact)| *fact);
    let required: Vec<&str> = match fact(declared::REQUIRED) {
        Some(fields) => fields.split(' ').collect(),
        None => found.fields.iter().filter(|f| f.required).map(|f| f.name).collect(),
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
    let kinds: Vec<Value> = table()
        .kinds
        .iter()
        .filter(|k| *k.type_name == *found.name)
        .map(|k| json!({ "group": k.group, "version": k.version, "kind": k.kind }))
        .collect();
    // Options and watch events are of every group; a document names its own.
    let several = kinds.len() > 1;
    let own = |k: &Value| k["group"] == "" || (k["group"] == of.0 && k["version"] == of.1);
    let kinds: Vec<Value> = kinds.into_iter().filter(|k| !several || own(k)).collect();
    if !kinds.is_empty() {
        out["x-kubernetes-group-version-kind"] = kinds.into();
    }
    out
}

fn shape(kind: &Kind, pointer: bool) -> Value {
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
        Kind::Quantity => json!({ "allOf": [reference(QUANTITY)] }),
        Kind::Time => json!({ "allOf": [reference(TIME)] }),
        Kind::MicroTime => json!({ "allOf": [reference(MICRO_TIME)] }),
        Kind::IntOrString => json!({ "allOf": [reference(INT_OR_STRING)] }),
        Kind::Any => json!({ "type": "object" }),
        Kind::Object(id) => referred(&table().get(*id).name),
        Kind::List(inner) => json!({ "type": "array", "items": element(inner) }),
        Kind::Map(inner) => json!({ "type": "object", "additionalProperties": element(inner) }),
    }
}

fn element(kind: &Kind) -> Value {
    let mut out = match kind {
        Kind::Quantity => reference(QUANTITY),
        other => shape(other, false),
    };
    if let Some(zero) = zero(kind) {
        out["default"] = zero;
    }
    out
}

/// Go's zero of what is no pointer and no struct.
fn zero(kind: &Kind) -> Option<Value> {
    match kind {
        Kind::String => Some("".into()),
        Kind::Bool => Some(false.into()),
        Kind::Int32 | Kind::Int64 | Kind::Double => Some(0.into()),
        _ => None,
    }
}

fn property(field: &Field) -> Value {
    let mut out = match (&field.kind, field.wire.as_deref()) {
        (Kind::Any, None) => json!({ "allOf": [reference(RAW)] }),
        (Kind::Any, Some(wire)) if wire.ends_with(".FieldsV1") => json!({ "allOf": [reference(FIELDS)] }),
        (kind, _) => shape(kind, field.pointer),
    };
    if let Some(map) = out.as_object_mut() {
        map.insert("description".into(), about_field(field.name).into());
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
    if !field.keys.is_empty() {
        out["x-kubernetes-list-map-keys"] = json!(field.keys);
    }
    match field.list {
        ListType::Unsaid => {}
        ListType::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
        ListType::Set => out["x-kubernetes-list-type"] = "set".into(),
        ListType::Map => out["x-kubernetes-list-type"] = "map".into(),
    }
    if field.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(key) = field.merge_key {
        out["x-kubernetes-patch-merge-key"] = key.into();
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

fn about_type(found: &Type) -> String {
    let mut parts = found.name.rsplit('.');
    let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match name.strip_suffix("List") {
        Some(of) if found.field("items").is_some() => format!("A list of {of} objects ({version})."),
        _ => format!("{name} ({version})."),
    }
}

/// What fields of that name are in every kind; empty for others.
fn about_field(name: &str) -> &'static str {
    match name {
        "apiVersion" => "The API group and version that the object is written in.",
        "kind" => "The kind of the object.",
        "metadata" => "Name, labels, annotations and what the server keeps about the object.",
        "spec" => "What is wanted.",
        "status" => "What was last observed; written by the system.",
        "items" => "The elements.",
        "labels" => "Keys and values to select by.",
        "annotations" => "Keys and values that are not selected by.",
        "selector" => "Which objects are meant, by their labels.",
        "template" => "What new objects look like.",
        "replicas" => "How many are wanted.",
        "containers" => "What runs in the pod.",
        "image" => "Where the module or component is pulled from.",
        "env" => "Environment variables.",
        "ports" => "Network ports.",
        "resources" => "Requested and allowed compute resources.",
        "maxSurge" => "How many more than wanted may exist during an update: a number or a percentage.",
        "maxUnavailable" => "How many may be missing during an update: a number or a percentage.",
        "strategy" => "How old pods are replaced by new ones.",
        "rollingUpdate" => "Bounds of a rolling update.",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::Verb;

    fn catalog() -> Catalog {
        Catalog::built_in("127.0.0.1:6443")
    }

    fn read(path: &str) -> Value {
        serde_json::from_slice(&document(&catalog(), path).unwrap()).unwrap()
    }

    #[test]
    fn the_second_version_is_there_and_says_where_to_look() {
        let (media, bytes) = v2(true);
        assert!(media.ends_with("+protobuf") && bytes.starts_with(b"\x0a\x032.0\x12") && bytes.ends_with(b"\x42\0"));
        assert_eq!(usize::from(bytes[6]), bytes.len() - 9, "one message of info between version and paths");
        let (_, bytes) = v2(false);
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["swagger"], "2.0");
    }

    #[test]
    fn declared_facts_are_those_of_the_table() {
        for (name, fields) in declared::REQUIRED {
            let found = table().by_name(name).unwrap_or_else(|| panic!("no type {name}"));
            let mut sorted: Vec<&str> = fields.split(' ').collect();
            sorted.sort_unstable();
            let required: Vec<&str> = found.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
            assert_eq!(sorted, required, "{name}");
        }
        for (name, unions) in declared::UNIONS {
            assert!(table().by_name(name).is_some() && serde_json::from_str::<Value>(unions).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_row_is_described_and_every_reference_resolves() {
        let index: Value = serde_json::from_slice(&index(&catalog())).unwrap();
        for (path, entry) in index["paths"].as_object().unwrap() {
            let document = read(path);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            assert!(entry["serverRelativeURL"].as_str().unwrap().ends_with(&hash(&catalog(), path).unwrap()));
            for part in document.to_string().split("#/components/schemas/").skip(1) {
                assert!(schemas.contains_key(part.split('"').next().unwrap()), "{path}: {}", &part[..60]);
            }
        }
        for row in catalog().resources() {
            let document = read(&path_of(&row.group, &row.version));
            let of_kind =
                document["components"]["schemas"][&*row.schema]["x-kubernetes-group-version-kind"].as_array().unwrap();
            assert!(of_kind.iter().any(|k| k["kind"] == *row.kind), "{}", row.kind);
            if row.verbs.contains(&Verb::Patch) {
                // What kubectl looks for before it sends fieldValidation.
                let patches = document["paths"].as_object().unwrap().values().filter_map(|item| item.get("patch"));
                let found = patches.filter(|p| p["x-kubernetes-group-version-kind"]["kind"] == *row.kind).any(|p| {
                    p["parameters"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|q| q["name"] == "fieldValidation" && q["in"] == "query")
                });
                assert!(found, "{}", row.kind);
            }
        }
        assert!(document(&catalog(), "api/v2").is_none() && document(&catalog(), "").is_none());
    }

    #[test]
    fn extensions_are_as_recorded_from_upstream() {
        let core = read("api/v1");
        let schemas = &core["components"]["schemas"];
        let pod = &schemas["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(core["openapi"], "3.0.0");
        assert_eq!(pod["required"], json!(["containers"]));
        let containers = &pod["properties"]["containers"];
        assert_eq!(
            (
                &containers["x-kubernetes-patch-merge-key"],
                &containers["x-kubernetes-patch-strategy"],
                &containers["x-kubernetes-list-type"],
                &containers["x-kubernetes-list-map-keys"]
            ),
            (&json!("name"), &json!("merge"), &json!("map"), &json!(["name"]))
        );
        assert_eq!(pod["properties"]["tolerations"]["x-kubernetes-list-type"], "atomic");
        assert_eq!(pod["properties"]["nodeSelector"]["x-kubernetes-map-type"], "atomic");
        assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"]["x-kubernetes-map-type"], "atomic");
        assert_eq!(schemas[QUANTITY]["oneOf"], json!([{"type": "string"}, {"type": "number"}]));
        assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"]["type"], "object");
        assert_eq!(
            schemas["io.k8s.api.core.v1.ConfigMap"]["properties"]["binaryData"]["additionalProperties"]["format"],
            "byte"
        );
    }
}
