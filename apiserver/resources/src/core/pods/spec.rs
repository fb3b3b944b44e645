//! Validation of the spec of Pods and of workload templates: collects the field errors of all parts.

use serde_json::{Value, json};

use super::containers::PodValidationContext;
use super::{containers, environment, placement, resources, security, systems, volumes};
use crate::choices::required_choice;
use crate::field::{ErrorList, Path, quoted};
use crate::metadata::{annotations, label_name, labels, quantity};
use crate::read::{flag, get, has, int, items, text, texts};
use crate::rules;

const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_LETTERS_MAX: usize = 2048;
const HOSTNAME_BYTES_MAX: usize = 64;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The spec of a Pod (`pod_name` given, perhaps empty) or of a template.
pub(crate) fn pod_spec(errors: &mut ErrorList, spec: &Value, pod_name: Option<&str>, path: &Path<'_>) {
    let grace_seconds = int(spec, "terminationGracePeriodSeconds");
    if grace_seconds.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let volumes_at = path.child("volumes");
    let named =
        volumes::volumes(errors, items(spec, "volumes"), pod_name.unwrap_or(""), &volumes_at, pod_name.is_some());
    containers::resource_claims(errors, items(spec, "resourceClaims"), &path.child("resourceClaims"));
    let around = PodValidationContext {
        volumes: named,
        claims: items(spec, "resourceClaims").iter().map(|c| text(c, "name")).filter(|n| !n.is_empty()).collect(),
        grace_seconds,
        restart_policy: text(spec, "restartPolicy"),
        host_users: get(spec, "hostUsers") != &json!(false),
        os: get(spec, "os").get("name").and_then(Value::as_str),
    };
    let regular = items(spec, "containers");
    containers::containers(errors, regular, &around, &path.child("containers"));
    let init = items(spec, "initContainers");
    containers::init_containers(errors, init, regular, &around, &path.child("initContainers"));
    containers::ephemeral_containers(errors, spec, &around, &path.child("ephemeralContainers"));
    resources::pod_level(errors, spec, &around.claims, path);
    host_network_ports(errors, spec, pod_name.is_some(), path);
    required_choice(errors, spec, "restartPolicy", &["Always", "OnFailure", "Never"], path);
    required_choice(errors, spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path);
    labels(errors, get(spec, "nodeSelector"), &path.child("nodeSelector"));
    security::pod(errors, spec, path);
    placement::affinity(errors, get(spec, "affinity"), &path.child("affinity"));
    dns(errors, spec, &path.child("dnsConfig"));
    let gates_at = path.child("readinessGates");
    for (i, gate) in items(spec, "readinessGates").iter().enumerate() {
        label_name(errors, text(gate, "conditionType"), &gates_at.index(i).child("conditionType"));
    }
    placement::gates(errors, items(spec, "schedulingGates"), &path.child("schedulingGates"));
    placement::spread(errors, items(spec, "topologySpreadConstraints"), &path.child("topologySpreadConstraints"));
    systems::host_process(errors, spec, path);
    security::host_users(errors, spec, path);
    host_name(errors, spec, path);
    names(errors, spec, path);
    systems::os(errors, spec, path);
    environment::file_keys(errors, spec, path);
}

fn host_network_ports(errors: &mut ErrorList, spec: &Value, is_pod: bool, path: &Path<'_>) {
    if !flag(spec, "hostNetwork") {
        return;
    }
    let list_at = path.child("containers");
    for (i, container) in items(spec, "containers").iter().enumerate() {
        let at = list_at.index(i);
        let ports_at = at.child("ports");
        for (j, port) in items(container, "ports").iter().enumerate() {
            let (host, own) = (int(port, "hostPort").unwrap_or(0), int(port, "containerPort").unwrap_or(0));
            if (is_pod || host != 0) && host != own {
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.invalid(&ports_at.index(j).child("hostPort"), host, why);
            }
        }
    }
}

fn dns(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let config = get(spec, "dnsConfig");
    let servers_at = path.child("nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if items(config, "nameservers").is_empty() {
            errors.required(&servers_at, "must provide at least one DNS nameserver when `dnsPolicy` is None");
            return;
        }
    }
    if items(config, "nameservers").len() > NAMESERVERS_MAX {
        let why = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        errors.invalid(&servers_at, get(config, "nameservers").clone(), &why);
    }
    for (i, server) in texts(config, "nameservers").enumerate() {
        errors.invalid_each(&servers_at.index(i), server, rules::ip_in_old_field(server, true));
    }
    let searches_at = path.child("searches");
    let searches: Vec<&str> = texts(config, "searches").collect();
    if searches.len() > SEARCHES_MAX {
        let why = format!("must not have more than {SEARCHES_MAX} search paths");
        errors.invalid(&searches_at, get(config, "searches").clone(), &why);
    }
    if searches.join(" ").len() > SEARCH_LETTERS_MAX {
        let why =
            format!("must not have more than {SEARCH_LETTERS_MAX} characters (including spaces) in the search list");
        errors.invalid(&searches_at, get(config, "searches").clone(), &why);
    }
    for (i, search) in searches.iter().enumerate() {
        if *search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            errors.invalid_each(&searches_at.index(i), search, rules::dns_subdomain_with_underscore(search));
        }
    }
    let options_at = path.child("options");
    for (i, option) in items(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.required(&options_at.index(i), "must not be empty");
        }
    }
}

fn host_name(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    if !has(spec, "hostnameOverride") {
        return;
    }
    let at = path.child("hostnameOverride");
    if flag(spec, "setHostnameAsFQDN") {
        errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if flag(spec, "hostNetwork") {
        errors.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    let name = text(spec, "hostnameOverride");
    if name.len() > HOSTNAME_BYTES_MAX {
        errors.too_long(&at, HOSTNAME_BYTES_MAX);
    }
    errors.invalid_each(&at, name, rules::dns_subdomain(name));
}

/// Names of other objects, and small fields.
fn names(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    for key in ["serviceAccountName", "nodeName"] {
        let name = text(spec, key);
        if !name.is_empty() {
            errors.invalid_each(&path.child(key), name, rules::dns_subdomain(name));
        }
    }
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        for message in rules::in_range(seconds, 1, i64::from(i32::MAX)) {
            errors.invalid(&path.child("activeDeadlineSeconds"), seconds, &message);
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = text(spec, key);
        if !name.is_empty() {
            errors.invalid_each(&path.child(key), name, rules::dns_label(name));
        }
    }
    placement::tolerations(errors, items(spec, "tolerations"), &path.child("tolerations"));
    let aliases_at = path.child("hostAliases");
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        let at = aliases_at.index(i);
        let ip = text(alias, "ip");
        errors.invalid_each(&at.child("ip"), ip, rules::ip_in_old_field(ip, true));
        let names_at = at.child("hostnames");
        for (j, name) in texts(alias, "hostnames").enumerate() {
            errors.invalid_each(&names_at.index(j), name, rules::dns_subdomain(name));
        }
    }
    let class = text(spec, "priorityClassName");
    if !class.is_empty() {
        errors.invalid_each(&path.child("priorityClassName"), class, rules::dns_subdomain(class));
    }
    if has(spec, "runtimeClassName") {
        let class = text(spec, "runtimeClassName");
        errors.invalid_each(&path.child("runtimeClassName"), class, rules::dns_subdomain(class));
    }
    if has(spec, "preemptionPolicy") {
        required_choice(errors, spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path);
    }
    overhead(errors, get(spec, "overhead"), &path.child("overhead"));
}

/// A pod's overhead, validated like a container's limits.
pub(crate) fn overhead(errors: &mut ErrorList, overhead: &Value, path: &Path<'_>) {
    if !overhead.is_null() {
        let limits = json!({"limits": overhead});
        resources::requirements(errors, &limits, &std::collections::BTreeSet::new(), path, false);
    }
}

/// A pod template of a workload; `path` is that of the template.
pub(crate) fn template(errors: &mut ErrorList, template: &Value, path: &Path<'_>) {
    let (meta, spec) = (get(template, "metadata"), get(template, "spec"));
    labels(errors, get(meta, "labels"), &path.child("labels"));
    let notes = get(meta, "annotations");
    let notes_at = path.child("annotations");
    annotations(errors, notes, &notes_at);
    pod_annotations(errors, notes, spec, &notes_at);
    let spec_at = path.child("spec");
    pod_spec(errors, spec, None, &spec_at);
    security::annotations_agree(errors, notes, spec, &spec_at);
    if !items(spec, "ephemeralContainers").is_empty() {
        errors.forbidden(&spec_at.child("ephemeralContainers"), "ephemeral containers not allowed in pod template");
    }
}

/// Annotations with a meaning on pods.
pub(crate) fn pod_annotations(errors: &mut ErrorList, notes: &Value, spec: &Value, path: &Path<'_>) {
    if let Some(value) = notes.get(MIRROR).and_then(Value::as_str)
        && text(spec, "nodeName").is_empty()
    {
        errors.invalid(&path.key(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(cost) = notes.get(DELETION_COST).and_then(Value::as_str) {
        // Neither a plus sign nor leading zeros, which Go's parser would accept.
        let plain = !cost.starts_with('+') && (cost.len() < 2 || !cost.starts_with('0'));
        if !plain || cost.parse::<i32>().is_err() {
            errors.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
        }
    }
    security::annotations(errors, notes, spec, path);
}

/// Validates a new Pod, except its metadata.
pub(super) fn pod(errors: &mut ErrorList, pod: &Value) {
    const SPEC: Path<'static> = Path::root("spec");
    let (meta, spec) = (get(pod, "metadata"), get(pod, "spec"));
    pod_annotations(errors, get(meta, "annotations"), spec, &Path::root("metadata").child("annotations"));
    pod_spec(errors, spec, Some(text(meta, "name")), &SPEC);
    if text(spec, "serviceAccountName").is_empty() {
        let volumes_at = SPEC.child("volumes");
        for (i, volume) in items(spec, "volumes").iter().enumerate() {
            let at = volumes_at.index(i);
            let sources_at = at.child("projected.sources");
            for (j, source) in items(get(volume, "projected"), "sources").iter().enumerate() {
                if has(source, "serviceAccountToken") {
                    let why = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(&sources_at.index(j).child("serviceAccountToken"), why);
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        let list_at = SPEC.child(list);
        for (i, container) in items(spec, list).iter().enumerate() {
            containers::image_padding(errors, container, &list_at.index(i));
        }
    }
}

/// Warnings about memory and ephemeral storage with fractional bytes.
pub(super) fn fractional_bytes(warnings: &mut Vec<String>, amounts: &Value, path: &Path<'_>) {
    for key in ["memory", "ephemeral-storage"] {
        if let Some(amount) = quantity(get(amounts, key)).filter(|a| !a.is_whole_at_milli()) {
            let shown = quoted(&amount.to_string());
            warnings.push(format!("{}: fractional byte value {shown} is invalid, must be an integer", path.key(key)));
        }
    }
}
