//! The Node authorizer: a kubelet reaches its own Node and Lease, the pods bound to it, and what those pods name.
//!
//! What it may write on them is narrowed by the admission plugin NodeRestriction.

use serde_json::Value;

use super::rules::Rule;
use super::{Attributes, Decision, UserInfo};
use crate::objects::Objects;

/// Where kubelets keep their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Decides for a kubelet; no opinion (refused without a reason) for everyone else.
#[must_use]
pub fn authorize(objects: &dyn Objects, rules: &[Rule], user: &UserInfo, request: &Attributes<'_>) -> Decision {
    let Some(node) = user.node() else { return Decision::refuse("") };
    if node.is_empty() {
        return Decision::refuse(format!("unknown node for user {:?}", user.name));
    }
    if request.is_resource {
        match (request.group, request.resource) {
            ("", "secrets") => return reads(objects, node, request, Kind::Secret),
            ("", "configmaps") => return reads(objects, node, request, Kind::ConfigMap),
            ("", "serviceaccounts") => return service_account(objects, node, request),
            ("", "nodes") => return own_node(node, request),
            ("", "pods") => return pods(objects, node, request),
            ("coordination.k8s.io", "leases") => return lease(node, request),
            _ => {}
        }
    }
    if rules.iter().any(|rule| rule.allows(request)) { Decision::allow("") } else { Decision::refuse("") }
}

/// What a pod can name in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
    ServiceAccount,
}

fn reads(objects: &dyn Objects, node: &str, request: &Attributes<'_>, kind: Kind) -> Decision {
    if !matches!(request.verb, "get" | "list" | "watch") {
        return Decision::refuse("can only read resources of this type");
    }
    if !request.subresource.is_empty() {
        return Decision::refuse("cannot read subresource");
    }
    if request.namespace.is_empty() {
        return Decision::refuse("can only read namespaced object of this type");
    }
    if request.name.is_empty() {
        return Decision::refuse("No Object name found");
    }
    related(objects, node, request, kind)
}

fn service_account(objects: &dyn Objects, node: &str, request: &Attributes<'_>) -> Decision {
    if request.verb == "get" && request.subresource.is_empty() {
        return reads(objects, node, request, Kind::ServiceAccount);
    }
    if request.verb != "create" || request.name.is_empty() {
        return Decision::refuse("can only create tokens for individual service accounts");
    }
    if request.subresource != "token" {
        return Decision::refuse("can only create token subresource of serviceaccount");
    }
    related(objects, node, request, Kind::ServiceAccount)
}

fn lease(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::refuse("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASE_NAMESPACE {
        return Decision::refuse(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    if request.verb != "create" && request.name != node {
        return Decision::refuse("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn own_node(node: &str, request: &Attributes<'_>) -> Decision {
    match (request.subresource, request.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(""),
        ("", "get" | "list" | "watch") => match request.name {
            name if name == node => Decision::allow(""),
            "" => Decision::refuse(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Decision::refuse(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => Decision::refuse(""),
    }
}

fn pods(objects: &dyn Objects, node: &str, request: &Attributes<'_>) -> Decision {
    let bound = || {
        if request.name.is_empty() {
            return Decision::refuse("No Object name found");
        }
        let pod = objects.get("", "pods", request.namespace, request.name);
        if pod.is_some_and(|pod| on_node(&pod, node)) { Decision::allow("") } else { unrelated(node) }
    };
    match (request.subresource, request.verb) {
        ("", "get") => bound(),
        ("", "list" | "watch") => {
            if request.fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node) {
                return Decision::allow("");
            }
            if request.name.is_empty() {
                return Decision::refuse("can only list/watch pods with spec.nodeName field selector");
            }
            bound()
        }
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Decision::allow(""),
        _ => Decision::refuse(""),
    }
}

fn unrelated(node: &str) -> Decision {
    Decision::refuse(format!("no relationship found between node '{node}' and this object"))
}

fn on_node(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"].as_str() == Some(node)
}

fn related(objects: &dyn Objects, node: &str, request: &Attributes<'_>, kind: Kind) -> Decision {
    let pods = objects.list("", "pods", Some(request.namespace));
    if pods.iter().any(|pod| on_node(pod, node) && pod_names(pod, kind, request.name)) {
        Decision::allow("")
    } else {
        unrelated(node)
    }
}

/// Whether the pod names the object. A mirror pod names nothing: the API server must not trust a node's word.
fn pod_names(pod: &Value, kind: Kind, name: &str) -> bool {
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return false;
    }
    let spec = &pod["spec"];
    let is = |value: &Value| value.as_str() == Some(name);
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if kind == Kind::ServiceAccount {
        return is(&spec["serviceAccountName"]);
    }
    if kind == Kind::Secret && items(&spec["imagePullSecrets"]).iter().any(|r| is(&r["name"])) {
        return true;
    }
    let (from, key, volume) = match kind {
        Kind::Secret => ("secretRef", "secretKeyRef", "secret"),
        _ => ("configMapRef", "configMapKeyRef", "configMap"),
    };
    let in_volume = |source: &Value| match kind {
        Kind::Secret => is(&source[volume]["secretName"]),
        _ => is(&source[volume]["name"]),
    };
    let volumes = spec["volumes"].as_array().into_iter().flatten().any(|v| {
        in_volume(v)
            || v["projected"]["sources"].as_array().into_iter().flatten().any(|source| is(&source[volume]["name"]))
            // Drivers and storage plugins of a pod's volumes with a secret of their own.
            || (kind == Kind::Secret
                && v.as_object().into_iter().flatten().any(|(_, source)| {
                    is(&source["secretRef"]["name"]) || is(&source["nodePublishSecretRef"]["name"])
                }))
    });
    volumes
        || ["containers", "initContainers", "ephemeralContainers"].iter().any(|list| {
            spec[*list].as_array().into_iter().flatten().any(|container| {
                container["envFrom"].as_array().into_iter().flatten().any(|source| is(&source[from]["name"]))
                    || container["env"].as_array().into_iter().flatten().any(|env| is(&env["valueFrom"][key]["name"]))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NODES;
    use crate::objects::memory::Map;
    use serde_json::json;

    #[test]
    fn a_kubelet_reaches_what_its_pods_name() {
        let map = Map::default();
        map.put("", "pods", json!({
            "metadata": {"namespace": "ns", "name": "a"},
            "spec": {
                "nodeName": "n1", "serviceAccountName": "robot", "imagePullSecrets": [{"name": "pull"}],
                "volumes": [
                    {"name": "v", "secret": {"secretName": "s1"}},
                    {"name": "p", "projected": {"sources": [{"configMap": {"name": "c1"}}, {"secret": {"name": "s2"}}]}},
                ],
                "containers": [{
                    "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}}],
                    "envFrom": [{"secretRef": {"name": "s3"}}],
                }],
            },
        }));
        let ask = |node: &str, verb: &str, group: &str, resource: &str, sub: &str, namespace: &str, name: &str| {
            let user =
                UserInfo { name: format!("system:node:{node}"), groups: vec![NODES.into()], ..UserInfo::default() };
            let request = Attributes {
                verb,
                group,
                resource,
                subresource: sub,
                namespace,
                name,
                is_resource: true,
                ..Attributes::default()
            };
            authorize(&map, &[], &user, &request)
        };
        for (resource, name) in [
            ("secrets", "s1"),
            ("secrets", "s2"),
            ("secrets", "s3"),
            ("secrets", "pull"),
            ("configmaps", "c1"),
            ("configmaps", "c2"),
            ("serviceaccounts", "robot"),
            ("pods", "a"),
        ] {
            assert!(ask("n1", "get", "", resource, "", "ns", name).allowed, "{resource}/{name}");
            let refused = ask("n2", "get", "", resource, "", "ns", name);
            assert_eq!(refused.reason, "no relationship found between node 'n2' and this object", "{resource}/{name}");
        }
        assert!(!ask("n1", "get", "", "secrets", "", "ns", "other").allowed);
        assert!(!ask("n1", "update", "", "secrets", "", "ns", "s1").allowed);
        assert!(!ask("n1", "list", "", "secrets", "", "ns", "").allowed);
        assert!(ask("n1", "create", "", "serviceaccounts", "token", "ns", "robot").allowed);
        assert!(!ask("n1", "create", "", "serviceaccounts", "token", "ns", "default").allowed);
        assert!(ask("n1", "update", "coordination.k8s.io", "leases", "", LEASE_NAMESPACE, "n1").allowed);
        assert!(!ask("n1", "update", "coordination.k8s.io", "leases", "", LEASE_NAMESPACE, "n2").allowed);
        assert!(!ask("n1", "update", "coordination.k8s.io", "leases", "", "ns", "n1").allowed);
        assert!(ask("n1", "get", "", "nodes", "", "", "n1").allowed);
        assert_eq!(
            ask("n1", "get", "", "nodes", "", "", "n2").reason,
            "node 'n1' cannot read 'n2', only its own Node object"
        );
    }
}
