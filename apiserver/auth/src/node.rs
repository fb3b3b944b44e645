//! The Node authorizer: allows a kubelet its own Node and Lease, the pods bound to it, and the objects that those pods
//! reference.
//!
//! The admission plugin NodeRestriction restricts its writes further.

use machinery_api::ObjectKey;
use machinery_api::names::VOLUME_NODE;
use machinery_api::selector::{LabelSelector, Operator, go_quoted};

use super::node_graph::NodeGraph;
pub use super::node_references::is_volume_of;
use super::node_references::{Reference, ReferenceKind, claim_of_volume, is_on_node};
use super::rules::Rule;
use super::{Attributes, Decision, UserInfo, node_own};
use apiserver_resources::default_objects;
use apiserver_resources::objects::ObjectReader;

/// The namespace of node leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The namespace whose uid is the cluster's identity.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// The rules that do not depend on the node: those of the default role `system:node`.
#[must_use]
pub fn default_rules() -> Vec<Rule> {
    let role = default_objects::all().find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:node");
    role.map(|role| Rule::parse_all(&role)).unwrap_or_default()
}

/// The Node authorizer.
#[derive(Debug)]
pub(crate) struct NodeAuthorizer {
    rules: Vec<Rule>,
    graph: NodeGraph,
}

impl NodeAuthorizer {
    /// `rules` are those that do not depend on the node.
    #[must_use]
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        Self { rules, graph: NodeGraph::default() }
    }

    /// Decides for a kubelet. Returns no opinion for other users.
    #[must_use]
    pub(crate) fn authorize(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        let Some(node) = user.node() else { return Decision::no_opinion("") };
        if node.is_empty() {
            return Decision::no_opinion(format!("unknown node for user {}", go_quoted(&user.name)));
        }
        let node_request = NodeRequest { objects, graph: &self.graph, node, request };
        if request.is_resource {
            match (request.group, request.resource) {
                ("", "secrets") => return node_request.check_read(ReferenceKind::Secret),
                ("", "configmaps") => return node_request.check_read(ReferenceKind::ConfigMap),
                ("", "serviceaccounts") => return node_request.service_account(),
                ("", "persistentvolumeclaims") => return node_request.claim(),
                ("", "persistentvolumes") => return node_request.volume(),
                ("", "namespaces") => return node_request.namespace(),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return pods(objects, node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("resource.k8s.io", "resourceclaims") => return node_request.resource_claim(),
                ("resource.k8s.io", "resourceslices") => return node_own::resource_slice(objects, node, request),
                ("storage.k8s.io", "csinodes") => return node_own::csi_node(node, request),
                ("storage.k8s.io", "volumeattachments") => {
                    return node_request
                        .check_get()
                        .err()
                        .unwrap_or_else(|| node_own::attachment(objects, node, request));
                }
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(request)) { Decision::allow("") } else { Decision::no_opinion("") }
    }
}

struct NodeRequest<'a> {
    objects: &'a dyn ObjectReader,
    graph: &'a NodeGraph,
    node: &'a str,
    request: &'a Attributes<'a>,
}

impl NodeRequest<'_> {
    fn check_read(&self, kind: ReferenceKind) -> Decision {
        let request = self.request;
        if !matches!(request.verb, "get" | "list" | "watch") {
            return Decision::no_opinion("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::no_opinion("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return Decision::no_opinion("can only read namespaced object of this type");
        }
        self.check_named(kind)
    }

    fn service_account(&self) -> Decision {
        let request = self.request;
        if request.verb == "get" && request.subresource.is_empty() {
            return self.check_read(ReferenceKind::ServiceAccount);
        }
        if request.verb != "create" || request.name.is_empty() {
            return Decision::no_opinion("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return Decision::no_opinion("can only create token subresource of serviceaccount");
        }
        self.check_related(ReferenceKind::ServiceAccount)
    }

    fn check_get(&self) -> Result<(), Decision> {
        let request = self.request;
        if request.verb != "get" {
            return Err(Decision::no_opinion("can only get individual resources of this type"));
        }
        if request.subresource.is_empty() { Ok(()) } else { Err(Decision::no_opinion("cannot get subresource")) }
    }

    fn claim(&self) -> Decision {
        match (self.request.verb, self.request.subresource) {
            ("update" | "patch", "status") => self.related_claim(),
            (_, "status") => Decision::no_opinion("can only get/update/patch this type"),
            _ => self.check_get().err().unwrap_or_else(|| self.related_claim()),
        }
    }

    /// A claim is related through a pod, or through the local volume that it is bound to: a node expands its volumes also
    /// while no pod uses them.
    fn related_claim(&self) -> Decision {
        let (namespace, name) = (self.request.namespace, self.request.name);
        let of_volume = || {
            let claim = self.objects.get_uncached("", "persistentvolumeclaims", namespace, name)?;
            let volume = claim["spec"]["volumeName"].as_str().filter(|volume| !volume.is_empty())?;
            let volume = self.objects.get_uncached("", "persistentvolumes", "", volume)?;
            let uid = claim["metadata"]["uid"].as_str()?;
            let bound = claim_of_volume(&volume)? == ObjectKey::new(namespace, name);
            (bound && volume["spec"]["claimRef"]["uid"] == uid && is_volume_of(self.node, &volume)).then_some(())
        };
        match of_volume() {
            Some(()) => Decision::allow(""),
            None => self.check_related(ReferenceKind::Claim),
        }
    }

    /// The namespaces of the node's pods, the system's (its uid is the cluster's), and the absence of others: the node then
    /// removes what it keeps for them.
    fn namespace(&self) -> Decision {
        if let Err(decision) = self.check_get() {
            return decision;
        }
        let name = self.request.name;
        if name == SYSTEM_NAMESPACE || self.objects.version("", "namespaces", "", name).is_none() {
            return Decision::allow("");
        }
        self.check_referenced(ReferenceKind::Namespace, "", name)
    }

    fn resource_claim(&self) -> Decision {
        self.check_get().err().unwrap_or_else(|| self.check_named(ReferenceKind::ResourceClaim))
    }

    /// A volume is related through the claim that it is bound to, or by its affinity to the node alone. The latter a node may
    /// update, within NodeRestriction. It lists and watches those with its label, which only the provisioner and
    /// administrators write.
    fn volume(&self) -> Decision {
        let request = self.request;
        if request.subresource.is_empty() && matches!(request.verb, "list" | "watch") {
            return if selects_volumes_of(self.node, request.labels) {
                Decision::allow("")
            } else {
                Decision::no_opinion(format!("can only list/watch persistentvolumes with label selector {VOLUME_NODE}"))
            };
        }
        let volume = || self.objects.get_uncached("", "persistentvolumes", "", request.name);
        if (request.verb, request.subresource) == ("update", "") {
            let is_own = volume().is_some_and(|volume| is_volume_of(self.node, &volume));
            return if is_own { Decision::allow("") } else { unrelated(self.node) };
        }
        if let Err(decision) = self.check_get() {
            return decision;
        }
        let volume = volume();
        if volume.as_ref().is_some_and(|volume| is_volume_of(self.node, volume)) {
            return Decision::allow("");
        }
        match volume.and_then(|volume| claim_of_volume(&volume)) {
            Some(claim) => self.check_referenced(ReferenceKind::Claim, &claim.namespace, &claim.name),
            None => unrelated(self.node),
        }
    }

    fn check_named(&self, kind: ReferenceKind) -> Decision {
        if self.request.name.is_empty() {
            Decision::no_opinion("No Object name found")
        } else {
            self.check_related(kind)
        }
    }

    fn check_related(&self, kind: ReferenceKind) -> Decision {
        self.check_referenced(kind, self.request.namespace, self.request.name)
    }

    fn check_referenced(&self, kind: ReferenceKind, namespace: &str, name: &str) -> Decision {
        if self.graph.references(self.objects, self.node, &Reference::new(kind, namespace, name)) {
            Decision::allow("")
        } else {
            unrelated(self.node)
        }
    }
}

/// Whether a label selector selects no other volumes than those with the node's label.
fn selects_volumes_of(node: &str, labels: &str) -> bool {
    let selector = LabelSelector::parse(labels).unwrap_or_else(|_| LabelSelector::everything());
    selector.requirements().iter().any(|one| {
        let is_in = matches!(one.operator, Operator::In | Operator::Equals | Operator::DoubleEquals);
        one.key == VOLUME_NODE && is_in && one.values.iter().eq([node])
    })
}

fn lease(node: &str, request: &Attributes<'_>) -> Decision {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Decision::no_opinion("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASE_NAMESPACE {
        return Decision::no_opinion(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    if request.verb != "create" && request.name != node {
        return Decision::no_opinion("can only access node lease with the same name as the requesting node");
    }
    Decision::allow("")
}

fn own_node(node: &str, request: &Attributes<'_>) -> Decision {
    match (request.subresource, request.verb) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Decision::allow(""),
        ("", "get" | "list" | "watch") => match request.name {
            name if name == node => Decision::allow(""),
            "" => Decision::no_opinion(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Decision::no_opinion(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => Decision::no_opinion(""),
    }
}

fn pods(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
    let bound = || {
        if request.name.is_empty() {
            return Decision::no_opinion("No Object name found");
        }
        let pod = objects.get("", "pods", request.namespace, request.name);
        if pod.is_some_and(|pod| is_on_node(&pod, node)) { Decision::allow("") } else { unrelated(node) }
    };
    match (request.subresource, request.verb) {
        ("", "get") => bound(),
        ("", "list" | "watch") => {
            if request.fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node) {
                return Decision::allow("");
            }
            if request.name.is_empty() {
                return Decision::no_opinion("can only list/watch pods with spec.nodeName field selector");
            }
            bound()
        }
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Decision::allow(""),
        _ => Decision::no_opinion(""),
    }
}

pub(super) fn unrelated(node: &str) -> Decision {
    Decision::no_opinion(format!("no relationship found between node '{node}' and this object"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NODES;
    use apiserver_resources::objects::memory::MemoryObjects;
    use serde_json::{Value, json};

    #[test]
    fn volumes_are_reached_by_the_claims_of_a_nodes_pods() {
        let (map, authorizer) = (MemoryObjects::default(), NodeAuthorizer::new(Vec::new()));
        let volumes =
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "own", "ephemeral": {}}]);
        map.put(
            "",
            "pods",
            json!({
                "metadata": {"namespace": "ns", "name": "a"}, "spec": {"nodeName": "m1", "volumes": volumes},
            }),
        );
        for (name, claim) in [("mine", "c"), ("others", "d")] {
            let spec = json!({"claimRef": {"namespace": "ns", "name": claim}});
            map.put("", "persistentvolumes", json!({"metadata": {"name": name}, "spec": spec}));
        }
        map.put("", "persistentvolumes", json!({"metadata": {"name": "free"}, "spec": {}}));
        let ask = |node: &str, verb: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
            let user = UserInfo::component(format!("system:node:{node}"), Some(NODES));
            let request =
                Attributes { verb, resource, subresource, namespace, name, is_resource: true, ..Attributes::default() };
            authorizer.authorize(&map, &user, &request).allowed
        };
        for (node, verb, subresource, name, allowed) in [
            ("m1", "get", "", "c", true),
            ("m1", "get", "", "a-own", true),
            ("m1", "get", "", "d", false),
            ("m2", "get", "", "c", false),
            ("m1", "list", "", "c", false),
            ("m1", "update", "", "c", false),
            ("m1", "patch", "status", "c", true),
            ("m1", "patch", "status", "d", false),
        ] {
            assert_eq!(
                ask(node, verb, "persistentvolumeclaims", subresource, "ns", name),
                allowed,
                "{node} {verb} {name}"
            );
        }
        for (node, verb, name, allowed) in [
            ("m1", "get", "mine", true),
            ("m1", "get", "others", false),
            ("m2", "get", "mine", false),
            ("m1", "get", "free", false),
            ("m1", "patch", "mine", false),
            ("m1", "update", "mine", false),
            ("m1", "list", "", false),
        ] {
            assert_eq!(ask(node, verb, "persistentvolumes", "", "", name), allowed, "{node} {verb} {name}");
        }
    }

    /// Volumes of m1 with their claims, and namespaces, of which m1 has pods in two.
    fn volumes_and_namespaces() -> MemoryObjects {
        let map = MemoryObjects::default();
        let on = |node: &str| json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
        let volume = |name: &str, claim: &str| {
            let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": on("m1")}]}});
            let claim = json!({"namespace": "ns", "name": claim, "uid": "u"});
            json!({"metadata": {"name": name}, "spec": {"claimRef": claim, "nodeAffinity": affinity}})
        };
        let claim = |name: &str, uid: &str, volume: &str| json!({"metadata": {"namespace": "ns", "name": name, "uid": uid}, "spec": {"volumeName": volume}});
        map.put("", "persistentvolumes", volume("v", "c"));
        for claim in [claim("c", "u", "v"), claim("thief", "u", "v"), claim("free", "u", "")] {
            map.put("", "persistentvolumeclaims", claim);
        }
        map.put("", "persistentvolumes", volume("w", "later"));
        map.put("", "persistentvolumeclaims", claim("later", "x", "w"));
        let pod = |name: &str, annotations: Value| json!({"metadata": {"namespace": name, "name": "a", "annotations": annotations}, "spec": {"nodeName": "m1"}});
        map.put("", "pods", pod("ns", json!({})));
        map.put("", "pods", pod("mirror", json!({"kubernetes.io/config.mirror": "x"})));
        for name in ["ns", "mirror", "other", "kube-system"] {
            map.put("", "namespaces", json!({"metadata": {"name": name}}));
        }
        map
    }

    #[test]
    fn a_node_reaches_its_local_volumes_their_claims_and_its_pods_namespaces() {
        let (map, authorizer) = (volumes_and_namespaces(), NodeAuthorizer::new(Vec::new()));
        let may = |node: &str, verb: &str, resource: &str, name: &str, labels: &str| {
            let user = UserInfo::component(format!("system:node:{node}"), Some(NODES));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let namespace = if resource == "persistentvolumeclaims" { "ns" } else { "" };
            let request = Attributes {
                verb,
                resource,
                subresource,
                namespace,
                name,
                labels,
                is_resource: true,
                ..Attributes::default()
            };
            authorizer.authorize(&map, &user, &request).allowed
        };
        for (verb, resource, name, labels, allowed) in [
            ("get", "persistentvolumes", "v", "", true),
            ("update", "persistentvolumes", "v", "", true),
            ("delete", "persistentvolumes", "v", "", false),
            ("update", "persistentvolumes/status", "v", "", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node=m1", true),
            ("watch", "persistentvolumes", "", "a=b,coracle.dev/volume-node in (m1)", true),
            ("list", "persistentvolumes", "", "", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node=m2", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node in (m1,m2)", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node notin (m1)", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node", false),
            ("list", "persistentvolumes", "", "coracle.dev/volume-node=m1=", false),
            ("get", "persistentvolumeclaims", "c", "", true),
            ("update", "persistentvolumeclaims/status", "c", "", true),
            ("update", "persistentvolumeclaims", "c", "", false),
            ("update", "persistentvolumeclaims/status", "thief", "", false),
            ("update", "persistentvolumeclaims/status", "free", "", false),
            ("update", "persistentvolumeclaims/status", "later", "", false),
            ("list", "persistentvolumeclaims", "", "", false),
            ("get", "namespaces", "ns", "", true),
            ("get", "namespaces", "kube-system", "", true),
            ("get", "namespaces", "gone", "", true),
            ("get", "namespaces", "other", "", false),
            ("get", "namespaces", "mirror", "", true),
            ("list", "namespaces", "", "", false),
            ("update", "namespaces", "ns", "", false),
        ] {
            assert_eq!(may("m1", verb, resource, name, labels), allowed, "{verb} {resource} {name} {labels}");
            let for_all = resource == "namespaces" && verb == "get" && matches!(name, "gone" | "kube-system");
            let own_selector = labels.contains("m2") && !labels.contains("m1");
            assert_eq!(
                may("m2", verb, resource, name, labels),
                for_all || own_selector,
                "m2: {verb} {resource} {name}"
            );
        }
    }

    #[test]
    fn a_kubelet_may_read_objects_that_its_pods_name() {
        let (map, authorizer) = (MemoryObjects::default(), NodeAuthorizer::new(Vec::new()));
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
            authorizer.authorize(&map, &user, &request)
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

        map.remove("", "pods", "ns", "a");
        map.put(
            "",
            "pods",
            json!({"metadata": {"namespace": "ns", "name": "b"},
            "spec": {"nodeName": "n1", "volumes": [{"name": "v", "secret": {"secretName": "s4"}}]}}),
        );
        assert!(ask("n1", "get", "", "secrets", "", "ns", "s4").allowed);
        assert!(!ask("n1", "get", "", "secrets", "", "ns", "s1").allowed, "its pod has gone");
    }
}
