//! CertificateSigningRequests: who asks is written down by the server, and only approval and status change afterwards.

use crate::Unwritten;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use machinery_api::schema::types::Text;
use serde_json::{Value, json};

use super::validate::{self, Through};
use crate::cells::{AGE, NAME, age, column, human, name};
use crate::field::{ErrorList, FieldError};
use crate::read::{at, fields, get, has, int, items, items_mut, object_mut, put, spec_of, text};
use crate::rules::NameRule;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, Subresource, SubresourceKind, Verb};

/// CertificateSigningRequests.
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

/// Bytes of a field, which JSON has in base64.
pub(super) fn bytes(of: &Value, key: &str) -> Vec<u8> {
    STANDARD.decode(text(of, key)).unwrap_or_default()
}

pub(super) fn conditions(object: &Value) -> &[Value] {
    items(get(object, "status"), "conditions")
}

fn time(now: Timestamp) -> Value {
    json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Gives conditions the times that their writer left out: a condition that was so before has changed when it did then.
fn stamp(new: &mut Value, old: &Value, now: Timestamp) {
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

/// Keeps what stood in the conditions of a type, where as many are there as were: validation finds the rest.
fn keep(new: &mut Value, old: &Value, kind: &str) {
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

fn shown_status(object: &Value) -> String {
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
    fn unwritten(&self, subresource: &str) -> Unwritten {
        match subresource {
            "status" => Unwritten::Below(&[&["spec"], &["status", "conditions"]]),
            "approval" => Unwritten::Below(&[&["spec"], &["status", "certificate"]]),
            _ => Unwritten::Below(&[&["spec"], &["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        // Go's encoder writes both always.
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
                stamp(new, old, context.now);
                let given = get(get(new, "status"), "conditions").clone();
                put(new, "status", get(old, "status").clone());
                put(object_mut(new, "status"), "conditions", given);
            }
            "status" => {
                keep(new, old, "Approved");
                keep(new, old, "Denied");
                stamp(new, old, context.now);
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

    fn validate(&self, _: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        validate::request(&mut errors, object, None);
        errors.list()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = ErrorList::new();
        validate::request(&mut errors, new, Some(old));
        let through = match context.subresource {
            APPROVAL => Through::Approval,
            "status" => Through::Status,
            _ => Through::Whole,
        };
        validate::change(&mut errors, new, old, through);
        errors.list()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let or_none = |shown: &str| json!(if shown.is_empty() { "<none>" } else { shown });
        let duration = int(spec, "expirationSeconds").map(|s| human(jiff::SignedDuration::from_secs(s)));
        vec![
            name(object),
            age(object, now),
            or_none(text(spec, "signerName")),
            json!(text(spec, "username")),
            or_none(&duration.unwrap_or_default()),
            json!(shown_status(object)),
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
