//! Effective requests of a pod during a resize (KEP-1287): the maximum of the spec's requests, the node's allocation
//! and the containers' actual resources. The result replaces the spec's requests, so that every reader counts the same.
//! Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery_api::quantity::Quantity;

use super::{Container, PodShape, PodStatus, Resources};

type Amounts = BTreeMap<String, Text>;

/// Raises the requests, and removes the inputs from the status.
pub(super) fn raise(shape: &mut PodShape, status: &mut PodStatus) {
    let mut conditions = status.conditions.iter().flatten();
    let refused = conditions.any(|of| of.type_ == "PodResizePending" && of.reason.as_deref() == Some("Infeasible"));
    let (given, has) = (status.allocated_resources.take(), status.resources.take());
    let whole = shape.resources.as_ref().is_some_and(|resources| resources.requests.is_some());
    if let Some(has) = has.filter(|_| whole) {
        held(&mut shape.resources, given, has, refused);
    }
    let sidecar = |container: &&mut Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = shape.init_containers.iter_mut().flatten().filter(sidecar);
    let lists = [&mut status.container_statuses, &mut status.init_container_statuses];
    let reported = lists.into_iter().flatten().flat_map(|list| list.iter_mut());
    let taken = reported.filter_map(|reported| {
        let (given, has) = (reported.allocated_resources.take(), reported.resources.take());
        Some((reported.name.clone(), (given, has?)))
    });
    let mut reported: HashMap<String, _> = taken.collect();
    for container in shape.containers.iter_mut().chain(sidecars) {
        if let Some((given, has)) = container.name.as_ref().and_then(|name| reported.remove(name)) {
            held(&mut container.resources, given, has, refused);
        }
    }
}

fn held(wished: &mut Option<Resources>, given: Option<Amounts>, has: Resources, refused: bool) {
    let mut most =
        if refused { Amounts::new() } else { wished.as_ref().and_then(|w| w.requests.clone()).unwrap_or_default() };
    for (name, amount) in given.into_iter().chain(has.requests).flatten() {
        let parse = |text: &Text| Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero());
        if most.get(&name).is_none_or(|most| parse(most) < parse(&amount)) {
            most.insert(name, amount);
        }
    }
    if !most.is_empty() {
        wished.get_or_insert_default().requests = Some(most);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Pod;

    #[test]
    fn a_pod_that_is_resized_holds_the_most_of_all() {
        let read = |reason: &str, reported: Value| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {},
                "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "2", "memory": "1Gi"}}}, {"name": "b"}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{"name": "b"}, reported],
                },
            }))
            .unwrap();
            serde_json::to_value(pod).unwrap()
        };
        let given =
            json!({"name": "a", "allocatedResources": {"cpu": "3"}, "resources": {"requests": {"memory": "512Mi"}}});
        let deferred = read("Deferred", given.clone());
        assert_eq!(deferred["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "3", "memory": "1Gi"}));
        assert_eq!(
            deferred["status"]["containerStatuses"][1],
            json!({"name": "a", "restartCount": 0}),
            "and no more is kept"
        );
        let infeasible = read("Infeasible", given);
        assert_eq!(
            infeasible["spec"]["containers"][0]["resources"]["requests"],
            json!({"cpu": "3", "memory": "512Mi"})
        );
        let silent = read("Deferred", json!({"name": "a", "allocatedResources": {"cpu": "3"}}));
        assert_eq!(silent["spec"]["containers"][0]["resources"]["requests"], json!({"cpu": "2", "memory": "1Gi"}));
    }
}
