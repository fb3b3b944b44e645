//! Convergence: every object matches its spec, no garbage is left, and every cache equals the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machinery_client::{Informer, Kind};
use serde_json::Value;

use super::invariants::ended;
use crate::history::{History, Version};

/// The current objects of one kind, with their keys.
pub(crate) struct Objects(Vec<(Arc<str>, Arc<Version>)>);

impl Objects {
    pub(crate) fn of(history: &History, prefix: &str) -> Self {
        Self(history.now(&format!("/registry/{prefix}/")))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, version)| (&**key, version.value()))
    }
}

/// Unmet expectations; empty: the cluster has converged.
pub(crate) fn unmet(history: &History) -> Vec<String> {
    let of = |prefix: &str| Objects::of(history, prefix);
    let (pods, nodes, sets) = (of("pods"), of("minions"), of("replicasets"));
    let mut problems = Vec::new();
    deployments(&of("deployments"), &sets, &pods, &mut problems);
    jobs(&of("jobs"), &mut problems);
    stateful_sets(&of("statefulsets"), &pods, &mut problems);
    replication_controllers(&of("controllers"), &pods, &mut problems);
    mirrored(&of("services/endpoints"), &of("services/specs"), &of("endpointslices"), &mut problems);
    daemon_sets(&of("daemonsets"), &nodes, &pods, &mut problems);
    cron_jobs(&of("cronjobs"), &of("jobs"), &mut problems);
    budgets(&of("poddisruptionbudgets"), &pods, &mut problems);
    services(&of("services/specs"), &of("endpointslices"), &pods, &mut problems);
    placed(&pods, &nodes, &mut problems);
    owners(history, &mut problems);
    super::storage::unmet(history, &mut problems);
    super::terms::unmet(history, &mut problems);
    super::grants::unmet(history, &mut problems);
    for (key, namespace) in of("namespaces").iter() {
        if !namespace["metadata"]["deletionTimestamp"].is_null() {
            problems.push(format!("{key} is not gone"));
        }
    }
    problems
}

fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

fn controlled_by(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    owners.into_iter().any(|owner| owner["uid"] == uid && owner["controller"] == true)
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn going(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

fn deployments(deployments: &Objects, sets: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, deployment) in deployments.iter() {
        if going(deployment) {
            problems.push(format!("{key} is being deleted"));
            continue;
        }
        let wanted = number(deployment, "/spec/replicas");
        for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            let there = number(deployment, &format!("/status/{field}"));
            if there != wanted {
                problems.push(format!("{key} wants {wanted} and has {there} {field}"));
            }
        }
        if number(deployment, "/status/observedGeneration") != number(deployment, "/metadata/generation") {
            problems.push(format!("{key} is not observed"));
        }
        let uid = deployment["metadata"]["uid"].as_str().unwrap_or_default();
        let mut there = 0;
        for (set_key, set) in sets.iter().filter(|(_, set)| controlled_by(set, uid)) {
            let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
            let own = pods.iter().filter(|(_, pod)| controlled_by(pod, uid) && !ended(pod) && !going(pod));
            let (all, ready) = own.fold((0, 0), |(all, up), (_, pod)| (all + 1, up + i64::from(ready(pod))));
            if all != number(set, "/spec/replicas") || ready != all {
                problems.push(format!("{set_key} wants {}, has {all}, {ready} ready", set["spec"]["replicas"]));
            }
            there += all;
        }
        if there != wanted {
            problems.push(format!("{key} wants {wanted} and there are {there} pods"));
        }
    }
}

fn stateful_sets(sets: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, set) in sets.iter() {
        let wanted = number(set, "/spec/replicas");
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        let own: BTreeSet<&str> = pods
            .iter()
            .filter(|(_, pod)| controlled_by(pod, uid) && !ended(pod) && !going(pod) && ready(pod))
            .filter_map(|(_, pod)| pod["metadata"]["name"].as_str())
            .collect();
        let name = set["metadata"]["name"].as_str().unwrap_or_default();
        let names: Vec<String> = (0..wanted).map(|ordinal| format!("{name}-{ordinal}")).collect();
        if own != names.iter().map(String::as_str).collect() {
            problems.push(format!("{key} wants {wanted} and has {own:?}"));
        }
        for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
            if number(set, &format!("/status/{field}")) != wanted {
                problems.push(format!("{key} wants {wanted}, its status is {}", set["status"]));
            }
        }
        if number(set, "/status/observedGeneration") != number(set, "/metadata/generation") {
            problems.push(format!("{key} is not observed"));
        }
    }
}

fn replication_controllers(sets: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, set) in sets.iter() {
        let (wanted, uid) = (number(set, "/spec/replicas"), set["metadata"]["uid"].as_str().unwrap_or_default());
        let own = pods.iter().filter(|(_, pod)| controlled_by(pod, uid) && !ended(pod) && !going(pod) && ready(pod));
        let there = i64::try_from(own.count()).unwrap_or(0);
        let reported =
            ["replicas", "readyReplicas", "availableReplicas"].map(|field| number(set, &format!("/status/{field}")));
        if there != wanted || reported != [wanted; 3] {
            problems.push(format!("{key} wants {wanted} and has {there}, its status is {}", set["status"]));
        }
    }
}

/// Manual Endpoints are mirrored to EndpointSlices.
fn mirrored(endpoints: &Objects, services: &Objects, slices: &Objects, problems: &mut Vec<String>) {
    for (key, named) in endpoints.iter() {
        let of = |object: &Value| object["metadata"]["namespace"] == named["metadata"]["namespace"];
        let name = &named["metadata"]["name"];
        let service = services.iter().find(|(_, service)| of(service) && service["metadata"]["name"] == *name);
        if !service.is_some_and(|(_, service)| service["spec"]["selector"].is_null()) || *name == "kubernetes" {
            continue;
        }
        let wanted: Vec<&str> = named["subsets"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|subset| subset["addresses"].as_array().into_iter().flatten())
            .filter_map(|address| address["ip"].as_str())
            .collect();
        let there: Vec<&str> = slices
            .iter()
            .filter(|(_, slice)| of(slice) && slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name)
            .flat_map(|(_, slice)| slice["endpoints"].as_array().into_iter().flatten())
            .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        if wanted != there {
            problems.push(format!("{key} names {wanted:?}, its slices {there:?}"));
        }
    }
}

/// One ready pod on each node, all of which are healthy after convergence.
fn daemon_sets(sets: &Objects, nodes: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, set) in sets.iter() {
        let uid = set["metadata"]["uid"].as_str().unwrap_or_default();
        let own = pods.iter().filter(|(_, pod)| controlled_by(pod, uid) && !ended(pod) && !going(pod) && ready(pod));
        let mut there: Vec<&str> = own.filter_map(|(_, pod)| pod["spec"]["nodeName"].as_str()).collect();
        there.sort_unstable();
        let wanted: Vec<&str> = nodes.iter().filter_map(|(_, node)| node["metadata"]["name"].as_str()).collect();
        if there != wanted {
            problems.push(format!("{key} has pods on {there:?} of {wanted:?}"));
        }
        let count = i64::try_from(wanted.len()).unwrap_or(0);
        for field in ["desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberAvailable"] {
            if number(set, &format!("/status/{field}")) != count {
                problems.push(format!("{key} wants {count}, its status is {}", set["status"]));
            }
        }
    }
}

/// Suspended after convergence: nothing runs, and history limits are met.
fn cron_jobs(crons: &Objects, jobs: &Objects, problems: &mut Vec<String>) {
    for (key, cron) in crons.iter() {
        let uid = cron["metadata"]["uid"].as_str().unwrap_or_default();
        let kept = jobs.iter().filter(|(_, job)| controlled_by(job, uid)).count();
        let active = cron["status"]["active"].as_array().map_or(0, Vec::len);
        if active > 0 || kept > 2 {
            problems.push(format!("{key} has {kept} Jobs, {active} of which it calls active"));
        }
    }
}

fn budgets(budgets: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, budget) in budgets.iter() {
        let Some(selector) = budget["spec"]["selector"]["matchLabels"].as_object() else { continue };
        let namespace = &budget["metadata"]["namespace"];
        let healthy = pods
            .iter()
            .filter(|(_, pod)| pod["metadata"]["namespace"] == *namespace && !ended(pod) && !going(pod) && ready(pod))
            .filter(|(_, pod)| selector.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value))
            .count();
        let healthy = i64::try_from(healthy).unwrap_or(0);
        let allowed = (healthy - number(budget, "/status/desiredHealthy")).max(0);
        let status = &budget["status"];
        if number(budget, "/status/currentHealthy") != healthy
            || number(budget, "/status/disruptionsAllowed") != allowed
        {
            problems.push(format!("{key} has {healthy} healthy pods, its status is {status}"));
        }
    }
}

fn jobs(jobs: &Objects, problems: &mut Vec<String>) {
    for (key, job) in jobs.iter() {
        let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
        let over = conditions.into_iter().any(|condition| {
            matches!(condition["type"].as_str(), Some("Complete" | "Failed")) && condition["status"] == "True"
        });
        if !over {
            problems.push(format!("{key} is not over: {}", job["status"]));
        }
        let failed = number(job, "/status/failed") > number(job, "/spec/backoffLimit")
            || job["spec"]["activeDeadlineSeconds"].is_number();
        if over && !failed && number(job, "/status/succeeded") < number(job, "/spec/completions") {
            problems.push(format!("{key} is over without its completions: {}", job["status"]));
        }
    }
}

fn services(services: &Objects, slices: &Objects, pods: &Objects, problems: &mut Vec<String>) {
    for (key, service) in services.iter() {
        let Some(selector) = service["spec"]["selector"].as_object() else { continue };
        let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
        let wanted: BTreeSet<&str> = pods
            .iter()
            .filter(|(_, pod)| pod["metadata"]["namespace"] == *namespace && !ended(pod) && !going(pod) && ready(pod))
            .filter(|(_, pod)| selector.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value))
            .filter_map(|(_, pod)| pod["status"]["podIP"].as_str())
            .collect();
        let there: Vec<&str> = slices
            .iter()
            .filter(|(_, slice)| slice["metadata"]["namespace"] == *namespace)
            .filter(|(_, slice)| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name)
            .flat_map(|(_, slice)| slice["endpoints"].as_array().into_iter().flatten())
            .filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let set: BTreeSet<&str> = there.iter().copied().collect();
        if set != wanted || set.len() != there.len() {
            problems.push(format!("{key} leads to {there:?}, ready are {wanted:?}"));
        }
    }
}

fn placed(pods: &Objects, nodes: &Objects, problems: &mut Vec<String>) {
    for (key, node) in nodes.iter() {
        if !ready(node) {
            problems.push(format!("{key} is not ready"));
        }
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        problems.extend(taints.map(|taint| format!("{key} has the taint {taint}")));
    }
    let mut addresses: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, pod) in pods.iter() {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if going(pod) {
            problems.push(format!("{key} on {node} is not gone"));
        }
        if ended(pod) {
            continue;
        }
        if node.is_empty() || !nodes.iter().any(|(_, there)| there["metadata"]["name"] == node) {
            problems.push(format!("{key} has no node: {node:?}, {}", pod["status"]["conditions"]));
        } else if !ready(pod) {
            problems.push(format!("{key} on {node} is not ready"));
        }
        if let Some(address) = pod["status"]["podIP"].as_str()
            && let Some(other) = addresses.insert(address, key)
        {
            problems.push(format!("{key} has the address of {other}, {address}"));
        }
    }
}

/// Every object with owners has an existing one.
fn owners(history: &History, problems: &mut Vec<String>) {
    let all = history.now("/registry/");
    let uids: BTreeSet<&str> =
        all.iter().filter_map(|(_, object)| object.value()["metadata"]["uid"].as_str()).collect();
    for (key, object) in &all {
        let Some(owners) = object.value()["metadata"]["ownerReferences"].as_array().filter(|o| !o.is_empty()) else {
            continue;
        };
        if !owners.iter().any(|owner| owner["uid"].as_str().is_some_and(|uid| uids.contains(uid))) {
            problems.push(format!("{key} has lost all its owners"));
        }
    }
}

/// Differences between a cache and the store. `settled`: later changes may still be in transit.
pub(crate) fn stale(
    history: &History,
    name: &str,
    informer: &Informer,
    settled: u64,
    prefix: impl Fn(&Kind) -> Option<String>,
) -> Vec<String> {
    informer.read(|view| {
        let mut problems = Vec::new();
        for kind in view.kinds() {
            let Some(prefix) = prefix(kind) else { continue };
            let late = history.changes(&prefix, settled, u64::MAX);
            let late: BTreeSet<&str> = late.iter().map(|step| &*step.key).collect();
            let late = |key: &str| late.contains(key);
            let shown: BTreeMap<String, String> = view
                .metadata_of(kind, "")
                .map(|metadata| {
                    let namespace = metadata.namespace.as_deref().map_or(String::new(), |n| format!("{n}/"));
                    let key = format!("{prefix}{namespace}{}", metadata.name.as_deref().unwrap_or_default());
                    (key, metadata.resource_version.clone().unwrap_or_default())
                })
                .filter(|(key, _)| !late(key))
                .collect();
            let stored: BTreeMap<String, String> = history
                .now(&prefix)
                .into_iter()
                .map(|(key, version)| (key.to_string(), version.revision.to_string()))
                .filter(|(key, _)| !late(key))
                .collect();
            if shown != stored {
                let differ: Vec<_> = stored.iter().filter(|(k, v)| shown.get(*k) != Some(v)).collect();
                let gone: Vec<_> = shown.keys().filter(|key| !stored.contains_key(*key)).collect();
                problems.push(format!(
                    "{name} does not know of {}: {differ:?}, nor that {gone:?} are gone",
                    kind.resource()
                ));
            }
        }
        problems
    })
}
