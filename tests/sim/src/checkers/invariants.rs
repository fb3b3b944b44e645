//! Invariants of every revision, checked at each commit.

use std::collections::BTreeMap;

use machinery_api::quantity::Quantity;
use serde_json::Value;

use crate::history::{History, KeyChange};

const PODS: &str = "/registry/pods/";
const NODES: &str = "/registry/minions/";
const NAMESPACES: &str = "/registry/namespaces/";
const BUDGETS: &str = "/registry/poddisruptionbudgets/";
const SERVICES: &str = "/registry/services/specs/";
const REQUESTS: &str = "/registry/certificatesigningrequests/";

/// State derived from earlier changes.
#[derive(Default)]
pub(crate) struct Invariants {
    /// Each uid with its key.
    uids: BTreeMap<String, String>,
    /// Unfinished pods of each node by key, with their requests.
    borne: BTreeMap<String, BTreeMap<String, i64>>,
}

/// A pod's requests in thousandths of a core.
pub(crate) fn requested_millis(pod: &Value) -> i64 {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers.map(|container| millis(&container["resources"]["requests"]["cpu"])).sum()
}

fn millis(quantity: &Value) -> i64 {
    quantity.as_str().and_then(|text| Quantity::parse(text).ok()).map_or(0, |quantity| quantity.milli())
}

/// Whether a pod has finished.
pub(crate) fn ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl Invariants {
    /// The violations of one change.
    pub(crate) fn step(&mut self, history: &History, step: &KeyChange) -> Vec<String> {
        let mut problems = Vec::new();
        let key = &*step.key;
        if key.starts_with(PODS) {
            self.update_pod_node(step);
        }
        let Some(new) = step.new.as_deref().map(|version| version.value()) else {
            if let Some(name) = key.strip_prefix(NAMESPACES) {
                empty(history, name, &mut problems);
            }
            return problems.into_iter().map(|problem| format!("{key} at {}: {problem}", step.revision)).collect();
        };
        let old = step.old.as_deref().map(|version| version.value());
        self.identity(key, new, old, &mut problems);
        if let Some(old) = old.filter(|old| old["metadata"]["uid"] == new["metadata"]["uid"]) {
            monotone(new, old, &mut problems);
        }
        if key.starts_with(PODS) && old.is_none() {
            quotas(history, new, &mut problems);
        }
        if key.starts_with(PODS) {
            self.pod(history, new, old, &mut problems);
        } else if key.starts_with(BUDGETS) {
            budget(new, old, &mut problems);
        } else if key.starts_with(NODES) {
            unique(history, NODES, key, new, "podCIDR", &mut problems);
        } else if key.starts_with(SERVICES) {
            unique(history, SERVICES, key, new, "clusterIP", &mut problems);
            super::terms::addresses(history, key, new, &mut problems);
        } else if key.starts_with(REQUESTS) {
            super::grants::certificates(new, &mut problems);
        }
        problems.into_iter().map(|problem| format!("{key} at {}: {problem}", step.revision)).collect()
    }

    /// An object's uid never changes, and no other object ever has it.
    fn identity(&mut self, key: &str, new: &Value, old: Option<&Value>, problems: &mut Vec<String>) {
        let Some(uid) = new["metadata"]["uid"].as_str() else { return };
        if let Some(old) = old {
            if old["metadata"]["uid"] != uid {
                problems.push(format!("it became another object, {uid}, without being deleted"));
            }
        } else if let Some(other) = self.uids.insert(uid.to_owned(), key.to_owned()) {
            problems.push(format!("its uid {uid} was that of {other}"));
        }
    }

    /// Updates a pod's node.
    fn update_pod_node(&mut self, step: &KeyChange) {
        for (version, is_now) in [(&step.old, false), (&step.new, true)] {
            let Some(pod) = version.as_deref().map(|version| version.value()) else { continue };
            let Some(node) = pod["spec"]["nodeName"].as_str() else { continue };
            let borne = self.borne.entry(node.to_owned()).or_default();
            if is_now && !ended(pod) {
                borne.insert(step.key.to_string(), requested_millis(pod));
            } else {
                borne.remove(&*step.key);
            }
        }
    }

    fn pod(&self, history: &History, new: &Value, old: Option<&Value>, problems: &mut Vec<String>) {
        let node = new["spec"]["nodeName"].as_str().unwrap_or_default();
        let before = old.and_then(|old| old["spec"]["nodeName"].as_str()).unwrap_or_default();
        if !before.is_empty() && before != node {
            problems.push(format!("it moved from {before} to {node}"));
        }
        if let Some(old) = old.filter(|old| ended(old))
            && old["status"]["phase"] != new["status"]["phase"]
        {
            problems.push(format!("it had ended as {} and is {}", old["status"]["phase"], new["status"]["phase"]));
        }
        if before.is_empty() && !node.is_empty() {
            self.overcommitted(history, node, problems);
        }
    }

    /// A pod that comes to a node never exceeds its capacity.
    fn overcommitted(&self, history: &History, node: &str, problems: &mut Vec<String>) {
        let Some(found) = history.at(&format!("{NODES}{node}"), u64::MAX) else { return };
        let allocatable = &found.value()["status"]["allocatable"];
        let (pods, cpu) = self.borne.get(node).map_or((0, 0), |borne| (borne.len(), borne.values().sum()));
        let capacity = (millis(&allocatable["pods"]) / 1000, millis(&allocatable["cpu"]));
        if i64::try_from(pods).is_ok_and(|pods| pods > capacity.0) || cpu > capacity.1 {
            problems
                .push(format!("{node} has {pods} pods and {cpu}m, and room for {} and {}m", capacity.0, capacity.1));
        }
    }
}

/// Values that never decrease.
fn monotone(new: &Value, old: &Value, problems: &mut Vec<String>) {
    let number = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_i64);
    for path in ["/metadata/generation", "/status/observedGeneration"] {
        let (before, after) = (number(old, path), number(new, path));
        if before.is_some() && after < before {
            problems.push(format!("{path} went from {before:?} to {after:?}"));
        }
    }
    let (generation, observed) = (number(new, "/metadata/generation"), number(new, "/status/observedGeneration"));
    if observed > generation.or(observed) {
        problems.push(format!("observedGeneration {observed:?} is ahead of {generation:?}"));
    }
    for path in ["/metadata/creationTimestamp", "/metadata/deletionTimestamp", "/status/completionTime"] {
        let before = old.pointer(path).filter(|value| !value.is_null());
        // A deletion with a shorter grace period ends sooner, or now if that has passed.
        let grace = |object: &Value| number(object, "/metadata/deletionGracePeriodSeconds");
        let hastened = path.ends_with("deletionTimestamp") && grace(new) < grace(old);
        let gone = new.pointer(path).is_none_or(Value::is_null);
        if before.is_some() && new.pointer(path) != before && (gone || !hastened) {
            problems.push(format!("{path} changed from {before:?} to {:?}", new.pointer(path)));
        }
    }
}

/// A created pod never exceeds a quota with a computed status.
fn quotas(history: &History, pod: &Value, problems: &mut Vec<String>) {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let quotas = history.now(&format!("/registry/resourcequotas/{namespace}/"));
    if quotas.is_empty() {
        return;
    }
    let there = history.now(&format!("{PODS}{namespace}/"));
    // A pod past its deletion on a disconnected node is no longer charged.
    let charged = |pod: &Value| !ended(pod) && pod["metadata"]["deletionTimestamp"].is_null();
    let count = there.iter().filter(|(_, pod)| charged(pod.value())).count();
    for (key, quota) in quotas {
        let quota = quota.value();
        let hard = quota["status"]["hard"]["pods"].as_str().and_then(|text| text.parse::<usize>().ok());
        if hard.is_some_and(|hard| count > hard) {
            problems.push(format!("{key} allows {hard:?} pods, and there are {count}"));
        }
    }
}

/// Each eviction is deducted from the budget.
fn budget(new: &Value, old: Option<&Value>, problems: &mut Vec<String>) {
    let allowed = |budget: &Value| budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
    let named = |budget: &Value| budget["status"]["disruptedPods"].as_object().cloned().unwrap_or_default();
    let Some(old) = old else { return };
    let before = named(old);
    let more = i64::try_from(named(new).keys().filter(|name| !before.contains_key(*name)).count()).unwrap_or(0);
    if more > 0 && allowed(new) != allowed(old) - more || allowed(new) < 0 {
        problems.push(format!(
            "{more} pods are evicted, of {} that may be, which leaves {}",
            allowed(old),
            allowed(new)
        ));
    }
}

/// No two objects share a value of the field.
fn unique(history: &History, prefix: &str, key: &str, new: &Value, field: &str, problems: &mut Vec<String>) {
    let Some(own) = new["spec"][field].as_str().filter(|own| !own.is_empty() && *own != "None") else { return };
    for (other, version) in history.now(prefix) {
        if *other != *key && version.value()["spec"][field] == own {
            problems.push(format!("its {field} {own} is that of {other}"));
        }
    }
}

/// A deleted namespace leaves nothing behind.
fn empty(history: &History, namespace: &str, problems: &mut Vec<String>) {
    for (key, version) in history.now("/registry/") {
        if version.value()["metadata"]["namespace"] == namespace {
            problems.push(format!("{key} is left in it"));
        }
    }
}
