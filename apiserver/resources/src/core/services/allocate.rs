//! Allocation of a Service's cluster IP, node ports and health check port.
//!
//! [`Allocator::allocate`] chooses free ones; [`claims`] lists those that a Service holds. Each claim is a key of its
//! own. The Service's transaction writes it under the condition that it is absent, and the transaction that deletes
//! or releases it removes it. So no two Services hold the same claim, and no claim leaks. If another Service wins the
//! race, the transaction has no effect and the allocation is retried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::Ipv4Net;
use machinery_api::error::{ApiError, Cause, GroupResource};
use machinery_api::{ObjectName, StorageKey};
use serde_json::{Value, json};

use super::{has_node_ports, is_load_balancer, needs_cluster_ip, needs_health_check};
use crate::Claim;
use crate::field::{FieldError, Path};
use crate::objects::ObjectReader;
use crate::read::{fields, get, int, items, items_mut, name, put, text, texts};
use crate::rules;

const SPEC: Path<'static> = Path::root("spec");
const IP_TAKEN: &str = "provided IP is already allocated";
const IP_OUTSIDE: &str = "the provided network does not match the current range";
/// Upstream's placeholder port in dry runs.
const FIRST_OF_DRY_RUNS: i64 = 32769;
const PORT_TAKEN: &str = "provided port is already allocated";
/// Prefix under which upstream stores IPAddress objects.
const IP_PREFIX: &str = "ipaddresses";
/// Upstream stores one bitmap at this key. Here each port has its own key below, so that Services don't contend.
const PORT_PREFIX: &str = "ranges/servicenodeports";
/// Prefixes of all reservations, for the repair of leaked ones.
pub const RESERVATIONS: [&str; 2] = [IP_PREFIX, PORT_PREFIX];

/// The ranges that Services' addresses and ports are allocated from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNetwork {
    /// Cluster IPs.
    pub cidr: Ipv4Net,
    /// Ports on the nodes (30000-32767 upstream).
    pub node_ports: RangeInclusive<u16>,
    /// The cluster's own blocks of 127.0.0.0/8 (Services, pods): the only loopback addresses of endpoints.
    pub loopback: Vec<Ipv4Net>,
}

/// The number of a range's first members that are reserved for explicit requests; random allocation uses them last.
fn static_band(size: u64, least: u64, most: u64, step: u64) -> u64 {
    if size <= least { 0 } else { (size / step).clamp(least, most) }
}

fn held_ips(spec: &Value) -> Vec<Ipv4Addr> {
    if !needs_cluster_ip(spec) {
        return Vec::new();
    }
    texts(spec, "clusterIPs").filter_map(|ip| ip.parse().ok()).collect()
}

fn held_ports(spec: &Value) -> Vec<u16> {
    let health = int(spec, "healthCheckNodePort").filter(|_| needs_health_check(spec));
    let nodes = items(spec, "ports").iter().filter_map(|port| int(port, "nodePort"));
    nodes.chain(health).filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()
}

/// The addresses and node ports that a Service holds while it exists. Keys of addresses are upstream's keys of
/// IPAddress objects; those of ports are below upstream's key for node port ranges. The value names the holder.
pub(super) fn claims(service: &Value) -> Vec<Claim> {
    let spec = get(service, "spec");
    let metadata = get(service, "metadata");
    let parent = json!({
        "resource": "services", "namespace": text(metadata, "namespace"), "name": text(metadata, "name"),
    });
    let mut claims: Vec<Claim> = Vec::new();
    for ip in held_ips(spec) {
        let object = json!({
            "kind": "IPAddress",
            "apiVersion": "networking.k8s.io/v1",
            "metadata": {
                "name": ip.to_string(),
                "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"},
            },
            "spec": {"parentRef": parent},
        });
        claims.push(Claim { key: ip_key(ip), object });
    }
    let ports: BTreeSet<u16> = held_ports(spec).into_iter().collect();
    claims.extend(
        ports.into_iter().map(|port| Claim { key: port_key(port), object: json!({"spec": {"parentRef": parent}}) }),
    );
    claims
}

fn ip_key(ip: Ipv4Addr) -> StorageKey {
    StorageKey::object(IP_PREFIX, ObjectName::new("", &ip.to_string()))
}

fn port_key(port: u16) -> StorageKey {
    StorageKey::object(PORT_PREFIX, ObjectName::new("", &port.to_string()))
}

/// Allocates addresses and ports for Services.
pub struct Allocator {
    network: ServiceNetwork,
    /// Returns a random number below its argument.
    random: Box<dyn Fn(u64) -> u64 + Send + Sync>,
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator").field("network", &self.network).finish_non_exhaustive()
    }
}

impl Allocator {
    /// `random` returns a random number below its argument.
    #[must_use]
    pub fn new(network: ServiceNetwork, random: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Self {
        Self { network, random: Box::new(random) }
    }

    /// See [`ServiceNetwork::loopback`].
    #[must_use]
    pub fn loopback(&self) -> &[Ipv4Net] {
        &self.network.loopback
    }

    /// Allocates the missing addresses and ports of `new`, and rejects requested ones that are unavailable. `new` has
    /// been defaulted and prepared; `old` is the stored Service of an update. A `dry` run returns upstream's
    /// placeholder ports.
    pub fn allocate(
        &self,
        objects: &dyn ObjectReader,
        new: &mut Value,
        old: Option<&Value>,
        dry: bool,
    ) -> Result<(), ApiError> {
        let service = name(new).to_owned();
        let mut choice =
            ServiceAllocation { network: &self.network, random: &*self.random, objects, ports: Vec::new(), dry };
        choice.allocate(new, old).map_err(|why| why.into_api(service))
    }
}

enum AllocationError {
    Invalid(FieldError),
    Full(&'static str),
}

impl AllocationError {
    fn into_api(self, service: String) -> ApiError {
        match self {
            Self::Invalid(error) => {
                ApiError::Invalid(GroupResource::new("", "Service"), service, vec![Cause::from(error)])
            }
            Self::Full(what) => {
                let message = format!("failed to allocate a {what} for Service \"{service}\": range is full");
                ApiError::ServiceUnavailable(message)
            }
        }
    }
}

struct ServiceAllocation<'a> {
    network: &'a ServiceNetwork,
    random: &'a dyn Fn(u64) -> u64,
    objects: &'a dyn ObjectReader,
    /// Ports allocated for this Service in this call.
    ports: Vec<i64>,
    dry: bool,
}

impl ServiceAllocation<'_> {
    fn allocate(&mut self, new: &mut Value, old: Option<&Value>) -> Result<(), AllocationError> {
        let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else { return Ok(()) };
        let old = old.map(|old| get(old, "spec"));
        let had_ip = old.is_some_and(|old| needs_cluster_ip(old) && !items(old, "clusterIPs").is_empty());
        if needs_cluster_ip(spec) && !had_ip {
            self.cluster_ip(spec)?;
        }
        if has_node_ports(spec) {
            match old {
                None => self.node_ports_of_new(spec)?,
                Some(old) => self.node_ports_of_changed(spec, old)?,
            }
        }
        if needs_health_check(spec) && !old.is_some_and(needs_health_check) {
            let at = SPEC.child("healthCheckNodePort");
            match int(spec, "healthCheckNodePort").unwrap_or(0) {
                0 => {
                    let port = self.free_port()?;
                    put(spec, "healthCheckNodePort", json!(port));
                }
                port => self.reserve_port(port, &at)?,
            }
        }
        Ok(())
    }

    fn cluster_ip(&self, spec: &mut Value) -> Result<(), AllocationError> {
        let refuse = |spec: &Value, why: String| {
            let shown = get(spec, "clusterIPs").clone();
            AllocationError::Invalid(FieldError::invalid(&SPEC.child("clusterIPs"), shown, &why))
        };
        let requested = texts(spec, "clusterIPs").next().unwrap_or("").to_owned();
        match requested.as_str() {
            "None" => {}
            "" => {
                let own = self.free_ip(self.network.cidr);
                let ip = own.or_else(|| self.more_blocks().find_map(|block| self.free_ip(block)));
                let ip = ip.ok_or(AllocationError::Full("serviceIP"))?.to_string();
                put(spec, "clusterIPs", json!([ip]));
                fields(spec).insert("clusterIP".into(), json!(ip));
            }
            requested => {
                let ip = match rules::parse_ip_leniently(requested) {
                    Some(std::net::IpAddr::V4(ip)) if self.usable(ip) => ip,
                    _ => {
                        return Err(refuse(
                            spec,
                            format!("failed to allocate IP {requested}: {}", self.outside(requested)),
                        ));
                    }
                };
                if self.ip_is_held(ip) {
                    return Err(refuse(spec, format!("failed to allocate IP {requested}: {IP_TAKEN}")));
                }
            }
        }
        Ok(())
    }

    /// Why an address outside the ranges is rejected; upstream's dry runs ask one range instead of all.
    fn outside(&self, requested: &str) -> String {
        let range = self.network.cidr;
        match self.dry {
            true => {
                format!("the provided IP ({requested}) is not in the valid range. The range of valid IPs is {range}")
            }
            false => IP_OUTSIDE.to_owned(),
        }
    }

    fn ip_is_held(&self, ip: Ipv4Addr) -> bool {
        self.objects.at(&ip_key(ip)).is_some()
    }

    fn port_is_held(&self, port: u16) -> bool {
        self.objects.at(&port_key(port)).is_some()
    }

    /// Additional blocks: those of ServiceCIDRs that are not being deleted and not marked unready.
    fn more_blocks(&self) -> impl Iterator<Item = Ipv4Net> {
        let all = self.objects.list("networking.k8s.io", "servicecidrs", None);
        let usable = |cidr: &Arc<Value>| {
            let ready = items(get(cidr, "status"), "conditions").iter().find(|condition| condition["type"] == "Ready");
            get(get(cidr, "metadata"), "deletionTimestamp").is_null()
                && ready.is_none_or(|ready| ready["status"] == "True")
        };
        all.into_iter().filter(usable).flat_map(|cidr| {
            texts(get(&cidr, "spec"), "cidrs").filter_map(|block| block.parse().ok()).collect::<Vec<Ipv4Net>>()
        })
    }

    fn usable(&self, ip: Ipv4Addr) -> bool {
        let within = |block: &Ipv4Net| block.contains(&ip) && ip != block.network() && ip != block.broadcast();
        within(&self.network.cidr) || self.more_blocks().any(|block| within(&block))
    }

    /// A free address of a block: from the upper band, starting at a random offset, then from the lower band.
    fn free_ip(&self, block: Ipv4Net) -> Option<Ipv4Addr> {
        let (first, end) = (u32::from(block.network()).saturating_add(1), u32::from(block.broadcast()));
        let size = u64::from(end.saturating_sub(first));
        let band = static_band(size, 16, 256, 16);
        let low = first.saturating_add(u32::try_from(band).unwrap_or(0));
        self.scan(u64::from(low)..u64::from(end), |n| self.ip_if_free(n))
            .or_else(|| self.scan(u64::from(first)..u64::from(low), |n| self.ip_if_free(n)))
    }

    fn ip_if_free(&self, number: u64) -> Option<Ipv4Addr> {
        let ip = Ipv4Addr::from(u32::try_from(number).ok()?);
        (!self.ip_is_held(ip)).then_some(ip)
    }

    /// The first hit in a range, scanned cyclically from a random offset.
    fn scan<T>(&self, range: std::ops::Range<u64>, hit: impl Fn(u64) -> Option<T>) -> Option<T> {
        let size = range.end.checked_sub(range.start).filter(|size| *size > 0)?;
        let offset = (self.random)(size);
        (0..size).find_map(|i| hit(range.start + (offset + i) % size))
    }

    fn free_port(&mut self) -> Result<i64, AllocationError> {
        if self.dry {
            let port = self.ports.iter().max().map_or(FIRST_OF_DRY_RUNS, |last| (*last).max(0) + 1);
            self.ports.push(port);
            // The field has 32 bits: upstream's number after its largest is its smallest.
            return Ok(i64::from(port as i32));
        }
        let (first, last) = (u64::from(*self.network.node_ports.start()), u64::from(*self.network.node_ports.end()));
        let size = (last + 1).saturating_sub(first);
        let low = first + static_band(size, 16, 128, 32);
        let free = |number: u64| {
            let port = u16::try_from(number).ok()?;
            let taken = self.ports.contains(&port.into()) || self.port_is_held(port);
            (!taken).then_some(port.into())
        };
        let port = self
            .scan(low..last + 1, free)
            .or_else(|| self.scan(first..low, free))
            .ok_or(AllocationError::Full("nodePort"))?;
        self.ports.push(port);
        Ok(port)
    }

    /// Reserves a requested port.
    fn reserve_port(&mut self, requested: i64, at: &Path<'_>) -> Result<(), AllocationError> {
        let refuse = |why: &str| AllocationError::Invalid(FieldError::invalid(at, requested, why));
        let range = &self.network.node_ports;
        let port = u16::try_from(requested).ok();
        if !self.dry && !port.is_some_and(|port| range.contains(&port)) {
            let (first, last) = (range.start(), range.end());
            let why = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
            return Err(refuse(&why));
        }
        if self.ports.contains(&requested) || port.is_some_and(|port| self.port_is_held(port)) {
            return Err(refuse(PORT_TAKEN));
        }
        self.ports.push(requested);
        Ok(())
    }

    /// Ports of the same number and different protocols share a node port.
    fn node_ports_of_new(&mut self, spec: &mut Value) -> Result<(), AllocationError> {
        let fill = chooses_ports(spec);
        let list: Vec<(i64, i64)> = items(spec, "ports")
            .iter()
            .map(|p| (int(p, "port").unwrap_or(0), int(p, "nodePort").unwrap_or(0)))
            .collect();
        let ports_at = SPEC.child("ports");
        let mut given: BTreeMap<i64, i64> = BTreeMap::new();
        for (i, (port, requested)) in list.iter().enumerate() {
            if *requested == 0 && !fill {
                continue;
            }
            let at = ports_at.index(i);
            let at = at.child("nodePort");
            let node = match given.get(port) {
                Some(node) if *requested == 0 || requested == node => *node,
                Some(_) => {
                    self.reserve_port(*requested, &at)?;
                    *requested
                }
                None => {
                    let wished = list.iter().find(|(p, node)| p == port && *node != 0).map(|(_, node)| *node);
                    let node = match wished {
                        Some(node) => {
                            self.reserve_port(node, &at)?;
                            node
                        }
                        None => self.free_port()?,
                    };
                    given.insert(*port, node);
                    node
                }
            };
            if let Some(port) = items_mut(spec, "ports").get_mut(i) {
                put(port, "nodePort", json!(node));
            }
        }
        Ok(())
    }

    fn node_ports_of_changed(&mut self, spec: &mut Value, old: &Value) -> Result<(), AllocationError> {
        let fill = chooses_ports(spec);
        let had: Vec<i64> = items(old, "ports").iter().filter_map(|p| int(p, "nodePort")).collect();
        let requested: Vec<i64> = items(spec, "ports").iter().map(|p| int(p, "nodePort").unwrap_or(0)).collect();
        let ports_at = SPEC.child("ports");
        let mut taken = Vec::new();
        for (i, requested) in requested.iter().enumerate() {
            if *requested == 0 {
                if fill {
                    let port = self.free_port()?;
                    if let Some(slot) = items_mut(spec, "ports").get_mut(i) {
                        put(slot, "nodePort", json!(port));
                    }
                }
            } else if !had.contains(requested) && !taken.contains(requested) {
                let at = ports_at.index(i);
                self.reserve_port(*requested, &at.child("nodePort"))?;
                taken.push(*requested);
            }
        }
        Ok(())
    }
}

fn chooses_ports(spec: &Value) -> bool {
    !is_load_balancer(spec) || get(spec, "allocateLoadBalancerNodePorts") == &json!(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::memory::MemoryObjects;

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"namespace": "n", "name": name}, "spec": spec})
    }

    /// Adds or removes a Service's reservations.
    fn reserve(world: &MemoryObjects, service: &Value, holds: bool) {
        for Claim { key, object } in claims(service) {
            world.reserve(key, holds.then_some(object));
        }
    }

    fn allocator() -> Allocator {
        let network =
            ServiceNetwork { cidr: "10.0.0.0/24".parse().unwrap(), node_ports: 30000..=32767, loopback: Vec::new() };
        Allocator::new(network, |size| size / 2)
    }

    fn cause(result: Result<(), ApiError>) -> String {
        match result {
            Err(ApiError::Invalid(_, _, causes)) => format!("{}: {}", causes[0].field, causes[0].message),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn every_address_is_given_once_and_comes_back() {
        let allocator = allocator();
        let world = MemoryObjects::default();
        let mut gone = Value::Null;
        for i in 0..254 {
            let mut new = service(&format!("s{i}"), json!({"type": "ClusterIP", "ports": [{"port": 80}]}));
            allocator.allocate(&world, &mut new, None, false).unwrap();
            let ip: Ipv4Addr = new["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
            assert_eq!(new["spec"]["clusterIPs"], json!([ip.to_string()]));
            // The lower band (16 of a /24) is used last.
            assert_eq!(ip.octets()[3] > 16, i < 238, "{ip} as number {i}");
            if i == 7 {
                gone = new.clone();
            }
            reserve(&world, &new, true);
        }
        let mut one_more = service("x", json!({"type": "ClusterIP"}));
        assert!(matches!(allocator.allocate(&world, &mut one_more, None, false), Err(ApiError::ServiceUnavailable(_))));
        reserve(&world, &gone, false);
        allocator.allocate(&world, &mut one_more, None, false).unwrap();
        assert_eq!(one_more["spec"]["clusterIP"], gone["spec"]["clusterIP"]);
    }

    #[test]
    fn blocks_that_are_ready_and_stay_are_there_too() {
        let allocator = allocator();
        let world = MemoryObjects::default();
        let cidr = |name: &str, block: &str, ready: &str| {
            json!({"metadata": {"name": name}, "spec": {"cidrs": [block, "fd00::/64"]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let mut going = cidr("going", "10.3.0.0/24", "True");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        for object in [cidr("more", "10.1.0.0/30", "True"), cidr("unready", "10.2.0.0/24", "False"), going] {
            world.put("networking.k8s.io", "servicecidrs", object);
        }
        // A block without conditions.
        let fresh = json!({"metadata": {"name": "z"}, "spec": {"cidrs": ["10.4.0.0/30"]}, "status": {}});
        world.put("networking.k8s.io", "servicecidrs", fresh);
        let requested = |ip: &str| {
            let mut new = service("b", json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}));
            allocator.allocate(&world, &mut new, None, false).is_ok()
        };
        let ips = ["10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.2.0.1", "10.3.0.1", "10.4.0.1"];
        assert_eq!(ips.map(requested), [false, true, true, false, false, false, true]);
        for number in 1..255 {
            let ip = format!("10.0.0.{number}");
            reserve(&world, &service(&ip, json!({"type": "ClusterIP", "clusterIPs": [ip]})), true);
        }
        let mut new = service("x", json!({"type": "ClusterIP"}));
        allocator.allocate(&world, &mut new, None, false).unwrap();
        assert!(new["spec"]["clusterIP"].as_str().unwrap().starts_with("10.1.0."), "{new}");
    }

    #[test]
    fn requested_addresses_are_free_and_in_range() {
        let allocator = allocator();
        let held = service(
            "a",
            json!({"type": "NodePort", "clusterIPs": ["10.0.0.9"],
            "ports": [{"port": 80, "nodePort": 30002}]}),
        );
        let world = MemoryObjects::default();
        reserve(&world, &held, true);
        let ask = |spec: Value| cause(allocator.allocate(&world, &mut service("b", spec), None, false));
        assert_eq!(
            ask(json!({"type": "ClusterIP", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"]})),
            "spec.clusterIPs: Invalid value: [\"10.0.0.9\"]: failed to allocate IP 10.0.0.9: provided IP is already allocated"
        );
        assert_eq!(
            ask(json!({"type": "ClusterIP", "clusterIP": "10.9.0.9", "clusterIPs": ["10.9.0.9"]})),
            "spec.clusterIPs: Invalid value: [\"10.9.0.9\"]: failed to allocate IP 10.9.0.9: the provided network does not match the current range"
        );
        assert_eq!(
            ask(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30002}]})),
            "spec.ports[0].nodePort: Invalid value: 30002: provided port is already allocated"
        );
        assert_eq!(
            ask(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": -1}]})),
            "spec.ports[0].nodePort: Invalid value: -1: provided port is not in the valid range. The range of valid ports is 30000-32767"
        );
        let mut tried = service(
            "b",
            json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81, "nodePort": 5}, {"port": 82}]}),
        );
        allocator.allocate(&world, &mut tried, None, true).unwrap();
        let ports: Vec<_> = tried["spec"]["ports"].as_array().unwrap().iter().map(|p| &p["nodePort"]).collect();
        assert_eq!(ports, [32769, 5, 32770], "nothing is reserved, and ranges are not checked");
        let mut shared = service(
            "b",
            json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "TCP"},
            {"port": 53, "protocol": "UDP"}, {"port": 54}]}),
        );
        allocator.allocate(&world, &mut shared, None, false).unwrap();
        let port = |i: usize| shared["spec"]["ports"][i]["nodePort"].as_i64().unwrap();
        assert_eq!(port(0), port(1));
        assert_ne!(port(0), port(2));
        assert!(port(2) >= 30086);
    }
}
