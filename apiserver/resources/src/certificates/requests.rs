//! CertificateSigningRequests: the server records the requester; afterwards only approval and status can change.

use crate::ResetFields;
use apiserver_schema::types::Text;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::validate::{self, UpdateEndpoint};
use crate::cells::{AGE, NAME, age, column, human_duration, name};
use crate::field::ErrorList;
use crate::read::{at, fields, get, has, int, items, items_mut, object_mut, put, spec_of, text};
use crate::rules::NameRule;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, Subresource, SubresourceKind, Verb};

pub(crate) static ROW: Row = Row {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    subresources: &[
        Subresource {
            name: APPROVAL,
            what: SubresourceKind::Part,
            body: None,
            verbs: &[Verb::Get, Verb::Patch, Verb::Update],
        },
        STATUS,
    ],
    storage: Storage::Stored("certificatesigningrequests"),
    strategy: &CertificateSigningRequest,
    example: include_str!("../testdata/certificate-signing-request.yaml"),
    ..Row::CLUSTER
};

struct CertificateSigningRequest;

const APPROVAL: &str = "approval";
const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "string"),
    column("Requestor", "string"),
    column("RequestedDuration", "string"),
    column("Condition", "string"),
];

/// A field of bytes, decoded from base64.
pub(super) fn bytes(of: &Value, key: &str) -> Vec<u8> {
    STANDARD.decode(text(of, key)).unwrap_or_default()
}

pub(super) fn conditions(object: &Value) -> &[Value] {
    items(get(object, "status"), "conditions")
}

fn time(now: Timestamp) -> Value {
    json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Sets missing times of conditions. An unchanged condition keeps its transition time.
fn set_condition_times(new: &mut Value, old: &Value, now: Timestamp) {
    for condition in items_mut(object_mut(new, "status"), "conditions") {
        if !has(condition, "lastUpdateTime") {
            put(condition, "lastUpdateTime", time(now));
        }
        if !has(condition, "lastTransitionTime") {
            let same = |old: &&Value| {
                ["type", "status"].iter().all(|key| text(old, key) == text(condition, key))
                    && has(old, "lastTransitionTime")
            };
            let since = conditions(old).iter().find(same).map(|old| get(old, "lastTransitionTime").clone());
            put(condition, "lastTransitionTime", since.unwrap_or_else(|| time(now)));
        }
    }
}

/// Restores the old conditions of a type if their number is unchanged; validation rejects the other cases.
fn restore_conditions(new: &mut Value, old: &Value, kind: &str) {
    let of_kind = |condition: &&Value| text(condition, "type") == kind;
    let had: Vec<&Value> = conditions(old).iter().filter(of_kind).collect();
    if conditions(new).iter().filter(of_kind).count() != had.len() {
        return;
    }
    let slots = items_mut(object_mut(new, "status"), "conditions").iter_mut();
    for (slot, old) in slots.filter(|slot| text(slot, "type") == kind).zip(had) {
        *slot = old.clone();
    }
}

fn format_status(object: &Value) -> String {
    let any = |kind: &str| conditions(object).iter().any(|condition| text(condition, "type") == kind);
    let mut shown = if any("Denied") {
        "Denied"
    } else if any("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if any("Failed") {
        shown.push_str(",Failed");
    }
    if !text(get(object, "status"), "certificate").is_empty() {
        shown.push_str(",Issued");
    }
    shown
}

impl Strategy for CertificateSigningRequest {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::Below(&[&["spec"], &["status", "conditions"]]),
            "approval" => ResetFields::Below(&[&["spec"], &["status", "certificate"]]),
            _ => ResetFields::Below(&[&["spec"], &["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        // Go's encoder always writes both.
        for key in ["spec", "status"] {
            fields(object).entry(key).or_insert_with(|| json!({}));
        }
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({}));
        let spec = spec_of(object);
        for key in ["username", "uid", "groups", "extra"] {
            put(spec, key, Value::Null);
        }
        if let Some(user) = context.requester {
            put(spec, "username", json!(user.name));
            put(spec, "uid", json!(user.uid));
            put(spec, "groups", json!(user.groups));
            if !user.extra.is_empty() {
                put(spec, "extra", json!(user.extra));
            }
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        put(new, "spec", get(old, "spec").clone());
        match context.subresource {
            APPROVAL => {
                set_condition_times(new, old, context.now);
                let given = get(get(new, "status"), "conditions").clone();
                put(new, "status", get(old, "status").clone());
                put(object_mut(new, "status"), "conditions", given);
            }
            "status" => {
                restore_conditions(new, old, "Approved");
                restore_conditions(new, old, "Denied");
                set_condition_times(new, old, context.now);
            }
            _ => put(new, "status", get(old, "status").clone()),
        }
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn metadata_checks_of(&self, _: &str) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate::request(errors, object, old);
        if let Some(old) = old {
            let through = match context.subresource {
                APPROVAL => UpdateEndpoint::Approval,
                "status" => UpdateEndpoint::Status,
                _ => UpdateEndpoint::Whole,
            };
            validate::change(errors, object, old, through);
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let or_none = |shown: &str| json!(if shown.is_empty() { "<none>" } else { shown });
        let duration = int(spec, "expirationSeconds").map(|s| human_duration(jiff::SignedDuration::from_secs(s)));
        vec![
            name(object),
            age(object, now),
            or_none(text(spec, "signerName")),
            json!(text(spec, "username")),
            or_none(&duration.unwrap_or_default()),
            json!(format_status(object)),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![at(object, &["spec", "signerName"]).as_str().unwrap_or_default().to_owned()]
    }

    fn selectable_labels(&self) -> &[Text] {
        const LABELS: &[Text] = &[Text::Borrowed("spec.signerName")];
        LABELS
    }
}
