//! Roles and bindings of earlier versions, which a start removes: a role is only ever completed, so that a smaller one needs
//! another name.

use apiserver_auth::RBAC_GROUP;
use apiserver_resources::objects::ObjectReader;
use serde_json::Value;

use super::{AUTOUPDATE, Write};

/// The roles of nodes in earlier versions, which the node authorizer and `coracle:node-data-plane` replace, each with a binding
/// of its name.
const RETIRED: [&str; 2] = ["coracle:node", "coracle:node-namespaces"];

/// Returns the removals. Roles and bindings that an administrator has taken over stay.
#[must_use]
pub fn retirements(objects: &dyn ObjectReader) -> Vec<Write> {
    let plurals = ["clusterrolebindings", "clusterroles"];
    let named = plurals.into_iter().flat_map(|plural| RETIRED.map(|name| (plural, name)));
    let found = named.filter_map(|(plural, name)| Some((plural, objects.get(RBAC_GROUP, plural, "", name)?)));
    let own = found.filter(|(_, object)| object["metadata"]["annotations"][AUTOUPDATE].as_str() != Some("false"));
    own.map(|(plural, object)| Write::Remove { group: RBAC_GROUP, plural, object: Value::clone(&object) }).collect()
}

#[cfg(test)]
mod tests {
    use apiserver_resources::objects::memory::MemoryObjects;
    use serde_json::json;

    use super::*;

    #[test]
    fn roles_of_earlier_versions_go_unless_an_administrator_has_them() {
        let objects = MemoryObjects::default();
        assert_eq!(retirements(&objects), []);
        let role = |name: &str, own: &str| json!({"metadata": {"name": name, "annotations": {AUTOUPDATE: own}}});
        objects.put(RBAC_GROUP, "clusterroles", role("coracle:node", "true"));
        objects.put(RBAC_GROUP, "clusterrolebindings", role("coracle:node", "true"));
        objects.put(RBAC_GROUP, "clusterroles", role("coracle:node-namespaces", "false"));
        objects.put(RBAC_GROUP, "clusterroles", role("coracle:node-data-plane", "true"));
        let removed: Vec<_> = retirements(&objects)
            .into_iter()
            .map(|write| match write {
                Write::Remove { plural, object, .. } => format!("{plural} {}", object["metadata"]["name"]),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(removed, ["clusterrolebindings \"coracle:node\"", "clusterroles \"coracle:node\""]);
    }
}
