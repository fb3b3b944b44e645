//! PersistentVolumes: storage of the cluster. A volume's source is immutable.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::quantity::Quantity;
use machinery_api::time::seconds;
use serde_json::{Map, Value, json};

use crate::cells::{AGE, NAME, age, column, name, wide};
use crate::core::pods::volumes::{no_backsteps, required};
use crate::core::pods::{claims, defaults, disks, placement, update, warnings as pod_warnings};
use crate::field::{ErrorList, Path};
use crate::go_structs;
use crate::metadata::{self, quantity};
use crate::read::{
    default_to, default_zero_to, entries, get, has, is_zero, items, object_mut, put, spec_of, text, texts,
};
use crate::rules;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    schema: "io.k8s.api.core.v1.PersistentVolume",
    subresources: &[STATUS],
    storage: Storage::Stored("persistentvolumes"),
    shows_empty: true,
    strategy: &PersistentVolume,
    example: r#"apiVersion: v1
kind: PersistentVolume
metadata: {name: example}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  nfs: {server: nfs.example.com, path: /exports}
"#,
    ..Row::CLUSTER
};

struct PersistentVolume;

/// The annotation of the storage class before the field.
pub(super) const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "string"),
    column("Access Modes", "string"),
    column("Reclaim Policy", "string"),
    column("Status", "string"),
    column("Claim", "string"),
    column("StorageClass", "string"),
    column("VolumeAttributesClass", "string"),
    column("Reason", "string"),
    AGE,
    wide("VolumeMode", "string"),
];
const SPEC: Path<'static> = Path::root("spec");
const CLASS: &str = "volumeAttributesClassName";

/// Sources in upstream's order: the field, its name in upstream's "more than one", and its name in errors below it.
const SOURCES: &[(&str, &str, &str)] = &[
    ("hostPath", "hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs", "glusterfs"),
    ("flocker", "flocker", "flocker"),
    ("nfs", "nfs", "nfs"),
    ("rbd", "rbd", "rbd"),
    ("quobyte", "quobyte", "quobyte"),
    ("cephfs", "cephFS", "cephfs"),
    ("iscsi", "iscsi", "iscsi"),
    ("cinder", "cinder", "cinder"),
    ("fc", "fc", "fc"),
    ("flexVolume", "flexVolume", "flexVolume"),
    ("azureFile", "azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO", "scaleIO"),
    ("local", "local", "local"),
    ("storageos", "storageos", "storageos"),
    ("csi", "csi", "csi"),
];
/// Sources that support mount options.
const MOUNTED: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "gcePersistentDisk",
    "glusterfs",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "quobyte",
    "rbd",
    "vsphereVolume",
];
/// Sources whose drivers are removed: field, upstream's name, version of deprecation, version of removal.
const GONE: &[(&str, &str, &str)] = &[
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The storage class of a volume or a claim.
pub(super) fn class_of(object: &Value) -> &str {
    let annotations = get(get(object, "metadata"), "annotations");
    if has(annotations, CLASS_ANNOTATION) {
        return text(annotations, CLASS_ANNOTATION);
    }
    text(get(object, "spec"), "storageClassName")
}

/// The access modes, abbreviated.
pub(super) fn access_modes(of: &Value) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| texts(of, "accessModes").any(|given| given == mode);
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

/// A quantity that must not be negative.
pub(super) fn not_negative(errors: &mut ErrorList, value: &Value, path: &Path<'_>) {
    if let Some(whole) = quantity(value).map(|amount| amount.value()).filter(|whole| *whole < 0) {
        errors.invalid(path, whole, "must be a valid resource quantity");
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    if items(spec, "accessModes").is_empty() {
        errors.required(&SPEC.child("accessModes"), "");
    }
    claims::access_modes(errors, spec, &SPEC);
    capacity(errors, spec);
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    let policy_at = SPEC.child("persistentVolumeReclaimPolicy");
    const POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        errors.not_supported(&policy_at, policy, POLICIES);
    }
    let affinity = get(spec, "nodeAffinity");
    if !affinity.is_null() {
        let at = SPEC.child("nodeAffinity.required");
        match get(affinity, "required") {
            Value::Null => errors.required(&at, "must specify required node constraints"),
            required => placement::node_selector(errors, required, &at),
        }
    }
    sources(errors, spec, crate::read::name(object));
    let host = text(get(spec, "hostPath"), "path");
    let root = !host.is_empty() && host.starts_with('/') && host.split('/').all(|part| part.is_empty() || part == ".");
    if root && policy == "Recycle" {
        errors.forbidden(&policy_at, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = text(spec, "storageClassName");
    if !class.is_empty() {
        errors.invalid_each(&SPEC.child("storageClassName"), class, rules::dns_subdomain(class));
    }
    claims::volume_mode(errors, spec, &SPEC);
    if has(spec, CLASS) {
        let at = SPEC.child(CLASS);
        match text(spec, CLASS) {
            "" => errors.required(&at, "an empty string is disallowed"),
            class => errors.invalid_each(&at, class, rules::dns_subdomain(class)),
        }
        if !has(spec, "csi") {
            errors.required(&SPEC.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
    mount_options(errors, object);
}

fn capacity(errors: &mut ErrorList, spec: &Value) {
    let (given, at) = (get(spec, "capacity"), SPEC.child("capacity"));
    let entries: Vec<_> = entries(spec, "capacity").collect();
    if entries.is_empty() {
        errors.required(&at, "");
    }
    if !has(given, "storage") || entries.len() > 1 {
        errors.not_supported(&at, given.clone(), &["storage"]);
    }
    for (key, value) in entries {
        let at = at.key(key);
        not_negative(errors, value, &at);
        if let Some(amount) = quantity(value).filter(|amount| amount.sign() <= 0) {
            errors.invalid(&at, amount.to_string(), "must be greater than zero");
        }
    }
}

/// Whether a spec names the storage that holds the volume.
pub(crate) fn has_source(spec: &Value) -> bool {
    SOURCES.iter().any(|(key, ..)| has(spec, key))
}

fn sources(errors: &mut ErrorList, spec: &Value, name: &str) {
    let mut given = 0;
    for (key, as_second, inside) in SOURCES {
        let source = get(spec, key);
        if source.is_null() {
            continue;
        }
        given += 1;
        // Upstream always validates a FlexVolume.
        if given > 1 && *key != "flexVolume" {
            errors.forbidden(&SPEC.child(as_second), "may not specify more than 1 volume type");
            continue;
        }
        one_source(errors, key, source, name, &SPEC.child(inside));
        if *key == "local" && !has(spec, "nodeAffinity") {
            errors.required(&SPEC.child("nodeAffinity"), "Local volume requires node affinity");
        }
    }
    if given == 0 {
        errors.required(&SPEC, "must specify a volume type");
    }
}

fn one_source(errors: &mut ErrorList, key: &str, source: &Value, name: &str, path: &Path<'_>) {
    match key {
        "hostPath" => crate::core::pods::volumes::host_path(errors, source, path),
        "local" => match text(source, "path") {
            "" => errors.required(&path.child("path"), ""),
            file => no_backsteps(errors, file, &path.child("path")),
        },
        "csi" => csi(errors, source, path),
        "glusterfs" => {
            required(errors, source, &["endpoints", "path"], path);
            let at = path.child("endpointsNamespace");
            match get(source, "endpointsNamespace").as_str() {
                Some("") => {
                    errors.invalid(&at, "", "if the endpointnamespace is set, it must be a valid namespace name");
                }
                Some(namespace) => errors.invalid_each(&at, namespace, rules::dns_label(namespace)),
                None => {}
            }
        }
        "cinder" => {
            required(errors, source, &["volumeID"], path);
            secret(errors, source, path);
        }
        "storageos" => {
            disks::source(errors, key, source, path);
            if has(source, "secretRef") && text(get(source, "secretRef"), "namespace").is_empty() {
                errors.required(&path.child("secretRef.namespace"), "");
            }
        }
        "azureFile" => {
            required(errors, source, &["secretName", "shareName"], path);
            if get(source, "secretNamespace").as_str() == Some("") {
                errors.required(&path.child("secretNamespace"), "");
            }
        }
        "iscsi" => iscsi(errors, source, name, path),
        _ => disks::source(errors, key, source, path),
    }
}

/// A reference to a Secret in any namespace.
fn secret(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    if has(source, "secretRef") {
        required(errors, get(source, "secretRef"), &["name", "namespace"], &path.child("secretRef"));
    }
}

fn iscsi(errors: &mut ErrorList, source: &Value, name: &str, path: &Path<'_>) {
    let portal = text(source, "targetPortal");
    if has(source, "initiatorName") && name.len() + 1 + portal.len() > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
        errors.invalid(&path.child("targetportal"), portal, why);
    }
    disks::iscsi(errors, source, path, "must be valid format");
    if has(source, "secretRef") && text(get(source, "secretRef"), "name").is_empty() {
        errors.required(&path.child("secretRef.name"), "");
    }
}

fn csi(errors: &mut ErrorList, source: &Value, path: &Path<'_>) {
    disks::csi_driver(errors, text(source, "driver"), &path.child("driver"));
    required(errors, source, &["volumeHandle"], path);
    for key in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let reference = get(source, key);
        if reference.is_null() {
            continue;
        }
        let at = path.child(key);
        required(errors, reference, &["name"], &at);
        let (name, namespace) = (text(reference, "name"), text(reference, "namespace"));
        if !name.is_empty() {
            errors.invalid_each(&at.child("name"), name, rules::dns_subdomain(name));
        }
        required(errors, reference, &["namespace"], &at);
        if !namespace.is_empty() {
            errors.invalid_each(&at.child("namespace"), namespace, rules::dns_label(namespace));
        }
    }
}

fn mount_options(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    if !MOUNTED.iter().any(|key| has(spec, key)) && has(get(get(object, "metadata"), "annotations"), MOUNT_OPTIONS) {
        let at = Path::root("metadata.annotations");
        errors.forbidden(&at.child(MOUNT_OPTIONS), "may not specify mount options for this volume type");
    }
}

/// The volume's source.
fn source_of(spec: &Value) -> Value {
    let kept: Map<String, Value> = SOURCES
        .iter()
        .filter(|(key, ..)| has(spec, key))
        .map(|(key, ..)| ((*key).to_owned(), get(spec, key).clone()))
        .collect();
    Value::Object(kept)
}

/// Whether affinities are equal, except for renamed labels.
fn affinities_equal(new: &Value, old: &Value) -> bool {
    const RENAMED: [(&str, &str); 4] = [
        ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
        ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ];
    let renamed = |new: &str, old: &str| {
        let instances = ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type");
        let beta = old == instances.0 || RENAMED.iter().any(|(beta, _)| *beta == old);
        // Upstream's table has an empty new name for every other label.
        new == old || RENAMED.contains(&(old, new)) || (old, new) == instances || (new.is_empty() && !beta)
    };
    fn walk(new: &Value, old: &Value, renamed: &dyn Fn(&str, &str) -> bool) -> bool {
        match (new, old) {
            (Value::Object(new), Value::Object(old)) => {
                // An empty list equals an absent one.
                let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
                keys.into_iter().all(|key| {
                    let (new, old) = (new.get(key).unwrap_or(&Value::Null), old.get(key).unwrap_or(&Value::Null));
                    match key.as_str() {
                        "key" => renamed(new.as_str().unwrap_or(""), old.as_str().unwrap_or("")),
                        _ => (is_zero(new) && is_zero(old)) || walk(new, old, renamed),
                    }
                })
            }
            (Value::Array(new), Value::Array(old)) => {
                new.len() == old.len() && new.iter().zip(old).all(|(new, old)| walk(new, old, renamed))
            }
            _ => new == old,
        }
    }
    walk(new, old, &renamed)
}

fn validate_changes(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (spec, was) = (get(new, "spec"), get(old, "spec"));
    let (mut source, old_source) = (source_of(spec), source_of(was));
    if has(was, "csi")
        && !has(get(was, "csi"), "controllerExpandSecretRef")
        && let Some(csi) = source.get_mut("csi")
    {
        crate::read::remove(csi, "controllerExpandSecretRef");
    }
    if !update::semantically_equal(&source, &old_source) {
        let difference = go_structs::difference(&old_source, &source, "PersistentVolumeSource");
        let why = format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        errors.forbidden(&SPEC.child("persistentvolumesource"), &why);
    }
    errors.immutable(&Path::root("volumeMode"), get(spec, "volumeMode"), get(was, "volumeMode"));
    let (affinity, old_affinity) = (get(spec, "nodeAffinity"), get(was, "nodeAffinity"));
    if !old_affinity.is_null() && !affinities_equal(affinity, old_affinity) {
        let why = "field is immutable, except for updating from beta label to GA";
        go_structs::invalid(errors, &Path::root("nodeAffinity"), affinity, "*VolumeNodeAffinity", why);
    }
    if has(was, CLASS) && !has(spec, CLASS) {
        errors.forbidden(&SPEC.child(CLASS), "update from non-nil value to nil is forbidden");
    }
}

impl Strategy for PersistentVolume {
    fn delete_answers_object(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_zero_to(spec, "persistentVolumeReclaimPolicy", "Retain");
        default_to(spec, "volumeMode", "Filesystem");
        defaults::disk(spec);
        default_zero_to(object_mut(object, "status"), "phase", "Pending");
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": seconds(context.now)}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        const SINCE: &str = "lastPhaseTransitionTime";
        prepare_update_by_default(context, new, old);
        if context.subresource != "status" {
            return;
        }
        let was = get(old, "status");
        let status = object_mut(new, "status");
        let same = text(status, "phase") == text(was, "phase");
        let since = if same && !has(status, SINCE) {
            get(was, SINCE).clone()
        } else if !same && (!has(status, SINCE) || get(status, SINCE) == get(was, SINCE)) {
            json!(seconds(context.now))
        } else {
            return;
        };
        put(status, SINCE, since);
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            return;
        }
        validate(errors, object);
        if let Some(old) = old {
            // Upstream's update validation repeats the previous steps.
            metadata::validate_all(errors, &ROW, object);
            validate(errors, object);
            validate_changes(errors, object, old);
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let (spec, annotations) = (get(object, "spec"), get(get(object, "metadata"), "annotations"));
        let mut found = Vec::new();
        for (key, why) in [
            (CLASS_ANNOTATION, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
            (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
        ] {
            if has(annotations, key) {
                found.push(format!("metadata.annotations[{key}]: {why}"));
            }
        }
        if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
            found.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
        }
        let terms_at = SPEC.child("nodeAffinity.required.nodeSelectorTerms");
        for (i, term) in items(get(get(spec, "nodeAffinity"), "required"), "nodeSelectorTerms").iter().enumerate() {
            pod_warnings::selector_term(&mut found, term, false, &terms_at.index(i));
        }
        for (key, named, why) in GONE {
            if has(spec, key) {
                found.push(format!("spec.{named}: {why}"));
            }
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let claim = get(spec, "claimRef");
        let claim = if claim.is_null() {
            String::new()
        } else {
            format!("{}/{}", text(claim, "namespace"), text(claim, "name"))
        };
        let deleting = has(get(object, "metadata"), "deletionTimestamp");
        let capacity = quantity(get(get(spec, "capacity"), "storage")).unwrap_or_else(Quantity::zero);
        let unset = |key| if has(spec, key) { text(spec, key) } else { "<unset>" };
        vec![
            name(object),
            json!(capacity.to_string()),
            json!(access_modes(spec)),
            json!(text(spec, "persistentVolumeReclaimPolicy")),
            json!(if deleting { "Terminating" } else { text(status, "phase") }),
            json!(claim),
            json!(class_of(object)),
            json!(unset(CLASS)),
            json!(text(status, "reason")),
            age(object, now),
            json!(unset("volumeMode")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid_fields(spec: Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        let mut object = json!({"metadata": {"name": "v"}, "spec": spec});
        PersistentVolume.default(&mut object);
        validate(&mut errors, &object);
        errors.shown().iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn a_volume_has_one_source_with_its_required_fields() {
        let with = |source: Value| {
            let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}});
            spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            invalid_fields(spec)
        };
        assert_eq!(with(json!({})), ["spec"]);
        assert_eq!(with(json!({"hostPath": {"path": "/x"}, "nfs": {"server": "s", "path": "/p"}})), ["spec.nfs"]);
        assert_eq!(with(json!({"local": {"path": "/x/../y"}})), ["spec.local.path", "spec.nodeAffinity"]);
        assert_eq!(
            with(json!({"csi": {"driver": "a_b", "nodeStageSecretRef": {}, "nodePublishSecretRef": {}}})),
            [
                "spec.csi.driver",
                "spec.csi.volumeHandle",
                "spec.csi.nodePublishSecretRef.name",
                "spec.csi.nodePublishSecretRef.namespace"
            ]
        );
        assert_eq!(
            with(json!({"hostPath": {"path": "//"}, "persistentVolumeReclaimPolicy": "Recycle"})),
            ["spec.persistentVolumeReclaimPolicy"]
        );
        assert_eq!(with(json!({"hostPath": {"path": "/x"}, "volumeAttributesClassName": "c"})), ["spec.csi"]);
    }

    #[test]
    fn the_source_of_a_volume_is_immutable() {
        let volume = |source: Value| json!({"metadata": {"name": "v"}, "spec": source});
        let changed_fields = |new: &Value, old: &Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            validate_changes(&mut errors, new, old);
            errors.shown().iter().map(|error| error.field.clone()).collect()
        };
        let old = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        let mut new = old.clone();
        new["spec"]["csi"]["controllerExpandSecretRef"] = json!({"name": "s", "namespace": "n"});
        assert_eq!(changed_fields(&new, &old), Vec::<String>::new(), "a Secret for growing may come later");
        assert_eq!(changed_fields(&old, &new), ["spec.persistentvolumesource"]);
        let on = |key: &str| {
            volume(json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key}]}]}}}))
        };
        let zone = on("topology.kubernetes.io/zone");
        assert_eq!(changed_fields(&zone, &on("failure-domain.beta.kubernetes.io/zone")), Vec::<String>::new());
        assert_eq!(changed_fields(&on("other"), &zone), ["nodeAffinity"]);
    }
}
