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

use super::schemas::schemas;
use super::{Catalog, discovery, operations};
use apiserver_resources::ResourceInfo;
use machinery_api::schema::{Types, built_in};

/// What a document weighs, roughly: it takes milliseconds to make.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// The version of Kubernetes' API that is described.
const VERSION: &str = "1.36";
const REFERENCE: &str = "#/components/schemas/";

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
    digest.update(include_str!("schemas.rs"));
    digest.update(machinery_api::schema::table::SOURCE);
    digest
});

/// Of all that a document is made of.
fn hash_of(catalog: &Catalog, group: &str, version: &str) -> String {
    let mut digest = SOURCES.clone();
    for row in rows(catalog, group, version) {
        digest.update(format!("{} {:?} {:?} {:?}\n", row.plural, row.schema, row.verbs, row.subresources));
    }
    for types in sets(catalog, group, version).skip(1) {
        digest.update(format!("{:?}", types.own()));
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

/// The sets that the types of a group and version are of, the built-in one first.
fn sets<'a>(catalog: &'a Catalog, group: &str, version: &str) -> impl Iterator<Item = &'a Types> {
    let mut seen = vec![&**built_in()];
    for types in rows(catalog, group, version).map(|row| row.schema.get().types) {
        if !seen.iter().any(|other| std::ptr::eq(*other, types)) {
            seen.push(types);
        }
    }
    seen.into_iter()
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn build(catalog: &Catalog, group: &str, version: &str) -> Value {
    let root = format!("/{}", path_of(group, version));
    let tag = format!("{}_{version}", operations::short_group(group));
    let mut paths = Map::new();
    let types: Vec<&Types> = sets(catalog, group, version).collect();
    let find = |name: &str| types.iter().find_map(|types| types.by_name(name));
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let discovery = json!({ "tags": [tag], "description": "the group's resources", "operationId": format!("get{}APIResources", operations::id(&tag)),
        "responses": operations::discovery_answers() });
    paths.insert(format!("{root}/"), json!({ "get": discovery }));
    for row in rows(catalog, group, version) {
        wanted.extend([row.schema.name().to_owned(), list_of(row)]);
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
            "schemas": schemas(wanted.iter().filter_map(|name| find(name)).collect(), (group, version)),
            "securitySchemes": { "BearerToken": { "type": "apiKey", "name": "authorization", "in": "header" } },
        },
    })
}

pub(super) fn list_of(row: &ResourceInfo) -> String {
    format!("{}List", row.schema.name())
}

pub(super) fn reference(type_name: &str) -> Value {
    json!({ "$ref": format!("{REFERENCE}{type_name}") })
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
            let of_kind = document["components"]["schemas"][row.schema.name()]["x-kubernetes-group-version-kind"]
                .as_array()
                .unwrap();
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
        assert_eq!(
            schemas["io.k8s.apimachinery.pkg.api.resource.Quantity"]["oneOf"],
            json!([{"type": "string"}, {"type": "number"}])
        );
        assert_eq!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"]["type"], "object");
        assert_eq!(
            schemas["io.k8s.api.core.v1.ConfigMap"]["properties"]["binaryData"]["additionalProperties"]["format"],
            "byte"
        );
    }
}
