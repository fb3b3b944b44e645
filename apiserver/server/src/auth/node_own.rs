//! What a kubelet reaches because it says which node it is about: its CSINode, its ResourceSlices, and the attachments of
//! volumes to it. Another node's tell what that one has, and writing them would tell the scheduler lies about it.

use serde_json::Value;

use super::node::unrelated;
use super::{Attributes, Decision};
use apiserver_resources::objects::ObjectReader;

/// Its own CSINode, which has its name.
pub(super) fn csi_node(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return Decision::refuse("cannot authorize CSINode subresources");
    }
    // What a create's object is called only admission sees.
    if request.verb != "create" && request.name != node {
        return Decision::refuse("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

/// The slices of its own devices.
pub(super) fn resource_slice(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
    if !request.subresource.is_empty() {
        return Decision::refuse("cannot authorize ResourceSlice subresources");
    }
    match request.verb {
        // Whose it would be only admission sees.
        "create" => Decision::allow(""),
        "get" | "update" | "patch" | "delete" => {
            about(objects, ("resource.k8s.io", "resourceslices"), "nodeName", node, request)
        }
        "list" | "watch" | "deletecollection" => {
            match request.fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node) {
                true => Decision::allow(""),
                false => {
                    Decision::refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
                }
            }
        }
        _ => Decision::refuse(
            "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, \
             deletecollection",
        ),
    }
}

/// An attachment to it; who asks for a single object has been seen to.
pub(super) fn attachment(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
    about(objects, ("storage.k8s.io", "volumeattachments"), "nodeName", node, request)
}

fn about(
    objects: &dyn ObjectReader,
    (group, plural): (&str, &str),
    field: &str,
    node: &str,
    request: &Attributes<'_>,
) -> Decision {
    if request.name.is_empty() {
        return Decision::refuse("No Object name found");
    }
    let is_own = |object: &Value| object["spec"][field].as_str() == Some(node);
    match objects.read_once(group, plural, "", request.name).is_some_and(|object| is_own(&object)) {
        true => Decision::allow(""),
        false => unrelated(node),
    }
}

#[cfg(test)]
mod tests {
    use apiserver_resources::objects::memory::Map;
    use serde_json::json;

    use crate::auth::node::{NodeAuthorizer, default_rules};
    use crate::auth::{Attributes, NODES, UserInfo};

    #[test]
    fn nothing_of_another_node_is_reached() {
        let (map, authorizer) = (Map::default(), NodeAuthorizer::new(default_rules()));
        let claims = json!([{"name": "c", "resourceClaimName": "named"}, {"name": "t"}]);
        map.put(
            "",
            "pods",
            json!({
                "metadata": {"namespace": "ns", "name": "p"}, "spec": {"nodeName": "n1", "resourceClaims": claims},
                "status": {"resourceClaimStatuses": [{"name": "t", "resourceClaimName": "made"}]},
            }),
        );
        for node in ["n1", "n2"] {
            let spec = json!({"nodeName": node});
            map.put("resource.k8s.io", "resourceslices", json!({"metadata": {"name": node}, "spec": spec}));
            map.put("storage.k8s.io", "volumeattachments", json!({"metadata": {"name": node}, "spec": spec}));
        }
        let own = [("spec.nodeName".to_owned(), "n1".to_owned())];
        let others = [("spec.nodeName".to_owned(), "n2".to_owned())];
        for (verb, group, resource, name, fields, allowed) in [
            ("get", "storage.k8s.io", "csinodes", "n1", &[][..], true),
            ("get", "storage.k8s.io", "csinodes", "n2", &[], false),
            ("patch", "storage.k8s.io", "csinodes", "n2", &[], false),
            ("delete", "storage.k8s.io", "csinodes", "n2", &[], false),
            ("list", "storage.k8s.io", "csinodes", "", &[], false),
            ("create", "storage.k8s.io", "csinodes", "", &[], true),
            ("get", "storage.k8s.io", "volumeattachments", "n1", &[], true),
            ("get", "storage.k8s.io", "volumeattachments", "n2", &[], false),
            ("list", "storage.k8s.io", "volumeattachments", "", &[], false),
            ("get", "resource.k8s.io", "resourceslices", "n1", &[], true),
            ("update", "resource.k8s.io", "resourceslices", "n2", &[], false),
            ("list", "resource.k8s.io", "resourceslices", "", &own, true),
            ("list", "resource.k8s.io", "resourceslices", "", &others, false),
            ("deletecollection", "resource.k8s.io", "resourceslices", "", &[], false),
            ("deletecollection", "resource.k8s.io", "resourceslices", "", &own, true),
            ("get", "resource.k8s.io", "resourceclaims", "named", &[], true),
            ("get", "resource.k8s.io", "resourceclaims", "made", &[], true),
            ("get", "resource.k8s.io", "resourceclaims", "other", &[], false),
            ("list", "resource.k8s.io", "resourceclaims", "", &[], false),
        ] {
            let namespace = if resource == "resourceclaims" { "ns" } else { "" };
            let user = UserInfo::component("system:node:n1", Some(NODES));
            let request = Attributes {
                verb,
                group,
                resource,
                namespace,
                name,
                fields,
                is_resource: true,
                ..Attributes::default()
            };
            let decision = authorizer.authorize(&map, &user, &request);
            assert_eq!(decision.allowed, allowed, "{verb} {resource} {name}: {}", decision.reason);
        }
    }
}
