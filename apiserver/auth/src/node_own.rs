//! The Node authorizer's checks for objects that name their node: CSINodes, ResourceSlices and VolumeAttachments. Those
//! of another node reveal its equipment, and a write to them would mislead the scheduler.

use serde_json::Value;

use super::node::unrelated;
use super::{Attributes, Decision};
use apiserver_resources::objects::ObjectReader;

/// Allows the CSINode with the node's name.
pub(super) fn csi_node(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return Decision::no_opinion("cannot authorize CSINode subresources");
    }
    // Admission checks the name of a created object.
    if request.verb != "create" && request.name != node {
        return Decision::no_opinion("can only access CSINode with the same name as the requesting node");
    }
    Decision::allow("")
}

/// Allows the slices of the node's own devices.
pub(super) fn resource_slice(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
    if !request.subresource.is_empty() {
        return Decision::no_opinion("cannot authorize ResourceSlice subresources");
    }
    match request.verb {
        // Admission checks the node of a created slice.
        "create" => Decision::allow(""),
        "get" | "update" | "patch" | "delete" => {
            check_node_field(objects, ("resource.k8s.io", "resourceslices"), "nodeName", node, request)
        }
        "list" | "watch" | "deletecollection" => {
            match request.fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node) {
                true => Decision::allow(""),
                false => Decision::no_opinion(
                    "can only list/watch/deletecollection resourceslices with nodeName field selector",
                ),
            }
        }
        _ => Decision::no_opinion(
            "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, \
             deletecollection",
        ),
    }
}

/// Allows attachments to the node. Requests for a single object are handled by the caller.
pub(super) fn attachment(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
    check_node_field(objects, ("storage.k8s.io", "volumeattachments"), "nodeName", node, request)
}

fn check_node_field(
    objects: &dyn ObjectReader,
    (group, plural): (&str, &str),
    field: &str,
    node: &str,
    request: &Attributes<'_>,
) -> Decision {
    if request.name.is_empty() {
        return Decision::no_opinion("No Object name found");
    }
    let is_own = |object: &Value| object["spec"][field].as_str() == Some(node);
    match objects.get_uncached(group, plural, "", request.name).is_some_and(|object| is_own(&object)) {
        true => Decision::allow(""),
        false => unrelated(node),
    }
}

#[cfg(test)]
mod tests {
    use apiserver_resources::objects::memory::MemoryObjects;
    use serde_json::json;

    use crate::node::{NodeAuthorizer, default_rules};
    use crate::{Attributes, NODES, UserInfo};

    #[test]
    fn nothing_of_another_node_is_reached() {
        let (map, authorizer) = (MemoryObjects::default(), NodeAuthorizer::new(default_rules()));
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
