//! Nodes: kubelets write most of them, so immutable fields (podCIDR, providerID) are protected here and not in
//! admission.

use std::collections::BTreeSet;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name, wide};
use crate::core::pods::{placement, resources};
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::metadata::label_name;
use crate::read::{
    default_to, entries, fields, flag, get, has, is_zero, items, items_mut, object_mut, put, text, texts,
};
use crate::{
    Column, Context, MetadataChecks, ProxyBackend, Row, STATUS, Storage, Strategy, prepare_update_by_default, proxy,
    rules,
};

pub(crate) static ROW: Row = Row {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[proxy(ProxyBackend::Node, "NodeProxyOptions"), STATUS],
    storage: Storage::Stored("minions"),
    strategy: &Node,
    example: r#"apiVersion: v1
kind: Node
metadata: {name: example}
spec:
  taints: [{key: example.com/only, value: "yes", effect: NoSchedule}]
"#,
    ..Row::CLUSTER
};

struct Node;

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string"),
    column("Roles", "string"),
    AGE,
    column("Version", "string"),
    wide("Internal-IP", "string"),
    wide("External-IP", "string"),
    wide("OS-Image", "string"),
    wide("Kernel-Version", "string"),
    wide("Container-Runtime", "string"),
];
const SPEC: Path<'static> = Path::root("spec");
const INFO: &[&str] = &[
    "architecture",
    "bootID",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeProxyVersion",
    "kubeletVersion",
    "machineID",
    "operatingSystem",
    "osImage",
    "systemUUID",
];
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE: &str = "kubernetes.io/role";
const CIDR_STAYS: &str = "node updates may not change podCIDR except from \"\" to valid";
const FEATURE_BYTES_MAX: usize = 253;

fn taints(errors: &mut ErrorList, node: &Value) {
    let list_at = Path::root("metadata.taints");
    let mut seen = BTreeSet::new();
    for (i, taint) in items(get(node, "spec"), "taints").iter().enumerate() {
        let at = list_at.index(i);
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        label_name(errors, key, &at.child("key"));
        let wrong = rules::label_value(value);
        if !wrong.is_empty() {
            errors.invalid(&at.child("value"), value, &wrong.join(";"));
        }
        placement::taint_effect(errors, effect, &at.child("effect"));
        if !seen.insert((effect, key)) {
            let inner = json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": get(taint, "timeAdded")});
            let shown = go_struct(&inner, &["Key", "Value", "Effect", "TimeAdded"]);
            errors.add(|| {
                FieldError::new(
                    "FieldValueDuplicate",
                    &at,
                    format!("Duplicate value: {shown}: taints must be unique by key and effect pair"),
                )
            });
        }
    }
}

fn amounts(errors: &mut ErrorList, node: &Value) {
    for key in ["capacity", "allocatable"] {
        let at = Path::root("status");
        let at = at.child(key);
        for (name, value) in entries(get(node, "status"), key) {
            resources::amount(errors, name, value, &at.child(name));
        }
    }
}

fn features(errors: &mut ErrorList, node: &Value) {
    let list_at = Path::root("status.declaredFeatures");
    let list: Vec<&str> = texts(get(node, "status"), "declaredFeatures").collect();
    let segment = |part: &str, upper: bool| {
        let first = part.bytes().next();
        first.is_some_and(|b| if upper { b.is_ascii_uppercase() } else { b.is_ascii_alphabetic() })
            && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    for (i, feature) in list.iter().enumerate() {
        let shown = crate::field::quoted(feature);
        if feature.len() > FEATURE_BYTES_MAX {
            let why = format!("invalid feature name {shown}: must be no more than {FEATURE_BYTES_MAX} characters");
            errors.invalid(&list_at.index(i), *feature, &why);
        } else if !feature.split('/').enumerate().all(|(j, part)| segment(part, j == 0)) {
            let why = format!(
                "invalid feature name {shown}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes"
            );
            errors.invalid(&list_at.index(i), *feature, &why);
        }
        match list.get(i + 1) {
            Some(next) if next == feature => errors.duplicate(&list_at.index(i + 1), *next),
            Some(next) if feature > next => {
                errors.invalid(&list_at.index(i + 1), *next, "list must be sorted alphabetically");
            }
            _ => {}
        }
    }
}

fn validate(errors: &mut ErrorList, node: &Value) {
    taints(errors, node);
    amounts(errors, node);
    features(errors, node);
    let at = SPEC.child("podCIDRs");
    let spec = get(node, "spec");
    let cidrs: Vec<&str> = texts(spec, "podCIDRs").collect();
    for (i, cidr) in cidrs.iter().enumerate() {
        errors.invalid_each(&at.index(i), cidr, rules::cidr_in_old_field(cidr));
    }
    if cidrs.len() > 1 {
        if let Some((i, wrong)) = cidrs.iter().enumerate().find(|(_, cidr)| rules::parse_cidr_leniently(cidr).is_none())
        {
            let why = format!(
                "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> (invalid CIDR address: {wrong})"
            );
            errors.add(|| FieldError::internal(&at, &why));
        }
        let v6 = cidrs.iter().filter(|cidr| cidr.contains(':')).count();
        if v6 == 0 || v6 == cidrs.len() || cidrs.len() > 2 {
            let why = "may specify no more than one CIDR for each IP family";
            errors.invalid(&at, get(spec, "podCIDRs").clone(), why);
        }
    }
}

fn validate_change(errors: &mut ErrorList, node: &Value, old: &Value) {
    amounts(errors, node);
    features(errors, node);
    let list_at = Path::root("status.addresses");
    let mut seen = BTreeSet::new();
    for (i, address) in items(get(node, "status"), "addresses").iter().enumerate() {
        let (kind, value) = (text(address, "type"), text(address, "address"));
        if !seen.insert((kind, value)) {
            let shown = go_struct(&json!({"Type": kind, "Address": value}), &["Type", "Address"]);
            errors
                .add(|| FieldError::new("FieldValueDuplicate", &list_at.index(i), format!("Duplicate value: {shown}")));
        }
    }
    let (spec, was) = (get(node, "spec"), get(old, "spec"));
    let (cidrs, old_cidrs) = (items(spec, "podCIDRs"), items(was, "podCIDRs"));
    let at = SPEC.child("podCIDRs");
    if !old_cidrs.is_empty() {
        if cidrs.len() == old_cidrs.len() {
            for _ in cidrs.iter().zip(old_cidrs).filter(|(now, was)| now != was) {
                errors.forbidden(&at, CIDR_STAYS);
            }
        } else {
            errors.forbidden(&at, CIDR_STAYS);
        }
    }
    let provider = text(was, "providerID");
    if !provider.is_empty() && provider != text(spec, "providerID") {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(&SPEC.child("providerID"), why);
    }
    taints(errors, node);
    if text(spec, "externalID") != text(was, "externalID") {
        errors.forbidden(&SPEC.child("externalID"), "may not be updated");
    }
}

/// Drops fields of dynamic kubelet configuration, which upstream removed.
fn drop_removed(node: &mut Value, old: Option<&Value>) {
    if old.is_none_or(|old| !has(get(old, "spec"), "configSource")) {
        put(object_mut(node, "spec"), "configSource", Value::Null);
    }
    if old.is_none_or(|old| !has(get(old, "status"), "config")) {
        put(object_mut(node, "status"), "config", Value::Null);
    }
}

const SELECTABLE: &[Text] = &[Text::Borrowed("spec.unschedulable")];

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        let spec = object_mut(object, "spec");
        // If both are set and differ, the older field wins.
        let first = get(spec, "podCIDR").clone();
        if !is_zero(&first) && items(spec, "podCIDRs").first() != Some(&first) {
            put(spec, "podCIDRs", json!([first]));
        }
        match items(spec, "podCIDRs").first().cloned() {
            Some(first) => put(spec, "podCIDR", first),
            None => put(spec, "podCIDR", Value::Null),
        }
        let status = object_mut(object, "status");
        if is_zero(get(status, "allocatable")) && has(status, "capacity") {
            let capacity = get(status, "capacity").clone();
            put(status, "allocatable", capacity);
        }
        // Fields that Go's encoder writes even if they are empty.
        default_to(object_mut(object_mut(status, "daemonEndpoints"), "kubeletEndpoint"), "Port", 0);
        let info = object_mut(status, "nodeInfo");
        for key in INFO {
            default_to(info, key, "");
        }
        for condition in items_mut(status, "conditions") {
            let map = fields(condition);
            for key in ["lastHeartbeatTime", "lastTransitionTime"] {
                map.entry(key).or_insert(Value::Null);
            }
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        drop_removed(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        drop_removed(new, Some(old));
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn metadata_checks_of(&self, _: &str) -> MetadataChecks {
        MetadataChecks::WholeThenChange
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource.is_empty() {
            validate(errors, object);
        }
        if let Some(old) = old {
            validate_change(errors, object, old);
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let spec = get(object, "spec");
        let mut found = Vec::new();
        if has(spec, "configSource") {
            found.push("spec.configSource: the feature is removed".into());
        }
        if !text(spec, "externalID").is_empty() {
            found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
        }
        let at = SPEC.child("podCIDRs");
        for (i, cidr) in texts(spec, "podCIDRs").enumerate() {
            found.extend(rules::canonical_cidr_warning(cidr).into_iter().map(|why| format!("{}: {why}", at.index(i))));
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let info = get(status, "nodeInfo");
        let ready = items(status, "conditions").iter().rfind(|c| text(c, "type") == "Ready");
        let mut words = match ready.map(|c| text(c, "status")) {
            None => "Unknown".to_owned(),
            Some("True") => "Ready".into(),
            Some(_) => "NotReady".into(),
        };
        if flag(spec, "unschedulable") {
            words.push_str(",SchedulingDisabled");
        }
        let mut roles = BTreeSet::new();
        for (key, value) in entries(get(object, "metadata"), "labels") {
            let value = value.as_str().unwrap_or("");
            match key.strip_prefix(ROLE_PREFIX) {
                Some(role) if !role.is_empty() => drop(roles.insert(role)),
                None if key == ROLE && !value.is_empty() => drop(roles.insert(value)),
                _ => {}
            }
        }
        let roles = if roles.is_empty() { "<none>".into() } else { Vec::from_iter(roles).join(",") };
        let address = |kind: &str| {
            let found = items(status, "addresses").iter().find(|a| text(a, "type") == kind);
            json!(found.map_or("<none>", |a| text(a, "address")))
        };
        let known = |key: &str| match text(info, key) {
            "" => "<unknown>".to_owned(),
            value => value.to_owned(),
        };
        let mut kernel = known("kernelVersion");
        if !text(info, "architecture").is_empty() {
            kernel.push_str(&format!(" ({})", text(info, "architecture")));
        }
        vec![
            name(object),
            json!(words),
            json!(roles),
            age(object, now),
            json!(text(info, "kubeletVersion")),
            address("InternalIP"),
            address("ExternalIP"),
            json!(known("osImage")),
            json!(kernel),
            json!(known("containerRuntimeVersion")),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![flag(get(object, "spec"), "unschedulable").to_string()]
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}
