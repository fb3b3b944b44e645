//! Limited resources: no two Services have the same address of the pool, and expired objects are removed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::convergence::Objects;
use super::invariants::ended;
use crate::history::History;
use crate::workload::POOL_SIZE;

const SERVICES: &str = "/registry/services/specs/";

/// The addresses of a Service's status.
fn shown(service: &Value) -> impl Iterator<Item = &str> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    ingress.into_iter().filter_map(|one| one["ip"].as_str())
}

/// No two Services have the same address.
pub(super) fn addresses(history: &History, key: &str, service: &Value, problems: &mut Vec<String>) {
    for ip in shown(service) {
        for (other, version) in history.now(SERVICES) {
            if *other != *key && shown(version.value()).any(|one| one == ip) {
                problems.push(format!("its address {ip} is that of {other}, too"));
            }
        }
    }
}

/// Unmet expectations after convergence.
pub(super) fn unmet(history: &History, problems: &mut Vec<String>) {
    let of = |prefix: &str| Objects::of(history, prefix);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |object: &Value| (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let (services, all) = (of("services/specs"), of("ipaddresses"));
    let balanced = |service: &Value| service["spec"]["type"] == "LoadBalancer";
    let mut held = BTreeMap::new();
    for (key, address) in all.iter() {
        if address["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"] == "service-lb-controller.coracle.dev" {
            let holder = &address["spec"]["parentRef"];
            let whose = (text(&holder["namespace"]), text(&holder["name"]));
            if !services.iter().any(|(_, service)| balanced(service) && name(service) == whose) {
                problems.push(format!("{key} is nobody's"));
            }
            held.insert(text(&address["metadata"]["name"]), whose);
        }
    }
    for (key, service) in services.iter() {
        let (wants, has) = (balanced(service), shown(service).next().is_some());
        if wants && !has && held.len() < POOL_SIZE {
            problems.push(format!("{key} has no address, and {} are free", POOL_SIZE - held.len()));
        }
        let own = shown(service).all(|ip| held.get(ip) == Some(&name(service)));
        if has && !(wants && own) {
            problems.push(format!("{key} shows an address that isn't its own"));
        }
    }
    for (key, job) in of("jobs").iter() {
        if job["spec"]["ttlSecondsAfterFinished"].is_number() && !job["status"]["completionTime"].is_null() {
            problems.push(format!("{key} has had its time"));
        }
    }
    for (key, secret) in of("secrets").iter() {
        if secret["type"] == "bootstrap.kubernetes.io/token" {
            problems.push(format!("{key} has had its time"));
        }
    }
    let pods = of("pods");
    for (key, claim) in of("persistentvolumeclaims").iter() {
        let owner = &claim["metadata"]["ownerReferences"][0];
        let is_owner = |pod: &Value| pod["metadata"]["uid"] == owner["uid"];
        if owner["kind"] == "Pod" && !pods.iter().any(|(_, pod)| is_owner(pod)) {
            problems.push(format!("{key} is left of a pod that is gone"));
        }
    }
    for (key, pod) in pods.iter().filter(|(_, pod)| !ended(pod)) {
        let made = format!("{}-data", text(&pod["metadata"]["name"]));
        let its = |claim: &Value| {
            name(claim) == (name(pod).0, made.clone())
                && claim["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
        };
        if pod["spec"]["volumes"][0]["ephemeral"].is_object()
            && !of("persistentvolumeclaims").iter().any(|(_, claim)| its(claim))
        {
            problems.push(format!("{key} has no claim of its own"));
        }
    }
}
