//! What a node may change of objects that other nodes use, too: the condition of waiting requests of a Service, the end of
//! its own local volumes, and the state of a claim's expansion. Pure.
//!
//! Upstream's nodes write none of them but the claim's status. Here the data plane and the volumes' provisioner are parts of
//! the node (docs/security.md, "Nodes").

use apiserver_auth::node::is_volume_of;
use machinery_rules::activation;
use serde_json::Value;

/// The finalizer of a volume whose storage a node removes.
const DELETION_PROTECTION: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The fields of a claim's status that an expansion changes (upstream's `admitPVCStatus`).
const EXPANSION_FIELDS: [&str; 4] = ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"];
/// Metadata that the server writes.
const SERVERS_METADATA: [&str; 3] = ["managedFields", "resourceVersion", "generation"];

/// Whether an update of a Service's status changes the condition of waiting requests alone.
pub(super) fn is_waiting_requests(new: &Value, old: &Value) -> bool {
    let others = |service: &Value| {
        let mut service = without_servers_metadata(service);
        if let Some(status) = service["status"].as_object_mut() {
            if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
                conditions.retain(|condition| condition["type"] != activation::CONDITION);
            }
            status.retain(|_, value| !value.as_array().is_some_and(Vec::is_empty));
        }
        service
    };
    others(new) == others(old)
}

/// Whether an update of a volume that is being deleted removes the provisioner's finalizer alone, by the volume's node.
pub(super) fn is_removal_of_own_volume(node: &str, new: &Value, old: &Value) -> bool {
    let others = |volume: &Value| {
        let mut volume = without_servers_metadata(volume);
        if let Some(metadata) = volume["metadata"].as_object_mut() {
            let finalizers = metadata.remove("finalizers").unwrap_or_default();
            let left = finalizers.as_array().into_iter().flatten().filter(|name| *name != DELETION_PROTECTION);
            let left: Vec<Value> = left.cloned().collect();
            metadata.insert("finalizers".into(), left.into());
        }
        volume
    };
    old["metadata"]["deletionTimestamp"].is_string() && is_volume_of(node, old) && others(new) == others(old)
}

/// Whether an update of a claim's status changes the fields of its expansion alone.
pub(super) fn is_expansion(new: &Value, old: &Value) -> bool {
    let others = |claim: &Value| {
        let mut claim = without_servers_metadata(claim);
        if let Some(status) = claim["status"].as_object_mut() {
            EXPANSION_FIELDS.iter().for_each(|field| drop(status.remove(*field)));
        }
        claim
    };
    others(new) == others(old)
}

fn without_servers_metadata(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        SERVERS_METADATA.iter().for_each(|field| drop(metadata.remove(*field)));
    }
    object
}

#[cfg(test)]
mod tests {
    use machinery_api::names::HOSTNAME;
    use serde_json::json;

    use super::*;

    fn changed(object: &Value, change: impl FnOnce(&mut Value)) -> Value {
        let mut object = object.clone();
        change(&mut object);
        object
    }

    #[test]
    fn a_node_reports_waiting_requests_alone() {
        let old = json!({"metadata": {"name": "s", "resourceVersion": "1"}, "spec": {"clusterIP": "10.96.0.1"},
            "status": {"loadBalancer": {}, "conditions": [{"type": "a", "status": "True"}]}});
        let waiting = json!({"type": activation::CONDITION, "status": "True"});
        let with = |condition: &Value| {
            changed(&old, |s| s["status"]["conditions"].as_array_mut().unwrap().push(condition.clone()))
        };
        assert!(is_waiting_requests(&with(&waiting), &old) && is_waiting_requests(&old, &with(&waiting)));
        let bare = json!({"metadata": {"name": "s"}, "status": {"loadBalancer": {}}});
        let first = changed(&bare, |s| s["status"]["conditions"] = json!([waiting]));
        assert!(is_waiting_requests(&first, &bare));
        assert!(!is_waiting_requests(&with(&json!({"type": "b"})), &old));
        let address = |s: &mut Value| s["status"]["loadBalancer"] = json!({"ingress": [{"ip": "10.0.0.1"}]});
        assert!(!is_waiting_requests(&changed(&old, address), &old));
        assert!(!is_waiting_requests(&changed(&old, |s| s["metadata"]["labels"] = json!({"a": "b"})), &old));
    }

    #[test]
    fn a_node_ends_its_own_deleted_volumes_alone() {
        let on = |node: &str| json!([{"key": HOSTNAME, "operator": "In", "values": [node]}]);
        let old = json!({"metadata": {"name": "v", "deletionTimestamp": "t", "finalizers": ["a/b", DELETION_PROTECTION]},
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": on("n")}]}}}});
        let released = |old: &Value| changed(old, |v| v["metadata"]["finalizers"] = json!(["a/b"]));
        assert!(is_removal_of_own_volume("n", &released(&old), &old));
        assert!(!is_removal_of_own_volume("m", &released(&old), &old), "another node's");
        assert!(!is_removal_of_own_volume("n", &changed(&old, |v| v["metadata"]["finalizers"] = json!([])), &old));
        assert!(!is_removal_of_own_volume("n", &changed(&released(&old), |v| v["spec"]["a"] = json!(1)), &old));
        let kept = changed(&old, |v| drop(v["metadata"].as_object_mut().unwrap().remove("deletionTimestamp")));
        assert!(!is_removal_of_own_volume("n", &released(&kept), &kept));
        for terms in [json!([]), json!([{"matchExpressions": on("n")}, {"matchExpressions": on("m")}]), json!([{}])] {
            let wide = changed(&old, |v| v["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"] = terms);
            assert!(!is_removal_of_own_volume("n", &released(&wide), &wide));
        }
    }

    #[test]
    fn a_node_reports_an_expansion_alone() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        assert!(is_expansion(&changed(&old, |c| c["status"]["capacity"] = json!({"storage": "1Gi"})), &old));
        assert!(!is_expansion(&changed(&old, |c| c["status"]["phase"] = json!("Lost")), &old));
        assert!(!is_expansion(&changed(&old, |c| c["spec"]["volumeName"] = json!("w")), &old));
    }
}
