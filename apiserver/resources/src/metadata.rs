//! Upstream's validation of every object's metadata, on create and update.
//!
//! The verbs run it before a kind's own `validate`. An update checks the metadata more than once, as upstream does
//! (generic code, then the kind's own), so that an error may appear twice in the causes.

use std::collections::BTreeSet;

use machinery_api::GroupVersion;
use machinery_api::quantity::Quantity;
use serde_json::Value;

use crate::field::{ErrorList, FieldError, IMMUTABLE, Path, go_struct};
use crate::read::{get, int, items, object_mut, put, text, texts};
use crate::rules::{self, NameRule};
use crate::{MetadataChecks, ResourceInfo, Row, Strategy};

/// Bound on all annotations of an object together, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
const METADATA: Path<'static> = Path::root("metadata");
const OWNER_REFERENCE: &[&str] = &["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// The properties of a kind that the rules depend on.
#[derive(Clone, Copy)]
pub struct KindTraits<'a> {
    pub strategy: &'a dyn Strategy,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
}

impl<'a> KindTraits<'a> {
    /// From a served resource.
    #[must_use]
    pub fn resource(info: &'a ResourceInfo) -> Self {
        Self { strategy: &*info.strategy, namespaced: info.namespaced }
    }

    pub(crate) fn row(row: &'a Row) -> Self {
        Self { strategy: row.strategy, namespaced: row.namespaced }
    }
}

/// Validates a new object's metadata.
pub fn validate_create(errors: &mut ErrorList, of: KindTraits<'_>, object: &Value) {
    check_all(errors, of, Some(of.strategy.name_rule()), object, of.strategy.checks_finalizers());
}

/// Validates a new object's metadata, for a kind whose own validation doesn't start with it.
pub(super) fn validate_all(errors: &mut ErrorList, row: &Row, object: &Value) {
    validate_create(errors, KindTraits::row(row), object);
}

/// Validates metadata changes of an update, for a kind whose own validation doesn't start with it.
pub(super) fn validate_unchanged(errors: &mut ErrorList, row: &Row, new: &Value, old: &Value) {
    check_unchanged(errors, new, old, row.strategy.checks_finalizers());
}

/// Validates the metadata of an update through a subresource (empty: the main resource).
pub fn validate_update(errors: &mut ErrorList, of: KindTraits<'_>, subresource: &str, new: &Value, old: &Value) {
    let (rule, kube) = (of.strategy.name_rule(), of.strategy.checks_finalizers());
    check_all(errors, of, Some(NameRule::PathSegment), new, false);
    check_unchanged(errors, new, old, false);
    // Upstream's declarative validation of names replaces the kind's own.
    let rule = Some(rule).filter(|rule| *rule != NameRule::GeneratedSubdomain);
    match of.strategy.metadata_checks_of(subresource) {
        MetadataChecks::None => {}
        MetadataChecks::Change => check_unchanged(errors, new, old, kube),
        MetadataChecks::Whole => check_all(errors, of, rule, new, kube),
        MetadataChecks::ChangeThenWhole => {
            check_unchanged(errors, new, old, kube);
            check_all(errors, of, rule, new, kube);
        }
        MetadataChecks::WholeThenChange => {
            check_all(errors, of, rule, new, kube);
            check_unchanged(errors, new, old, kube);
        }
    }
}

/// Validates the metadata of an embedded object, which need not have a name.
pub(super) fn validate_embedded(errors: &mut ErrorList, meta: &Value, at: &Path<'_>) {
    for (key, prefix) in [("generateName", true), ("name", false)] {
        let value = text(meta, key);
        if !value.is_empty() {
            errors.invalid_each(&at.child(key), value, rules::path_segment(value, prefix));
        }
    }
    let namespace = text(meta, "namespace");
    if !namespace.is_empty() {
        errors.invalid_each(&at.child("namespace"), namespace, rules::dns_label(namespace));
    }
    errors.non_negative(&at.child("generation"), int(meta, "generation"));
    labels(errors, get(meta, "labels"), &at.child("labels"));
    annotations(errors, get(meta, "annotations"), &at.child("annotations"));
    owners(errors, meta, at);
    finalizers(errors, meta, at);
}

fn check_names(errors: &mut ErrorList, rule: NameRule, meta: &Value) {
    let (name, prefix) = (text(meta, "name"), text(meta, "generateName"));
    if !prefix.is_empty() {
        errors.invalid_each(&METADATA.child("generateName"), prefix, rule.check(prefix, true));
    }
    if name.is_empty() {
        errors.required(&METADATA.child("name"), "name or generateName is required");
    } else {
        errors.invalid_each(&METADATA.child("name"), name, rule.check(name, false));
    }
}

/// `rule`: of the names; without one they aren't checked.
fn check_all(
    errors: &mut ErrorList,
    of: KindTraits<'_>,
    rule: Option<NameRule>,
    object: &Value,
    kube_finalizers: bool,
) {
    let meta = get(object, "metadata");
    if let Some(rule) = rule {
        check_names(errors, rule, meta);
    }
    let namespace = text(meta, "namespace");
    let at = METADATA.child("namespace");
    if of.namespaced {
        if namespace.is_empty() {
            errors.required(&at, "");
        } else {
            errors.invalid_each(&at, namespace, rules::dns_label(namespace));
        }
    } else if !namespace.is_empty() {
        errors.forbidden(&at, "not allowed on this type");
    }
    errors.non_negative(&METADATA.child("generation"), int(meta, "generation"));
    labels(errors, get(meta, "labels"), &METADATA.child("labels"));
    annotations(errors, get(meta, "annotations"), &METADATA.child("annotations"));
    owners(errors, meta, &METADATA);
    finalizers(errors, meta, &METADATA);
    if kube_finalizers {
        standard_finalizers(errors, meta);
    }
}

fn check_unchanged(errors: &mut ErrorList, new: &Value, old: &Value, kube_finalizers: bool) {
    let (meta, old) = (get(new, "metadata"), get(old, "metadata"));
    if !get(old, "deletionTimestamp").is_null() {
        let kept: BTreeSet<&str> = texts(old, "finalizers").collect();
        let mut added: Vec<&str> = texts(meta, "finalizers").filter(|f| !kept.contains(f)).collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| crate::field::quoted(f)).collect();
            let list = format!("[]string{{{}}}", list.join(", "));
            let why =
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {list}");
            errors.forbidden(&METADATA.child("finalizers"), &why);
        }
    }
    if text(meta, "resourceVersion").is_empty() {
        errors.invalid(&METADATA.child("resourceVersion"), "", "must be specified for an update");
    }
    let generation = int(meta, "generation").unwrap_or(0);
    if generation < int(old, "generation").unwrap_or(0) {
        errors.invalid(&METADATA.child("generation"), generation, "must not be decremented");
    }
    for key in ["name", "namespace", "uid"] {
        if text(meta, key) != text(old, key) {
            errors.invalid(&METADATA.child(key), text(meta, key), IMMUTABLE);
        }
    }
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.immutable(&METADATA.child(key), get(meta, key), get(old, key));
    }
    labels(errors, get(meta, "labels"), &METADATA.child("labels"));
    annotations(errors, get(meta, "annotations"), &METADATA.child("annotations"));
    owners(errors, meta, &METADATA);
    if kube_finalizers {
        standard_finalizers(errors, meta);
    }
}

/// Restores all client-set metadata in a status write of newer kinds.
pub(super) fn reset_for_status(new: &mut Value, old: &Value) {
    let (meta, old) = (object_mut(new, "metadata"), get(old, "metadata"));
    for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
        put(meta, key, get(old, key).clone());
    }
}

/// Validates a label's key.
pub(super) fn label_name(errors: &mut ErrorList, key: &str, path: &Path<'_>) {
    errors.invalid_each(path, key, rules::label_key(key));
}

/// The error of `labels` or `annotations` that a third party set on an object, as one message.
#[must_use]
pub fn labels_or_annotations_error(key: &str, map: &Value) -> Option<String> {
    let mut errors = ErrorList::new();
    match key {
        "labels" => labels(&mut errors, map, &METADATA.child("labels")),
        // Upstream's path.
        _ => annotations(&mut errors, map, &METADATA.child("annotation")),
    }
    let all: Vec<String> =
        errors.into_causes().iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    match &*all {
        [] => None,
        [one] => Some(one.clone()),
        more => Some(format!("[{}]", more.join(", "))),
    }
}

/// Validates a map of labels.
pub(super) fn labels(errors: &mut ErrorList, map: &Value, path: &Path<'_>) {
    for (key, value) in map.as_object().into_iter().flatten() {
        label_name(errors, key, path);
        let value = value.as_str().unwrap_or("");
        errors.invalid_each(path, value, rules::label_value(value));
    }
}

/// Validates a map of annotations.
pub(super) fn annotations(errors: &mut ErrorList, map: &Value, path: &Path<'_>) {
    let mut bytes = 0;
    for (key, value) in map.as_object().into_iter().flatten() {
        errors.invalid_each(path, key, rules::label_key(&key.to_lowercase()));
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.too_long(path, ANNOTATIONS_BYTES_MAX);
    }
}

/// Validates a label selector.
pub(super) fn label_selector(errors: &mut ErrorList, selector: &Value, path: &Path<'_>) {
    if selector.is_null() {
        return;
    }
    labels(errors, get(selector, "matchLabels"), &path.child("matchLabels"));
    let expressions = path.child("matchExpressions");
    for (i, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let at = expressions.index(i);
        let values = items(expression, "values");
        let values_at = at.child("values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&values_at, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(&values_at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        label_name(errors, text(expression, "key"), &at.child("key"));
        for (j, value) in texts(expression, "values").enumerate() {
            errors.invalid_each(&values_at.index(j), value, rules::label_value(value));
        }
    }
}

fn owners(errors: &mut ErrorList, meta: &Value, at: &Path<'_>) {
    let path = at.child("ownerReferences");
    let mut controller: Option<String> = None;
    let references = items(meta, "ownerReferences");
    for reference in references {
        let api_version = text(reference, "apiVersion");
        if !GroupVersion::parse_checked(api_version).is_ok_and(|parsed| !parsed.version.is_empty()) {
            errors.invalid(&path.child("apiVersion"), api_version, "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if text(reference, key).is_empty() {
                errors.invalid(&path.child(key), "", "must not be empty");
            }
        }
        let kind = text(reference, "kind");
        if api_version == "v1" && kind == "Event" {
            errors.add(|| {
                let shown = go_struct(reference, OWNER_REFERENCE);
                FieldError::invalid_shown(&path, &shown, "/v1, Kind=Event is disallowed from being an owner")
            });
        }
        if get(reference, "controller") == &Value::Bool(true) {
            let this = format!("{kind}/{}", text(reference, "name"));
            match &controller {
                Some(first) => {
                    let why = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    errors.add(|| {
                        let all: Vec<String> = references.iter().map(|r| go_struct(r, OWNER_REFERENCE)).collect();
                        FieldError::invalid_shown(&path, &format!("[{}]", all.join(",")), &why)
                    });
                }
                None => controller = Some(this),
            }
        }
    }
}

fn finalizers(errors: &mut ErrorList, meta: &Value, at: &Path<'_>) {
    let path = at.child("finalizers");
    for finalizer in texts(meta, "finalizers") {
        errors.invalid_each(&path, finalizer, rules::label_key(finalizer));
    }
    let has = |name: &str| texts(meta, "finalizers").any(|f| f == name);
    if has(ORPHAN) && has(FOREGROUND) {
        let why = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.invalid(&path, get(meta, "finalizers").clone(), &why);
    }
}

fn standard_finalizers(errors: &mut ErrorList, meta: &Value) {
    let path = METADATA.child("finalizers");
    for (i, finalizer) in texts(meta, "finalizers").enumerate() {
        standard_finalizer(errors, finalizer, &path.index(i));
    }
}

/// A finalizer of a core kind must have a domain or be one of Kubernetes' own.
pub(super) fn standard_finalizer(errors: &mut ErrorList, finalizer: &str, path: &Path<'_>) {
    if !finalizer.contains('/') && !["kubernetes", ORPHAN, FOREGROUND].contains(&finalizer) {
        errors.invalid(path, finalizer, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// A quantity of a map, if it parses (decoding has checked it).
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}
