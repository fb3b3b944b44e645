//! What a definition makes of its versions: resources that are served, with a strategy of their own.

use std::cmp::Reverse;
use std::sync::Arc;

use machinery_api::schema::custom_name;
use machinery_api::{GroupVersionKind, ObjectName, StorageKey, StoragePrefix};
use serde_json::{Value, json};

use super::compiled::{Compilations, Named, Source, Types};
use super::custom_strategy::CustomStrategy;
use super::definitions;
use super::schema::{Schema, drop_nulls, embedded, fill, prune};
use super::validate::schema_of;
use crate::read::{flag, get, items, text, texts};
use crate::resource_type::ResourceType;
use crate::{ALL_VERBS, Deletion, ResourceInfo, SCALE, STATUS, SharedStrategy, Subresource};

/// A definition as its resources share it.
#[derive(Debug)]
pub struct Definition {
    /// Its name.
    pub name: Arc<str>,
    /// Where it is stored.
    pub key: StorageKey,
    /// Its uid.
    pub uid: Arc<str>,
    /// The group.
    pub group: Arc<str>,
    /// The kind.
    pub kind: Arc<str>,
    /// How objects get from one version to another.
    pub conversion: Conversion,
    /// Nothing new is created any more.
    pub terminating: bool,
    /// Stands for how objects are stored: an object under another one is read anew by the schema of its version. Never 0.
    pub generation: u32,
    /// Stands for how objects are shown: what was made of an object under another one is made anew.
    pub views: u64,
    /// All versions, served or not.
    pub versions: Vec<Version>,
    /// Which of them is stored.
    pub storage: usize,
}

/// How objects get from one version to another.
#[derive(Debug, Clone, PartialEq)]
pub enum Conversion {
    /// By their apiVersion alone.
    None,
    /// By asking a webhook: its `spec.conversion.webhook`.
    Webhook(Arc<Value>),
}

/// A version of a definition.
#[derive(Debug)]
pub struct Version {
    /// Its name.
    pub name: Arc<str>,
    /// `group/version`
    pub api_version: Arc<str>,
    /// Its schema.
    schema: Arc<Source>,
    /// The kind of lists.
    list_kind: Arc<str>,
}

/// One version of a definition, as a resource has it.
#[derive(Debug)]
pub struct CustomResource {
    /// The definition.
    pub definition: Arc<Definition>,
    /// Which of its versions.
    pub version: usize,
    /// What each request is warned of.
    pub warning: Option<Arc<str>>,
    /// The kind of lists.
    pub list_kind: Arc<str>,
    /// Where `scale` finds what it shows.
    pub scale: Option<ScalePaths>,
    /// Stands for its schema as it is published.
    pub open_api_tag: u64,
}

/// Where the numbers of a Scale stand in an object, as JSON pointers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// How many are wanted.
    pub spec: Box<str>,
    /// The same as the definition spells it.
    pub spec_path: Box<str>,
    /// How many there are.
    pub status: Box<str>,
    /// Which are meant; empty: it isn't said.
    pub selector: Box<str>,
}

impl ScalePaths {
    /// The fields that lead to how many are wanted.
    pub fn wanted(&self) -> impl Iterator<Item = &str> {
        self.spec_path.split('.').skip(1)
    }

    /// Sets how many are wanted, with the objects that lead there; false: something else is in the way.
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
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.schema
    }

    /// What its schema makes of an object of this version that was stored: unknown fields go, defaults come.
    pub fn settle(&self, object: &mut Value) {
        let made = self.schema.hold();
        let Some(schema) = made.schema() else { return };
        coerce(object, schema);
        fill(object, schema);
    }

    /// The same for an object that was converted into this version.
    pub fn coerce(&self, object: &mut Value) {
        if let Some(schema) = self.schema.hold().schema() {
            coerce(object, schema);
        }
    }
}

fn coerce(object: &mut Value, schema: &Schema) {
    prune(object, schema);
    drop_nulls(object, Some(schema));
    // What is malformed was stored before it was looked at.
    let _ = embedded::coerce(object, schema, true);
}

/// A schema as it is published. Its text rests packed: who asks for it has it read anew.
#[derive(Debug)]
pub struct Published {
    source: Arc<Source>,
    /// `x-kubernetes-selectable-fields`, where there are any.
    fields: Option<Value>,
}

impl Published {
    /// The schema, with `x-kubernetes-selectable-fields`.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut published = match self.source.reads() {
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
    /// The version of that apiVersion.
    #[must_use]
    pub fn version_of(&self, api_version: &str) -> Option<&Version> {
        self.versions.iter().find(|version| &*version.api_version == api_version)
    }

    /// The version that is stored.
    #[must_use]
    pub fn stored(&self) -> &Version {
        &self.versions[self.storage]
    }
}

/// FNV-1a, folded: stands for how objects are stored.
fn generation(text: &str) -> u32 {
    let hash = hash(text);
    (((hash >> 32) ^ hash) as u32).max(1)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The resources that a definition serves, the stored version first; their schemas are compiled when they are first used. An
/// error says why it can't be served.
pub fn resources(
    definition: &Value,
    terminating: bool,
    compilations: &Arc<Compilations>,
) -> Result<Vec<ResourceInfo>, String> {
    let spec = get(definition, "spec");
    let metadata = get(definition, "metadata");
    let group = text(spec, "group");
    // Names that are accepted, which those of the spec may not be.
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
            Named { group: group.into(), version: name.into(), kind: kind.into(), list_kind: (*list_kind).into() };
        let schema = Source::new(named, schema_of(version), !flag(spec, "preserveUnknownFields"), compilations);
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
    let maker = Maker { spec, names, definition: &shared };
    let stored = Arc::new(maker.resource(storage, &all[storage])?);
    let mut out = Vec::with_capacity(all.len());
    for (at, version) in all.iter().enumerate() {
        let mut made = maker.resource(at, version)?;
        if at == storage {
            out.insert(0, made);
        } else if flag(version, "served") {
            made.stored_as = Some(stored.clone());
            out.push(made);
        }
    }
    Ok(out)
}

/// Whether the stored version, which comes first, is served too.
#[must_use]
pub fn serves_storage_version(definition: &Value) -> bool {
    let versions = items(get(definition, "spec"), "versions");
    versions.iter().any(|version| flag(version, "storage") && flag(version, "served"))
}

struct Maker<'a> {
    spec: &'a Value,
    names: &'a Value,
    definition: &'a Arc<Definition>,
}

impl Maker<'_> {
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
            schema: ResourceType::Source(type_name.into(), Arc::new(Types(own.clone()))),
            openapi: Some(Arc::new(open_api)),
            verbs: ALL_VERBS.to_vec(),
            subresources: offered,
            prefix: Some(StoragePrefix::new(&format!("{group}/{plural}"))),
            source: None,
            stored_as: None,
            review: None,
            stands_for: None,
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

    /// The schema as it is published.
    fn open_api(&self, version: &Value, source: &Arc<Source>) -> Published {
        let fields: Vec<Value> = items(version, "selectableFields")
            .iter()
            .map(|field| json!({"fieldPath": text(field, "jsonPath").trim_start_matches('.')}))
            .collect();
        Published { source: source.clone(), fields: (!fields.is_empty()).then(|| fields.into()) }
    }

    fn warning(&self, version: &Value) -> Option<Arc<str>> {
        if !flag(version, "deprecated") {
            return None;
        }
        if let Some(said) = get(version, "deprecationWarning").as_str() {
            return Some(said.into());
        }
        let (group, kind) = (text(self.spec, "group"), text(self.names, "kind"));
        let name = text(version, "name");
        let mut said = format!("{group}/{name} {kind} is deprecated");
        // The best of the others that is served and not deprecated, if it is better.
        let better = items(self.spec, "versions")
            .iter()
            .filter(|other| flag(other, "served") && !flag(other, "deprecated"))
            .map(|other| text(other, "name"))
            .min_by_key(|name| version_order(name));
        if let Some(better) = better.filter(|better| version_order(better) < version_order(name)) {
            said.push_str(&format!("; use {group}/{better} {kind}"));
        }
        Some(said.into())
    }
}

/// A version's place: its parts, the greatest first, and the name of one that has none.
pub type VersionOrder<'a> = (Reverse<Option<(u8, u64, u64)>>, &'a str);

/// Upstream's order of versions: stable ones before beta and alpha, the highest first; other names come last.
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
