//! Checks that an update need not satisfy, since the stored definition didn't.

use serde_json::Value;

use super::parts::SELECTABLE_MAX;
use super::schema::{any, is_type, list_keys, unsupported_field};
use super::{defaults, shared_value, structural};
use crate::field::{ErrorList, Path};
use crate::read::{get, items, text, texts};

const FIELDS: &str = "selectableFields";

/// The checks of one update; see the module.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// All versions must have a schema.
    pub(super) requires_schema: bool,
    /// Schemas must be structural.
    pub(super) requires_structure: bool,
    /// Types must be those of OpenAPI.
    pub(super) requires_types: bool,
    /// Defaults must not have unknown fields.
    pub(super) requires_pruned: bool,
    /// Items of sets must be atomic.
    pub(super) requires_atomic_sets: bool,
    /// Keys of list maps must be required or have a default.
    pub(super) requires_list_keys: bool,
    /// At least one review version must be known.
    pub(super) requires_review_version: bool,
    /// Skips the check of the webhook's CA bundle.
    pub(super) lenient_bundle: bool,
    /// Versions with an unchanged schema, whose rules are exempt from the cost limit.
    pub(super) unchanged: Vec<String>,
    /// Exempts rules from the cost limit.
    pub(super) ignores_cost: bool,
    /// Versions that exceed the limit of selectable fields and did so before (empty name: shared by all versions).
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
        // A schema that all old versions share counts as the old one for new versions too.
        let unchanged: Vec<String> = match shared_value(versions, "schema") {
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

    /// The options for one version's schema.
    pub(super) fn of_version(&self, version: &str) -> Self {
        Self { ignores_cost: self.unchanged.iter().any(|name| name == version), ..self.clone() }
    }

    pub(super) fn allows_many_fields(&self, version: &str) -> bool {
        self.many_fields.iter().any(|name| name == version)
    }
}

/// Versions with unchanged selectable fields above the limit.
fn many_fields(new: &[Value], old: &[Value]) -> Vec<String> {
    let are_many = |fields: &Value| fields.as_array().is_some_and(|fields| fields.len() > SELECTABLE_MAX);
    match (shared_value(new, FIELDS), shared_value(old, FIELDS)) {
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
