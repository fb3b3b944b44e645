//! The objects of a fresh cluster, reconciled on each start.
//!
//! `default-objects.jsonl` is data: the namespaces, default roles and bindings and priority classes of upstream v1.36,
//! recorded from an unused cluster (one object per line, without server-set fields). [`desired`] adds the objects that
//! depend on this cluster; [`plan`] compares them with the existing ones and returns the writes. The caller executes
//! them.

mod apiservices;
pub mod cidr_migration;
pub mod endpoints;
pub mod joining;
mod retired;
mod server_record;

pub use retired::retirements;
pub use server_record::api_servers;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};

use apiserver_auth::rules::{Rule, missing_rules};
use apiserver_auth::{NODES, RBAC_GROUP};
use apiserver_catalog::Catalog;
use apiserver_resources::default_objects;
use apiserver_resources::objects::ObjectReader;

const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";
/// `false` on a default role or binding disables its reconciliation.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The parameters of the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The address of the Service `kubernetes`: the first of the service CIDR.
    pub service_ip: IpAddr,
    /// The service CIDR.
    pub services: Ipv4Net,
    /// The API server's advertised address.
    pub address: SocketAddr,
    /// The authority of client certificates, in PEM.
    pub ca_pem: String,
    /// Further names and addresses of the API server's certificate.
    pub alternative_names: Vec<String>,
}

/// An object that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    pub group: &'static str,
    /// The plural name.
    pub plural: &'static str,
    /// The object with `apiVersion` and `kind`, without server-set fields.
    pub object: Value,
    policy: ReconcilePolicy,
}

impl Desired {
    /// Whether a running cluster needs the object recreated immediately. The others wait for the next start, as
    /// upstream.
    #[must_use]
    pub fn is_vital(&self) -> bool {
        self.is_endpoint() || matches!(self.plural, "namespaces" | "services" | "configmaps")
    }

    /// Whether the object lists API servers.
    #[must_use]
    pub fn is_endpoint(&self) -> bool {
        matches!(self.plural, "endpoints" | "endpointslices")
    }
}

/// How an existing object is reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReconcilePolicy {
    /// Created if missing, never changed.
    CreateOnly,
    /// These fields are overwritten.
    Overwrite(&'static [&'static str]),
    /// Missing lines of this key of `data` are added; lines are never removed.
    AddLines(&'static str),
    /// Missing rules and labels are added; additional ones are kept.
    Role,
    /// Missing subjects and labels are added; a different role recreates the binding.
    Binding,
}

/// A write of the API server itself, without authorization, admission and object validation. The `kubernetes` endpoints
/// may have a loopback address, and a Service's address may have to change with the CIDR.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Creates the object; one created concurrently by another writer is accepted.
    Create {
        group: &'static str,
        /// The plural name.
        plural: &'static str,
        object: Value,
    },
    /// Replaces the object, which carries the resourceVersion of the compared state.
    Update {
        group: &'static str,
        /// The plural name.
        plural: &'static str,
        object: Value,
    },
    /// Deletes the object.
    Remove {
        group: &'static str,
        /// The plural name.
        plural: &'static str,
        /// The object, identified by its metadata.
        object: Value,
    },
    /// Deletes the object and creates it as given.
    Recreate {
        group: &'static str,
        /// The plural name.
        plural: &'static str,
        object: Value,
    },
}

/// Returns all objects that should exist while these API servers live, in the order in which they must be written
/// (namespaces first).
#[must_use]
pub fn desired(cluster: &Cluster, live: &BTreeSet<SocketAddr>, catalog: &Catalog) -> Vec<Desired> {
    let mut desired: Vec<Desired> = default_objects::all().filter_map(from_default_object).collect();
    desired.extend(apiservices::desired(catalog));
    desired.push(Desired {
        group: "node.k8s.io",
        plural: "runtimeclasses",
        object: json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "wasm"}, "handler": "wasm",
        }),
        policy: ReconcilePolicy::CreateOnly,
    });
    let scale_from_zero_rules = json!([
        {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
    ]);
    desired.extend(role_and_binding("coracle:scale-from-zero", &scale_from_zero_rules, "User", "system:kube-proxy"));
    let configuration_rules = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": ["coracle-node"]},
    ]);
    desired.extend(role_and_binding_in(
        "kube-public",
        "coracle:node-configuration",
        &configuration_rules,
        "Group",
        NODES,
    ));
    // A node's data plane has the node's certificate, and acts as upstream's kube-proxy: nodes themselves have upstream's
    // rights only.
    let data_plane_rules = json!([
        {"apiGroups": [""], "resources": ["users"], "resourceNames": ["system:kube-proxy"], "verbs": ["impersonate"]},
    ]);
    desired.extend(role_and_binding("coracle:node-data-plane", &data_plane_rules, "Group", NODES));
    desired.extend(metrics_readers());
    let address_pool_rules =
        json!([{"apiGroups": ["networking.k8s.io"], "resources": ["ipaddresses"], "verbs": ["create", "delete"]}]);
    let account = "system:serviceaccount:kube-system:service-controller";
    desired.extend(role_and_binding("coracle:address-pool", &address_pool_rules, "User", account));
    let serving_rules = json!([{
        "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
        "resourceNames": ["kubernetes.io/kubelet-serving"], "verbs": ["approve"],
    }]);
    let account = "system:serviceaccount:kube-system:certificate-controller";
    desired.extend(role_and_binding("coracle:kubelet-serving-approver", &serving_rules, "User", account));
    desired.push(authentication(cluster));
    desired.push(api_servers(cluster, live));
    desired.push(service_cidr(cluster));
    desired.extend(endpoints::desired(cluster, live));
    desired
}

/// Roles that the aggregated roles `view`, `edit` and `admin` include, so that a user of a namespace reads its metrics:
/// metrics-server's own, and one of the same form for custom metrics.
fn metrics_readers() -> [Desired; 2] {
    let role = |name: &str, group: &str, resources: Value| {
        let labels: Map<String, Value> = ["view", "edit", "admin"]
            .into_iter()
            .map(|role| (format!("rbac.authorization.k8s.io/aggregate-to-{role}"), "true".into()))
            .collect();
        Desired {
            group: RBAC_GROUP,
            plural: "clusterroles",
            object: json!({
                "apiVersion": format!("{RBAC_GROUP}/v1"), "kind": "ClusterRole",
                "metadata": {"name": name, "annotations": {AUTOUPDATE: "true"}, "labels": labels},
                "rules": [{"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]}],
            }),
            policy: ReconcilePolicy::Role,
        }
    };
    [
        role("system:aggregated-metrics-reader", "metrics.k8s.io", json!(["pods", "nodes"])),
        role("coracle:aggregated-custom-metrics-reader", "custom.metrics.k8s.io", json!(["*"])),
    ]
}

/// Roles in addition to upstream's. The data plane reports requests that wait for a workload scaled to zero.
fn role_and_binding(name: &str, rules: &Value, kind: &str, subject: &str) -> [Desired; 2] {
    let meta = json!({"name": name, "annotations": {AUTOUPDATE: "true"}});
    let names =
        RoleNames { role: ("ClusterRole", "clusterroles"), binding: ("ClusterRoleBinding", "clusterrolebindings") };
    rules_and_subject(&names, &meta, rules, (kind, subject))
}

/// The same in a namespace.
fn role_and_binding_in(namespace: &str, name: &str, rules: &Value, kind: &str, subject: &str) -> [Desired; 2] {
    let meta = json!({"name": name, "namespace": namespace, "annotations": {AUTOUPDATE: "true"}});
    let names = RoleNames { role: ("Role", "roles"), binding: ("RoleBinding", "rolebindings") };
    rules_and_subject(&names, &meta, rules, (kind, subject))
}

/// Kinds and plurals of a role and its binding.
struct RoleNames {
    role: (&'static str, &'static str),
    binding: (&'static str, &'static str),
}

fn rules_and_subject(names: &RoleNames, meta: &Value, rules: &Value, (kind, subject): (&str, &str)) -> [Desired; 2] {
    let (version, name) = (format!("{RBAC_GROUP}/v1"), &meta["name"]);
    [
        Desired {
            group: RBAC_GROUP,
            plural: names.role.1,
            object: json!({"apiVersion": version, "kind": names.role.0, "metadata": meta, "rules": rules}),
            policy: ReconcilePolicy::Role,
        },
        Desired {
            group: RBAC_GROUP,
            plural: names.binding.1,
            object: json!({
                "apiVersion": version, "kind": names.binding.0, "metadata": meta,
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": names.role.0, "name": name},
                "subjects": [{"apiGroup": RBAC_GROUP, "kind": kind, "name": subject}],
            }),
            policy: ReconcilePolicy::Binding,
        },
    ]
}

/// Returns the writes that make every desired object exist.
#[must_use]
pub fn plan(objects: &dyn ObjectReader, desired: &[Desired]) -> Vec<Write> {
    desired.iter().filter_map(|desired| plan_object(objects, desired)).collect()
}

fn plan_object(objects: &dyn ObjectReader, desired: &Desired) -> Option<Write> {
    let (group, plural, wanted) = (desired.group, desired.plural, &desired.object);
    let part = |field: &str| wanted["metadata"][field].as_str().unwrap_or_default();
    let Some(existing) = objects.get(group, plural, part("namespace"), part("name")) else {
        return Some(Write::Create { group, plural, object: wanted.clone() });
    };
    let rbac = matches!(desired.policy, ReconcilePolicy::Role | ReconcilePolicy::Binding);
    let own = existing["metadata"]["annotations"][AUTOUPDATE].as_str() == Some("false");
    let terminating = existing["metadata"]["deletionTimestamp"].is_string();
    // The record must be complete for as long as approvers read it.
    let is_record = matches!(desired.policy, ReconcilePolicy::AddLines(_));
    if (terminating && !is_record) || (rbac && own) {
        return None;
    }
    let mut object = Value::clone(&existing);
    match desired.policy {
        ReconcilePolicy::CreateOnly => return None,
        ReconcilePolicy::Overwrite(fields) => {
            for field in fields {
                overwrite(&mut object, wanted, field);
            }
        }
        ReconcilePolicy::AddLines(key) => server_record::add_lines(&mut object, wanted, key),
        ReconcilePolicy::Role => {
            add_labels(&mut object, wanted);
            reconcile_role(&mut object, wanted);
        }
        ReconcilePolicy::Binding => {
            if existing["roleRef"] != wanted["roleRef"] {
                return Some(Write::Recreate { group, plural, object: wanted.clone() });
            }
            add_labels(&mut object, wanted);
            add_missing(&mut object, wanted, "subjects");
        }
    }
    (object != *existing).then_some(Write::Update { group, plural, object })
}

fn from_default_object(object: Value) -> Option<Desired> {
    let (group, plural, policy) = match object["kind"].as_str()? {
        "Namespace" => ("", "namespaces", ReconcilePolicy::CreateOnly),
        "ClusterRole" => (RBAC_GROUP, "clusterroles", ReconcilePolicy::Role),
        "ClusterRoleBinding" => (RBAC_GROUP, "clusterrolebindings", ReconcilePolicy::Binding),
        "Role" => (RBAC_GROUP, "roles", ReconcilePolicy::Role),
        "RoleBinding" => (RBAC_GROUP, "rolebindings", ReconcilePolicy::Binding),
        "FlowSchema" => (FLOWCONTROL, "flowschemas", ReconcilePolicy::CreateOnly),
        "PriorityLevelConfiguration" => (FLOWCONTROL, "prioritylevelconfigurations", ReconcilePolicy::CreateOnly),
        "PriorityClass" => ("scheduling.k8s.io", "priorityclasses", ReconcilePolicy::CreateOnly),
        _ => return None,
    };
    Some(Desired { group, plural, object, policy })
}

/// The ConfigMap from which extension API servers read the authority of client certificates.
fn authentication(cluster: &Cluster) -> Desired {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": cluster.ca_pem},
    });
    Desired { group: "", plural: "configmaps", object, policy: ReconcilePolicy::Overwrite(&["data"]) }
}

/// The CIDR of Service addresses, as created by upstream's API server and its controller.
fn service_cidr(cluster: &Cluster) -> Desired {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": [cluster.services.trunc().to_string()]},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready",
        }]},
    });
    Desired {
        group: "networking.k8s.io",
        plural: "servicecidrs",
        object,
        policy: ReconcilePolicy::Overwrite(&["spec"]),
    }
}

fn overwrite(object: &mut Value, wanted: &Value, field: &str) {
    if let (Some(map), Some(value)) = (object.as_object_mut(), wanted.get(field)) {
        map.insert(field.to_owned(), value.clone());
    }
}

/// Adds missing labels and annotations; existing ones keep their values.
fn add_labels(object: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        let Some(wanted) = wanted["metadata"][field].as_object() else { continue };
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { continue };
        let map = metadata.entry(field).or_insert_with(|| Map::new().into());
        if let Some(map) = map.as_object_mut() {
            for (key, value) in wanted {
                map.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
}

/// Adds list entries that the object does not have.
fn add_missing(object: &mut Value, wanted: &Value, field: &str) {
    let Some(wanted) = wanted[field].as_array() else { return };
    let Some(map) = object.as_object_mut() else { return };
    let list = map.entry(field).or_insert_with(|| Value::Array(Vec::new()));
    if list.is_null() {
        *list = Value::Array(Vec::new());
    }
    if let Some(list) = list.as_array_mut() {
        for entry in wanted {
            if !list.contains(entry) {
                list.push(entry.clone());
            }
        }
        if list.is_empty() {
            map.remove(field);
        }
    }
}

fn reconcile_role(object: &mut Value, wanted: &Value) {
    let missing = missing_rules(&Rule::parse_all(object), &Rule::parse_all(wanted));
    if !missing.is_empty() {
        let rules = json!({"rules": missing.iter().map(Rule::to_value).collect::<Vec<_>>()});
        add_missing(object, &rules, "rules");
    }
    match (wanted.get("aggregationRule"), object.get_mut("aggregationRule")) {
        (Some(aggregation), Some(own)) if own.is_object() => add_missing(own, aggregation, "clusterRoleSelectors"),
        (Some(_), _) => overwrite(object, wanted, "aggregationRule"),
        (None, Some(_)) => {
            if let Some(map) = object.as_object_mut() {
                map.remove("aggregationRule");
            }
        }
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_catalog::built_in;
    use apiserver_auth::{Attributes, Authorizer, UserInfo};
    use apiserver_resources::objects::{ObjectReader as _, memory::MemoryObjects as ObjectReader};
    use futures::FutureExt as _;

    fn cluster() -> Cluster {
        Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            address: "127.0.0.1:6443".parse().unwrap(),
            ca_pem: "ca".into(),
            alternative_names: Vec::new(),
        }
    }

    fn desired(cluster: &Cluster) -> Vec<Desired> {
        super::desired(cluster, &[cluster.address].into(), built_in())
    }

    fn apply(objects: &ObjectReader, writes: Vec<Write>) -> usize {
        let count = writes.len();
        for write in writes {
            let (Write::Create { group, plural, object }
            | Write::Update { group, plural, object }
            | Write::Remove { group, plural, object }
            | Write::Recreate { group, plural, object }) = write;
            objects.put(group, plural, object);
        }
        count
    }

    #[test]
    fn every_line_is_an_object_that_is_served() {
        assert_eq!(default_objects::all().filter_map(from_default_object).count(), default_objects::all().count());
        assert!(!apiserver_auth::node::default_rules().is_empty());
    }

    #[test]
    fn a_start_creates_missing_objects_and_keeps_the_others() {
        let objects = ObjectReader::default();
        let wanted = desired(&cluster());
        assert_eq!(apply(&objects, plan(&objects, &wanted)), wanted.len());
        assert_eq!(plan(&objects, &wanted), []);

        objects.remove("node.k8s.io", "runtimeclasses", "", "wasm");
        let change = |plural: &str, name: &str, change: &dyn Fn(&mut Value)| {
            let mut object = Value::clone(&objects.get(RBAC_GROUP, plural, "", name).unwrap());
            change(&mut object);
            objects.put(RBAC_GROUP, plural, object);
        };
        change("clusterroles", "system:basic-user", &|role| {
            role["rules"] = json!([{"apiGroups": ["x"], "resources": ["y"], "verbs": ["get"]}]);
        });
        change("clusterroles", "system:discovery", &|role| {
            role["rules"] = json!([]);
            role["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        });
        change("clusterrolebindings", "cluster-admin", &|binding| binding["subjects"] = Value::Null);
        change("clusterrolebindings", "system:basic-user", &|binding| binding["roleRef"]["name"] = "view".into());
        let writes = plan(&objects, &wanted);
        assert_eq!(writes.len(), 4, "{writes:?}");
        apply(&objects, writes);
        let role = objects.get(RBAC_GROUP, "clusterroles", "", "system:basic-user").unwrap();
        assert_eq!(role["rules"][0]["apiGroups"], json!(["x"]), "what was added stays");
        assert!(role["rules"].as_array().unwrap().len() > 1);
        assert_eq!(plan(&objects, &wanted), []);

        let moved = desired(&Cluster { address: "127.0.0.1:7000".parse().unwrap(), ..cluster() });
        assert_eq!(apply(&objects, plan(&objects, &moved)), 3, "the Service and its endpoints, twice");
    }

    #[test]
    fn components_may_do_their_work() {
        let objects = ObjectReader::default();
        apply(&objects, plan(&objects, &desired(&cluster())));
        let authorizer = Authorizer::default();
        let may = |user: &str, group: Option<&str>, verb: &str, api: &str, resource: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let request = Attributes {
                verb,
                group: api,
                resource,
                subresource,
                namespace: "ns",
                name: "n1",
                is_resource: true,
                ..Attributes::default()
            };
            let user = UserInfo::component(user, group);
            authorizer.authorize(&objects, &user, &request).now_or_never().expect("no link waits").allowed
        };
        for (controller, verb, api, resource) in [
            ("replicaset-controller", "create", "", "pods"),
            ("deployment-controller", "create", "apps", "replicasets"),
            ("deployment-controller", "update", "apps", "deployments/status"),
            ("job-controller", "update", "batch", "jobs/status"),
            ("namespace-controller", "update", "", "namespaces/finalize"),
            ("namespace-controller", "deletecollection", "", "pods"),
            ("node-controller", "patch", "", "nodes"),
            ("root-ca-cert-publisher", "create", "", "configmaps"),
            ("endpointslice-controller", "create", "discovery.k8s.io", "endpointslices"),
            ("clusterrole-aggregation-controller", "escalate", RBAC_GROUP, "clusterroles"),
        ] {
            let user = UserInfo::service_account("kube-system", controller).name;
            assert!(may(&user, None, verb, api, resource), "{verb} {resource}");
        }
        assert!(may("system:kube-controller-manager", None, "watch", "apps", "deployments"));
        assert!(!may("system:kube-controller-manager", None, "create", "", "pods"));
        assert!(may("system:kube-scheduler", None, "create", "", "pods/binding"));
        assert!(may("system:kube-proxy", None, "watch", "discovery.k8s.io", "endpointslices"));
        assert!(may("system:node:n1", Some(apiserver_auth::NODES), "create", "", "events"));
        assert!(may("system:node:n1", Some(apiserver_auth::NODES), "watch", "node.k8s.io", "runtimeclasses"));
        let nodes = Some(apiserver_auth::NODES);
        assert!(!may("system:node:n1", nodes, "create", "", "services"));
        for (verb, api, resource) in [
            ("list", "discovery.k8s.io", "endpointslices"),
            ("list", "autoscaling", "horizontalpodautoscalers"),
            ("list", "", "persistentvolumes"),
            ("list", "", "persistentvolumeclaims"),
            ("update", "", "persistentvolumeclaims/status"),
            ("patch", "", "services/status"),
            ("list", "", "namespaces"),
            ("impersonate", "", "users"),
            ("impersonate", "", "groups"),
        ] {
            assert!(!may("system:node:n1", nodes, verb, api, resource), "{verb} {resource}");
        }
        let data_plane = Attributes {
            verb: "impersonate",
            resource: "users",
            name: "system:kube-proxy",
            is_resource: true,
            ..Attributes::default()
        };
        let node = UserInfo::component("system:node:n1", nodes);
        let decision = authorizer.authorize(&objects, &node, &data_plane).now_or_never().expect("no link waits");
        assert!(decision.allowed);
        assert!(!may("jo", None, "get", "", "pods"));
    }

    #[test]
    fn viewers_of_a_namespace_read_its_metrics() {
        let roles = metrics_readers().map(|desired| desired.object);
        for role in &roles {
            for to in ["view", "edit", "admin"] {
                let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
                assert_eq!(role["metadata"]["labels"][label], "true", "{role}");
            }
        }
        let groups = roles.each_ref().map(|role| &role["rules"][0]["apiGroups"][0]);
        assert_eq!(groups, ["metrics.k8s.io", "custom.metrics.k8s.io"]);
    }
}
