//! The record of API servers' names and addresses, for the approval of nodes' serving certificates
//! (docs/decisions/0128-server-addresses.md). Lines are added, never removed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use machinery_api::names;
use serde_json::{Value, json};

use super::{Cluster, Desired, ReconcilePolicy};

/// The record of API servers' addresses, and of this one's further names, for the approval of nodes' serving certificates. It
/// must be written before a server is known as live or an endpoint, and outlives its servers: a certificate that a node
/// gets while a server is stopped is valid when the server is back.
#[must_use]
pub fn api_servers(cluster: &Cluster, live: &BTreeSet<SocketAddr>) -> Desired {
    let addresses: BTreeSet<IpAddr> = live.iter().chain([&cluster.address]).map(SocketAddr::ip).collect();
    let names: BTreeSet<&str> = cluster.alternative_names.iter().map(String::as_str).collect();
    let lines = addresses.iter().map(IpAddr::to_string).chain(names.into_iter().map(str::to_owned));
    let lines: String = lines.map(|line| line + "\n").collect();
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": names::API_SERVERS, "namespace": "kube-system"},
        "data": {names::API_SERVER_ADDRESSES: lines},
    });
    let policy = ReconcilePolicy::AddLines(names::API_SERVER_ADDRESSES);
    Desired { group: "", plural: "configmaps", object, policy }
}

/// Adds the missing lines of a text in `data`; existing ones stay.
pub(super) fn add_lines(object: &mut Value, wanted: &Value, key: &str) {
    let text = |of: &Value| of["data"][key].as_str().unwrap_or_default().to_owned();
    let (mut own, wanted) = (text(object), text(wanted));
    let missing = |line: &&str| !own.lines().any(|own| own.trim() == *line);
    let added: String = wanted.lines().filter(missing).map(|line| format!("{line}\n")).collect();
    if added.is_empty() {
        return;
    }
    if !own.is_empty() && !own.ends_with('\n') {
        own.push('\n');
    }
    if !object["data"].is_object() {
        object["data"] = json!({});
    }
    object["data"][key] = (own + &added).into();
}

#[cfg(test)]
mod tests {
    use apiserver_resources::objects::{ObjectReader as _, memory::MemoryObjects};

    use super::*;
    use crate::bootstrap::{self, Write, plan};
    use crate::test_catalog::built_in;

    fn apply(objects: &MemoryObjects, writes: Vec<Write>) {
        for write in writes {
            if let Write::Create { group, plural, object } | Write::Update { group, plural, object } = write {
                objects.put(group, plural, object);
            }
        }
    }

    fn cluster() -> Cluster {
        Cluster {
            service_ip: "10.96.0.1".parse().unwrap(),
            services: "10.96.0.0/12".parse().unwrap(),
            address: "10.0.0.1:6443".parse().unwrap(),
            ca_pem: "ca".into(),
            alternative_names: Vec::new(),
        }
    }

    #[test]
    fn the_record_of_api_servers_never_shrinks() {
        let objects = MemoryObjects::default();
        let recorded = || {
            let record = objects.get("", "configmaps", "kube-system", names::API_SERVERS).unwrap();
            record["data"][names::API_SERVER_ADDRESSES].as_str().unwrap().to_owned()
        };
        let start = |addresses: &[&str]| {
            let live = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let own = Cluster { address: addresses[0].parse().unwrap(), ..cluster() };
            apply(&objects, plan(&objects, &bootstrap::desired(&own, &live, built_in())));
        };
        start(&["10.0.0.3:6443", "10.0.0.1:6443"]);
        assert_eq!(recorded(), "10.0.0.1\n10.0.0.3\n");
        start(&["10.0.0.1:6443"]);
        assert_eq!(recorded(), "10.0.0.1\n10.0.0.3\n", "the stopped server's stays");
        // An administrator's lines stay, too.
        let mut edited = Value::clone(&objects.get("", "configmaps", "kube-system", names::API_SERVERS).unwrap());
        edited["data"][names::API_SERVER_ADDRESSES] = "192.0.2.9 \n10.0.0.1".into();
        objects.put("", "configmaps", edited);
        start(&["[2001:db8::1]:6443", "10.0.0.1:6443"]);
        assert_eq!(recorded(), "192.0.2.9 \n10.0.0.1\n2001:db8::1\n");
        let mut ending = Value::clone(&objects.get("", "configmaps", "kube-system", names::API_SERVERS).unwrap());
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        objects.put("", "configmaps", ending);
        let alternative_names = ["api.example", "203.0.113.1", "*.example", "api.example"].map(str::to_owned).into();
        let named = Cluster { alternative_names, ..cluster() };
        apply(&objects, plan(&objects, &[api_servers(&named, &BTreeSet::new())]));
        assert!(recorded().ends_with("2001:db8::1\n*.example\n203.0.113.1\napi.example\n"), "{}", recorded());
    }
}
