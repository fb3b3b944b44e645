//! What a fresh cluster holds, and how each start brings it back.
//!
//! `default-objects.jsonl` is data: upstream v1.36's namespaces, default roles and bindings and priority classes, taken
//! from a cluster that nobody had used (one object a line, without what a server sets). [`desired`] adds what depends on
//! this cluster; [`plan`] compares with what is there and says what to write. Writing is the caller's.

mod apiservices;
pub mod moved;

use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};

use crate::auth::rules::{Rule, missing_rules};
use crate::auth::{NODES, RBAC_GROUP};
use crate::catalog::Catalog;
use crate::default_objects::default_objects;
use apiserver_resources::objects::ObjectReader;

const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";
/// `false` on a default role or binding keeps us from mending it.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// What the objects depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The address of the Service `kubernetes`: the service block's first.
    pub service_ip: IpAddr,
    /// The service block.
    pub services: Ipv4Net,
    /// Where the API server is reached.
    pub advertise: IpAddr,
    /// See [`advertise`](Self::advertise).
    pub port: u16,
    /// The authority that signs clients' certificates, in PEM.
    pub ca_pem: String,
}

/// One object that should be there.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// Its API group.
    pub group: &'static str,
    /// Its plural.
    pub plural: &'static str,
    /// What it should be, with `apiVersion`, `kind` and no field that a server sets.
    pub object: Value,
    keep: Keep,
}

impl Desired {
    /// Whether a running cluster needs it back at once; the rest waits for the next start, as upstream.
    #[must_use]
    pub fn is_vital(&self) -> bool {
        matches!(self.plural, "namespaces" | "services" | "endpoints" | "endpointslices" | "configmaps")
    }
}

/// How far an existing object is kept as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Only its absence is mended.
    AsItIs,
    /// These fields are ours.
    But(&'static [&'static str]),
    /// Missing rules and labels come back; more ones stay.
    Role,
    /// Missing subjects and labels come back; another role means a new binding.
    Binding,
}

/// What to write. These are the API server's own writes: without authorization, admission and object validation (the
/// `kubernetes` endpoints may be on a loopback address; a Service's address may have to change with the cluster's block).
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Create it; done by somebody else meanwhile is as good.
    Create {
        /// Its API group.
        group: &'static str,
        /// Its plural.
        plural: &'static str,
        /// The object.
        object: Value,
    },
    /// Replace it; the object carries the resourceVersion that this was decided on.
    Update {
        /// Its API group.
        group: &'static str,
        /// Its plural.
        plural: &'static str,
        /// The object.
        object: Value,
    },
    /// Delete it.
    Remove {
        /// Its API group.
        group: &'static str,
        /// Its plural.
        plural: &'static str,
        /// The object, by its metadata.
        object: Value,
    },
    /// Delete it, and create it as given.
    Recreate {
        /// Its API group.
        group: &'static str,
        /// Its plural.
        plural: &'static str,
        /// The object.
        object: Value,
    },
}

/// Everything that should be there, in the order in which it must be written (namespaces first).
#[must_use]
pub fn desired(cluster: &Cluster, catalog: &Catalog) -> Vec<Desired> {
    let mut desired: Vec<Desired> = default_objects().filter_map(of_defaults).collect();
    desired.extend(apiservices::desired(catalog));
    desired.push(Desired {
        group: "node.k8s.io",
        plural: "runtimeclasses",
        object: json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "wasm"}, "handler": "wasm",
        }),
        keep: Keep::AsItIs,
    });
    let reads_namespaces = json!([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}]);
    desired.extend(granted("coracle:node-namespaces", &reads_namespaces, "Group", NODES));
    let wakes = json!([
        {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
    ]);
    desired.extend(granted("coracle:scale-from-zero", &wakes, "User", "system:kube-proxy"));
    let holds =
        json!([{"apiGroups": ["networking.k8s.io"], "resources": ["ipaddresses"], "verbs": ["create", "delete"]}]);
    let account = "system:serviceaccount:kube-system:service-controller";
    desired.extend(granted("coracle:address-pool", &holds, "User", account));
    desired.push(authentication(cluster));
    desired.push(service_cidr(cluster));
    desired.push(service(cluster));
    desired.push(endpoint_slice(cluster));
    desired.push(endpoints(cluster));
    desired
}

/// Beside upstream's roles: a node reads a namespace by its name, for the uid that tells it from an earlier one. What guests
/// keep by `wasi:keyvalue` lasts as long as that (`docs/decisions/0057-keyvalue.md`). And a data plane tells that requests wait
/// for a workload that was scaled to zero.
fn granted(name: &str, rules: &serde_json::Value, kind: &str, whom: &str) -> [Desired; 2] {
    let meta = json!({"name": name, "annotations": {AUTOUPDATE: "true"}});
    let version = format!("{RBAC_GROUP}/v1");
    [
        Desired {
            group: RBAC_GROUP,
            plural: "clusterroles",
            object: json!({
                "apiVersion": version, "kind": "ClusterRole", "metadata": meta, "rules": rules,
            }),
            keep: Keep::Role,
        },
        Desired {
            group: RBAC_GROUP,
            plural: "clusterrolebindings",
            object: json!({
                "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": meta,
                "roleRef": {"apiGroup": RBAC_GROUP, "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": RBAC_GROUP, "kind": kind, "name": whom}],
            }),
            keep: Keep::Binding,
        },
    ]
}

/// What to write so that everything desired is there.
#[must_use]
pub fn plan(objects: &dyn ObjectReader, desired: &[Desired]) -> Vec<Write> {
    desired.iter().filter_map(|desired| plan_one(objects, desired)).collect()
}

fn plan_one(objects: &dyn ObjectReader, desired: &Desired) -> Option<Write> {
    let (group, plural, wanted) = (desired.group, desired.plural, &desired.object);
    let part = |field: &str| wanted["metadata"][field].as_str().unwrap_or_default();
    let Some(existing) = objects.get(group, plural, part("namespace"), part("name")) else {
        return Some(Write::Create { group, plural, object: wanted.clone() });
    };
    let rbac = matches!(desired.keep, Keep::Role | Keep::Binding);
    let own = existing["metadata"]["annotations"][AUTOUPDATE].as_str() == Some("false");
    let going = existing["metadata"]["deletionTimestamp"].is_string();
    if going || (rbac && own) {
        return None;
    }
    let mut object = Value::clone(&existing);
    match desired.keep {
        Keep::AsItIs => return None,
        Keep::But(fields) => {
            for field in fields {
                overwrite(&mut object, wanted, field);
            }
        }
        Keep::Role => {
            add_labels(&mut object, wanted);
            mend_role(&mut object, wanted);
        }
        Keep::Binding => {
            if existing["roleRef"] != wanted["roleRef"] {
                return Some(Write::Recreate { group, plural, object: wanted.clone() });
            }
            add_labels(&mut object, wanted);
            add_missing(&mut object, wanted, "subjects");
        }
    }
    (object != *existing).then_some(Write::Update { group, plural, object })
}

fn of_defaults(object: Value) -> Option<Desired> {
    let (group, plural, keep) = match object["kind"].as_str()? {
        "Namespace" => ("", "namespaces", Keep::AsItIs),
        "ClusterRole" => (RBAC_GROUP, "clusterroles", Keep::Role),
        "ClusterRoleBinding" => (RBAC_GROUP, "clusterrolebindings", Keep::Binding),
        "Role" => (RBAC_GROUP, "roles", Keep::Role),
        "RoleBinding" => (RBAC_GROUP, "rolebindings", Keep::Binding),
        "FlowSchema" => (FLOWCONTROL, "flowschemas", Keep::AsItIs),
        "PriorityLevelConfiguration" => (FLOWCONTROL, "prioritylevelconfigurations", Keep::AsItIs),
        "PriorityClass" => ("scheduling.k8s.io", "priorityclasses", Keep::AsItIs),
        _ => return None,
    };
    Some(Desired { group, plural, object, keep })
}

/// Where extension API servers learn whose client certificates count.
fn authentication(cluster: &Cluster) -> Desired {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": cluster.ca_pem},
    });
    Desired { group: "", plural: "configmaps", object, keep: Keep::But(&["data"]) }
}

/// The block that Services get their addresses from, as upstream's API server and its controller make it.
fn service_cidr(cluster: &Cluster) -> Desired {
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": [cluster.services.trunc()]},
        "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes Service CIDR is ready",
        }]},
    });
    Desired { group: "networking.k8s.io", plural: "servicecidrs", object, keep: Keep::But(&["spec"]) }
}

fn service(cluster: &Cluster) -> Desired {
    let family = if cluster.service_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "labels": {"component": "apiserver", "provider": "kubernetes"},
            "name": "kubernetes",
            "namespace": "default",
        },
        "spec": {
            "clusterIP": cluster.service_ip,
            "clusterIPs": [cluster.service_ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": cluster.port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    });
    Desired { group: "", plural: "services", object, keep: Keep::But(&["spec"]) }
}

fn endpoints(cluster: &Cluster) -> Desired {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            // The slice is made here, too.
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}, "name": "kubernetes", "namespace": "default",
        },
        "subsets": [{
            "addresses": [{"ip": cluster.advertise}],
            "ports": [{"name": "https", "port": cluster.port, "protocol": "TCP"}],
        }],
    });
    Desired { group: "", plural: "endpoints", object, keep: Keep::But(&["subsets"]) }
}

fn endpoint_slice(cluster: &Cluster) -> Desired {
    let family = if cluster.advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "labels": {"kubernetes.io/service-name": "kubernetes"}, "name": "kubernetes", "namespace": "default",
        },
        "addressType": family,
        "endpoints": [{"addresses": [cluster.advertise], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": cluster.port, "protocol": "TCP"}],
    });
    let keep = Keep::But(&["addressType", "endpoints", "ports"]);
    Desired { group: "discovery.k8s.io", plural: "endpointslices", object, keep }
}

fn overwrite(object: &mut Value, wanted: &Value, field: &str) {
    if let (Some(map), Some(value)) = (object.as_object_mut(), wanted.get(field)) {
        map.insert(field.to_owned(), value.clone());
    }
}

/// Labels and annotations that are missing; those that are there keep their values.
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

/// Entries of a list that aren't among an object's.
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

fn mend_role(object: &mut Value, wanted: &Value) {
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
    use crate::auth::{Attributes, Authorizer, UserInfo};
    use crate::catalog::tests::built_in;
    use apiserver_resources::objects::{ObjectReader as _, memory::Map as ObjectReader};
    use futures::FutureExt as _;

    fn cluster() -> Cluster {
        Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            advertise: "127.0.0.1".parse().unwrap(),
            port: 6443,
            ca_pem: "ca".into(),
        }
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
        assert_eq!(default_objects().filter_map(of_defaults).count(), default_objects().count());
        assert!(!crate::auth::node::default_rules().is_empty());
    }

    #[test]
    fn a_start_makes_what_is_missing_and_keeps_the_rest() {
        let objects = ObjectReader::default();
        let wanted = desired(&cluster(), built_in());
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

        let moved = desired(&Cluster { port: 7000, ..cluster() }, built_in());
        assert_eq!(apply(&objects, plan(&objects, &moved)), 3, "the Service and its endpoints, twice");
    }

    #[test]
    fn components_may_do_their_work() {
        let objects = ObjectReader::default();
        apply(&objects, plan(&objects, &desired(&cluster(), built_in())));
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
            authorizer.authorize(&objects, &user, &request).now_or_never().expect("waits for nobody").allowed
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
        assert!(may("system:node:n1", Some(crate::auth::NODES), "create", "", "events"));
        assert!(may("system:node:n1", Some(crate::auth::NODES), "watch", "node.k8s.io", "runtimeclasses"));
        assert!(!may("system:node:n1", Some(crate::auth::NODES), "create", "", "services"));
        assert!(!may("jo", None, "get", "", "pods"));
    }
}
