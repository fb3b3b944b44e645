//! Whether a node has room for one more pod. Pure: the scheduler has checked it too, but a pod may name its node itself.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

use crate::spec::requests::{amount_of, requested};

/// The resources that are counted, and the reason for which a pod fails that doesn't fit (upstream's, in its order).
const COUNTED: [(&str, &str); 4] = [
    ("pods", "OutOfpods"),
    ("cpu", "OutOfcpu"),
    ("memory", "OutOfmemory"),
    ("ephemeral-storage", "OutOfephemeral-storage"),
];

/// Why the pod has no room beside the others, if so: reason and message.
#[must_use]
pub fn refuse<'a>(
    allocatable: &BTreeMap<String, Wire>,
    others: impl Iterator<Item = &'a Pod> + Clone,
    pod: &Pod,
) -> Option<(&'static str, String)> {
    COUNTED.into_iter().find_map(|(name, reason)| {
        let asked = requested(pod, name);
        if asked == 0 {
            return None;
        }
        let used: i64 = others.clone().filter(|other| !ended(other)).map(|other| requested(other, name)).sum();
        let capacity = allocatable.get(name).map_or(0, |amount| amount_of(amount, name));
        (used.saturating_add(asked) > capacity).then(|| {
            let message = format!(
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {asked}, used: {used}, \
                 capacity: {capacity}"
            );
            (reason, message)
        })
    })
}

/// Whether a pod holds nothing any more.
#[must_use]
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_has_no_room_is_told_in_upstreams_words() {
        let pod = |cpu: &str, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
            }))
            .unwrap()
        };
        let allocatable =
            [("cpu", "1"), ("pods", "3"), ("memory", "1Gi")].map(|(n, q)| (n.to_owned(), Wire(q.to_owned()))).into();
        let others = [pod("600m", "Running"), pod("600m", "Succeeded")];
        assert_eq!(refuse(&allocatable, others.iter(), &pod("400m", "Pending")), None);
        let (reason, message) = refuse(&allocatable, others.iter(), &pod("500m", "Pending")).unwrap();
        assert_eq!(reason, "OutOfcpu");
        let want = "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000";
        assert_eq!(message, want);
        let full = [pod("0", "Running"), pod("0", "Running"), pod("0", "Pending")];
        assert_eq!(
            refuse(&allocatable, full.iter(), &pod("0", "Pending")).map(|(reason, _)| reason),
            Some("OutOfpods")
        );
    }
}
