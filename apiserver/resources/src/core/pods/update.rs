//! Validation of Pod updates and of status updates: only upstream's mutable fields may differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{container_statuses, spec};
use crate::field::{ErrorList, FieldError, IMMUTABLE, Path};
use crate::go_structs;
use crate::metadata::quantity;
use crate::read::{NULL, entries, get, has, int, is_zero, items, items_mut, object_mut, put, text};
use crate::rules;

const SPEC: Path<'static> = Path::root("spec");
const STATUS: Path<'static> = Path::root("status");
const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Aligns `podIP` and `podIPs`; the older field wins.
pub(super) fn normalize_ips(pod: &mut Value) {
    let Some(status) = pod.get_mut("status").filter(|s| s.is_object()) else { return };
    let ip = text(status, "podIP").to_owned();
    let first = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip")).to_owned();
    if !ip.is_empty() && ip != first {
        put(status, "podIPs", json!([{"ip": ip}]));
    } else if ip.is_empty() && !first.is_empty() {
        put(status, "podIP", json!(first));
    }
}

/// Subresource that adds ephemeral containers.
pub(super) const EPHEMERAL_CONTAINERS: &str = "ephemeralcontainers";

/// Restores all other fields of a pod in a write of ephemeral containers.
pub(super) fn restore_except_ephemeral_containers(new: &mut Value, old: &Value) {
    restore_except(new, old, |spec, given| put(spec, "ephemeralContainers", get(given, "ephemeralContainers").clone()));
}

/// Restores the old pod in a write of a subresource, except for what `change` copies from the given spec.
pub(super) fn restore_except(new: &mut Value, old: &Value, change: impl FnOnce(&mut Value, &Value)) {
    let given = get(new, "spec").clone();
    for key in ["spec", "status"] {
        put(new, key, get(old, key).clone());
    }
    if let Some(spec) = new.get_mut("spec") {
        change(spec, &given);
    }
    let old = get(old, "metadata");
    if let Some(metadata) = new.get_mut("metadata") {
        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
            put(metadata, key, get(old, key).clone());
        }
    }
}

/// Validates an update of ephemeral containers: existing ones are immutable.
pub(super) fn ephemeral_containers(errors: &mut ErrorList, new: &Value, old: &Value) {
    if get(get(get(old, "metadata"), "annotations"), MIRROR).is_string() {
        return errors.forbidden(&Path::root(""), "static pods do not support ephemeral containers");
    }
    spec::pod(errors, new);
    annotation_changes(errors, new, old);
    let at = SPEC.child("ephemeralContainers");
    let list = |pod| items(get(pod, "spec"), "ephemeralContainers");
    let by_name = first_by(list(new), "name");
    for was in list(old) {
        let name = text(was, "name");
        match by_name.get(name) {
            None => errors.forbidden(&at, &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if !semantically_equal(now, was) => {
                let why = format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    go_structs::difference(was, now, "EphemeralContainer")
                );
                errors.forbidden(&at, &why);
            }
            Some(_) => {}
        }
    }
}

/// Validates an update of the pod itself.
pub(super) fn pod(errors: &mut ErrorList, new: &Value, old: &Value) {
    spec::pod(errors, new);
    annotation_changes(errors, new, old);
    let (spec, old_spec) = (get(new, "spec"), get(old, "spec"));
    for list in ["containers", "initContainers"] {
        let at = SPEC.child(list);
        let containers = items(spec, list);
        if containers.len() != items(old_spec, list).len() {
            errors.forbidden(&at, "pod updates may not add or remove containers");
            return;
        }
        for (i, container) in containers.iter().enumerate() {
            let image = text(container, "image");
            let image_at = at.index(i);
            if image.is_empty() {
                errors.required(&image_at.child("image"), "");
            }
            if image.trim().len() != image.len() {
                let why = "must not have leading or trailing whitespace";
                errors.invalid(&image_at.child("image"), image, why);
            }
        }
    }
    let deadline_at = SPEC.child("activeDeadlineSeconds");
    match (int(spec, "activeDeadlineSeconds"), int(old_spec, "activeDeadlineSeconds")) {
        (Some(seconds), old) => {
            if !(0..=i64::from(i32::MAX)).contains(&seconds) {
                let why = format!("must be between 0 and {}, inclusive", i32::MAX);
                return errors.invalid(&deadline_at, seconds, &why);
            }
            if old.is_some_and(|old| old < seconds) {
                return errors.invalid(&deadline_at, seconds, "must be less than or equal to previous value");
            }
        }
        (None, Some(_)) => {
            errors.invalid(&deadline_at, Value::Null, "must not update from a positive integer to nil value");
        }
        (None, None) => {}
    }
    tolerations(errors, spec, old_spec);
    gates(errors, spec, old_spec);
    immutable_fields(errors, spec, old_spec);
}

pub(super) fn annotation_changes(errors: &mut ErrorList, new: &Value, old: &Value) {
    let at = Path::root("metadata");
    let at = at.child("annotations");
    let (notes, old_notes) = (get(get(new, "metadata"), "annotations"), get(get(old, "metadata"), "annotations"));
    for (key, value) in old_notes.as_object().into_iter().flatten() {
        if notes.get(key) == Some(value) {
            continue;
        }
        if key.starts_with(APPARMOR) {
            errors.forbidden(&at.key(key), "may not remove or update AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at.key(key), "may not remove or update mirror pod annotation");
        }
    }
    for (key, _) in notes.as_object().into_iter().flatten() {
        if old_notes.get(key).is_some() {
            continue;
        }
        if key.starts_with(APPARMOR) {
            errors.forbidden(&at.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(&at.key(key), "may not add mirror pod annotation");
        }
    }
    spec::pod_annotations(errors, notes, get(new, "spec"), &at);
}

fn tolerations(errors: &mut ErrorList, spec: &Value, old: &Value) {
    let at = SPEC.child("tolerations");
    let bare = |toleration: &Value| {
        let mut bare = toleration.clone();
        put(&mut bare, "tolerationSeconds", Value::Null);
        bare.to_string()
    };
    let new = items(spec, "tolerations");
    let kept: BTreeSet<String> = new.iter().map(bare).collect();
    for old in items(old, "tolerations") {
        if !kept.contains(&bare(old)) {
            errors.forbidden(&at, "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    super::placement::tolerations(errors, new, &at);
}

fn gates(errors: &mut ErrorList, spec: &Value, old: &Value) {
    let at = SPEC.child("schedulingGates");
    let kept: BTreeSet<&str> = items(old, "schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        if !kept.contains(name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&at.index(i).child("name"), &why);
        }
    }
}

/// All other fields are immutable; scheduling constraints of a gated pod may become narrower.
fn immutable_fields(errors: &mut ErrorList, new: &Value, old: &Value) {
    if semantically_equal(new, old) {
        return;
    }
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (container, old) in items_mut(&mut munged, list).iter_mut().zip(items(old, list)) {
            put(container, "image", get(old, "image").clone());
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        put(&mut munged, key, get(old, key).clone());
    }
    if int(old, "terminationGracePeriodSeconds").is_some_and(|s| s < 0)
        && int(&munged, "terminationGracePeriodSeconds") == Some(1)
    {
        put(&mut munged, "terminationGracePeriodSeconds", get(old, "terminationGracePeriodSeconds").clone());
    }
    if !items(old, "schedulingGates").is_empty() {
        node_selector(errors, &mut munged, old);
        node_affinity(errors, &mut munged, old);
    }
    if !semantically_equal(&munged, old) {
        errors.forbidden(
            &SPEC,
            &format!("{MAY_CHANGE}\n{}", go_structs::difference(&inner_spec(old), &inner_spec(&munged), "PodSpec")),
        );
    }
}

fn node_selector(errors: &mut ErrorList, munged: &mut Value, old: &Value) {
    let old_selector = get(old, "nodeSelector");
    let selector = get(munged, "nodeSelector");
    if entries(old, "nodeSelector").any(|(key, value)| selector.get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&SPEC.child("nodeSelector"), selector.clone(), why);
    }
    put(munged, "nodeSelector", old_selector.clone());
}

fn node_affinity(errors: &mut ErrorList, munged: &mut Value, old: &Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let old_affinity = get(get(old, "affinity"), "nodeAffinity").clone();
    let affinity = get(get(munged, "affinity"), "nodeAffinity").clone();
    if affinity == old_affinity {
        return;
    }
    if has(&old_affinity, REQUIRED) {
        let at = SPEC.child("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution");
        let at = at.child("nodeSelectorTerms");
        let old_terms = items(get(&old_affinity, REQUIRED), "nodeSelectorTerms");
        let terms = items(get(&affinity, REQUIRED), "nodeSelectorTerms");
        if !old_terms.is_empty() && old_terms.len() != terms.len() {
            let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
            errors.invalid(&at, inner_terms(terms), why);
        } else {
            for (i, (term, old)) in terms.iter().zip(old_terms).enumerate() {
                if !only_added(term, old) {
                    let why = "only additions are allowed (no mutations or deletions)";
                    let shown = inner_terms(std::slice::from_ref(term));
                    errors.invalid(&at.index(i), shown.get(0).cloned().unwrap_or_default(), why);
                }
            }
        }
    }
    let mut whole = get(munged, "affinity").clone();
    if whole.is_null() {
        whole = json!({});
    }
    put(&mut whole, "nodeAffinity", old_affinity);
    if is_zero(&whole) && !has(old, "affinity") {
        whole = Value::Null;
    }
    put(munged, "affinity", whole);
}

/// Terms in the form of upstream's internal types.
fn inner_terms(terms: &[Value]) -> Value {
    let inner = |list: &[Value]| -> Value {
        if list.is_empty() {
            return Value::Null;
        }
        list.iter()
            .map(|r| json!({"Key": text(r, "key"), "Operator": text(r, "operator"), "Values": get(r, "values")}))
            .collect()
    };
    if terms.is_empty() {
        return Value::Null;
    }
    terms
        .iter()
        .map(|t| {
            json!({"MatchExpressions": inner(items(t, "matchExpressions")),
                "MatchFields": inner(items(t, "matchFields"))})
        })
        .collect()
}

fn only_added(new: &Value, old: &Value) -> bool {
    let empty = |t: &Value| items(t, "matchExpressions").is_empty() && items(t, "matchFields").is_empty();
    if empty(old) {
        // An empty term matches nothing: adding requirements would widen it.
        return empty(new);
    }
    ["matchExpressions", "matchFields"].iter().all(|key| {
        let (new, old) = (items(new, key), items(old, key));
        new.len() >= old.len() && old.iter().zip(new).all(|(old, new)| old == new)
    })
}

/// Fields of specs that are maps, for which empty equals absent. An empty struct differs from an absent one.
const MAPS: &[&str] = &[
    "allocatedResourceStatuses",
    "allocatedResources",
    "annotations",
    "attributes",
    "capacity",
    "consumedCapacity",
    "counters",
    "data",
    "labels",
    "matchLabels",
    "nodeSelector",
    "options",
    "volumeAttributes",
];

/// Whether two values are semantically equal: quantities by amount, empty lists and maps as absent.
pub(crate) fn semantically_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter().all(|key| {
                let (a, b) = (a.get(key).unwrap_or(&NULL), b.get(key).unwrap_or(&NULL));
                let void = |v: &Value| {
                    v.is_null()
                        || v.as_array().is_some_and(Vec::is_empty)
                        || matches!(v, Value::Object(m) if m.is_empty() && MAPS.contains(&key.as_str()))
                };
                // Lists of devices and of LimitRanges have these names too.
                if ["limits", "requests", "overhead"].contains(&key.as_str()) && !a.is_array() && !b.is_array() {
                    return amounts_equal(a, b);
                }
                (void(a) && void(b)) || semantically_equal(a, b)
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantically_equal(a, b))
        }
        _ => a == b,
    }
}

fn amounts_equal(a: &Value, b: &Value) -> bool {
    let of = |v: &Value| -> Vec<(String, _)> {
        v.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), quantity(v))).collect()
    };
    of(a) == of(b)
}

/// A spec with its fields at their places in upstream's internal type.
pub(crate) fn inner_spec(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for key in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"] {
        let value = get(&spec, key).clone();
        put(object_mut(&mut spec, "securityContext"), key, value);
    }
    spec
}

/// Validates an update of the pod's status.
pub(super) fn status(errors: &mut ErrorList, new: &Value, old: &Value) {
    annotation_changes(errors, new, old);
    let (status, old_status) = (get(new, "status"), get(old, "status"));
    let conditions_at = STATUS.child("conditions");
    for (i, condition) in items(status, "conditions").iter().enumerate() {
        let at = conditions_at.index(i);
        observed(errors, condition, &at);
        let kind = text(condition, "type");
        if !["PodScheduled", "Ready", "Initialized"].contains(&kind) {
            errors.invalid_each(&at.child("Type"), kind, rules::label_key(kind));
        }
    }
    let (nominated, was) = (text(status, "nominatedNodeName"), text(old_status, "nominatedNodeName"));
    if !nominated.is_empty() && nominated != was {
        let at = STATUS.child("nominatedNodeName");
        errors.invalid_each(&at, nominated, rules::dns_subdomain(nominated));
        if !text(get(old, "spec"), "nodeName").is_empty() {
            errors.forbidden(&at, "may not be set on pods that are already bound to a node");
        }
    }
    observed(errors, status, &STATUS);
    if text(status, "qosClass") != text(old_status, "qosClass") {
        errors.invalid(&STATUS.child("qosClass"), text(status, "qosClass"), IMMUTABLE);
    }
    for (list, containers) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
        restarts(errors, status, old_status, list, items(get(old, "spec"), containers), get(old, "spec"));
    }
    restarts(errors, status, old_status, "ephemeralContainerStatuses", &[], &Value::Null);
    claim_statuses(errors, status, get(new, "spec"));
    if has(status, "extendedResourceClaimStatus") {
        extended_claim_status(errors, get(status, "extendedResourceClaimStatus"), get(new, "spec"));
    }
    addresses(errors, status, old_status, "podIPs");
    if let Some(first) = items(status, "hostIPs").first() {
        let ip = text(first, "ip");
        if text(status, "hostIP") != ip {
            let at = STATUS.child("hostIPs");
            errors.invalid(&at.index(0).child("ip"), ip, "must be equal to `hostIP`");
        }
    }
    addresses(errors, status, old_status, "hostIPs");
    container_statuses::validate(errors, status, get(new, "spec"), &STATUS);
}

fn claim_statuses(errors: &mut ErrorList, status: &Value, spec: &Value) {
    let list_at = STATUS.child("resourceClaimStatuses");
    let mut names = BTreeSet::new();
    let claims: BTreeSet<&str> = items(spec, "resourceClaims").iter().map(|c| text(c, "name")).collect();
    for (i, claim) in items(status, "resourceClaimStatuses").iter().enumerate() {
        let at = list_at.index(i);
        let name = text(claim, "name");
        if !claims.contains(name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&at.child("name"), name, why);
        }
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        if has(claim, "resourceClaimName") {
            let claimed = text(claim, "resourceClaimName");
            errors.invalid_each(&at.child("resourceClaimName"), claimed, rules::dns_subdomain(claimed));
        }
    }
}

/// The claim that the scheduler created for extended resources.
fn extended_claim_status(errors: &mut ErrorList, status: &Value, spec: &Value) {
    let at = STATUS.child("extendedResourceClaimStatus");
    let mappings_at = at.child("requestMappings");
    let containers: BTreeMap<&str, &Value> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| items(spec, list))
        .map(|c| (text(c, "name"), c))
        .collect();
    let mappings = items(status, "requestMappings");
    if mappings.is_empty() {
        errors.required(&mappings_at, "at least one request mapping is required");
    }
    let mut seen = BTreeSet::new();
    for (i, mapping) in mappings.iter().enumerate() {
        let one = mappings_at.index(i);
        let names = ["containerName", "resourceName", "requestName"].map(|field| (field, text(mapping, field)));
        let [(_, container), (_, resource), (_, request)] = names;
        match containers.get(container) {
            None => {
                let why = "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                errors.invalid(&one.child("containerName"), container, why);
            }
            Some(container) if !has(get(get(container, "resources"), "requests"), resource) => {
                let why = "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                           spec.containers.resources.requests";
                errors.invalid(&one.child("resourceName"), resource, why);
            }
            Some(_) => {}
        }
        errors.invalid_each(&at.child("requestName"), request, rules::dns_label(request));
        if !seen.insert((container, resource, request)) {
            for (field, name) in names {
                errors.duplicate(&one.child(field), name);
            }
        }
    }
    let (claim, claim_at) = (text(status, "resourceClaimName"), at.child("resourceClaimName"));
    if claim.is_empty() {
        errors.required(&claim_at, "");
    } else {
        errors.invalid_each(&claim_at, claim, rules::dns_subdomain(claim));
    }
}

fn observed(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    if let Some(generation) = int(of, "observedGeneration").filter(|g| *g < 0) {
        errors.invalid(&path.child("observedGeneration"), generation, "must be a non-negative integer");
    }
}

/// A terminated container must stay so, unless its policy restarts it.
fn restarts(errors: &mut ErrorList, new: &Value, old: &Value, list: &str, containers: &[Value], spec: &Value) {
    let at = STATUS.child(list);
    if !spec.is_null() && all_could_restart(spec) {
        return;
    }
    let by_name = |list| first_by(list, "name");
    let (states, containers) = (by_name(items(new, list)), by_name(containers));
    for (i, was) in items(old, list).iter().enumerate() {
        let ended = get(get(was, "state"), "terminated");
        let name = text(was, "name");
        let now = states.get(name);
        if ended.is_null() || now.is_none_or(|now| has(get(now, "state"), "terminated")) {
            continue;
        }
        let code = int(ended, "exitCode").unwrap_or(0);
        let container = containers.get(name);
        if !container.is_some_and(|c| restarts_after(c, spec, code)) {
            errors.forbidden(&at.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// The first item of each name.
fn first_by<'a>(list: &'a [Value], key: &str) -> BTreeMap<&'a str, &'a Value> {
    list.iter().rev().map(|item| (text(item, key), item)).collect()
}

fn all_could_restart(spec: &Value) -> bool {
    ["containers", "initContainers"].iter().any(|list| {
        items(spec, list)
            .iter()
            .any(|c| items(c, "restartPolicyRules").iter().any(|r| text(r, "action") == "RestartAllContainers"))
    })
}

fn restarts_after(container: &Value, spec: &Value, code: i64) -> bool {
    for rule in items(container, "restartPolicyRules") {
        let codes = get(rule, "exitCodes");
        let named = items(codes, "values").iter().any(|v| v.as_i64() == Some(code));
        if text(rule, "action") == "Restart" && named == (text(codes, "operator") == "In") {
            return true;
        }
    }
    let own = text(container, "restartPolicy");
    match if own.is_empty() { text(spec, "restartPolicy") } else { own } {
        "Always" => true,
        "OnFailure" => code != 0,
        _ => false,
    }
}

fn addresses(errors: &mut ErrorList, status: &Value, old: &Value, list: &str) {
    let at = STATUS.child(list);
    let known: BTreeSet<&str> = items(old, list).iter().map(|a| text(a, "ip")).collect();
    let given: Vec<&str> = items(status, list).iter().map(|a| text(a, "ip")).collect();
    for (i, ip) in given.iter().enumerate() {
        if !known.contains(ip) {
            errors.invalid_each(&at.index(i), ip, rules::ip_in_old_field(ip, true));
        }
    }
    if given.len() > 1 {
        let parsed: Vec<_> = given.iter().map(|ip| rules::parse_ip_leniently(ip)).collect();
        let wrong = parsed.iter().position(Option::is_none);
        if let Some(i) = wrong {
            let why = format!("failed to check for dual stack with error:invalid IP[{i}]: {}", given[i]);
            errors.add(|| FieldError::internal(&at, &why));
        }
        let v4 = parsed.iter().flatten().filter(|ip| ip.is_ipv4()).count();
        if wrong.is_some() || given.len() > 2 || v4 != 1 {
            let why = "may specify no more than one IP for each IP family";
            let shown: Value = given.iter().map(|ip| json!({"IP": ip})).collect();
            errors.invalid(&at, shown, why);
        }
    }
}
