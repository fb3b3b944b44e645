//! The Service `default/kubernetes` and its endpoints: the addresses of all live API servers.
//!
//! As upstream's lease reconciler, each server writes the same objects. Servers may listen on different ports, on one
//! machine for example, so there is one EndpointSlice for each port; the first one is named `kubernetes`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::{Cluster, Desired, ReconcilePolicy, Write};
use apiserver_resources::objects::ObjectReader;

const DISCOVERY: &str = "discovery.k8s.io";
const SLICES: &str = "endpointslices";
const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
/// How the names of further EndpointSlices begin.
const FURTHER: &str = "kubernetes-port-";

/// The Service, its EndpointSlices and its Endpoints for the live servers.
pub(super) fn desired(cluster: &Cluster, live: &BTreeSet<SocketAddr>) -> Vec<Desired> {
    let mut by_port: BTreeMap<(bool, u16), Vec<IpAddr>> = BTreeMap::new();
    for address in live {
        // One Service has one family: that of its own address, as far as there are such servers.
        let other_family = address.is_ipv4() != cluster.service_ip.is_ipv4();
        by_port.entry((other_family, address.port())).or_default().push(address.ip());
    }
    let first_port = by_port.keys().next().map_or(cluster.address.port(), |(_, port)| *port);
    let slices = by_port.iter().enumerate().map(|(at, ((_, port), addresses))| slice(at == 0, *port, addresses));
    [service(cluster, first_port)].into_iter().chain(slices).chain([endpoints(&by_port)]).collect()
}

/// The removals of the EndpointSlices of ports on which no server listens any more. Reads all of the namespace's.
#[must_use]
pub fn removals(objects: &dyn ObjectReader, desired: &[Desired]) -> Vec<Write> {
    let names: BTreeSet<&str> =
        desired.iter().filter_map(|desired| desired.object["metadata"]["name"].as_str()).collect();
    let found = objects.list(DISCOVERY, SLICES, Some(NAMESPACE)).into_iter();
    let outdated = found.filter(|slice| {
        let name = slice["metadata"]["name"].as_str().unwrap_or_default();
        let of_service = slice["metadata"]["labels"]["kubernetes.io/service-name"] == NAME;
        of_service && name.starts_with(FURTHER) && !names.contains(name)
    });
    outdated.map(|slice| Write::Remove { group: DISCOVERY, plural: SLICES, object: Value::clone(&slice) }).collect()
}

fn service(cluster: &Cluster, port: u16) -> Desired {
    let family = if cluster.service_ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "labels": {"component": "apiserver", "provider": "kubernetes"},
            "name": NAME,
            "namespace": NAMESPACE,
        },
        "spec": {
            "clusterIP": cluster.service_ip,
            "clusterIPs": [cluster.service_ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    });
    Desired { group: "", plural: "services", object, policy: ReconcilePolicy::Overwrite(&["spec"]) }
}

fn endpoints(by_port: &BTreeMap<(bool, u16), Vec<IpAddr>>) -> Desired {
    let subset = |((_, port), addresses): (&(bool, u16), &Vec<IpAddr>)| {
        json!({
            "addresses": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        })
    };
    let object = json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            // The EndpointSlices are also created here.
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}, "name": NAME, "namespace": NAMESPACE,
        },
        "subsets": by_port.iter().map(subset).collect::<Vec<_>>(),
    });
    Desired { group: "", plural: "endpoints", object, policy: ReconcilePolicy::Overwrite(&["subsets"]) }
}

fn slice(is_first: bool, port: u16, addresses: &[IpAddr]) -> Desired {
    let family = if addresses.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let name = if is_first { NAME.to_owned() } else { format!("{FURTHER}{port}-{}", family.to_ascii_lowercase()) };
    let endpoint = |ip: &IpAddr| json!({"addresses": [ip], "conditions": {"ready": true}});
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"labels": {"kubernetes.io/service-name": NAME}, "name": name, "namespace": NAMESPACE},
        "addressType": family,
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let policy = ReconcilePolicy::Overwrite(&["addressType", "endpoints", "ports"]);
    Desired { group: DISCOVERY, plural: SLICES, object, policy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects;

    fn live(addresses: &[&str]) -> BTreeSet<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
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
    fn all_live_servers_are_endpoints_by_port() {
        let wanted = desired(&cluster(), &live(&["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.1:6444"]));
        let names: Vec<_> = wanted.iter().map(|desired| desired.object["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, [NAME, NAME, "kubernetes-port-6444-ipv4", NAME]);
        assert_eq!(wanted[0].object["spec"]["ports"][0]["targetPort"], 6443);
        assert_eq!(
            wanted[1].object["endpoints"],
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
            ])
        );
        assert_eq!(
            wanted[3].object["subsets"],
            json!([
                {"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]},
                {"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "https", "port": 6444, "protocol": "TCP"}]},
            ])
        );
    }

    #[test]
    fn slices_of_gone_ports_are_removed_and_others_are_not() {
        let objects = MemoryObjects::default();
        let slice = |name: &str, service: &str| json!({"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}}});
        for (name, service) in [
            ("kubernetes", "kubernetes"),
            ("kubernetes-port-6444-ipv4", "kubernetes"),
            ("kubernetes-port-6445-ipv4", "kubernetes"),
            ("kubernetes-port-1", "web"),
            ("own", "kubernetes"),
        ] {
            objects.put(DISCOVERY, SLICES, slice(name, service));
        }
        let wanted = desired(&cluster(), &live(&["10.0.0.1:6443", "10.0.0.1:6444"]));
        let removed = removals(&objects, &wanted);
        let names: Vec<_> = removed
            .iter()
            .map(|write| match write {
                Write::Remove { object, .. } => object["metadata"]["name"].as_str().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["kubernetes-port-6445-ipv4"]);
    }
}
