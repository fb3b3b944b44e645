//! The routing table: Services and EndpointSlices in, routes and listeners out. Pure: what changed is returned, not done.
//!
//! One Service is recomputed at a time, so that work follows what changed and not what exists.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery::api::ObjectKey;
use machinery::api::names;

use crate::pending::Pending;

/// What a Service port with no `sessionAffinityConfig` remembers a client for (Kubernetes' default: three hours).
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

/// One address that a Service port can send to.
#[derive(Debug)]
pub struct Endpoint {
    /// The pod's (or other) address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// The node that the endpoint is on, where the slice says it.
    pub node: Option<String>,
    /// The name by which a headless Service tells it apart.
    pub hostname: Option<String>,
    /// Requests and connections that are open; shared by all routes to the same address and port.
    pub pending: Pending,
}

/// How a port of a Service reaches its endpoints.
#[derive(Debug, Default)]
pub struct PortRoute {
    /// The Service.
    pub service: Option<ObjectKey>,
    /// The Service port's name; empty where it has none.
    pub name: String,
    /// The Service port's number.
    pub port: u16,
    /// The port on every node's address, where the Service has one.
    pub node_port: Option<u16>,
    /// Whether `appProtocol` says HTTP.
    pub http: bool,
    /// How long a client sticks to an endpoint; `None`: it doesn't.
    pub affinity: Option<Duration>,
    /// Only endpoints of the caller's node (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Ready endpoints.
    pub ready: Vec<Arc<Endpoint>>,
    /// Serving endpoints of terminating pods: used where none is ready (KEP-1669).
    pub draining: Vec<Arc<Endpoint>>,
}

impl PortRoute {
    /// What requests are sent to.
    #[must_use]
    pub fn usable(&self) -> &[Arc<Endpoint>] {
        if self.ready.is_empty() { &self.draining } else { &self.ready }
    }
}

/// A Service's routes.
#[derive(Debug, Default, Clone)]
pub struct ServiceRoutes {
    /// Its address; `None` for headless ones.
    pub cluster_ip: Option<IpAddr>,
    /// By port number.
    pub ports: BTreeMap<u16, Arc<PortRoute>>,
    /// Headless: names lead straight to endpoints.
    pub headless: bool,
}

/// Where the data plane listens for a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listen {
    /// On a ClusterIP.
    Cluster(IpAddr, u16),
    /// On the node's address.
    Node(u16),
}

/// What a change of one object did to the table.
#[derive(Debug, Default)]
pub struct Change {
    /// The Service that the change concerns.
    pub service: ObjectKeyOrNone,
    /// Routes to install, by listener.
    pub set: BTreeMap<Listen, Arc<PortRoute>>,
    /// Listeners to close.
    pub closed: BTreeSet<Listen>,
}

/// A key where there is one.
pub type ObjectKeyOrNone = Option<ObjectKey>;

/// Services, slices and what follows from them.
#[derive(Debug, Default)]
pub struct Table {
    services: HashMap<ObjectKey, Service>,
    /// Slices by the Service that they belong to.
    slices: HashMap<ObjectKey, BTreeMap<String, EndpointSlice>>,
    /// The Service that each slice belonged to, to follow a changed label.
    slice_owner: HashMap<ObjectKey, ObjectKey>,
    routes: HashMap<ObjectKey, ServiceRoutes>,
    by_ip: HashMap<IpAddr, ObjectKey>,
    /// How many Services send to an address: the union of ready endpoints.
    ready_ips: BTreeMap<IpAddr, usize>,
    pending: HashMap<(IpAddr, u16), Pending>,
}

impl Table {
    /// A Service as it is now, or gone.
    pub fn service(&mut self, key: &ObjectKey, service: Option<Service>) -> Change {
        match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
        self.recompute(key)
    }

    /// A slice as it is now, or gone. Two Services change where the slice moved between them.
    pub fn slice(&mut self, key: &ObjectKey, slice: Option<EndpointSlice>) -> Vec<Change> {
        let owner = slice
            .as_ref()
            .and_then(|slice| slice.metadata.labels.as_ref()?.get(names::SERVICE_NAME))
            .map(|name| ObjectKey::new(key.namespace.clone(), name.clone()));
        let before = match &owner {
            Some(owner) => self.slice_owner.insert(key.clone(), owner.clone()),
            None => self.slice_owner.remove(key),
        };
        let mut touched = BTreeSet::new();
        if let Some(before) = before.filter(|before| Some(before) != owner.as_ref()) {
            if let Some(slices) = self.slices.get_mut(&before) {
                slices.remove(&key.name);
                if slices.is_empty() {
                    self.slices.remove(&before);
                }
            }
            touched.insert(before);
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.slices.entry(owner.clone()).or_default().insert(key.name.clone(), slice);
            touched.insert(owner);
        }
        touched.iter().map(|service| self.recompute(service)).collect()
    }

    /// The routes of a Service.
    #[must_use]
    pub fn routes(&self, service: &ObjectKey) -> Option<&ServiceRoutes> {
        self.routes.get(service)
    }

    /// The Service that has this ClusterIP.
    #[must_use]
    pub fn by_ip(&self, ip: IpAddr) -> Option<&ServiceRoutes> {
        self.routes.get(self.by_ip.get(&ip)?)
    }

    /// Every address that some Service sends new requests to.
    #[must_use]
    pub fn routed_ips(&self) -> BTreeSet<IpAddr> {
        self.ready_ips.keys().copied().collect()
    }

    fn recompute(&mut self, key: &ObjectKey) -> Change {
        let before = self.routes.remove(key).unwrap_or_default();
        let after = match self.services.get(key) {
            Some(service) => routes(key, service, self.slices.get(key), &mut self.pending),
            None => ServiceRoutes::default(),
        };
        self.count_ready(&before, &after);
        if let Some(ip) = before.cluster_ip {
            self.by_ip.remove(&ip);
        }
        if let Some(ip) = after.cluster_ip {
            self.by_ip.insert(ip, key.clone());
        }
        let set = listeners(&after);
        let closed = listeners(&before).into_keys().filter(|listen| !set.contains_key(listen)).collect();
        if self.services.contains_key(key) {
            self.routes.insert(key.clone(), after);
        }
        Change { service: Some(key.clone()), set, closed }
    }

    fn count_ready(&mut self, before: &ServiceRoutes, after: &ServiceRoutes) {
        for endpoint in after.ports.values().flat_map(|route| &route.ready) {
            *self.ready_ips.entry(endpoint.ip).or_default() += 1;
        }
        for endpoint in before.ports.values().flat_map(|route| &route.ready) {
            if let Some(count) = self.ready_ips.get_mut(&endpoint.ip) {
                *count -= 1;
                if *count == 0 {
                    self.ready_ips.remove(&endpoint.ip);
                }
            }
        }
        // Counters of addresses that no route names any more: only the table itself still holds them.
        if self.pending.len() > 2 * (self.ready_ips.len() + 16) {
            let live: BTreeSet<(IpAddr, u16)> = self
                .routes
                .values()
                .chain([after])
                .flat_map(|routes| routes.ports.values())
                .flat_map(|route| route.ready.iter().chain(&route.draining))
                .map(|endpoint| (endpoint.ip, endpoint.port))
                .collect();
            self.pending.retain(|address, pending| live.contains(address) || pending.count() > 0);
        }
    }
}

fn listeners(routes: &ServiceRoutes) -> BTreeMap<Listen, Arc<PortRoute>> {
    let mut all = BTreeMap::new();
    for (port, route) in &routes.ports {
        if let Some(ip) = routes.cluster_ip {
            all.insert(Listen::Cluster(ip, *port), route.clone());
        }
        if let Some(node_port) = route.node_port {
            all.insert(Listen::Node(node_port), route.clone());
        }
    }
    all
}

/// Whether `appProtocol` means that requests, not connections, are balanced (contract.md §4).
fn is_http(app_protocol: Option<&str>) -> bool {
    matches!(app_protocol, Some("http" | "ws" | "h2c" | "grpc" | "kubernetes.io/h2c" | "kubernetes.io/ws"))
}

fn routes(
    key: &ObjectKey,
    service: &Service,
    slices: Option<&BTreeMap<String, EndpointSlice>>,
    pending: &mut HashMap<(IpAddr, u16), Pending>,
) -> ServiceRoutes {
    let Some(spec) = &service.spec else { return ServiceRoutes::default() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceRoutes::default();
    }
    let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured =
            spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        configured.map_or(AFFINITY_TIMEOUT, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    });
    let mut result = ServiceRoutes { cluster_ip, headless: cluster_ip.is_none(), ports: BTreeMap::new() };
    for port in spec.ports.iter().flatten() {
        if !matches!(port.protocol.as_deref(), None | Some("TCP")) {
            continue; // crate::unsupported says so on the Service
        }
        let Ok(number) = u16::try_from(port.port) else { continue };
        let name = port.name.clone().unwrap_or_default();
        let mut route = PortRoute {
            service: Some(key.clone()),
            name: name.clone(),
            port: number,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            http: is_http(port.app_protocol.as_deref()),
            affinity,
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            ..PortRoute::default()
        };
        for slice in slices.into_iter().flat_map(BTreeMap::values) {
            collect(slice, &name, &mut route, pending);
        }
        result.ports.insert(number, Arc::new(route));
    }
    result
}

/// Adds the endpoints of one slice that belong to a Service port's name.
fn collect(slice: &EndpointSlice, name: &str, route: &mut PortRoute, pending: &mut HashMap<(IpAddr, u16), Pending>) {
    let named = slice.ports.iter().flatten().find(|port| port.name.as_deref().unwrap_or_default() == name);
    let Some(port) = named.and_then(|port| u16::try_from(port.port?).ok()) else { return };
    for endpoint in slice.endpoints.iter().flatten() {
        let conditions = endpoint.conditions.as_ref();
        // A missing condition counts as true (discovery.k8s.io/v1 EndpointConditions).
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        let list = if ready {
            &mut route.ready
        } else if serving && terminating {
            &mut route.draining
        } else {
            continue;
        };
        let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse().ok()) else { continue };
        if list.iter().any(|other| other.ip == ip && other.port == port) {
            continue; // the same pod may stand in two slices while it moves between them
        }
        let pending = pending.entry((ip, port)).or_default().clone();
        list.push(Arc::new(Endpoint {
            ip,
            port,
            node: endpoint.node_name.clone(),
            hostname: endpoint.hostname.clone(),
            pending,
        }));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub(crate) fn endpoint(ip: &str, port: u16) -> Arc<Endpoint> {
        Arc::new(Endpoint { ip: ip.parse().unwrap(), port, node: None, hostname: None, pending: Pending::default() })
    }

    pub(crate) fn route(ips: &[&str]) -> PortRoute {
        PortRoute { ready: ips.iter().map(|ip| endpoint(ip, 80)).collect(), ..PortRoute::default() }
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec})).unwrap()
    }

    fn slice(service: &str, endpoints: &Value) -> EndpointSlice {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints}))
        .unwrap()
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    #[test]
    fn a_service_gets_its_listeners_and_endpoints() {
        let mut table = Table::default();
        let change = table.service(
            &key("web"),
            Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80, "nodePort": 30080}]}))),
        );
        assert_eq!(
            change.set.keys().copied().collect::<Vec<_>>(),
            [Listen::Cluster("127.64.0.10".parse().unwrap(), 80), Listen::Node(30080)]
        );
        let changes = table.slice(
            &key("web-1"),
            Some(slice("web", &json!([{"addresses": ["127.66.0.2"], "conditions": {"ready": true}}]))),
        );
        let route = changes[0].set.values().next().unwrap();
        assert_eq!((route.usable()[0].ip.to_string(), route.usable()[0].port), ("127.66.0.2".to_owned(), 8080));
        assert_eq!(table.routed_ips().len(), 1);
        let change = table.service(&key("web"), None);
        assert_eq!(change.closed.len(), 2);
        assert!(table.routed_ips().is_empty());
    }

    #[test]
    fn terminating_endpoints_serve_only_where_none_is_ready() {
        let mut table = Table::default();
        table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
        let going =
            json!({"addresses": ["127.66.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        table.slice(&key("web-1"), Some(slice("web", &json!([going, {"addresses": ["127.66.0.3"]}]))));
        let ips = |table: &Table| -> Vec<String> {
            table.routes(&key("web")).unwrap().ports[&80]
                .usable()
                .iter()
                .map(|endpoint| endpoint.ip.to_string())
                .collect()
        };
        assert_eq!(ips(&table), ["127.66.0.3"]);
        table.slice(&key("web-1"), Some(slice("web", &json!([going]))));
        assert_eq!(ips(&table), ["127.66.0.2"]);
        assert!(table.routed_ips().is_empty(), "a draining pod need not wait for itself");
    }

    #[test]
    fn a_slice_that_changes_hands_moves_its_endpoints() {
        let mut table = Table::default();
        for name in ["web", "api"] {
            table.service(&key(name), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
        }
        let endpoints = json!([{"addresses": ["127.66.0.2"]}]);
        table.slice(&key("web-1"), Some(slice("web", &endpoints)));
        assert_eq!(table.slice(&key("web-1"), Some(slice("api", &endpoints))).len(), 2);
        assert!(table.routes(&key("web")).unwrap().ports[&80].usable().is_empty());
        assert_eq!(table.routes(&key("api")).unwrap().ports[&80].usable().len(), 1);
    }

    #[test]
    fn counters_survive_a_change_of_the_table() {
        let mut table = Table::default();
        table.service(&key("web"), Some(service(json!({"clusterIP": "127.64.0.10", "ports": [{"port": 80}]}))));
        let endpoints = json!([{"addresses": ["127.66.0.2"]}]);
        table.slice(&key("web-1"), Some(slice("web", &endpoints)));
        let open = table.routes(&key("web")).unwrap().ports[&80].usable()[0].pending.open();
        table.slice(
            &key("web-1"),
            Some(slice("web", &json!([{"addresses": ["127.66.0.2"]}, {"addresses": ["127.66.0.3"]}]))),
        );
        assert_eq!(table.routes(&key("web")).unwrap().ports[&80].usable()[0].pending.count(), 1);
        drop(open);
    }
}
