//! Pods: the kind with the most rules, one file per subject; templates of workloads share them.

use crate::ResetFields;
use std::collections::{BTreeMap, VecDeque};

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::field::{ErrorList, Path};
use crate::read::{get, has, int, items, items_mut, put, text};
use crate::{
    Column, Context, MetadataChecks, ProxyBackend, Row, STATUS, Storage, Strategy, Subresource, SubresourceKind, Verb,
    prepare_update_by_default, proxy,
};

mod cells;
pub(crate) mod claims;
mod container_statuses;
mod containers;
pub(crate) mod defaults;
pub(crate) mod disks;
mod environment;
pub(crate) mod placement;
mod probes;
mod resize;
pub(crate) mod resources;
mod security;
pub(crate) mod spec;
mod systems;
pub(crate) mod update;
pub(crate) mod volumes;
pub(crate) mod warnings;

pub(crate) use probes::port;

pub(crate) static ROW: Row = Row {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    subresources: &[
        Subresource {
            name: "binding",
            what: SubresourceKind::Binding,
            body: Some(("", "v1", "Binding")),
            verbs: &[Verb::Create],
        },
        Subresource {
            name: "eviction",
            what: SubresourceKind::Eviction,
            body: Some(("policy", "v1", "Eviction")),
            verbs: &[Verb::Create],
        },
        Subresource {
            name: update::EPHEMERAL_CONTAINERS,
            what: SubresourceKind::Part,
            body: None,
            verbs: &[Verb::Get, Verb::Patch, Verb::Update],
        },
        Subresource {
            name: resize::RESIZE,
            what: SubresourceKind::Part,
            body: None,
            verbs: &[Verb::Get, Verb::Patch, Verb::Update],
        },
        Subresource {
            name: "attach",
            what: SubresourceKind::Connect,
            body: Some(("", "v1", "PodAttachOptions")),
            verbs: &[Verb::Create, Verb::Get],
        },
        Subresource {
            name: "exec",
            what: SubresourceKind::Connect,
            body: Some(("", "v1", "PodExecOptions")),
            verbs: &[Verb::Create, Verb::Get],
        },
        Subresource {
            name: "portforward",
            what: SubresourceKind::Connect,
            body: Some(("", "v1", "PodPortForwardOptions")),
            verbs: &[Verb::Create, Verb::Get],
        },
        proxy(ProxyBackend::Pod, "PodProxyOptions"),
        Subresource { name: "log", what: SubresourceKind::Log, body: None, verbs: &[Verb::Get] },
        STATUS,
    ],
    storage: Storage::Stored("pods"),
    // Nodes list by it, and so do controllers with a selector.
    indexed_fields: &["spec.nodeName"],
    indexes_labels: true,
    shows_empty: true,
    strategy: &Pod,
    example: r#"apiVersion: v1
kind: Pod
metadata: {name: example}
spec:
  containers:
  - name: web
    image: registry.local/hello:v1
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 100m, memory: 64Mi}}
"#,
    ..Row::NAMESPACED
};

struct Pod;

const SELECTABLE: &[Text] = &[
    Text::Borrowed("spec.nodeName"),
    Text::Borrowed("spec.restartPolicy"),
    Text::Borrowed("spec.schedulerName"),
    Text::Borrowed("spec.serviceAccountName"),
    Text::Borrowed("spec.hostNetwork"),
    Text::Borrowed("spec.host"),
    Text::Borrowed("status.phase"),
    Text::Borrowed("status.podIP"),
    Text::Borrowed("status.podIPs"),
    Text::Borrowed("status.nominatedNodeName"),
];

/// Calls `visit` for each container with its path, init containers first.
fn each_container<'a>(spec: &'a Value, path: &Path<'_>, mut visit: impl FnMut(&'a Value, &Path<'_>)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let at = path.child(list);
        for (i, container) in items(spec, list).iter().enumerate() {
            visit(container, &at.index(i));
        }
    }
}

fn validate_new(errors: &mut ErrorList, pod: &Value) {
    spec::pod(errors, pod);
    let spec = get(pod, "spec");
    let path = Path::root("spec");
    if !items(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !text(spec, "nodeName").is_empty() && !items(spec, "schedulingGates").is_empty() {
        let why = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&path.child("nodeName"), why);
    }
    security::annotations_agree(errors, get(get(pod, "metadata"), "annotations"), spec, &path);
}

impl Strategy for Pod {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => {
                ResetFields::Below(&[&["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"], &["spec"]])
            }
            "ephemeralcontainers" => ResetFields::AllBut(&[&[Some("spec"), Some("ephemeralContainers")]]),
            "resize" => ResetFields::AllBut(&[
                &[Some("spec"), Some("containers"), None, Some("resources")],
                &[Some("spec"), Some("containers"), None, Some("resizePolicy")],
                &[Some("spec"), Some("initContainers"), None, Some("resources")],
                &[Some("spec"), Some("initContainers"), None, Some("resizePolicy")],
            ]),
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        let qos = match text(get(object, "status"), "qosClass") {
            "" => resources::qos_class(get(object, "spec")).to_owned(),
            given => given.to_owned(),
        };
        let mut status = json!({"phase": "Pending", "qosClass": qos});
        if let Some(spec) = object.get_mut("spec") {
            defaults::drop_disabled(spec, None);
        }
        if !items(get(object, "spec"), "schedulingGates").is_empty() {
            status["conditions"] = json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates", "lastProbeTime": null,
                "lastTransitionTime": machinery_api::time::seconds(context.now)}]);
        }
        put(object, "status", status);
        placement::apply_label_keys(object);
        security::apply_old_annotations(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource == "status" {
            prepare_status(new, old);
        } else if context.subresource == update::EPHEMERAL_CONTAINERS {
            update::restore_except_ephemeral_containers(new, old);
        } else if context.subresource == resize::RESIZE {
            resize::restore_except_resources(new, old);
        } else if let Some(spec) = new.get_mut("spec") {
            defaults::drop_disabled(spec, Some(get(old, "spec")));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(old) = old else { return validate_new(errors, object) };
        match context.subresource {
            "status" => update::status(errors, object, old),
            update::EPHEMERAL_CONTAINERS => update::ephemeral_containers(errors, object, old),
            resize::RESIZE => resize::resize(errors, object, old),
            _ => update::pod(errors, object, old),
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() { Vec::new() } else { warnings::pod(object) }
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn grace_seconds(&self, object: &Value) -> Option<i64> {
        let spec = get(object, "spec");
        if !deletes_gracefully(object) {
            return Some(0);
        }
        let seconds = int(spec, "terminationGracePeriodSeconds").unwrap_or(0);
        Some(if seconds < 0 { 1 } else { seconds })
    }

    fn grace_allowed(&self, object: &Value) -> bool {
        deletes_gracefully(object)
    }

    fn columns(&self) -> &'static [Column] {
        cells::COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells::cells(object, now)
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let ip = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip"));
        [
            text(spec, "nodeName"),
            text(spec, "restartPolicy"),
            text(spec, "schedulerName"),
            text(spec, "serviceAccountName"),
            if crate::read::flag(spec, "hostNetwork") { "true" } else { "false" },
            text(spec, "nodeName"),
            text(status, "phase"),
            ip,
            "",
            text(status, "nominatedNodeName"),
        ]
        .map(str::to_owned)
        .into()
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}

/// Whether graceful deletion applies: an unscheduled or ended pod is deleted at once.
fn deletes_gracefully(pod: &Value) -> bool {
    let phase = text(get(pod, "status"), "phase");
    !text(get(pod, "spec"), "nodeName").is_empty() && phase != "Failed" && phase != "Succeeded"
}

/// Drops fields of upstream's disabled features unless the old status has them.
fn drop_disabled(status: &mut Value, old: &Value) {
    const CLAIMS: &str = "nodeAllocatableResourceClaimStatuses";
    const LISTS: [&str; 3] = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    if !has(old, CLAIMS) {
        put(status, CLAIMS, Value::Null);
    }
    let has_status = |mount: &Value| has(mount, "volumeStatus");
    let mounts = LISTS.iter().flat_map(|list| items(old, list)).flat_map(|one| items(one, "volumeMounts"));
    if mounts.into_iter().any(has_status) {
        return;
    }
    for list in LISTS {
        for mount in items_mut(status, list).iter_mut().flat_map(|one| items_mut(one, "volumeMounts")) {
            put(mount, "volumeStatus", Value::Null);
        }
    }
}

/// Keeps what a status writer can't change or doesn't know: owner, deletion, quality of service, observed generations.
fn prepare_status(new: &mut Value, old: &Value) {
    if let Some(meta) = new.get_mut("metadata") {
        for key in ["ownerReferences", "deletionTimestamp"] {
            put(meta, key, get(get(old, "metadata"), key).clone());
        }
    }
    let old_status = get(old, "status");
    let Some(status) = new.get_mut("status").filter(|s| s.is_object()) else {
        put(new, "status", json!({}));
        if let Some(status) = new.get_mut("status") {
            put(status, "qosClass", get(old_status, "qosClass").clone());
        }
        return;
    };
    drop_disabled(status, old_status);
    if text(status, "qosClass").is_empty() {
        put(status, "qosClass", get(old_status, "qosClass").clone());
    }
    if int(status, "observedGeneration").unwrap_or(0) == 0 {
        put(status, "observedGeneration", get(old_status, "observedGeneration").clone());
    }
    let mut left: BTreeMap<&str, VecDeque<&Value>> = BTreeMap::new();
    for condition in items(old_status, "conditions") {
        left.entry(text(condition, "type")).or_default().push_back(condition);
    }
    for condition in items_mut(status, "conditions") {
        let Some(old) = left.get_mut(text(condition, "type")).and_then(VecDeque::pop_front) else { continue };
        if int(condition, "observedGeneration").unwrap_or(0) == 0 && has(old, "observedGeneration") {
            put(condition, "observedGeneration", get(old, "observedGeneration").clone());
        }
    }
}
