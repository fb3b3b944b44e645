//! NodeRestriction: limits a kubelet to its own Node, Lease, CSINode, ResourceSlices and pod status, to the fields it
//! needs of them, and to certificate requests for its own name.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machinery_api::error::{ApiError, ApiResult, GroupResource};
use machinery_rules::activation::CONDITION;
use machinery_rules::certificate_request::CertificateRequest;
use serde_json::Value;

use super::{Context, Effects, MaybeReady, Operation, Plugin, is_mirror, node_writes, pod_ranges};
use apiserver_auth::Attributes;
use apiserver_auth::node::LEASE_NAMESPACE;

/// Labels in Kubernetes' domains that a kubelet may set on its Node.
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

pub(super) struct NodeRestriction;

impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn mutate<'a>(&'a self, context: &'a Context<'_>, object: &'a mut Value, _: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        let Some(node) = request.user.node() else {
            let is_status = (request.group, request.resource, request.subresource) == ("", "services", "status");
            let is_bounded = is_status && request.user.name == DATA_PLANE;
            return MaybeReady::Ready(if is_bounded { service_status(context, object) } else { Ok(()) });
        };
        if node.is_empty() {
            let why = format!("could not determine node from user {:?}", request.user.name);
            return MaybeReady::Ready(Err(request.forbidden(object, why)));
        }
        let node_request = NodeRequest { context, node, object };
        MaybeReady::Ready(match (request.group, request.resource, request.subresource) {
            ("", "pods", "") => node_request.pod(),
            ("", "pods", "status") => node_request.pod_status(),
            ("", "pods", "eviction") => node_request.eviction(),
            ("", "pods", other) => node_request
                .forbid(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed")),
            ("", "nodes", _) => node_request.own_node(),
            // Calls the authorizers, which may wait.
            ("", "serviceaccounts", "token") => {
                return MaybeReady::Pending(Box::pin(async move { node_request.token().await }));
            }
            ("", "services", "status") => service_status(context, node_request.object),
            ("", "persistentvolumes", "") => node_request.volume(),
            ("", "persistentvolumeclaims", "status") => node_request.claim_status(),
            ("coordination.k8s.io", "leases", _) => node_request.lease(),
            ("storage.k8s.io", "csinodes", _) => node_request.csi_node(),
            ("resource.k8s.io", "resourceslices", "") => node_request.resource_slice(),
            ("certificates.k8s.io", "certificatesigningrequests", "") => node_request.certificate(),
            _ => Ok(()),
        })
    }
}

/// The user of data planes, as which each node may act.
const DATA_PLANE: &str = "system:kube-proxy";

/// A data plane reports requests that wait for a Service, and changes nothing else of Services.
fn service_status(context: &Context<'_>, object: &Value) -> ApiResult<()> {
    if node_writes::is_waiting_requests(object, context.old.unwrap_or(&Value::Null)) {
        return Ok(());
    }
    let why = format!("a data plane can only update the condition {CONDITION} of services");
    Err(context.request.forbidden(object, why))
}

struct NodeRequest<'a> {
    context: &'a Context<'a>,
    node: &'a str,
    object: &'a Value,
}

impl NodeRequest<'_> {
    fn forbid(&self, why: impl Into<String>) -> ApiResult<()> {
        Err(self.context.request.forbidden(self.object, why))
    }

    fn find(&self, plural: &str, namespace: &str, name: &str) -> ApiResult<std::sync::Arc<Value>> {
        let found = self.context.objects.get_uncached("", plural, namespace, name);
        found.ok_or_else(|| ApiError::NotFound(GroupResource::new("", plural), name.to_owned()))
    }

    fn pod(&self) -> ApiResult<()> {
        let node = self.node;
        match self.context.request.operation {
            Operation::Create => self.mirror_pod(),
            Operation::Delete => {
                let request = self.context.request;
                let pod = self.find("pods", request.namespace, request.name)?;
                if pod["spec"]["nodeName"].as_str() == Some(node) {
                    return Ok(());
                }
                self.forbid(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            other => self.forbid(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.as_str()
            )),
        }
    }

    fn mirror_pod(&self) -> ApiResult<()> {
        let (node, pod) = (self.node, self.object);
        if !is_mirror(pod) {
            return self.forbid(format!(
                "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
            ));
        }
        if pod["spec"]["nodeName"].as_str() != Some(node) {
            return self.forbid(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
        }
        let own = format!("node {node:?} can only create pods with an owner reference set to itself");
        match pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => return self.forbid(own),
            [owner] => {
                let is = |field: &str, value: &str| owner[field].as_str() == Some(value);
                if !is("apiVersion", "v1") || !is("kind", "Node") || !is("name", node) {
                    return self.forbid(own);
                }
                if owner["controller"].as_bool() != Some(true) {
                    return self.forbid(format!(
                        "node {node:?} can only create pods with a controller owner reference set to itself"
                    ));
                }
                if owner["blockOwnerDeletion"].as_bool() == Some(true) {
                    return self.forbid(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
                }
                let (claimed, real) = (&owner["uid"], self.find("nodes", "", node)?);
                if *claimed != real["metadata"]["uid"] {
                    return self.forbid(format!(
                        "node {node} UID mismatch: expected {} got {}",
                        claimed.as_str().unwrap_or_default(),
                        real["metadata"]["uid"].as_str().unwrap_or_default()
                    ));
                }
            }
            _ => {
                return self
                    .forbid(format!("node {node:?} can only create pods with a single owner reference set to itself"));
            }
        }
        match referenced_kinds(pod).first() {
            Some(what) => self.forbid(format!("node {node:?} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }

    fn pod_status(&self) -> ApiResult<()> {
        let (node, old) = (self.node, self.context.old.unwrap_or(&Value::Null));
        if old["spec"]["nodeName"].as_str() != Some(node) {
            return self
                .forbid(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
        }
        if modified_labels(self.object, old).next().is_some() {
            return self.forbid(format!("node {node:?} cannot update labels through pod status"));
        }
        if self.object["status"]["resourceClaimStatuses"] != old["status"]["resourceClaimStatuses"] {
            return self.forbid(format!("node {node:?} cannot update resource claim statues"));
        }
        // The field names a claim, and the node of a pod may read the claims that its pod names.
        if self.object["status"]["extendedResourceClaimStatus"] != old["status"]["extendedResourceClaimStatus"] {
            return self.forbid(format!("node {node:?} cannot update extended resource claim status"));
        }
        Ok(())
    }

    fn eviction(&self) -> ApiResult<()> {
        let request = self.context.request;
        let pod = self.find("pods", request.namespace, request.name)?;
        if pod["spec"]["nodeName"].as_str() == Some(self.node) {
            return Ok(());
        }
        self.forbid(format!("node {} can only evict pods with spec.nodeName set to itself", self.node))
    }

    fn own_node(&self) -> ApiResult<()> {
        let (node, object, request) = (self.node, self.object, self.context.request);
        let name = match request.name {
            "" => object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        if name != node {
            return self.forbid(format!("node {node:?} is not allowed to modify node {name:?}"));
        }
        let config = &object["spec"]["configSource"];
        match request.operation {
            Operation::Create => {
                if config.is_object() {
                    return self
                        .forbid(format!("node {node:?} is not allowed to create pods with a non-nil configSource"));
                }
                let labels = forbidden_labels(object, &Value::Null);
                if !labels.is_empty() {
                    let why = format!("node {node:?} is not allowed to set the following labels: {labels}");
                    return self.forbid(why);
                }
                if let Some(why) = self.refused_range() {
                    return self.forbid(format!("{why}; start node {node:?} again to get a free one"));
                }
            }
            Operation::Update => {
                let old = self.context.old.unwrap_or(&Value::Null);
                if config.is_object() && *config != old["spec"]["configSource"] {
                    return self.forbid(format!(
                        "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                    ));
                }
                let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
                if list(&object["spec"]["taints"]) != list(&old["spec"]["taints"]) {
                    return self.forbid(format!("node {node:?} is not allowed to modify taints"));
                }
                if list(&object["metadata"]["ownerReferences"]) != list(&old["metadata"]["ownerReferences"]) {
                    return self.forbid(format!("node {node:?} is not allowed to modify ownerReferences"));
                }
                if request.subresource.is_empty() && pod_ranges::claimed(object) != pod_ranges::claimed(old) {
                    return self.forbid(format!(
                        "node {node:?} is not allowed to set its range of pod addresses: a controller assigns it"
                    ));
                }
                let labels = forbidden_labels(object, old);
                if !labels.is_empty() {
                    return self.forbid(format!("is not allowed to modify labels: {labels}"));
                }
            }
            Operation::Delete | Operation::Connect => {}
        }
        Ok(())
    }

    /// Why the Node may not be created with its range of pod addresses.
    fn refused_range(&self) -> Option<String> {
        let ranges = pod_ranges::claimed(self.object);
        if ranges.is_empty() {
            return None;
        }
        let objects = self.context.objects;
        let (namespace, name) = pod_ranges::CONFIGURATION;
        let configuration = objects.get_uncached("", "configmaps", namespace, name);
        let (nodes, pods) = (objects.list("", "nodes", None), objects.list("", "pods", None));
        let configuration = configuration.as_ref().map(|map| &map["data"]);
        let claims = pod_ranges::Claims { configuration, nodes: &nodes, pods: &pods };
        ranges.into_iter().find_map(|range| claims.refusal(self.node, range))
    }

    fn volume(&self) -> ApiResult<()> {
        let old = self.context.old.unwrap_or(&Value::Null);
        if node_writes::is_removal_of_own_volume(self.node, self.object, old) {
            return Ok(());
        }
        self.forbid(format!(
            "node {:?} can only remove the provisioner's finalizer of deleted persistentvolumes with affinity to itself",
            self.node
        ))
    }

    fn claim_status(&self) -> ApiResult<()> {
        let old = self.context.old.unwrap_or(&Value::Null);
        if self.context.request.operation == Operation::Update && node_writes::is_expansion(self.object, old) {
            return Ok(());
        }
        self.forbid(format!(
            "node {:?} is not allowed to update fields other than status.quantity and status.conditions",
            self.node
        ))
    }

    async fn token(&self) -> ApiResult<()> {
        let request = self.context.request;
        if request.operation != Operation::Create {
            return Ok(());
        }
        let reference = &self.object["spec"]["boundObjectRef"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return self.forbid("node requested token not bound to a pod");
        }
        let uid = text("uid");
        if uid.is_empty() {
            return self.forbid("node requested token with a pod binding without a uid");
        }
        let pod = self.find("pods", request.namespace, text("name"))?;
        if pod["metadata"]["uid"].as_str() != Some(uid) {
            return self.forbid(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            ));
        }
        if pod["spec"]["nodeName"].as_str() != Some(self.node) {
            return self.forbid("node requested token bound to a pod scheduled on a different node");
        }
        let audience = match self.object["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return self.forbid("node may only request 0 or 1 audiences"),
        };
        let named = pod["spec"]["volumes"].as_array().into_iter().flatten().any(|volume| {
            volume["projected"]["sources"].as_array().into_iter().flatten().any(|source| {
                let token = &source["serviceAccountToken"];
                token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
            })
        });
        let attributes = Attributes {
            verb: "request-serviceaccounts-token-audience",
            version: "v1",
            resource: audience,
            namespace: request.namespace,
            name: request.name,
            is_resource: true,
            ..Attributes::default()
        };
        let context = self.context;
        if named || context.authorizer.authorize(context.objects, request.user, &attributes).await.allowed {
            return Ok(());
        }
        self.forbid(format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            request.user.name
        ))
    }

    fn lease(&self) -> ApiResult<()> {
        let request = self.context.request;
        if request.namespace != LEASE_NAMESPACE {
            return self.forbid(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
        }
        if self.has_own_name() {
            return Ok(());
        }
        self.forbid("can only access node lease with the same name as the requesting node")
    }

    fn csi_node(&self) -> ApiResult<()> {
        if self.has_own_name() {
            return Ok(());
        }
        self.forbid("can only access CSINode with the same name as the requesting node")
    }

    /// Whether the object has the node's name. The name of a create is in the object, not in the path.
    fn has_own_name(&self) -> bool {
        let name = match self.context.request.name {
            "" => self.object["metadata"]["name"].as_str().unwrap_or_default(),
            name => name,
        };
        name == self.node
    }

    /// Checks the node of a new slice, and of each slice in a collection delete. The authorizer cannot see it.
    fn resource_slice(&self) -> ApiResult<()> {
        let is_own = |slice: &Value| slice["spec"]["nodeName"].as_str() == Some(self.node);
        let verb = match self.context.request.operation {
            Operation::Create if !is_own(self.object) => "create",
            Operation::Delete if !self.context.old.is_some_and(is_own) => "delete",
            _ => return Ok(()),
        };
        self.forbid(format!("can only {verb} ResourceSlice with the same NodeName as the requesting node"))
    }

    fn certificate(&self) -> ApiResult<()> {
        let spec = &self.object["spec"];
        let is_kubelets = matches!(
            spec["signerName"].as_str(),
            Some("kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet")
        );
        if self.context.request.operation != Operation::Create || !is_kubelets {
            return Ok(());
        }
        let pem = STANDARD.decode(spec["request"].as_str().unwrap_or_default()).unwrap_or_default();
        let own = format!("system:node:{}", self.node);
        match CertificateRequest::parse(&pem) {
            Err(why) => self.forbid(format!("unable to parse csr: {why}")),
            Ok(request) if request.common_name != own => {
                self.forbid(format!("can only create a node CSR with CN={own}"))
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Keys of labels that differ, sorted.
fn modified_labels<'a>(new: &'a Value, old: &'a Value) -> impl Iterator<Item = &'a String> {
    let labels = |object: &'a Value| object["metadata"]["labels"].as_object();
    let keys: BTreeSet<&String> = labels(new).into_iter().chain(labels(old)).flat_map(serde_json::Map::keys).collect();
    keys.into_iter().filter(move |key| {
        let value = |object: &'a Value| labels(object).and_then(|labels| labels.get(*key));
        value(new) != value(old)
    })
}

/// The changed labels that kubelets must not touch, joined.
fn forbidden_labels(new: &Value, old: &Value) -> String {
    let within = |namespace: &str, domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    let forbidden: Vec<&str> = modified_labels(new, old)
        .map(String::as_str)
        .filter(|label| {
            let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
            let of_kubernetes = within(namespace, "kubernetes.io") || within(namespace, "k8s.io");
            let of_kubelets = KUBELET_LABELS.contains(label)
                || within(namespace, "kubelet.kubernetes.io")
                || within(namespace, "node.kubernetes.io");
            within(namespace, "node-restriction.kubernetes.io") || (of_kubernetes && !of_kubelets)
        })
        .collect();
    forbidden.join(", ")
}

/// The kinds of objects that a pod references, in upstream's order.
pub(super) fn referenced_kinds(pod: &Value) -> Vec<&'static str> {
    let spec = &pod["spec"];
    let mut kinds = Vec::new();
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        kinds.push("serviceaccounts");
    }
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let sources = || volumes().flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    let containers = || {
        ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(|list| spec[*list].as_array().into_iter().flatten())
    };
    let by_env = |from: &str, key: &str| {
        containers().any(|container| {
            container["envFrom"].as_array().into_iter().flatten().any(|source| source[from].is_object())
                || container["env"].as_array().into_iter().flatten().any(|env| env["valueFrom"][key].is_object())
        })
    };
    let secret_of_volume = |volume: &Value| {
        volume["secret"].is_object()
            || volume
                .as_object()
                .into_iter()
                .flatten()
                .any(|(_, source)| source["secretRef"].is_object() || source["nodePublishSecretRef"].is_object())
    };
    if spec["imagePullSecrets"].as_array().is_some_and(|list| !list.is_empty())
        || volumes().any(secret_of_volume)
        || sources().any(|source| source["secret"].is_object())
        || by_env("secretRef", "secretKeyRef")
    {
        kinds.push("secrets");
    }
    if volumes().any(|volume| volume["configMap"].is_object())
        || sources().any(|source| source["configMap"].is_object())
        || by_env("configMapRef", "configMapKeyRef")
    {
        kinds.push("configmaps");
    }
    if sources().any(|source| source["clusterTrustBundle"].is_object()) {
        kinds.push("clustertrustbundles");
    }
    if spec["resourceClaims"].as_array().is_some_and(|list| !list.is_empty()) {
        kinds.push("resourceclaims");
    }
    if volumes().any(|volume| volume["persistentVolumeClaim"].is_object() || volume["ephemeral"].is_object()) {
        kinds.push("persistentvolumeclaims");
    }
    kinds
}
