//! Names of controllers and of their queues, as upstream's, and the selection by `--controllers`. Unknown names are
//! errors.

use std::collections::BTreeSet;

use crate::CONTROLLERS;

/// Upstream's controllers, with their aliases. Those that don't exist here may be disabled without effect, and can't be
/// enabled.
const UPSTREAM: &[(&str, &[&str])] = &[
    ("bootstrap-signer-controller", &["bootstrapsigner"]),
    ("certificatesigningrequest-approving-controller", &["csrapproving"]),
    ("certificatesigningrequest-cleaner-controller", &["csrcleaner"]),
    ("certificatesigningrequest-signing-controller", &["csrsigning"]),
    ("cloud-node-controller", &["cloud-node"]),
    ("cloud-node-lifecycle-controller", &["cloud-node-lifecycle"]),
    ("clusterrole-aggregation-controller", &["clusterrole-aggregation"]),
    ("cronjob-controller", &["cronjob"]),
    ("daemonset-controller", &["daemonset"]),
    ("deployment-controller", &["deployment"]),
    ("device-taint-eviction-controller", &[]),
    ("disruption-controller", &["disruption"]),
    ("endpoints-controller", &["endpoint"]),
    ("endpointslice-controller", &["endpointslice"]),
    ("endpointslice-mirroring-controller", &["endpointslicemirroring"]),
    ("ephemeral-volume-controller", &["ephemeral-volume"]),
    ("garbage-collector-controller", &["garbagecollector"]),
    ("horizontal-pod-autoscaler-controller", &["horizontalpodautoscaling", "hpa"]),
    ("job-controller", &["job"]),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", &[]),
    ("legacy-serviceaccount-token-cleaner-controller", &["legacy-service-account-token-cleaner"]),
    ("namespace-controller", &["namespace"]),
    ("node-ipam-controller", &["nodeipam"]),
    ("node-lifecycle-controller", &["nodelifecycle"]),
    ("node-route-controller", &["route"]),
    ("persistentvolume-attach-detach-controller", &["attachdetach"]),
    ("persistentvolume-binder-controller", &["persistentvolume-binder"]),
    ("persistentvolume-expander-controller", &["persistentvolume-expander"]),
    ("persistentvolume-protection-controller", &["pv-protection"]),
    ("persistentvolumeclaim-protection-controller", &["pvc-protection"]),
    ("pod-garbage-collector-controller", &["podgc"]),
    ("podcertificaterequest-cleaner-controller", &[]),
    ("podgroup-protection-controller", &[]),
    ("replicaset-controller", &["replicaset"]),
    ("replicationcontroller-controller", &["replicationcontroller"]),
    ("resourceclaim-controller", &["resource-claim-controller"]),
    ("resourcepoolstatusrequest-controller", &[]),
    ("resourcequota-controller", &["resourcequota"]),
    ("root-ca-certificate-publisher-controller", &["root-ca-cert-publisher"]),
    ("selinux-warning-controller", &[]),
    ("service-cidr-controller", &[]),
    ("service-lb-controller", &["service"]),
    ("serviceaccount-controller", &["serviceaccount"]),
    ("serviceaccount-token-controller", &["serviceaccount-token"]),
    ("statefulset-controller", &["statefulset"]),
    ("storage-version-migrator-controller", &["svm"]),
    ("storageversion-garbage-collector-controller", &["storage-version-gc"]),
    ("taint-eviction-controller", &[]),
    ("token-cleaner-controller", &["tokencleaner"]),
    ("ttl-after-finished-controller", &["ttl-after-finished"]),
    ("ttl-controller", &["ttl"]),
    ("validatingadmissionpolicy-status-controller", &[]),
    ("volumeattributesclass-protection-controller", &[]),
];

/// Upstream's queues whose name is not the controller's without `-controller`. If upstream has several, the most
/// similar one.
const QUEUES: &[(&str, &str)] = &[
    ("bootstrap-signer-controller", "bootstrap_signer_queue"),
    ("clusterrole-aggregation-controller", "ClusterRoleAggregator"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpoint_slice"),
    ("endpointslice-mirroring-controller", "endpoint_slice_mirroring"),
    ("ephemeral-volume-controller", "ephemeral_volume"),
    ("garbage-collector-controller", "garbage_collector_attempt_to_delete"),
    ("horizontal-pod-autoscaler-controller", "horizontalpodautoscaler"),
    ("node-lifecycle-controller", "node_lifecycle_controller"),
    ("persistentvolume-binder-controller", "claims"),
    ("persistentvolume-expander-controller", "volume_expand"),
    ("persistentvolume-protection-controller", "pvprotection"),
    ("persistentvolumeclaim-protection-controller", "pvcprotection"),
    ("pod-garbage-collector-controller", "orphaned_pods_nodes"),
    ("replicationcontroller-controller", "replicationmanager"),
    ("resourcequota-controller", "resourcequota_primary"),
    ("root-ca-certificate-publisher-controller", "root_ca_cert_publisher"),
    ("service-cidr-controller", "servicecidrs"),
    ("serviceaccount-token-controller", "serviceaccount_tokens_service"),
    ("taint-eviction-controller", "noexec_taint_pod"),
    ("token-cleaner-controller", "token_cleaner"),
    ("ttl-after-finished-controller", "ttl_jobs_to_delete"),
    ("volumeattributesclass-protection-controller", "vacprotection"),
];

/// The name of a controller's queue in metrics. Upstream's three certificate controllers share a name, which would give
/// three equal series here: they have their own names.
#[must_use]
pub fn queue(controller: &'static str) -> &'static str {
    let named = QUEUES.iter().find(|(name, _)| *name == controller).map(|(_, queue)| *queue);
    named.unwrap_or_else(|| controller.strip_suffix("-controller").unwrap_or(controller))
}

/// An invalid item of `--controllers`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// With upstream's text.
    #[error("{0:?} is not in the list of known controllers")]
    Unknown(String),
    /// The controller exists only in upstream.
    #[error("{0:?} is a controller of upstream's that does not exist here; leave it out, or switch it off with \"-\"")]
    Absent(String),
}

#[must_use]
pub fn all() -> Vec<&'static str> {
    CONTROLLERS.iter().map(|row| row.name).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The canonical name of an upstream controller.
fn known(name: &str) -> Option<&'static str> {
    let named = |(counts, others): &&(&'static str, &[&str])| *counts == name || others.contains(&name);
    let ours = CONTROLLERS.iter().map(|row| row.name).find(|own| *own == name);
    UPSTREAM.iter().find(named).map(|(counts, _)| *counts).or(ours)
}

/// The controllers that a list such as `*,-job` disables: the first item with a controller's name decides, and `*`
/// applies to the others. Without `*` only the listed ones run.
///
/// # Errors
/// An item names no controller.
pub fn disabled(list: &[String]) -> Result<Vec<String>, SelectError> {
    let mut listed: Vec<(&str, bool)> = Vec::new();
    for item in list.iter().map(|item| item.trim()).filter(|item| !matches!(*item, "" | "*")) {
        let (name, on) = item.strip_prefix('-').map_or((item, true), |name| (name, false));
        let name = known(name).ok_or_else(|| SelectError::Unknown(name.to_owned()))?;
        if on && !CONTROLLERS.iter().any(|row| row.name == name) {
            return Err(SelectError::Absent(name.to_owned()));
        }
        listed.push((name, on));
    }
    let others = list.iter().any(|item| item.trim() == "*");
    let runs = |name: &str| listed.iter().find(|(other, _)| *other == name).map_or(others, |(_, on)| *on);
    Ok(all().into_iter().filter(|name| !runs(name)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(list: &str) -> Result<Vec<&'static str>, SelectError> {
        let list: Vec<String> = list.split(',').map(str::to_owned).collect();
        let disabled = disabled(&list)?;
        Ok(all().into_iter().filter(|name| !disabled.iter().any(|off| off == name)).collect())
    }

    #[test]
    fn the_first_item_that_names_a_controller_decides() {
        assert_eq!(running("*"), Ok(all()));
        assert_eq!(running("job,-cronjob"), Ok(vec!["job-controller"]));
        assert_eq!(running("-job,job-controller,deployment-controller"), Ok(vec!["deployment-controller"]));
        let without = running("*, -job-controller,-ttl,-hpa").unwrap();
        assert!(without.len() + 1 >= all().len() - 1 && !without.contains(&"job-controller"));
        assert_eq!(running("*,-jobs"), Err(SelectError::Unknown("jobs".into())));
        let absent = running("*,ttl").unwrap_err();
        assert!(absent.to_string().starts_with("\"ttl-controller\" is a controller of upstream's"), "{absent}");
        assert_eq!(running("nodelifecycle"), Ok(vec!["node-lifecycle-controller"]));
    }

    #[test]
    fn each_queue_has_a_name_of_its_own() {
        let queues: BTreeSet<&str> = all().into_iter().map(queue).collect();
        assert_eq!(queues.len(), CONTROLLERS.len());
        assert!(QUEUES.iter().all(|(name, _)| UPSTREAM.iter().any(|(upstream, _)| upstream == name)));
        assert_eq!(["job-controller", "node-lifecycle-controller"].map(queue), ["job", "node_lifecycle_controller"]);
    }

    #[test]
    fn a_name_stands_for_one_controller() {
        let mut names = BTreeSet::new();
        for (name, others) in UPSTREAM {
            for name in others.iter().chain([name]) {
                assert!(names.insert(*name), "{name} twice");
            }
        }
    }
}
