//! APIServices of the built-in groups, as upstream's aggregator registers them at startup.

use serde_json::json;

use super::{Desired, ReconcilePolicy};
use apiserver_catalog::Catalog;

/// Group versions with the priorities that determine their order in discovery.
const PRIORITIES: &[(&str, &str, u16, u16)] = &[
    ("", "v1", 18000, 1),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("apps", "v1", 17800, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2", 17500, 30),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("custom.metrics.k8s.io", "v1beta2", 100, 100),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("metrics.k8s.io", "v1beta1", 100, 100),
    ("networking.k8s.io", "v1", 17200, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("resource.k8s.io", "v1", 16200, 21),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("storage.k8s.io", "v1", 16800, 15),
];

/// Returns one APIService for each served group version.
pub(super) fn desired(catalog: &Catalog) -> impl Iterator<Item = Desired> {
    let served = PRIORITIES.iter().filter(|(group, version, ..)| catalog.has_version(group, version));
    served.map(|(group, version, group_priority, version_priority)| {
        let mut object = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {
                "name": format!("{version}.{group}"),
                "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
            },
            "spec": {
                "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
            },
        });
        if !group.is_empty() {
            object["spec"]["group"] = json!(group);
        }
        Desired {
            group: "apiregistration.k8s.io",
            plural: "apiservices",
            object,
            policy: ReconcilePolicy::Overwrite(&["spec"]),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_catalog::built_in;

    #[test]
    fn each_version_of_a_built_in_group_has_one() {
        // Upstream has no APIService for the group of APIServices itself.
        let own = |group: &str| group == "apiregistration.k8s.io";
        for resource in built_in().resources().iter().filter(|resource| !own(&resource.group)) {
            let known = PRIORITIES
                .iter()
                .any(|(group, version, ..)| (*group, *version) == (&*resource.group, &*resource.version));
            assert!(known, "{} has no priority", resource.api_version);
        }
        assert!(desired(built_in()).any(|service| service.object["metadata"]["name"] == "v1."));
    }
}
