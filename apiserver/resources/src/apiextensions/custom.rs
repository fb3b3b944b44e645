//! Turns a definition into the resources that it serves, each with its strategy.

use std::cmp::Reverse;
use std::sync::Arc;

use apiserver_schema::custom_name;
use machinery_api::{GroupVersionKind, ObjectName, StorageKey, StoragePrefix};
use serde_json::{Value, json};

use super::compiled::{SchemaCache, SchemaSource, SourceTypes, TypeNames};
use super::custom_strategy::CustomStrategy;
use super::definitions;
use super::schema::{Schema, drop_nulls, embedded, fill, prune};
use super::validate::schema_of;
use crate::read::{flag, get, items, text, texts};
use crate::resource_type::ResourceType;
use crate::{ALL_VERBS, Deletion, ResourceInfo, SCALE, STATUS, SharedStrategy, Subresource};

/// A definition, shared by its resources.
#[derive(Debug)]
pub struct Definition {
    pub name: Arc<str>,
    /// The definition's storage key.
    pub key: StorageKey,
    pub uid: Arc<str>,
    pub group: Arc<str>,
    pub kind: Arc<str>,
    /// The conversion between versions.
    pub conversion: Conversion,
    /// Whether creates are rejected.
    pub terminating: bool,
    /// Identifies the stored form; objects of another generation are read again by their version's schema. Never 0.
    pub generation: u32,
    /// Identifies the served form. Cached forms of another value are rebuilt.
    pub views: u64,
    /// All versions, served or not.
    pub versions: Vec<Version>,
    /// The index of the storage version.
    pub storage: usize,
}

/// The conversion between versions.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// Changes only `apiVersion`.
    None,
    /// Calls the webhook of `spec.conversion.webhook`.
    Webhook(Arc<Value>),
}

/// A version of a definition.
#[derive(Debug)]
pub struct Version {
    pub name: Arc<str>,
    /// `group/version`
    pub api_version: Arc<str>,
    schema: Arc<SchemaSource>,
    list_kind: Arc<str>,
}

/// One version of a definition, as a served resource.
#[derive(Debug)]
pub struct CustomResource {
    pub definition: Arc<Definition>,
    /// The index of its version.
    pub version: usize,
    /// The deprecation warning for each request.
    pub warning: Option<Arc<str>>,
    pub list_kind: Arc<str>,
    /// The paths of the subresource `scale`.
    pub scale: Option<ScalePaths>,
    /// Identifies the published schema.
    pub open_api_tag: u64,
}

/// The paths of a Scale's values in an object, as JSON pointers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// `spec.replicas`.
    pub spec: Box<str>,
    /// `specReplicasPath` as the definition spells it.
    pub spec_path: Box<str>,
    /// `status.replicas`.
    pub status: Box<str>,
    /// The label selector; empty if the definition has none.
    pub selector: Box<str>,
}

impl ScalePaths {
    /// The field names of `specReplicasPath`.
    pub fn wanted(&self) -> impl Iterator<Item = &str> {
        self.spec_path.split('.').skip(1)
    }

    /// Sets the number of replicas and creates missing parents; false if a parent is no object.
    pub fn set(&self, object: &mut Value, replicas: i64) -> bool {
        let mut at = object;
        for part in self.wanted() {
            if at.is_null() {
                *at = json!({});
            }
            let Some(map) = at.as_object_mut() else { return false };
            at = map.entry(part).or_insert(Value::Null);
        }
        *at = replicas.into();
        true
    }
}

fn pointer(path: &str) -> Box<str> {
    path.split('.')
        .skip(1)
        .map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1")))
        .collect::<String>()
        .into()
}

impl Version {
    #[cfg(test)]
    pub(super) fn source(&self) -> &Arc<SchemaSource> {
        &self.schema
    }

    /// Applies the version's schema to a stored object: prunes unknown fields and sets defaults.
    pub fn settle(&self, object: &mut Value) {
        let made = self.schema.compiled();
        let Some(schema) = made.schema() else { return };
        coerce(object, schema);
        fill(object, schema);
    }

    /// Prunes an object that was converted into this version.
    pub fn coerce(&self, object: &mut Value) {
        if let Some(schema) = self.schema.compiled().schema() {
            coerce(object, schema);
        }
    }
}

fn coerce(object: &mut Value, schema: &Schema) {
    prune(object, schema);
    drop_nulls(object, Some(schema));
    // Malformed metadata was stored before it was validated.
    let _ = embedded::coerce(object, schema, true);
}

/// A published schema, unpacked and parsed on demand.
#[derive(Debug)]
pub struct PublishedSchema {
    source: Arc<SchemaSource>,
    /// `x-kubernetes-selectable-fields`, if there are any.
    fields: Option<Value>,
}

impl PublishedSchema {
    /// The schema, with `x-kubernetes-selectable-fields`.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut published = match self.source.applies_schema() {
            true => self.source.schema(),
            false => json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        };
        if let Some(fields) = &self.fields {
            published["x-kubernetes-selectable-fields"] = fields.clone();
        }
        published
    }
}

impl Definition {
    /// The version with an `apiVersion`.
    #[must_use]
    pub fn version_of(&self, api_version: &str) -> Option<&Version> {
        self.versions.iter().find(|version| &*version.api_version == api_version)
    }

    /// The storage version.
    #[must_use]
    pub fn stored(&self) -> &Version {
        &self.versions[self.storage]
    }
}

/// A non-zero 32-bit tag of the stored form: FNV-1a, folded.
fn generation(text: &str) -> u32 {
    let hash = hash(text);
    (((hash >> 32) ^ hash) as u32).max(1)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The resources that a definition serves, the storage version first. Schemas are compiled on first use. The error is
/// the reason why it can't be served.
pub fn resources(
    definition: &Value,
    terminating: bool,
    compilations: &Arc<SchemaCache>,
) -> Result<Vec<ResourceInfo>, String> {
    let spec = get(definition, "spec");
    let metadata = get(definition, "metadata");
    let group = text(spec, "group");
    // The accepted names, which may differ from those of the spec.
    let names = get(get(definition, "status"), "acceptedNames");
    let all = items(spec, "versions");
    let storage = all.iter().position(|version| flag(version, "storage")).ok_or("no version is stored")?;
    let mut versions = Vec::with_capacity(all.len());
    let kind = text(names, "kind");
    let list_kind: Arc<str> = match text(names, "listKind") {
        "" => format!("{kind}List").into(),
        named => named.into(),
    };
    for version in all {
        let name = text(version, "name");
        let named =
            TypeNames { group: group.into(), version: name.into(), kind: kind.into(), list_kind: (*list_kind).into() };
        let schema = SchemaSource::new(named, schema_of(version), !flag(spec, "preserveUnknownFields"), compilations);
        let api_version = format!("{group}/{name}").into();
        versions.push(Version { name: name.into(), api_version, schema, list_kind: list_kind.clone() });
    }
    let conversion = get(spec, "conversion");
    let shared = Arc::new(Definition {
        name: text(metadata, "name").into(),
        key: StoragePrefix::new(definitions::STORED).object(ObjectName::new("", text(metadata, "name"))),
        uid: text(metadata, "uid").into(),
        group: group.into(),
        kind: kind.into(),
        conversion: match text(conversion, "strategy") {
            "Webhook" => Conversion::Webhook(Arc::new(get(conversion, "webhook").clone())),
            _ => Conversion::None,
        },
        terminating,
        generation: generation(&format!("{} {}", text(&all[storage], "name"), schema_of(&all[storage]))),
        views: hash(&spec.to_string()),
        versions,
        storage,
    });
    let builder = ResourceBuilder { spec, names, definition: &shared };
    let stored = Arc::new(builder.resource(storage, &all[storage])?);
    let mut out = Vec::with_capacity(all.len());
    for (at, version) in all.iter().enumerate() {
        let mut made = builder.resource(at, version)?;
        if at == storage {
            out.insert(0, made);
        } else if flag(version, "served") {
            made.stored_as = Some(stored.clone());
            out.push(made);
        }
    }
    Ok(out)
}

/// Whether the storage version, which is always the first resource, is also served.
#[must_use]
pub fn serves_storage_version(definition: &Value) -> bool {
    let versions = items(get(definition, "spec"), "versions");
    versions.iter().any(|version| flag(version, "storage") && flag(version, "served"))
}

struct ResourceBuilder<'a> {
    spec: &'a Value,
    names: &'a Value,
    definition: &'a Arc<Definition>,
}

impl ResourceBuilder<'_> {
    fn resource(&self, at: usize, version: &Value) -> Result<ResourceInfo, String> {
        let (group, name) = (text(self.spec, "group"), text(version, "name"));
        let (kind, plural) = (text(self.names, "kind"), text(self.names, "plural"));
        let Version { schema: own, list_kind, .. } = &self.definition.versions[at];
        let subresources = get(version, "subresources");
        let scale = get(subresources, "scale");
        let has_status = !get(subresources, "status").is_null();
        let paths = scale.is_object().then(|| ScalePaths {
            spec: pointer(text(scale, "specReplicasPath")),
            spec_path: text(scale, "specReplicasPath").into(),
            status: pointer(text(scale, "statusReplicasPath")),
            selector: pointer(text(scale, "labelSelectorPath")),
        });
        let mut offered: Vec<Subresource> = Vec::new();
        offered.extend(has_status.then_some(STATUS));
        offered.extend(scale.is_object().then_some(SCALE));
        let strategy = CustomStrategy::new(own.clone(), version, has_status, paths.clone(), scale, self.spec);
        let of = GroupVersionKind { group, version: name, kind };
        let list = |key: &str| texts(self.names, key).map(Arc::from).collect();
        let open_api = self.open_api(version, own);
        let open_api_tag = hash(&open_api.value().to_string());
        let type_name = custom_name(of);
        Ok(ResourceInfo {
            group: group.into(),
            version: name.into(),
            api_version: format!("{group}/{name}").into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: text(self.names, "singular").into(),
            short_names: list("shortNames"),
            categories: list("categories"),
            namespaced: text(self.spec, "scope") == "Namespaced",
            schema: ResourceType::Source(type_name.into(), Arc::new(SourceTypes(own.clone()))),
            openapi: Some(Arc::new(open_api)),
            verbs: ALL_VERBS.to_vec(),
            subresources: offered,
            prefix: Some(StoragePrefix::new(&format!("{group}/{plural}"))),
            source: None,
            stored_as: None,
            review: None,
            forwards_to: None,
            indexed_fields: Arc::default(),
            indexes_labels: false,
            shows_empty: false,
            deprecated: None,
            inert: None,
            deletion: Deletion::Plain,
            ttl: None,
            strategy: SharedStrategy::Owned(Arc::new(strategy)),
            custom: Some(Arc::new(CustomResource {
                definition: self.definition.clone(),
                version: at,
                warning: self.warning(version),
                list_kind: list_kind.clone(),
                scale: paths,
                open_api_tag,
            })),
        })
    }

    /// The published schema.
    fn open_api(&self, version: &Value, source: &Arc<SchemaSource>) -> PublishedSchema {
        let fields: Vec<Value> = items(version, "selectableFields")
            .iter()
            .map(|field| json!({"fieldPath": text(field, "jsonPath").trim_start_matches('.')}))
            .collect();
        PublishedSchema { source: source.clone(), fields: (!fields.is_empty()).then(|| fields.into()) }
    }

    fn warning(&self, version: &Value) -> Option<Arc<str>> {
        if !flag(version, "deprecated") {
            return None;
        }
        if let Some(warning) = get(version, "deprecationWarning").as_str() {
            return Some(warning.into());
        }
        let (group, kind) = (text(self.spec, "group"), text(self.names, "kind"));
        let name = text(version, "name");
        let mut warning = format!("{group}/{name} {kind} is deprecated");
        // The best other served, non-deprecated version, if it precedes this one.
        let better = items(self.spec, "versions")
            .iter()
            .filter(|other| flag(other, "served") && !flag(other, "deprecated"))
            .map(|other| text(other, "name"))
            .min_by_key(|name| version_order(name));
        if let Some(better) = better.filter(|better| version_order(better) < version_order(name)) {
            warning.push_str(&format!("; use {group}/{better} {kind}"));
        }
        Some(warning.into())
    }
}

/// Sort key of a version name: its parts in descending order, or the name if it has none.
pub type VersionOrder<'a> = (Reverse<Option<(u8, u64, u64)>>, &'a str);

/// Upstream's order of versions: stable before beta and alpha, the highest first; other names last.
#[must_use]
pub fn version_order(name: &str) -> VersionOrder<'_> {
    fn parse(name: &str) -> Option<(u8, u64, u64)> {
        let rest = name.strip_prefix('v')?;
        let number = |text: &str| -> Option<u64> {
            (!text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse().ok())?
        };
        for (stage, rank) in [("beta", 1), ("alpha", 0)] {
            if let Some((major, minor)) = rest.split_once(stage) {
                return Some((rank, number(major)?, number(minor)?));
            }
        }
        Some((2, number(rest)?, 0))
    }
    (Reverse(parse(name)), name)
}
