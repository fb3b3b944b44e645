//! Quota usage of pods: requests and limits of containers, and scopes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::amounts::{Amounts, add, raise, read};
use super::{Scope, whole};

const COUNT: &str = "count/pods";
/// Countable resources of pods beside huge pages and extended resources.
const NAMES: &[&str] = &[
    COUNT,
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Resources that every container must set if a quota limits them.
const REQUIRED: &[&str] = &["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const HUGE_PAGES: &str = "hugepages-";
const DEVICE_CLASS: &str = "deviceclass.resource.kubernetes.io/";

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// `example.com/gpu`: allowed in requests.
fn is_extended(name: &str) -> bool {
    name.starts_with(DEVICE_CLASS) || (!is_native(name) && !name.starts_with("requests."))
}

pub(super) fn counts(name: &str) -> bool {
    let requested = name.strip_prefix("requests.");
    NAMES.contains(&name)
        || name.starts_with(HUGE_PAGES)
        || requested.is_some_and(|name| name.starts_with(HUGE_PAGES) || name.starts_with(DEVICE_CLASS))
        || (requested.is_some() && !is_native(name))
}

/// Whether the pod has a deadline.
pub(super) fn is_terminating(pod: &Value) -> bool {
    pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

fn containers<'a>(pod: &'a Value, list: &str) -> &'a [Value] {
    pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with(HUGE_PAGES)
}

/// Whether the pod has pod-level resources.
fn has_pod_level(pod: &Value) -> bool {
    let resources = &pod["spec"]["resources"];
    let names = |list: &str| resources[list].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
    names("requests").chain(names("limits")).any(is_pod_level)
}

fn is_best_effort(pod: &Value) -> bool {
    if let Some(class) = pod["status"]["qosClass"].as_str().filter(|class| !class.is_empty()) {
        return class == "BestEffort";
    }
    let asks = |resources: &Value| {
        ["requests", "limits"].iter().any(|list| {
            let amounts = read(&resources[*list]);
            amounts.iter().any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && amount.sign() > 0)
        })
    };
    if pod["spec"]["resources"].is_object() {
        return !asks(&pod["spec"]["resources"]);
    }
    let all = containers(pod, "containers").iter().chain(containers(pod, "initContainers"));
    !all.into_iter().any(|container| asks(&container["resources"]))
}

/// Whether its affinity terms select other namespaces.
fn looks_into_other_namespaces(pod: &Value) -> bool {
    let term = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|list| !list.is_empty()) || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &pod["spec"]["affinity"][*kind];
        let list = |field: &str| affinity[field].as_array().map(Vec::as_slice).unwrap_or_default();
        list("requiredDuringSchedulingIgnoredDuringExecution").iter().any(term)
            || list("preferredDuringSchedulingIgnoredDuringExecution").iter().any(|w| term(&w["podAffinityTerm"]))
    })
}

pub(super) fn in_scope(scope: Scope<'_>, pod: &Value) -> bool {
    match scope.name {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => scope.selects(pod["spec"]["priorityClassName"].as_str().filter(|class| !class.is_empty())),
        "CrossNamespacePodAffinity" => looks_into_other_namespaces(pod),
        _ => false,
    }
}

/// The containers' sum: sidecars run beside all, other init containers one after another.
fn aggregate(pod: &Value, of: impl Fn(&Value, bool) -> Amounts) -> Amounts {
    let mut sum = Amounts::new();
    for container in containers(pod, "containers") {
        add(&mut sum, &of(container, true));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in containers(pod, "initContainers") {
        let is_sidecar = container["restartPolicy"] == "Always";
        let mut own = of(container, is_sidecar);
        if is_sidecar {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut starting, &own);
    }
    raise(&mut sum, &starting);
    sum
}

fn status_of<'a>(pod: &'a Value, container: &Value) -> Option<&'a Value> {
    let name = &container["name"];
    let list = |field: &str| pod["status"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut all = list("containerStatuses").iter().chain(list("initContainerStatuses"));
    all.find(|status| status["name"] == *name && !name.is_null())
}

/// Whether its node reported the requested resize as infeasible.
fn is_infeasible(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pending = conditions.iter().find(|condition| condition["type"] == "PodResizePending");
    pending.is_some_and(|condition| condition["reason"] == "Infeasible")
}

/// A container's requests or limits, including its allocation until a resize completes.
fn effective(pod: &Value, container: &Value, list: &str, held: bool) -> Amounts {
    let wanted = read(&container["resources"][list]);
    let Some(status) = status_of(pod, container).filter(|status| held && status["resources"].is_object()) else {
        return wanted;
    };
    let mut amounts = if is_infeasible(pod) { Amounts::new() } else { wanted };
    raise(&mut amounts, &read(&status["resources"][list]));
    if list == "requests" {
        raise(&mut amounts, &read(&status["allocatedResources"]));
    }
    amounts
}

fn total(pod: &Value, list: &str, with_status: bool) -> Amounts {
    let mut sum = aggregate(pod, |container, held| effective(pod, container, list, with_status && held));
    for (name, amount) in read(&pod["spec"]["resources"][list]) {
        if is_pod_level(&name) {
            sum.insert(name, amount);
        }
    }
    sum
}

/// The pod's total requests, by its spec.
#[must_use]
pub fn requests(pod: &Value) -> Amounts {
    total(pod, "requests", false)
}

/// The pod's total limits, by its spec.
#[must_use]
pub fn limits(pod: &Value) -> Amounts {
    total(pod, "limits", false)
}

/// Whether it still uses resources.
fn is_alive(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return false;
    }
    let metadata = &pod["metadata"];
    let ends = metadata["deletionTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let (Some(ends), Some(grace)) = (ends, metadata["deletionGracePeriodSeconds"].as_i64()) else { return true };
    ends.saturating_add(SignedDuration::from_secs(grace)).is_ok_and(|late| now <= late)
}

/// Usage under the quotas' resource names.
fn named(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut named = Amounts::from([("pods".to_owned(), whole(1))]);
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES);
        if plain {
            named.insert(name.clone(), amount.clone());
        }
        if plain || is_extended(name) {
            named.insert(format!("requests.{name}"), amount.clone());
        }
    }
    for (name, amount) in limits {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            named.insert(format!("limits.{name}"), amount.clone());
        }
    }
    named
}

pub(super) fn usage(pod: &Value, now: Timestamp) -> Amounts {
    let mut usage = Amounts::from([(COUNT.to_owned(), whole(1))]);
    if !is_alive(pod, now) {
        return usage;
    }
    let (mut requests, mut limits) = (total(pod, "requests", true), total(pod, "limits", true));
    let overhead = read(&pod["spec"]["overhead"]);
    add(&mut requests, &overhead);
    let limited = overhead.into_iter().filter(|(name, _)| limits.get(name).is_some_and(|limit| !limit.is_zero()));
    let limited: Amounts = limited.collect();
    add(&mut limits, &limited);
    add(&mut usage, &named(&requests, &limits));
    usage
}

/// `must specify limits.memory for: a,b; requests.cpu for: a`
pub(super) fn missing(limited: &[&str], pod: &Value) -> Option<String> {
    if has_pod_level(pod) {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in containers(pod, "containers").iter().chain(containers(pod, "initContainers")) {
        let resources = &container["resources"];
        let specified = named(&read(&resources["requests"]), &read(&resources["limits"]));
        for name in limited.iter().filter(|name| REQUIRED.contains(name) && !specified.contains_key(**name)) {
            missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
        }
    }
    if missing.is_empty() {
        return None;
    }
    let one = |(name, containers): (&str, BTreeSet<&str>)| {
        format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(","))
    };
    Some(format!("must specify {}", missing.into_iter().map(one).collect::<Vec<_>>().join("; ")))
}
