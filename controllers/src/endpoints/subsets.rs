//! Canonical form of Endpoints subsets, as upstream's: each address once per port, ports with the same addresses
//! combined, all sorted, so that equal content is equal.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

use crate::fnv::fnv128a;

/// Above this total of addresses subsets stay as they were written: in canonical form a document of a megabyte can grow
/// a thousandfold.
const REPACKED_MAX: usize = 100_000;

/// The identity of a port; none stands for addresses without ports.
type PortKey = Option<(String, i32, String, String)>;
/// Addresses by identity, with their readiness.
type Members<'a> = BTreeMap<(&'a str, &'a str), bool>;

fn address_key(address: &EndpointAddress) -> (&str, &str) {
    let uid = address.target_ref.as_ref().and_then(|target| target.uid.as_deref());
    (&address.ip, uid.unwrap_or_default())
}

fn port_key(port: &EndpointPort) -> (String, i32, String, String) {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    (text(port.name.as_ref()), port.port, text(port.protocol.as_ref()), text(port.app_protocol.as_ref()))
}

/// The canonical form of the subsets; unchanged above the limit.
pub(super) fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    // Ports in the same subsets have the same addresses.
    let mut of_port: BTreeMap<PortKey, (Option<&EndpointPort>, BTreeSet<usize>)> = BTreeMap::new();
    for (at, subset) in subsets.iter().enumerate() {
        let ports = subset.ports.as_deref().unwrap_or_default();
        if ports.is_empty() {
            of_port.entry(None).or_default().1.insert(at);
        }
        for port in ports {
            let entry = of_port.entry(Some(port_key(port))).or_default();
            entry.0.get_or_insert(port);
            entry.1.insert(at);
        }
    }
    let mut classes: BTreeMap<BTreeSet<usize>, Vec<Option<&EndpointPort>>> = BTreeMap::new();
    for (port, members) in of_port.into_values() {
        classes.entry(members).or_default().push(port);
    }
    let length = |at: &usize| subsets.get(*at).map_or(0, count);
    let total = classes.keys().flatten().fold(0_usize, |sum, at| sum.saturating_add(length(at)));
    if total > REPACKED_MAX {
        return subsets.to_vec();
    }

    let mut known: BTreeMap<(&str, &str), &EndpointAddress> = BTreeMap::new();
    let mut groups: BTreeMap<Members<'_>, Vec<EndpointPort>> = BTreeMap::new();
    for (members, ports) in classes {
        let mut addresses = Members::new();
        for subset in members.iter().filter_map(|at| subsets.get(*at)) {
            for (list, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
                for address in list.iter().flatten() {
                    let key = address_key(address);
                    known.entry(key).or_insert(address);
                    // An address is unready if any subset lists it as unready.
                    *addresses.entry(key).or_insert(ready) &= ready;
                }
            }
        }
        groups.entry(addresses).or_default().extend(ports.into_iter().flatten().cloned());
    }
    let of_group = |(members, mut ports): (Members<'_>, Vec<EndpointPort>)| {
        let chosen = |wanted: bool| -> Option<Vec<EndpointAddress>> {
            let list: Vec<EndpointAddress> = members
                .iter()
                .filter(|(_, ready)| **ready == wanted)
                .filter_map(|(key, _)| known.get(key).map(|address| (*address).clone()))
                .collect();
            (!list.is_empty()).then_some(list)
        };
        ports.sort_by_cached_key(|port| fnv128a(&format!("(v1.EndpointPort){}", printed_port(port))));
        EndpointSubset {
            addresses: chosen(true),
            not_ready_addresses: chosen(false),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    let mut packed: Vec<EndpointSubset> = groups.into_iter().map(of_group).collect();
    if packed.len() > 1 {
        packed.sort_by_cached_key(|subset| fnv128a(&printed(subset)));
    }
    packed
}

/// The number of addresses in a subset.
pub(super) fn count(subset: &EndpointSubset) -> usize {
    subset.addresses.as_ref().map_or(0, Vec::len) + subset.not_ready_addresses.as_ref().map_or(0, Vec::len)
}

/// Limits the addresses to `most`, ready ones first, in proportion to the subsets. Returns whether any were dropped.
pub(super) fn truncate(subsets: &mut [EndpointSubset], most: usize) -> bool {
    let ready: usize = subsets.iter().filter_map(|s| s.addresses.as_ref().map(Vec::len)).sum();
    let other: usize = subsets.iter().filter_map(|s| s.not_ready_addresses.as_ref().map(Vec::len)).sum();
    if ready.saturating_add(other) <= most {
        return false;
    }
    let cut_ready = ready > most;
    let (capacity, total) = if cut_ready { (most, ready) } else { (most - ready, other) };
    let mut left = capacity;
    for subset in subsets {
        let list = if cut_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let length = list.as_ref().map_or(0, Vec::len);
        let part = length.saturating_mul(capacity).div_ceil(total.max(1)).min(left).min(length);
        left -= part;
        if let Some(addresses) = list {
            addresses.truncate(part);
        }
        *list = list.take().filter(|addresses| !addresses.is_empty());
        if cut_ready {
            subset.not_ready_addresses = None;
        }
    }
    true
}

/// For comparison: no list and an empty one are equal, and pods' resource versions are ignored.
pub(super) fn normal(mut subsets: Vec<EndpointSubset>) -> Vec<EndpointSubset> {
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses] {
            for target in list.iter_mut().flatten().filter_map(|address| address.target_ref.as_mut()) {
                target.resource_version = None;
            }
            *list = list.take().filter(|addresses| !addresses.is_empty());
        }
        subset.ports = subset.ports.take().filter(|ports| !ports.is_empty());
    }
    subsets
}

/// A subset in Go's `%#v` form.
fn printed(subset: &EndpointSubset) -> String {
    let addresses =
        |list: Option<&Vec<EndpointAddress>>| list.map_or_else(nil, |list| joined(list.iter().map(printed_address)));
    let ports = subset.ports.as_ref().map_or_else(nil, |list| joined(list.iter().map(printed_port)));
    format!(
        "(v1.EndpointSubset){{Addresses:([]v1.EndpointAddress){} NotReadyAddresses:([]v1.EndpointAddress){} Ports:([]v1.EndpointPort){ports}}}",
        addresses(subset.addresses.as_ref()),
        addresses(subset.not_ready_addresses.as_ref()),
    )
}

fn nil() -> String {
    "<nil>".to_owned()
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    format!("[{}]", parts.collect::<Vec<_>>().join(" "))
}

fn printed_address(address: &EndpointAddress) -> String {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let target = address.target_ref.as_ref().map_or_else(nil, |t| {
        format!(
            "{{Kind:(string){} Namespace:(string){} Name:(string){} UID:(types.UID){} APIVersion:(string){} ResourceVersion:(string){} FieldPath:(string){}}}",
            text(t.kind.as_ref()),
            text(t.namespace.as_ref()),
            text(t.name.as_ref()),
            text(t.uid.as_ref()),
            text(t.api_version.as_ref()),
            text(t.resource_version.as_ref()),
            text(t.field_path.as_ref()),
        )
    });
    format!(
        "{{IP:(string){} Hostname:(string){} NodeName:(*string){} TargetRef:(*v1.ObjectReference){target}}}",
        address.ip,
        text(address.hostname.as_ref()),
        address.node_name.clone().unwrap_or_else(nil),
    )
}

fn printed_port(port: &EndpointPort) -> String {
    format!(
        "{{Name:(string){} Port:(int32){} Protocol:(v1.Protocol){} AppProtocol:(*string){}}}",
        port.name.clone().unwrap_or_default(),
        port.port,
        port.protocol.clone().unwrap_or_default(),
        port.app_protocol.clone().unwrap_or_else(nil),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: &Value) -> Vec<EndpointSubset> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn address(ip: &str) -> Value {
        json!({"ip": ip})
    }

    #[test]
    fn a_subset_is_printed_as_go_does() {
        let subset = read(&json!([{
            "addresses": [
                {"ip": "10.0.0.1", "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p", "namespace": "ns", "uid": "u"}},
                {"ip": "10.0.0.2", "hostname": "h"},
            ],
            "ports": [{"name": "a", "port": 80, "protocol": "TCP", "appProtocol": "http"}, {"port": 81, "protocol": "UDP"}],
        }]));
        let wanted = "(v1.EndpointSubset){Addresses:([]v1.EndpointAddress)[{IP:(string)10.0.0.1 Hostname:(string) NodeName:(*string)n1 \
            TargetRef:(*v1.ObjectReference){Kind:(string)Pod Namespace:(string)ns Name:(string)p UID:(types.UID)u APIVersion:(string) \
            ResourceVersion:(string) FieldPath:(string)}} {IP:(string)10.0.0.2 Hostname:(string)h NodeName:(*string)<nil> \
            TargetRef:(*v1.ObjectReference)<nil>}] NotReadyAddresses:([]v1.EndpointAddress)<nil> \
            Ports:([]v1.EndpointPort)[{Name:(string)a Port:(int32)80 Protocol:(v1.Protocol)TCP AppProtocol:(*string)http} \
            {Name:(string) Port:(int32)81 Protocol:(v1.Protocol)UDP AppProtocol:(*string)<nil>}]}";
        assert_eq!(printed(&subset[0]), wanted);
    }

    #[test]
    fn addresses_are_together_by_their_ports_and_the_other_way_round() {
        let (a, b) =
            (json!({"name": "a", "port": 1, "protocol": "TCP"}), json!({"name": "b", "port": 2, "protocol": "TCP"}));
        // From upstream's table: two ports with the same addresses form one subset, ports with different addresses
        // don't.
        for (given, wanted) in [
            (json!([]), json!([])),
            (
                json!([{"addresses": [address("1.2.3.4")], "ports": [a]}]),
                json!([{"addresses": [address("1.2.3.4")], "ports": [a]}]),
            ),
            (
                json!([{"addresses": [address("1.2.3.4")], "ports": [a]}, {"addresses": [address("1.2.3.4")], "ports": [b]}]),
                json!([{"addresses": [address("1.2.3.4")], "ports": "both"}]),
            ),
            (
                json!([{"addresses": [address("5.6.7.8")], "ports": [a]}, {"addresses": [address("1.2.3.4")], "ports": [a]}]),
                json!([{"addresses": [address("1.2.3.4"), address("5.6.7.8")], "ports": [a]}]),
            ),
            (
                json!([{"addresses": [address("1.2.3.4")], "ports": [a]}, {"notReadyAddresses": [address("1.2.3.4")], "ports": [a]}]),
                json!([{"notReadyAddresses": [address("1.2.3.4")], "ports": [a]}]),
            ),
            (json!([{"addresses": [address("1.2.3.4")]}]), json!([{"addresses": [address("1.2.3.4")]}])),
        ] {
            let mut packed = repack(&read(&given));
            if wanted[0]["ports"] == "both" {
                assert_eq!(packed[0].ports.take().unwrap().len(), 2, "{given}");
                assert_eq!((packed.len(), packed[0].addresses.as_ref().unwrap().len()), (1, 1), "{given}");
                continue;
            }
            assert_eq!(packed, read(&wanted), "{given}");
            assert_eq!(repack(&packed), packed, "what is laid out stays so");
        }
    }

    #[test]
    fn huge_subsets_stay_split() {
        let many: Vec<Value> = (0..1000).map(|n| address(&format!("10.0.{}.{}", n / 250, n % 250))).collect();
        let ports: Vec<Value> = (1..=200).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
        let mut given = vec![json!({"addresses": many, "ports": ports})];
        given.extend(
            ports
                .iter()
                .map(|port| json!({"addresses": [address(&format!("10.1.0.{}", port["port"]))], "ports": [port]})),
        );
        let given = read(&json!(given));
        assert_eq!(repack(&given), given);
    }

    #[test]
    fn excess_unready_addresses_are_dropped_first() {
        let some = |n: usize, from: usize| -> Vec<Value> {
            (0..n).map(|at| address(&format!("10.{from}.{}.{}", at / 250, at % 250))).collect()
        };
        let mut given = read(&json!([
            {"addresses": some(3, 0), "notReadyAddresses": some(4, 1)}, {"addresses": some(1, 2), "notReadyAddresses": some(2, 3)}]));
        assert!(!truncate(&mut given.clone(), 10));
        let sizes = |subsets: &[EndpointSubset]| -> Vec<(usize, usize)> {
            let length = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
            subsets.iter().map(|s| (length(&s.addresses), length(&s.not_ready_addresses))).collect()
        };
        let mut cut = given.clone();
        assert!(truncate(&mut cut, 7));
        assert_eq!(sizes(&cut), [(3, 2), (1, 1)]);
        assert!(truncate(&mut given, 3));
        assert_eq!(sizes(&given), [(3, 0), (0, 0)]);
    }
}
