//! What a changed definition need not keep to, as what was stored before didn't.

use serde_json::Value;

use super::parts::SELECTABLE_MAX;
use super::schema::{any, is_type, list_keys, unsupported_field};
use super::{alike, defaults, structural};
use crate::field::{ErrorList, Path};
use crate::read::{get, items, text, texts};

const FIELDS: &str = "selectableFields";

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// All versions have a schema.
    pub(super) requires_schema: bool,
    /// Schemas are structural.
    pub(super) requires_structure: bool,
    /// Types are those of OpenAPI.
    pub(super) requires_types: bool,
    /// Defaults have no unknown fields.
    pub(super) requires_pruned: bool,
    /// Items of sets are atomic.
    pub(super) requires_atomic_sets: bool,
    /// Keys of list maps are required or have a default.
    pub(super) requires_list_keys: bool,
    /// One review version is known.
    pub(super) requires_review_version: bool,
    /// Certificates of a webhook are not looked at.
    pub(super) lenient_bundle: bool,
    /// Versions whose schema is what it was: a rule of theirs may cost what it costs.
    pub(super) unchanged: Vec<String>,
    /// A rule may cost what it costs.
    pub(super) ignores_cost: bool,
    /// Versions that have more selectable fields than are allowed, and had them before (empty: all alike).
    pub(super) many_fields: Vec<String>,
}

impl Options {
    pub(super) const STRICT: Self = Self {
        requires_schema: true,
        requires_structure: true,
        requires_types: true,
        requires_pruned: true,
        requires_atomic_sets: true,
        requires_list_keys: true,
        requires_review_version: true,
        lenient_bundle: false,
        unchanged: Vec::new(),
        ignores_cost: false,
        many_fields: Vec::new(),
    };

    pub(super) fn of_update(new: &Value, old: &Value, is_established: bool) -> Self {
        let versions = items(old, "versions");
        let has = |pred: &mut dyn FnMut(&Value) -> bool| {
            versions.iter().any(|version| any(super::schema_of(version), &mut *pred))
        };
        let at = Path::root("schema");
        let is_structural = |schema: &Value| {
            !schema.is_object() || unsupported_field(schema).is_none() && structural::validate(schema, &at).is_empty()
        };
        let review: Vec<&str> = texts(get(get(old, "conversion"), "webhook"), "conversionReviewVersions").collect();
        let old_of = |version: &Value| {
            let name = text(version, "name");
            versions.iter().find(|old| text(old, "name") == name)
        };
        let named = |keep: &dyn Fn(&Value, &Value) -> bool| -> Vec<String> {
            let kept =
                items(new, "versions").iter().filter(|version| old_of(version).is_some_and(|o| keep(version, o)));
            kept.map(|version| text(version, "name").to_owned()).collect()
        };
        // What all old versions have alike, new ones have had, too.
        let unchanged: Vec<String> = match alike(versions, "schema") {
            Some(old) => {
                let same = items(new, "versions").iter().filter(|version| get(version, "schema") == old);
                same.map(|version| text(version, "name").to_owned()).collect()
            }
            None => named(&|version, old| get(old, "schema") == get(version, "schema")),
        };
        let bundle = get(get(get(old, "conversion"), "webhook"), "clientConfig");
        let bundle = text(bundle, "caBundle");
        let wrong_bundle = !bundle.is_empty() && !super::is_ca_bundle(bundle);
        Self {
            requires_schema: versions.iter().all(|version| super::schema_of(version).is_object()),
            requires_structure: versions.iter().map(super::schema_of).all(is_structural),
            requires_types: !has(&mut |schema| !is_type(text(schema, "type"))),
            requires_pruned: versions
                .iter()
                .map(super::schema_of)
                .all(|schema| !schema.is_object() || !is_structural(schema) || defaults::are_pruned(schema)),
            requires_atomic_sets: !has(&mut |schema| {
                let items = get(schema, "items");
                text(schema, "x-kubernetes-list-type") == "set"
                    && match text(items, "type") {
                        "array" => !matches!(text(items, "x-kubernetes-list-type"), "" | "atomic"),
                        "object" => text(items, "x-kubernetes-map-type") != "atomic",
                        _ => false,
                    }
            }),
            requires_list_keys: !has(&mut |schema| {
                let mut errors = ErrorList::new();
                list_keys(&mut errors, schema, &at);
                !errors.is_empty()
            }),
            requires_review_version: review.is_empty() || review.iter().any(|v| matches!(*v, "v1" | "v1beta1")),
            lenient_bundle: !is_established || wrong_bundle,
            unchanged,
            ignores_cost: false,
            many_fields: many_fields(items(new, "versions"), versions),
        }
    }

    /// Those of one version's schema.
    pub(super) fn of_version(&self, version: &str) -> Self {
        Self { ignores_cost: self.unchanged.iter().any(|name| name == version), ..self.clone() }
    }

    pub(super) fn allows_many_fields(&self, version: &str) -> bool {
        self.many_fields.iter().any(|name| name == version)
    }
}

/// Versions whose selectable fields are too many, as they were.
fn many_fields(new: &[Value], old: &[Value]) -> Vec<String> {
    let are_many = |fields: &Value| fields.as_array().is_some_and(|fields| fields.len() > SELECTABLE_MAX);
    match (alike(new, FIELDS), alike(old, FIELDS)) {
        (Some(new), Some(old)) if are_many(old) && new == old => vec![String::new()],
        (None, None) => {
            let stays = |version: &&Value| {
                let same = |old: &&Value| text(old, "name") == text(version, "name");
                let old = old.iter().find(same).map(|old| get(old, FIELDS));
                old.is_some_and(|old| are_many(old) && get(version, FIELDS) == old)
            };
            new.iter().filter(stays).map(|version| text(version, "name").to_owned()).collect()
        }
        _ => Vec::new(),
    }
}
