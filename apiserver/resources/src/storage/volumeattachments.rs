//! VolumeAttachments: the intent to attach a volume to a node, and its state.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::driver_name;
use crate::cells::{AGE, NAME, age, column, name, names_column};
use crate::core::persistentvolumes::has_source;
use crate::field::{ErrorList, Path};
use crate::metadata::reset_for_status;
use crate::read::{at, default_to, entries, fields, flag, get, has, int, items, object_mut, text};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default, rules};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    singular: "volumeattachment",
    schema: "io.k8s.api.storage.v1.VolumeAttachment",
    subresources: &[STATUS],
    storage: Storage::Stored("volumeattachments"),
    inert: Some("nothing attaches volumes here"),
    strategy: &VolumeAttachment,
    example: r#"apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: example}
spec: {attacher: disks.example.com, nodeName: example, source: {persistentVolumeName: example}}
"#,
    ..Row::CLUSTER
};

struct VolumeAttachment;

const COLUMNS: &[Column] = &[
    NAME,
    names_column("Attacher"),
    column("PV", "string"),
    column("Node", "string"),
    column("Attached", "boolean"),
    AGE,
];
const SPEC: Path<'static> = Path::root("spec");
const STATUS_AT: Path<'static> = Path::root("status");
const METADATA_BYTES_MAX: usize = 256 << 10;
const MESSAGE_BYTES_MAX: usize = 1024;

fn source(errors: &mut ErrorList, source: &Value) {
    let path = SPEC.child("source");
    let volume = get(source, "persistentVolumeName");
    match (has(source, "inlineVolumeSpec"), volume.as_str()) {
        (false, None) => {
            errors.required(&path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (true, Some(_)) => {
            errors.forbidden(&path, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (false, Some("")) => {
            errors.required(&path.child("persistentVolumeName"), "must specify non empty persistentVolumeName");
        }
        (false, Some(_)) => {}
        (true, None) => inline(errors, get(source, "inlineVolumeSpec"), &path.child("inlineVolumeSpec")),
    }
}

fn inline(errors: &mut ErrorList, volume: &Value, path: &Path<'_>) {
    for key in ["claimRef", "capacity"] {
        if !crate::read::is_zero(get(volume, key)) {
            errors.forbidden(&path.child(key), "may not be specified in the context of inline volumes");
        }
    }
    if !has(volume, "csi") {
        errors.required(&path.child("csi"), "has to be specified in the context of inline volumes");
    }
    if items(volume, "accessModes").is_empty() {
        errors.required(&path.child("accessModes"), "");
    }
    if !has_source(volume) {
        errors.required(path, "must specify a volume type");
    }
}

fn volume_error(errors: &mut ErrorList, error: &Value, path: &Path<'_>) {
    if text(error, "message").len() > MESSAGE_BYTES_MAX {
        // Upstream's message has another bound than its check.
        errors.too_long(&path.child("message"), METADATA_BYTES_MAX);
    }
    if let Some(code) = int(error, "errorCode").filter(|code| *code < 0) {
        errors.invalid(&path.child("errorCode"), code, "must be between 0 and 2147483647, inclusive");
    }
}

fn validate(errors: &mut ErrorList, object: &Value) {
    let (spec, status) = (get(object, "spec"), get(object, "status"));
    driver_name(errors, text(spec, "attacher"), &SPEC.child("attacher"));
    source(errors, get(spec, "source"));
    let node = text(spec, "nodeName");
    errors.invalid_each(&SPEC.child("nodeName"), node, rules::dns_subdomain(node));
    let attached = entries(status, "attachmentMetadata");
    let bytes: usize = attached.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > METADATA_BYTES_MAX {
        errors.too_long(&STATUS_AT.child("attachmentMetadata"), METADATA_BYTES_MAX);
    }
    for key in ["attachError", "detachError"] {
        volume_error(errors, get(status, key), &STATUS_AT.child(key));
    }
    if let Some(volume) = at(spec, &["source", "persistentVolumeName"]).as_str() {
        let path = Path::root("spec.source.persistentVolumeName");
        errors.invalid_each(&path, volume, rules::dns_subdomain(volume));
    }
}

impl Strategy for VolumeAttachment {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        // Go's encoder always writes these.
        default_to(object_mut(object, "status"), "attached", false);
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({"attached": false}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn metadata_checks_of(&self, _: &str) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            errors.immutable(&SPEC, get(object, "spec"), get(old, "spec"));
        }
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        vec![
            name(object),
            json!(text(spec, "attacher")),
            json!(text(get(spec, "source"), "persistentVolumeName")),
            json!(text(spec, "nodeName")),
            json!(flag(get(object, "status"), "attached")),
            age(object, now),
        ]
    }
}
