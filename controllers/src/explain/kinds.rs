//! Kinds by the names that users write: `deployment`, `deployments`, `deploy`, `deployments.apps`. Pure.

use machinery_client::{Input, Kind};

use crate::CONTROLLERS;

/// Upstream's short names of the kinds that controllers watch.
const SHORT: &[(&str, &str)] = &[
    ("cj", "cronjobs"),
    ("cm", "configmaps"),
    ("csr", "certificatesigningrequests"),
    ("deploy", "deployments"),
    ("ds", "daemonsets"),
    ("ep", "endpoints"),
    ("hpa", "horizontalpodautoscalers"),
    ("no", "nodes"),
    ("ns", "namespaces"),
    ("pdb", "poddisruptionbudgets"),
    ("po", "pods"),
    ("pv", "persistentvolumes"),
    ("pvc", "persistentvolumeclaims"),
    ("quota", "resourcequotas"),
    ("rc", "replicationcontrollers"),
    ("rs", "replicasets"),
    ("sa", "serviceaccounts"),
    ("sc", "storageclasses"),
    ("sts", "statefulsets"),
    ("svc", "services"),
];

/// The kinds that controllers watch by their type, in order.
#[must_use]
pub fn of_controllers() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = CONTROLLERS.iter().flat_map(|row| row.inputs).filter_map(Input::kind).collect();
    kinds.sort_by_key(|kind| (kind.plural.clone(), kind.clone()));
    kinds.dedup();
    kinds
}

/// The name of a kind in messages: its plural with its group.
pub(super) fn label(kind: &Kind) -> String {
    kind.resource()
}

/// The first kind that a user's name means.
#[must_use]
pub fn find_kind(name: &str, kinds: &[Kind]) -> Option<Kind> {
    let name = name.to_lowercase();
    let plural = SHORT.iter().find(|(short, _)| *short == name).map_or(&*name, |(_, plural)| plural);
    let is_it = |kind: &&Kind| kind.plural == plural || kind.kind.to_lowercase() == name || kind.resource() == name;
    kinds.iter().find(is_it).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_names_of_kubectl() {
        let kinds = of_controllers();
        for name in ["deploy", "Deployment", "deployments", "deployments.apps"] {
            assert_eq!(find_kind(name, &kinds).unwrap().plural, "deployments", "{name}");
        }
        assert_eq!(find_kind("deployments.extensions", &kinds), None);
        for (short, plural) in SHORT {
            assert_eq!(find_kind(short, &kinds).unwrap().plural, *plural, "{short}");
        }
    }
}
