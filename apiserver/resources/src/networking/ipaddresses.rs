//! IPAddresses: the holder of an address. Those of a Service are written in its own transaction
//! ([`allocate`](crate::core::services::allocate)), which makes the address unique.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::segment;
use crate::cells::{NAME, column, name};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{at, get, text};
use crate::rules::NameRule;
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "networking.k8s.io",
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    schema: "io.k8s.api.networking.v1.IPAddress",
    storage: Storage::Stored("ipaddresses"),
    strategy: &IpAddress,
    example: r#"apiVersion: networking.k8s.io/v1
kind: IPAddress
metadata: {name: 192.0.2.1}
spec: {parentRef: {resource: services, namespace: default, name: example}}
"#,
    ..Row::CLUSTER
};

struct IpAddress;

const COLUMNS: &[Column] = &[NAME, column("ParentRef", "string")];
const PARENT: Path<'static> = Path::root("spec.parentRef");

fn validate(errors: &mut ErrorList, object: &Value) {
    let parent = at(object, &["spec", "parentRef"]);
    if parent.is_null() {
        return errors.required(&PARENT, "");
    }
    let group = text(parent, "group");
    if !group.is_empty() {
        errors.invalid_each(&PARENT.child("group"), group, rules::dns_subdomain(group));
    }
    segment(errors, parent, "resource", &PARENT);
    segment(errors, parent, "name", &PARENT);
    let namespace = text(parent, "namespace");
    errors.invalid_each(&PARENT.child("namespace"), namespace, rules::path_segment(namespace, false));
}

impl Strategy for IpAddress {
    fn name_rule(&self) -> NameRule {
        NameRule::IpAddress
    }

    fn generates_names(&self) -> bool {
        false
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, object);
        if let Some(old) = old {
            let parent = |object| at(object, &["spec", "parentRef"]);
            if parent(object).is_null() {
                errors.immutable(&PARENT, parent(object), parent(old));
            } else if parent(object) != parent(old) {
                let order = ["Group", "Resource", "Namespace", "Name"];
                let parts = order.map(|key| (key, json!(text(parent(object), &key.to_lowercase()))));
                let shown = crate::field::go_struct(
                    &Value::Object(parts.map(|(k, v)| (k.into(), v)).into_iter().collect()),
                    &order,
                );
                errors.add(|| FieldError::invalid_shown(&PARENT, &shown, crate::field::IMMUTABLE));
            }
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        let parent = get(get(object, "spec"), "parentRef");
        let shown = if parent.is_null() {
            "<none>".to_owned()
        } else {
            let group = text(parent, "group");
            let qualified = [text(parent, "resource"), group].join(if group.is_empty() { "" } else { "." });
            let namespace = text(parent, "namespace");
            let slash = if namespace.is_empty() { "" } else { "/" };
            format!("{}{slash}{namespace}/{}", qualified.to_lowercase(), text(parent, "name"))
        };
        vec![name(object), json!(shown)]
    }
}
