//! In-place resize (KEP-1287): compares the requested with the allocated CPU and memory of a pod. Pure. A worker's pod
//! has the allocated amounts; the node decides whether the requested ones fit beside the other pods.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::quantity::Quantity;
use serde_json::json;

use crate::pod::admit::{self, Claim};

mod tracker;

pub(crate) use tracker::{ResizeAction, ResizeEvent, ResizeTracker};

/// The resources that can be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];
/// The condition types of a resize.
pub(crate) const PENDING: &str = "PodResizePending";
pub(crate) const IN_PROGRESS: &str = "PodResizeInProgress";

type Amounts = BTreeMap<String, Wire>;

/// A resize that can't be granted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingResize {
    /// The cause.
    pub(crate) message: String,
    /// The requested resources, as in an event.
    pub(crate) requested: String,
}

/// A granted resize that isn't applied to all containers yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ResizeProgress {
    /// The pod's generation with that resize.
    generation: Option<i64>,
    /// The error that delays it.
    error: Option<String>,
}

fn resizable(pod: &mut Pod) -> impl Iterator<Item = &mut Container> {
    let spec = pod.spec.as_mut();
    spec.into_iter().flat_map(|spec| spec.init_containers.iter_mut().flatten().chain(&mut spec.containers))
}

fn each(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// Overlays the resizable amounts of `allocated`.
fn overlay(resources: &mut Option<ResourceRequirements>, allocated: Option<&ResourceRequirements>) {
    let none = ResourceRequirements::default();
    let allocated = allocated.unwrap_or(&none);
    if resources.is_none() && *allocated == none {
        return;
    }
    let own = resources.get_or_insert_default();
    for (amounts, allocated) in [(&mut own.requests, &allocated.requests), (&mut own.limits, &allocated.limits)] {
        for name in RESIZABLE {
            match allocated.as_ref().and_then(|allocated| allocated.get(name)) {
                Some(amount) => {
                    amounts.get_or_insert_default().insert(name.to_owned(), amount.clone());
                }
                None => {
                    amounts.as_mut().map(|amounts| amounts.remove(name));
                }
            }
        }
        if amounts.as_ref().is_some_and(BTreeMap::is_empty) {
            *amounts = None;
        }
    }
}

/// The pod `requested` with the CPU and memory of `allocated`. Both are states of one pod, with the same order of containers.
pub(crate) fn with_allocation(requested: &Pod, allocated: &Pod) -> Pod {
    let mut pod = requested.clone();
    for (container, before) in resizable(&mut pod).zip(each(allocated)) {
        overlay(&mut container.resources, before.resources.as_ref());
    }
    if let Some(spec) = &mut pod.spec {
        overlay(&mut spec.resources, allocated.spec.as_ref().and_then(|spec| spec.resources.as_ref()));
    }
    pod
}

/// Whether both have equal amounts of one resource, whatever their notation.
fn same_amount(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>, name: &str) -> bool {
    fn equal(a: Option<&Amounts>, b: Option<&Amounts>, name: &str) -> bool {
        let (a, b) = (a.and_then(|a| a.get(name)), b.and_then(|b| b.get(name)));
        let parse = |amount: &Wire| Quantity::parse(&amount.0).ok();
        a == b || a.map(parse) == b.map(parse)
    }
    equal(a.and_then(|a| a.requests.as_ref()), b.and_then(|b| b.requests.as_ref()), name)
        && equal(a.and_then(|a| a.limits.as_ref()), b.and_then(|b| b.limits.as_ref()), name)
}

/// Whether both have equal amounts of CPU and memory.
pub(crate) fn same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    RESIZABLE.iter().all(|name| same_amount(a, b, name))
}

/// Whether two states of a pod have equal amounts of CPU and memory.
pub(crate) fn same_pod(a: &Pod, b: &Pod) -> bool {
    let [whole, other] = [a, b].map(|pod| pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()));
    same(whole, other) && each(a).zip(each(b)).all(|(a, b)| same(a.resources.as_ref(), b.resources.as_ref()))
}

/// The pod with its allocated amounts from its status; `None` if no earlier run of the agent had started it.
pub(crate) fn allocated(pod: &Pod) -> Option<Pod> {
    let status = pod.status.as_ref().filter(|status| status.start_time.is_some())?;
    let reported = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let reported: HashMap<&str, &ContainerStatus> =
        reported.map(|reported| (reported.name.as_str(), reported)).collect();
    let mut restored = pod.clone();
    for container in resizable(&mut restored) {
        let Some(reported) = reported.get(container.name.as_str()) else { continue };
        if let (Some(resources), requests) = (&reported.resources, &reported.allocated_resources) {
            let requests = requests.clone().or_else(|| resources.requests.clone());
            overlay(&mut container.resources, Some(&ResourceRequirements { requests, ..resources.clone() }));
        }
    }
    if let (Some(spec), Some(reported)) = (&mut restored.spec, &status.resources)
        && spec.resources.is_some()
    {
        overlay(&mut spec.resources, Some(reported));
    }
    Some(restored)
}

/// Whether the requested amounts fit beside the other pods of the node; the error is the cause.
pub(crate) fn fits(allocatable: &BTreeMap<String, Wire>, others: &[Claim], requested: &Pod) -> Result<(), String> {
    match admit::insufficient_resource(allocatable, others, &Claim::of(requested)) {
        Some((_, message)) => Err(message.strip_prefix("Pod was rejected: ").unwrap_or(&message).to_owned()),
        None => Ok(()),
    }
}

/// Whether the new amounts require a restart of the container.
pub(crate) fn restarts(container: &Container, before: Option<&ResourceRequirements>) -> bool {
    let policies = container.resize_policy.iter().flatten();
    let named =
        policies.filter(|policy| policy.restart_policy == "RestartContainer").map(|policy| &policy.resource_name);
    let now = container.resources.as_ref();
    named.into_iter().any(|name| !same_amount(now, before, name))
}

/// The resize in an event (upstream's format).
pub(crate) fn summary(pod: &Pod, error: Option<&str>) -> String {
    let list = |containers: &[Container]| -> Vec<serde_json::Value> {
        let one = |container: &Container| json!({"name": container.name, "resources": container.resources.clone().unwrap_or_default()});
        containers.iter().map(one).collect()
    };
    let spec = pod.spec.clone().unwrap_or_default();
    let parts = [
        ("initContainers", list(spec.init_containers.as_deref().unwrap_or_default())),
        ("containers", list(&spec.containers)),
    ];
    let parts = parts.into_iter().filter(|(_, list)| !list.is_empty());
    let mut fields: Vec<String> = parts.map(|(name, list)| format!("\"{name}\":{}", json!(list))).collect();
    fields.push(format!("\"generation\":{}", pod.metadata.generation.unwrap_or(0)));
    fields.extend(error.map(|error| format!("\"error\":{}", json!(error))));
    format!("{{{}}}", fields.join(","))
}

/// The conditions of a resize; `previous` are the pod's current ones, for their transition times.
fn conditions(
    pending: Option<&PendingResize>,
    progress: Option<&ResizeProgress>,
    generation: Option<i64>,
    previous: &[PodCondition],
    now: Timestamp,
) -> Vec<PodCondition> {
    let condition = |kind: &str, reason: Option<&str>, message: Option<String>, generation| {
        let before = previous.iter().find(|previous| previous.type_ == kind);
        let since = before.and_then(|before| before.last_transition_time.clone());
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        PodCondition {
            type_: kind.into(),
            status: "True".into(),
            reason: reason.map(Into::into),
            message,
            last_transition_time: since.or(Some(Time(now))),
            last_probe_time: None,
            observed_generation: generation,
        }
    };
    let pending = pending.map(|of| condition(PENDING, Some("Deferred"), Some(of.message.clone()), generation));
    let progress = progress.map(|of| {
        let reason = of.error.as_ref().map(|_| "Error");
        condition(IN_PROGRESS, reason, of.error.clone(), of.generation)
    });
    pending.into_iter().chain(progress).collect()
}

/// The error if memory limits can't be lowered below the current usage, in upstream's words; `None` if there are none.
pub(crate) fn lower_error(each: &[(Option<&str>, u64, u64)]) -> Option<String> {
    let one = |(name, limit, used): &(Option<&str>, u64, u64)| match name {
        None => format!("attempting to set pod memory limit ({limit}) below current usage ({used})"),
        Some(name) => {
            format!("attempting to set container {name:?} memory limit ({limit}) below current usage ({used})")
        }
    };
    let reported: Vec<String> = each.iter().map(one).collect();
    match &reported[..] {
        [] => None,
        [one] => Some(format!("cannot decrease memory limits: {one}")),
        several => Some(format!("cannot decrease memory limits: [{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(resources: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "generation": 2},
            "spec": {"containers": [{"name": "c", "image": "new", "resources": resources,
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_worker_sees_its_allocation() {
        let requested = pod(json!({"requests": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi"}}));
        let before = pod(json!({"requests": {"cpu": "1", "ephemeral-storage": "5Gi"}, "limits": {"memory": "2Gi"}}));
        let seen = with_allocation(&requested, &before);
        let want = json!({"requests": {"cpu": "1", "ephemeral-storage": "1Gi"}, "limits": {"memory": "2Gi"}});
        assert_eq!(seen, pod(want), "what may not change is the pod's own");
        assert!(same_pod(&seen, &before) && !same_pod(&seen, &requested));
        assert!(same_pod(&pod(json!({"limits": {"cpu": "1"}})), &pod(json!({"limits": {"cpu": "1000m"}}))));
        assert!(same_pod(&with_allocation(&pod(json!({})), &pod(json!({}))), &pod(json!({}))));
    }

    #[test]
    fn an_earlier_run_passes_its_allocation_on() {
        let mut resized = pod(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}));
        assert_eq!(allocated(&resized), None);
        resized.status = serde_json::from_value(json!({"startTime": "2026-01-01T00:00:00Z", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "3"}}}]}))
        .unwrap();
        assert!(same_pod(
            &allocated(&resized).unwrap(),
            &pod(json!({"requests": {"cpu": "1"}, "limits": {"cpu": "3"}}))
        ));
    }

    #[test]
    fn resize_policies_decide_restarts() {
        let of = |now: Value, before: Value| {
            let before: ResourceRequirements = serde_json::from_value(before).unwrap();
            restarts(&pod(now).spec.unwrap().containers[0], Some(&before))
        };
        assert!(!of(json!({"limits": {"cpu": "2"}}), json!({"limits": {"cpu": "1"}})));
        assert!(of(json!({"limits": {"memory": "2"}}), json!({"limits": {"memory": "1"}})));
        assert!(of(json!({"requests": {"memory": "2"}}), json!({})));
    }

    #[test]
    fn messages_of_a_resize_are_upstreams() {
        let pod = pod(json!({"limits": {"cpu": "2"}}));
        assert_eq!(
            summary(&pod, None),
            r#"{"containers":[{"name":"c","resources":{"limits":{"cpu":"2"}}}],"generation":2}"#
        );
        assert!(summary(&pod, Some("a \"b\"")).ends_with(r#","generation":2,"error":"a \"b\""}"#));
        assert_eq!(lower_error(&[]), None);
        assert_eq!(
            lower_error(&[(Some("c"), 1, 2)]).unwrap(),
            "cannot decrease memory limits: attempting to set container \"c\" memory limit (1) below current usage (2)"
        );
        assert!(
            lower_error(&[(None, 1, 2), (Some("c"), 1, 2)]).unwrap().contains("limits: [attempting to set pod memory")
        );
        let previous: Vec<PodCondition> = serde_json::from_value(
            json!([{"type": PENDING, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]),
        )
        .unwrap();
        let pending = PendingResize { message: "why".into(), requested: String::new() };
        let now =
            conditions(Some(&pending), Some(&ResizeProgress::default()), Some(3), &previous, Timestamp::UNIX_EPOCH);
        let reported: Vec<_> =
            now.iter().map(|c| (c.type_.as_str(), c.reason.as_deref(), c.observed_generation)).collect();
        assert_eq!(reported, [(PENDING, Some("Deferred"), Some(3)), (IN_PROGRESS, None, None)]);
        assert_eq!(now[0].last_transition_time, previous[0].last_transition_time);
    }
}
