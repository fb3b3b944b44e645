//! The summary of pods. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::report::{NotReady, Workloads};

/// Maximum number of listed objects that aren't ready; the others are counted.
pub(super) const LISTED_MAX: usize = 100;
/// A deleted pod is expected to end at its deletion timestamp; it is listed this much later.
const TERMINATION_GRACE_SECONDS: i64 = 60;

/// The pods of a cluster, added page by page: memory doesn't grow with the cluster.
#[derive(Debug, Default)]
pub(super) struct PodTally {
    pub(super) workloads: Workloads,
    /// Pods that haven't ended, by node.
    pub(super) by_node: BTreeMap<String, u64>,
}

impl PodTally {
    pub(super) fn add(&mut self, pod: &Pod, now: Timestamp) {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.clone()).unwrap_or_else(|| "Unknown".to_owned());
        let ended = has_ended(&phase);
        *self.workloads.pods.entry(phase).or_default() += 1;
        if !ended && let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
            *self.by_node.entry(node).or_default() += 1;
        }
        let Some((reason, message)) = not_ready_reason(pod, now) else { return };
        self.workloads.pods_not_ready_count += 1;
        if self.workloads.pods_not_ready.len() < LISTED_MAX {
            self.workloads.pods_not_ready.push(NotReady {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                kind: "Pod",
                name: pod.metadata.name.clone().unwrap_or_default(),
                reason,
                message,
            });
        }
    }
}

fn has_ended(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Why a pod isn't ready, as reason and message; `None` if it is ready, has ended, or ends in time.
fn not_ready_reason(pod: &Pod, now: Timestamp) -> Option<(String, String)> {
    if let Some(end) = &pod.metadata.deletion_timestamp {
        let late = now.as_second() - end.0.as_second();
        let stuck = late > TERMINATION_GRACE_SECONDS;
        return stuck.then(|| ("Terminating".to_owned(), format!("its grace period ended {late} s ago")));
    }
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if status.phase.as_deref().is_some_and(has_ended) || condition("Ready").is_some_and(|ready| ready.status == "True")
    {
        return None;
    }
    if let Some(unscheduled) = condition("PodScheduled").filter(|scheduled| scheduled.status != "True") {
        let reason = unscheduled.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some((reason, unscheduled.message.clone().unwrap_or_default()));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let not_ready = containers.clone().filter(|container| !container.ready);
    if let Some(found) = not_ready.clone().find_map(waiting).or_else(|| not_ready.clone().find_map(terminated)) {
        return Some(found);
    }
    let ready = condition("Ready");
    let reason = ready.and_then(|ready| ready.reason.clone()).unwrap_or_else(|| "Pending".to_owned());
    Some((reason, ready.and_then(|ready| ready.message.clone()).unwrap_or_default()))
}

fn waiting(container: &ContainerStatus) -> Option<(String, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    Some((waiting.reason.clone()?, waiting.message.clone().unwrap_or_default()))
}

fn terminated(container: &ContainerStatus) -> Option<(String, String)> {
    let ended = container.state.as_ref()?.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.clone().unwrap_or_else(|| "Error".to_owned());
    Some((reason, format!("container {} ended with exit code {}", container.name, ended.exit_code)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reason(pod: Value) -> Option<(String, String)> {
        let mut whole = json!({"metadata": {"name": "p", "namespace": "n"}});
        whole.as_object_mut().unwrap().extend(pod.as_object().unwrap().clone());
        not_ready_reason(&serde_json::from_value(whole).unwrap(), "2026-01-01T00:02:00Z".parse().unwrap())
    }

    fn status(status: Value) -> Option<(String, String)> {
        reason(json!({"status": status}))
    }

    #[test]
    fn ready_and_ended_pods_have_no_reason() {
        assert_eq!(status(json!({"phase": "Succeeded"})), None);
        assert_eq!(status(json!({"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]})), None);
        assert_eq!(status(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})), None);
        assert_eq!(reason(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:01:30Z"}})), None);
    }

    #[test]
    fn the_reason_is_the_nearest_to_the_cause() {
        let unscheduled =
            json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"});
        let not_ready =
            json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "unready: [c]"});
        let container = |state: Value| json!({"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state});
        let pull = container(json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}}));
        let crash = container(json!({"terminated": {"exitCode": 3, "reason": "Error"}}));
        let of = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
        for (conditions, containers, expected) in [
            (vec![unscheduled, not_ready.clone()], vec![], of("Unschedulable", "0/1")),
            (vec![not_ready.clone()], vec![crash.clone(), pull], of("ErrImagePull", "no such image")),
            (vec![not_ready.clone()], vec![crash], of("Error", "container c ended with exit code 3")),
            (vec![not_ready], vec![container(json!({"running": {}}))], of("ContainersNotReady", "unready: [c]")),
            (vec![], vec![], of("Pending", "")),
        ] {
            let found = status(json!({"phase": "Pending", "conditions": conditions, "containerStatuses": containers}));
            assert_eq!(found, expected);
        }
        let stuck = reason(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z"}}));
        assert_eq!(stuck, of("Terminating", "its grace period ended 90 s ago"));
    }

    #[test]
    fn pods_are_counted_by_phase_and_node() {
        let mut tally = PodTally::default();
        let pod = |node: &str, phase: &str| {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
            serde_json::from_value::<Pod>(pod).unwrap()
        };
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..=LISTED_MAX {
            tally.add(&pod("a", "Pending"), now);
        }
        tally.add(&pod("a", "Succeeded"), now);
        tally.add(&pod("b", "Failed"), now);
        assert_eq!(tally.by_node, BTreeMap::from([("a".to_owned(), LISTED_MAX as u64 + 1)]));
        assert_eq!(tally.workloads.pods.values().sum::<u64>(), LISTED_MAX as u64 + 3);
        assert_eq!(tally.workloads.pods_not_ready.len(), LISTED_MAX);
        assert_eq!(tally.workloads.pods_not_ready_count, LISTED_MAX as u64 + 1);
    }
}
