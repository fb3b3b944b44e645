//! APIServices of the group versions that definitions serve, as upstream's aggregator maintains them.

use std::collections::BTreeSet;

use apiserver_resources::objects::ObjectReader;
use serde_json::{Value, json};

use crate::bootstrap::Write;

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Groups and versions.
pub(super) type GroupVersions = BTreeSet<(String, String)>;

/// Returns the writes after which each group version has an APIService, and no other automanaged one exists.
pub(super) fn writes(objects: &dyn ObjectReader, served: &GroupVersions) -> Vec<Write> {
    let name = |(group, version): &(String, String)| format!("{version}.{group}");
    let wanted: BTreeSet<String> = served.iter().map(name).collect();
    let gone = objects.list(GROUP, PLURAL, None).into_iter().filter(|service| {
        let metadata = &service["metadata"];
        metadata["labels"][AUTOMANAGED] == "true"
            && metadata["name"].as_str().is_some_and(|name| !wanted.contains(name))
    });
    let gone = gone.map(|service| Write::Remove { group: GROUP, plural: PLURAL, object: Value::clone(&service) });
    let missing = served.iter().filter(|served| objects.get(GROUP, PLURAL, "", &name(served)).is_none());
    let missing = missing.map(|served| {
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": name(served), "labels": {AUTOMANAGED: "true"}},
            "spec": {"group": served.0, "version": served.1, "groupPriorityMinimum": 1000, "versionPriority": 100},
        });
        Write::Create { group: GROUP, plural: PLURAL, object }
    });
    gone.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use apiserver_resources::objects::memory::MemoryObjects;

    use super::*;

    #[test]
    fn each_that_is_served_has_one_and_others_go() {
        let map = MemoryObjects::default();
        let service = |name: &str, kept: &str| json!({"metadata": {"name": name, "labels": {AUTOMANAGED: kept}}});
        for (name, kept) in [("v1.a", "true"), ("v2.a", "true"), ("v1.apps", "onstart")] {
            map.put(GROUP, PLURAL, service(name, kept));
        }
        let served = [("a", "v1"), ("b", "v1")].map(|(group, version)| (group.to_owned(), version.to_owned()));
        let writes = writes(&map, &served.into());
        let [Write::Remove { object: gone, .. }, Write::Create { object: new, .. }] = writes.as_slice() else {
            panic!("{writes:?}")
        };
        assert_eq!((&gone["metadata"]["name"], &new["metadata"]["name"]), (&json!("v2.a"), &json!("v1.b")));
        assert_eq!(new["spec"]["groupPriorityMinimum"], 1000);
    }
}
