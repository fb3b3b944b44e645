//! PersistentVolumeClaims: requirements for a volume. A claim is bound once; afterwards only its size may grow.

use jiff::Timestamp;
use machinery_api::quantity::Quantity;
use serde_json::{Value, json};

use super::persistentvolumes::{CLASS_ANNOTATION, access_modes, class_of};
use crate::cells::{AGE, NAME, age, column, name, wide};
use crate::core::pods::resources::amount;
use crate::core::pods::{claims, update};
use crate::field::{ErrorList, IMMUTABLE, Path};
use crate::go_structs;
use crate::metadata::quantity;
use crate::read::{default_to, default_zero_to, entries, get, has, object_mut, put, remove, spec_of, text};
use crate::rules;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    subresources: &[STATUS],
    storage: Storage::Stored("persistentvolumeclaims"),
    shows_empty: true,
    strategy: &PersistentVolumeClaim,
    example: r#"apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: example}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
"#,
    ..Row::NAMESPACED
};

struct PersistentVolumeClaim;

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string"),
    column("Volume", "string"),
    column("Capacity", "string"),
    column("Access Modes", "string"),
    column("StorageClass", "string"),
    column("VolumeAttributesClass", "string"),
    AGE,
    wide("VolumeMode", "string"),
];
const SPEC: Path<'static> = Path::root("spec");
const STATUS_AT: Path<'static> = Path::root("status");
const CLASS: &str = "volumeAttributesClassName";
const RESIZING: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

fn storage(of: &Value) -> Quantity {
    quantity(get(get(get(of, "resources"), "requests"), "storage")).unwrap_or_else(Quantity::zero)
}

fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    text(get(get(object, "metadata"), "annotations"), key)
}

/// Drops cross-namespace data sources, which upstream v1.36 disables.
fn drop_disabled(spec: &mut Value, old: Option<&Value>) {
    let elsewhere = !text(get(spec, "dataSourceRef"), "namespace").is_empty();
    if elsewhere && !old.is_some_and(|old| has(old, "dataSourceRef")) {
        remove(spec, "dataSourceRef");
    }
}

/// Drops data sources other than a claim or a snapshot, which upstream has always dropped from `dataSource`.
fn drop_unsupported_source(spec: &mut Value, old: Option<&Value>) {
    let used = old.is_some_and(|old| has(old, "dataSource") || has(old, "dataSourceRef"));
    if used || has(spec, "dataSourceRef") {
        return;
    }
    let source = get(spec, "dataSource");
    let known = matches!(
        (text(source, "apiGroup"), text(source, "kind")),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    );
    if !known {
        remove(spec, "dataSource");
    }
}

/// Copies `dataSource` to `dataSourceRef` or back, whichever is missing.
fn align_data_sources(spec: &mut Value) {
    let copy = |from: &Value| {
        let mut to = json!({"kind": text(from, "kind"), "name": text(from, "name")});
        put(&mut to, "apiGroup", get(from, "apiGroup").clone());
        to
    };
    let (source, reference) = (get(spec, "dataSource"), get(spec, "dataSourceRef"));
    match (source.is_null(), reference.is_null()) {
        (false, true) => {
            let reference = copy(source);
            put(spec, "dataSourceRef", reference);
        }
        (true, false) if text(reference, "namespace").is_empty() => {
            let source = copy(reference);
            put(spec, "dataSource", source);
        }
        _ => {}
    }
}

/// Validates the changes of a claim's spec.
fn validate_changes(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (mut spec, mut was) = (get(new, "spec").clone(), get(old, "spec").clone());
    align_data_sources(&mut was);
    if text(&was, "volumeName").is_empty() {
        let volume = get(&spec, "volumeName").clone();
        put(&mut was, "volumeName", volume);
    }
    let (old_class, new_class) = (annotation(old, CLASS_ANNOTATION), annotation(new, CLASS_ANNOTATION));
    let class = |of: &Value| get(of, "storageClassName").as_str().map(str::to_owned);
    let annotated = has(get(get(old, "metadata"), "annotations"), CLASS_ANNOTATION);
    let moves = annotated && class(&was).is_none() && class(&spec).as_deref() == Some(old_class);
    if moves && (new_class.is_empty() || new_class == old_class) {
        remove(&mut spec, "storageClassName");
    } else {
        if new_class != old_class {
            let at = Path::root("metadata.annotations");
            errors.invalid(&at.child(CLASS_ANNOTATION), new_class, IMMUTABLE);
        }
        let named = class(&spec).filter(|_| class(&was).is_none());
        if named.is_some_and(|named| !annotated || named == old_class) {
            remove(&mut spec, "storageClassName");
        }
    }
    let is_bound = text(get(new, "status"), "phase") == "Bound";
    if is_bound {
        if let Some(requests) = spec.pointer_mut("/resources/requests") {
            put(requests, "storage", get(get(get(&was, "resources"), "requests"), "storage").clone());
        }
        put(&mut spec, CLASS, get(&was, CLASS).clone());
    }
    if !update::semantically_equal(&spec, &was) {
        let difference = go_structs::difference(&was, &spec, "PersistentVolumeClaimSpec");
        let why = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{difference}"
        );
        errors.forbidden(&SPEC, &why);
    }
    let (spec, was, status) = (get(new, "spec"), get(old, "spec"), get(old, "status"));
    let held = quantity(get(get(status, "capacity"), "storage")).unwrap_or_else(Quantity::zero);
    if storage(spec) < storage(was) && storage(spec) <= held {
        let at = SPEC.child("resources.requests.storage");
        errors.forbidden(&at, "field can not be less than status.capacity");
    }
    errors.immutable(&Path::root("volumeMode"), get(spec, "volumeMode"), get(was, "volumeMode"));
    if get(spec, CLASS) != get(was, CLASS) && has(status, "currentVolumeAttributesClassName") {
        let why = match get(spec, CLASS).as_str() {
            None => "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil",
            Some("") => "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil",
            Some(_) => return,
        };
        errors.forbidden(&SPEC.child(CLASS), why);
    }
}

/// Validates a key of allocated resources; false if it is invalid.
fn allocated_resource_name(errors: &mut ErrorList, key: &str, path: &Path<'_>) -> bool {
    let wrong = rules::label_key(key);
    if !wrong.is_empty() {
        errors.invalid_each(path, key, wrong);
        return false;
    }
    let native = !key.contains('/') || key.contains("kubernetes.io/");
    if native && key != "storage" {
        errors.not_supported(path, key, &["storage"]);
        return false;
    }
    true
}

fn status(errors: &mut ErrorList, object: &Value) {
    if !has(get(object, "spec"), "accessModes") {
        errors.required(&Path::root("Spec").child("accessModes"), "");
    }
    let status = get(object, "status");
    let capacity_at = STATUS_AT.child("capacity");
    for (key, value) in entries(status, "capacity") {
        super::persistentvolumes::not_negative(errors, value, &capacity_at.key(key));
    }
    let statuses_at = STATUS_AT.child("allocatedResourceStatuses");
    for (key, value) in entries(status, "allocatedResourceStatuses") {
        allocated_resource_name(errors, key, &statuses_at);
        if !RESIZING.contains(&value.as_str().unwrap_or("")) {
            let mut supported = RESIZING.to_vec();
            supported.sort_unstable();
            errors.not_supported(&statuses_at, key.as_str(), &supported);
        }
    }
    let allocated_at = STATUS_AT.child("allocatedResources");
    for (key, value) in entries(status, "allocatedResources") {
        if allocated_resource_name(errors, key, &allocated_at) {
            let at = allocated_at.key(key);
            let before = errors.count();
            super::persistentvolumes::not_negative(errors, value, &at);
            if errors.count() == before {
                amount(errors, "storage", value, &at);
            }
        }
    }
}

impl Strategy for PersistentVolumeClaim {
    fn delete_answers_object(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        default_to(spec_of(object), "volumeMode", "Filesystem");
        default_zero_to(object_mut(object, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({"phase": "Pending"}));
        let spec = spec_of(object);
        drop_disabled(spec, None);
        drop_unsupported_source(spec, None);
        align_data_sources(spec);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource != "status" {
            let (spec, old) = (spec_of(new), Some(get(old, "spec")));
            drop_disabled(spec, old);
            drop_unsupported_source(spec, old);
            align_data_sources(spec);
        }
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            status(errors, object);
        } else {
            claims::spec(errors, get(object, "spec"), &SPEC);
            if let Some(old) = old {
                validate_changes(errors, object, old);
            }
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if has(get(get(object, "metadata"), "annotations"), CLASS_ANNOTATION) {
            found.push(format!("metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"));
        }
        claims::warnings(&mut found, get(object, "spec"), &SPEC);
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let deleting = has(get(object, "metadata"), "deletionTimestamp");
        let volume = text(spec, "volumeName");
        let (mut capacity, mut modes) = (String::new(), String::new());
        if !volume.is_empty() {
            modes = access_modes(status);
            let held = quantity(get(get(status, "capacity"), "storage")).unwrap_or_else(Quantity::zero);
            capacity = held.to_string();
        }
        let unset = |key| if has(spec, key) { text(spec, key) } else { "<unset>" };
        vec![
            name(object),
            json!(if deleting { "Terminating" } else { text(status, "phase") }),
            json!(volume),
            json!(capacity),
            json!(modes),
            json!(class_of(object)),
            json!(unset(CLASS)),
            age(object, now),
            json!(unset("volumeMode")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(storage: &str, phase: &str, capacity: &str) -> Value {
        json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": storage}}, "storageClassName": "fast", "volumeName": "v"},
            "status": {"phase": phase, "capacity": {"storage": capacity}}})
    }

    fn errors_of(new: &Value, old: &Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        validate_changes(&mut errors, new, old);
        errors.shown().iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn a_bound_claim_grows_and_shrinks_no_further_than_it_is() {
        let old = claim("2Gi", "Bound", "1Gi");
        assert_eq!(errors_of(&claim("3Gi", "Bound", "1Gi"), &old), Vec::<String>::new());
        assert_eq!(
            errors_of(&claim("1536Mi", "Bound", "1Gi"), &old),
            Vec::<String>::new(),
            "an expansion that failed is taken back"
        );
        assert_eq!(errors_of(&claim("1Gi", "Bound", "1Gi"), &old), ["spec.resources.requests.storage"]);
        assert_eq!(errors_of(&claim("3Gi", "Pending", "0"), &claim("2Gi", "Pending", "0")), ["spec"]);
        let mut other = old.clone();
        other["spec"]["volumeName"] = json!("w");
        assert_eq!(errors_of(&other, &old), ["spec"]);
        let mut unbound = claim("1Gi", "Pending", "0");
        unbound["spec"].as_object_mut().unwrap().remove("volumeName");
        assert_eq!(errors_of(&claim("1Gi", "Pending", "0"), &unbound), Vec::<String>::new(), "a claim is bound once");
    }

    #[test]
    fn a_class_is_given_once_and_moves_from_the_annotation() {
        let mut old = claim("1Gi", "Pending", "0");
        old["spec"].as_object_mut().unwrap().remove("storageClassName");
        let mut new = old.clone();
        new["spec"]["storageClassName"] = json!("slow");
        assert_eq!(errors_of(&new, &old), Vec::<String>::new());
        assert_eq!(errors_of(&old, &new), ["spec"]);
        old["metadata"]["annotations"] = json!({CLASS_ANNOTATION: "fast"});
        assert_eq!(errors_of(&new, &old), [format!("metadata.annotations.{CLASS_ANNOTATION}"), "spec".into()]);
        new["spec"]["storageClassName"] = json!("fast");
        assert_eq!(errors_of(&new, &old), Vec::<String>::new());
    }
}
