//! The Node authorizer: a kubelet reaches its own Node and Lease, the pods bound to it, and what those pods name.
//!
//! What it may write on them is narrowed by the admission plugin NodeRestriction.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use machinery_api::selector::go_quoted;
use serde_json::Value;

use super::rules::Rule;
use super::{Attributes, Decision, UserInfo, node_own};
use crate::default_objects::default_objects;
use apiserver_resources::objects::ObjectReader;

/// Where kubelets keep their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The rules that every kubelet has for what isn't told apart by node: those of the default role `system:node`.
pub(crate) fn default_rules() -> Vec<Rule> {
    let role = default_objects().find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == "system:node");
    role.map(|role| Rule::parse_all(&role)).unwrap_or_default()
}

/// Decides for kubelets. Keeps what each node's pods name, read anew only for pods that changed.
#[derive(Debug)]
pub struct NodeAuthorizer {
    rules: Vec<Rule>,
    graph: Mutex<Graph>,
}

impl NodeAuthorizer {
    /// With the rules for what isn't told apart by node.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, graph: Mutex::default() }
    }

    /// Decides for a kubelet; no opinion (refused without a reason) for everyone else.
    #[must_use]
    pub fn authorize(&self, objects: &dyn ObjectReader, user: &UserInfo, request: &Attributes<'_>) -> Decision {
        let Some(node) = user.node() else { return Decision::refuse("") };
        if node.is_empty() {
            return Decision::refuse(format!("unknown node for user {}", go_quoted(&user.name)));
        }
        let ask = Ask { objects, graph: &self.graph, node, request };
        if request.is_resource {
            match (request.group, request.resource) {
                ("", "secrets") => return ask.reads(Kind::Secret),
                ("", "configmaps") => return ask.reads(Kind::ConfigMap),
                ("", "serviceaccounts") => return ask.service_account(),
                ("", "persistentvolumeclaims") => return ask.claim(),
                ("", "persistentvolumes") => return ask.volume(),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return pods(objects, node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("resource.k8s.io", "resourceclaims") => return ask.resource_claim(),
                ("resource.k8s.io", "resourceslices") => return node_own::resource_slice(objects, node, request),
                ("storage.k8s.io", "csinodes") => return node_own::csi_node(node, request),
                ("storage.k8s.io", "volumeattachments") => {
                    return ask.gets().err().unwrap_or_else(|| node_own::attachment(objects, node, request));
                }
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(request)) { Decision::allow("") } else { Decision::refuse("") }
    }
}

/// What a pod can name in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    ResourceClaim,
}

struct Ask<'a> {
    objects: &'a dyn ObjectReader,
    graph: &'a Mutex<Graph>,
    node: &'a str,
    request: &'a Attributes<'a>,
}

impl Ask<'_> {
    fn reads(&self, kind: Kind) -> Decision {
        let request = self.request;
        if !matches!(request.verb, "get" | "list" | "watch") {
            return Decision::refuse("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return Decision::refuse("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return Decision::refuse("can only read namespaced object of this type");
        }
        self.named(kind)
    }

    fn service_account(&self) -> Decision {
        let request = self.request;
        if request.verb == "get" && request.subresource.is_empty() {
            return self.reads(Kind::ServiceAccount);
        }
        if request.verb != "create" || request.name.is_empty() {
            return Decision::refuse("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return Decision::refuse("can only create token subresource of serviceaccount");
        }
        self.related(Kind::ServiceAccount)
    }

    fn gets(&self) -> Result<(), Decision> {
        let request = self.request;
        if request.verb != "get" {
            return Err(Decision::refuse("can only get individual resources of this type"));
        }
        if request.subresource.is_empty() { Ok(()) } else { Err(Decision::refuse("cannot get subresource")) }
    }

    fn claim(&self) -> Decision {
        match (self.request.verb, self.request.subresource) {
            ("update" | "patch", "status") => self.related(Kind::Claim),
            (_, "status") => Decision::refuse("can only get/update/patch this type"),
            _ => self.gets().err().unwrap_or_else(|| self.related(Kind::Claim)),
        }
    }

    fn resource_claim(&self) -> Decision {
        self.gets().err().unwrap_or_else(|| self.named(Kind::ResourceClaim))
    }

    /// A volume is related by the claim that it is bound to.
    fn volume(&self) -> Decision {
        if let Err(refused) = self.gets() {
            return refused;
        }
        let volume = self.objects.read_once("", "persistentvolumes", "", self.request.name);
        let claim = volume.map(|volume| volume["spec"]["claimRef"].clone()).unwrap_or_default();
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => self.names(Kind::Claim, namespace, name),
            _ => unrelated(self.node),
        }
    }

    fn named(&self, kind: Kind) -> Decision {
        if self.request.name.is_empty() { Decision::refuse("No Object name found") } else { self.related(kind) }
    }

    fn related(&self, kind: Kind) -> Decision {
        self.names(kind, self.request.namespace, self.request.name)
    }

    fn names(&self, kind: Kind, namespace: &str, name: &str) -> Decision {
        let mut graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        if graph.any_names(self.objects, self.node, namespace, &(kind, name.to_owned())) {
            Decision::allow("")
        } else {
            unrelated(self.node)
        }
    }
}

/// What the pods of a node name, by node and namespace.
#[derive(Debug, Default)]
struct Graph {
    pods: HashMap<(String, String), Pods>,
}

/// The pods of a node in a namespace, as far as they were read.
#[derive(Debug, Default)]
struct Pods {
    named: HashMap<String, Named>,
    /// A pod that named an object when it was last asked for: while it does, no other is looked at.
    witnesses: BTreeMap<(Kind, String), String>,
}

/// What one pod names, at one resourceVersion.
#[derive(Debug)]
struct Named {
    version: u64,
    names: BTreeSet<(Kind, String)>,
}

/// Where pods are read, and which.
#[derive(Clone, Copy)]
struct Scope<'a> {
    objects: &'a dyn ObjectReader,
    node: &'a str,
    namespace: &'a str,
}

impl Scope<'_> {
    fn each(self, visit: &mut dyn FnMut(&str, u64)) {
        let (namespace, of_node) = (Some(self.namespace), Some(("spec.nodeName", self.node)));
        self.objects.each("", "pods", namespace, of_node, &mut |_, name, version| visit(name, version));
    }

    fn names(self, name: &str) -> BTreeSet<(Kind, String)> {
        let pod = self.objects.read_once("", "pods", self.namespace, name);
        pod.filter(|pod| on_node(pod, self.node)).map(|pod| names_of(&pod)).unwrap_or_default()
    }
}

impl Graph {
    /// Whether a pod of the node in the namespace names the object, as of now.
    fn any_names(&mut self, objects: &dyn ObjectReader, node: &str, namespace: &str, wanted: &(Kind, String)) -> bool {
        let key = (node.to_owned(), namespace.to_owned());
        let mut pods = self.pods.remove(&key).unwrap_or_default();
        let scope = Scope { objects, node, namespace };
        let any = pods.witness_names(scope, wanted) || pods.any_names(scope, wanted);
        // Nothing is kept for a namespace without such pods: a node could ask for any number of them.
        if !pods.named.is_empty() {
            self.pods.insert(key, pods);
        }
        any
    }
}

impl Pods {
    /// Whether the pod that named it last still does.
    fn witness_names(&mut self, scope: Scope<'_>, wanted: &(Kind, String)) -> bool {
        let Some(name) = self.witnesses.get(wanted).cloned() else { return false };
        let Some(version) = scope.objects.version("", "pods", scope.namespace, &name) else { return false };
        let known = self.named.get(&name).filter(|pod| pod.version == version);
        if known.is_none() {
            self.named.insert(name.clone(), Named { version, names: scope.names(&name) });
        }
        self.named.get(&name).is_some_and(|pod| pod.names.contains(wanted))
    }

    /// Whether any does, of all that there are; reads those that have changed.
    fn any_names(&mut self, scope: Scope<'_>, wanted: &(Kind, String)) -> bool {
        let mut changed: Vec<(String, u64)> = Vec::new();
        let mut seen = 0;
        scope.each(&mut |name, version| {
            seen += 1;
            if self.named.get(name).is_none_or(|pod| pod.version != version) {
                changed.push((name.to_owned(), version));
            }
        });
        for (name, version) in changed {
            let names = scope.names(&name);
            self.named.insert(name, Named { version, names });
        }
        if self.named.len() > seen {
            let mut there = BTreeSet::new();
            scope.each(&mut |name, _| {
                there.insert(name.to_owned());
            });
            self.named.retain(|name, _| there.contains(name));
            self.witnesses.retain(|_, name| there.contains(name));
        }
        let witness = self.named.iter().find(|(_, pod)| pod.names.contains(wanted)).map(|(name, _)| name.clone());
        let any = witness.is_some();
        match witness {
            Some(name) => self.witnesses.insert(wanted.clone(), name),
            None => self.witnesses.remove(wanted),
        };
        any
    }
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

fn pods(objects: &dyn ObjectReader, node: &str, request: &Attributes<'_>) -> Decision {
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

pub(super) fn unrelated(node: &str) -> Decision {
    Decision::refuse(format!("no relationship found between node '{node}' and this object"))
}

fn on_node(pod: &Value, node: &str) -> bool {
    pod["spec"]["nodeName"].as_str() == Some(node)
}

/// What a pod names. A mirror pod names nothing: the API server must not trust a node's word.
fn names_of(pod: &Value) -> BTreeSet<(Kind, String)> {
    let mut names = BTreeSet::new();
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return names;
    }
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            names.insert((kind, name.to_owned()));
        }
    };
    fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
        value[field].as_array().into_iter().flatten()
    }
    let spec = &pod["spec"];
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    items(spec, "imagePullSecrets").for_each(|secret| add(Kind::Secret, &secret["name"]));
    for volume in items(spec, "volumes") {
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if let (true, Some(pod), Some(own)) =
            (volume["ephemeral"].is_object(), pod["metadata"]["name"].as_str(), volume["name"].as_str())
        {
            add(Kind::Claim, &format!("{pod}-{own}").into());
        }
        for source in items(&volume["projected"], "sources") {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
        // Drivers and storage plugins of a pod's volumes with a secret of their own.
        for source in volume.as_object().into_iter().flat_map(serde_json::Map::values) {
            add(Kind::Secret, &source["secretRef"]["name"]);
            add(Kind::Secret, &source["nodePublishSecretRef"]["name"]);
        }
    }
    // A claim that is made for the pod has a name that its status tells.
    for claim in items(spec, "resourceClaims") {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"], "resourceClaimStatuses") {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    add(Kind::ResourceClaim, &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"]);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(spec, list) {
            for source in items(container, "envFrom") {
                add(Kind::Secret, &source["secretRef"]["name"]);
                add(Kind::ConfigMap, &source["configMapRef"]["name"]);
            }
            for env in items(container, "env") {
                add(Kind::Secret, &env["valueFrom"]["secretKeyRef"]["name"]);
                add(Kind::ConfigMap, &env["valueFrom"]["configMapKeyRef"]["name"]);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NODES;
    use apiserver_resources::objects::memory::Map;
    use serde_json::json;

    #[test]
    fn volumes_are_reached_by_the_claims_of_a_nodes_pods() {
        let (map, authorizer) = (Map::default(), NodeAuthorizer::new(Vec::new()));
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
        ] {
            assert_eq!(ask(node, verb, "persistentvolumes", "", "", name), allowed, "{node} {verb} {name}");
        }
    }

    #[test]
    fn a_kubelet_reaches_what_its_pods_name() {
        let (map, authorizer) = (Map::default(), NodeAuthorizer::new(Vec::new()));
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

    #[test]
    fn a_witness_is_believed_no_longer_than_it_holds() {
        let (map, mut graph) = (Map::default(), Graph::default());
        let pod = |name: &str, node: &str, secret: &str| {
            let volumes = json!([{"name": "v", "secret": {"secretName": secret}}]);
            map.put(
                "",
                "pods",
                json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"nodeName": node, "volumes": volumes}}),
            );
        };
        let wanted = (Kind::Secret, "s".to_owned());
        let mut named = || graph.any_names(&map, "n1", "ns", &wanted);
        assert!(!named());
        pod("a", "n1", "s");
        assert!(named() && named());
        pod("a", "n1", "other");
        assert!(!named(), "it names another");
        pod("a", "n1", "s");
        assert!(named());
        pod("a", "n2", "s");
        assert!(!named(), "another pod has its name, elsewhere");
        pod("b", "n1", "s");
        assert!(named());
        pod("c", "n1", "s");
        map.remove("", "pods", "ns", "b");
        assert!(named(), "another names it");
        map.remove("", "pods", "ns", "c");
        assert!(!named());
    }
}
