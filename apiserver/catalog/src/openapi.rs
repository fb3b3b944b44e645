//! OpenAPI v3, derived from the type and resource tables: an index, and a document for each group version and each
//! discovery page. kubectl needs them for apply, create, diff, edit and explain.
//!
//! Documents are built per request and not cached: clients cache them by the hash in the index, and all together would
//! take much memory. Descriptions are this project's own (`descriptions.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::openapi_v2::Encoding;
use super::schemas::{DocumentScope, schemas};
use super::{Catalog, custom, descriptions, gnostic_v3, operations, roots};
use apiserver_resources::ResourceInfo;
use apiserver_schema::{Types, built_in};

/// The approximate size of a document in bytes, which takes milliseconds to build.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// The media type of the protobuf form in responses.
pub const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";
/// The Kubernetes API version of the documents.
pub(super) const VERSION: &str = "1.36";
pub(super) const REFERENCE: &str = "#/components/schemas/";

/// `/openapi/v3`: the path and hash of every document.
#[must_use]
pub fn index(catalog: &Catalog) -> Bytes {
    let entry = |path: String, hash: &str| {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        (path, json!({ "serverRelativeURL": url }))
    };
    let of_roots = hash_of_roots();
    let paths: Map<String, Value> = groups(catalog)
        .into_iter()
        .map(|(group, version)| entry(path_of(group, version), &hash_of(catalog, group, version)))
        .chain(roots::pages(catalog).map(|root| entry(root.document(), &of_roots)))
        .collect();
    json!({ "paths": paths }).to_string().into()
}

/// `/openapi/v3/<path>`, for paths such as `api/v1` and `apis/apps/v1`.
#[must_use]
pub fn document(catalog: &Catalog, path: &str, encoding: Encoding) -> Option<Bytes> {
    let of_group = groups(catalog).into_iter().find(|(group, version)| path_of(group, version) == path);
    let built = match of_group {
        Some((group, version)) => build(catalog, group, version),
        None => build_root(&roots::pages(catalog).find(|root| root.document() == path)?),
    };
    match encoding {
        Encoding::Json => serde_json::to_vec(&built).ok().map(Bytes::from),
        Encoding::Protobuf => Some(gnostic_v3::document(&built).into()),
    }
}

/// The hash of a document, computed without building it. It is the `hash` in the index's URL and the `ETag`.
#[must_use]
pub fn hash(catalog: &Catalog, path: &str) -> Option<String> {
    let found = groups(catalog).into_iter().find(|(g, v)| path_of(g, v) == path);
    match found {
        Some((group, version)) => Some(hash_of(catalog, group, version)),
        None => roots::pages(catalog).any(|root| root.document() == path).then(hash_of_roots),
    }
}

/// The hash over all documents.
#[must_use]
pub(crate) fn hash_of_all(catalog: &Catalog) -> String {
    let mut digest = SOURCES.clone();
    for (group, version) in groups(catalog) {
        digest.update(hash_of(catalog, group, version));
    }
    hex::encode_upper(digest.finalize())
}

/// The digest state of all inputs common to the documents (500 kB), computed once.
static SOURCES: LazyLock<Sha512> = LazyLock::new(|| {
    let mut digest = Sha512::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    let code = [
        include_str!("openapi.rs"),
        include_str!("openapi_v2.rs"),
        include_str!("gnostic.rs"),
        include_str!("gnostic_v3.rs"),
        include_str!("custom.rs"),
        include_str!("declared.rs"),
        descriptions::SOURCE,
        include_str!("operations.rs"),
        include_str!("roots.rs"),
        include_str!("schemas.rs"),
    ];
    for text in code {
        digest.update(text);
    }
    digest.update(apiserver_schema::table::SOURCE);
    digest
});

/// The hash of all inputs of a document.
fn hash_of(catalog: &Catalog, group: &str, version: &str) -> String {
    let mut digest = SOURCES.clone();
    for row in rows(catalog, group, version) {
        digest.update(format!("{} {:?} {:?} {:?}\n", row.plural, row.schema, row.verbs, row.subresources));
        if let Some(schema) = &row.openapi {
            digest.update(schema.value().to_string());
        }
    }
    for types in sets(catalog, group, version).skip(1) {
        digest.update(format!("{:?}", types.own()));
    }
    digest.update(path_of(group, version));
    hex::encode_upper(digest.finalize())
}

fn hash_of_roots() -> String {
    hex::encode_upper(SOURCES.clone().finalize())
}

pub(super) fn groups(catalog: &Catalog) -> BTreeSet<(&str, &str)> {
    catalog.resources().iter().map(|row| (&*row.group, &*row.version)).collect()
}

pub(super) fn rows<'a>(
    catalog: &'a Catalog,
    group: &str,
    version: &str,
) -> impl Iterator<Item = &'a Arc<ResourceInfo>> {
    catalog.resources().iter().filter(move |row| &*row.group == group && &*row.version == version)
}

/// The type sets of a group version, the built-in one first.
pub(super) fn sets<'a>(catalog: &'a Catalog, group: &str, version: &str) -> impl Iterator<Item = &'a Types> {
    let mut seen = vec![&**built_in()];
    for types in rows(catalog, group, version).filter_map(|row| row.schema.made()).map(|loaded| loaded.get().types) {
        if !seen.iter().any(|other| std::ptr::eq(*other, types)) {
            seen.push(types);
        }
    }
    seen.into_iter()
}

pub(super) fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// The paths of a group version, and the names of the types that they reference.
pub(super) fn paths(catalog: &Catalog, group: &str, version: &str) -> (Map<String, Value>, BTreeSet<String>) {
    let root = format!("/{}", path_of(group, version));
    let tag = format!("{}_{version}", operations::short_group(group));
    let mut paths = Map::new();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let discovery = json!({ "tags": [tag], "description": "get available resources", "operationId": format!("get{}APIResources", operations::id(&tag)),
        "responses": operations::discovery_responses() });
    // As upstream: groups of custom resources are described without their discovery page.
    if rows(catalog, group, version).any(|row| row.openapi.is_none()) {
        paths.insert(format!("{root}/"), json!({ "get": discovery }));
    }
    for row in rows(catalog, group, version) {
        wanted.extend([row.schema.name().to_owned(), list_of(row)]);
        operations::describe_row(row, &root, &tag, &mut paths, &mut wanted);
    }
    // Includes referenced types that belong to no resource: Status, DeleteOptions …
    for item in paths.values() {
        references(item, &mut wanted);
    }
    (paths, wanted)
}

/// Collects the types that a description references.
pub(super) fn references(described: &Value, wanted: &mut BTreeSet<String>) {
    match described {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(REFERENCE)) {
                wanted.insert(name.to_owned());
            }
            map.values().for_each(|value| references(value, wanted));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, wanted)),
        _ => {}
    }
}

/// The custom resources of a group version.
pub(super) fn customs<'a>(catalog: &'a Catalog, group: &str, version: &str) -> Vec<custom::Custom<'a>> {
    rows(catalog, group, version).filter_map(|row| custom::Custom::of(row)).collect()
}

fn build(catalog: &Catalog, group: &str, version: &str) -> Value {
    let (paths, mut wanted) = paths(catalog, group, version);
    let customs = customs(catalog, group, version);
    let mut own = Map::new();
    for custom in &customs {
        for (name, schema) in custom.schemas_v3() {
            references(&schema, &mut wanted);
            own.insert(name, schema);
        }
    }
    let types: Vec<&Types> = sets(catalog, group, version).collect();
    let find = |name: &String| types.iter().find_map(|types| types.by_name(name));
    let found = wanted.iter().filter(|name| !own.contains_key(*name)).filter_map(find).collect();
    let mut described = Map::new();
    schemas(found, DocumentScope::Group(group, version), &mut |name, schema| {
        described.insert(name.into(), schema);
    });
    described.append(&mut own);
    document_of(paths.into(), described.into())
}

fn build_root(root: &roots::Root) -> Value {
    let (path, item) = root.item();
    let mut described = Map::new();
    let found = root.response_type.as_deref().and_then(|name| built_in().by_name(name)).into_iter().collect();
    schemas(found, DocumentScope::All, &mut |name, schema| {
        described.insert(name.into(), schema);
    });
    document_of(json!({ path: item }), described.into())
}

fn document_of(paths: Value, schemas: Value) -> Value {
    let token = json!({ "type": "apiKey", "description": "a bearer token", "name": "authorization", "in": "header" });
    let schemes = json!({ "BearerToken": token });
    let mut components = json!({ "securitySchemes": schemes });
    if schemas.as_object().is_some_and(|schemas| !schemas.is_empty()) {
        components["schemas"] = schemas;
    }
    let info = json!({ "title": "Kubernetes", "version": VERSION });
    json!({ "openapi": "3.0.0", "info": info, "paths": paths, "components": components })
}

pub(super) fn list_of(row: &ResourceInfo) -> String {
    match (&row.custom, row.schema.name().rsplit_once('.')) {
        (Some(custom), Some((before, _))) => format!("{before}.{}", custom.list_kind),
        _ => format!("{}List", row.schema.name()),
    }
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
        serde_json::from_slice(&document(&catalog(), path, Encoding::Json).unwrap()).unwrap()
    }

    #[test]
    fn every_row_is_described_and_every_reference_resolves() {
        let index: Value = serde_json::from_slice(&index(&catalog())).unwrap();
        for (path, entry) in index["paths"].as_object().unwrap() {
            let document = read(path);
            let schemas = document["components"]["schemas"].as_object().cloned().unwrap_or_default();
            assert!(entry["serverRelativeURL"].as_str().unwrap().ends_with(&hash(&catalog(), path).unwrap()));
            for (name, schema) in &schemas {
                let properties = schema["properties"].as_object().into_iter().flatten();
                for (field, described) in properties.chain([(name, schema)]) {
                    let text = described["description"].as_str().unwrap_or_default();
                    assert!(!text.is_empty(), "{path}: {name} {field} has no description");
                }
            }
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
                // kubectl checks for this before it sends `fieldValidation`.
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
        assert!(["", "api/v2"].iter().all(|path| document(&catalog(), path, Encoding::Json).is_none()));
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
