//! What a changed definition need not keep to, as what was stored before didn't.

use serde_json::Value;

use super::schema::{any, is_type, list_keys};
use super::{defaults, structural};
use crate::field::{ErrorList, Path};
use crate::read::{get, items, text, texts};

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
    /// Rules may cost what they cost: no schema changed.
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
        ignores_cost: false,
        many_fields: Vec::new(),
    };

    pub(super) fn of_update(new: &Value, old: &Value, is_established: bool) -> Self {
        let versions = items(old, "versions");
        let has = |pred: &mut dyn FnMut(&Value) -> bool| {
            versions.iter().any(|version| any(super::schema_of(version), &mut *pred))
        };
        let at = Path::root("schema");
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
        let many = |version: &Value, old: &Value| {
            items(old, "selectableFields").len() > 8 && get(version, "selectableFields") == get(old, "selectableFields")
        };
        let mut many_fields = named(&many);
        if !many_fields.is_empty() && many_fields.len() == items(new, "versions").len() {
            many_fields.push(String::new());
        }
        let bundle = get(get(get(old, "conversion"), "webhook"), "clientConfig");
        let bundle = text(bundle, "caBundle");
        let wrong_bundle = !bundle.is_empty() && !super::is_ca_bundle(bundle);
        Self {
            requires_schema: versions.iter().all(|version| super::schema_of(version).is_object()),
            requires_structure: versions
                .iter()
                .map(super::schema_of)
                .filter(|schema| schema.is_object())
                .all(|schema| schema.is_object() && structural::validate(schema, &at).is_empty()),
            requires_types: !has(&mut |schema| !is_type(text(schema, "type"))),
            requires_pruned: versions.iter().all(|version| defaults::are_pruned(super::schema_of(version))),
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
            ignores_cost: items(new, "versions")
                .iter()
                .all(|version| old_of(version).is_some_and(|old| get(old, "schema") == get(version, "schema"))),
            many_fields,
        }
    }

    pub(super) fn allows_many_fields(&self, version: &str) -> bool {
        self.many_fields.iter().any(|name| name == version)
    }
}
