//! The routing table: Services and EndpointSlices in, routes and listeners out. Pure: returns changes, performs none.
//!
//! Each event recomputes one Service, so that the cost depends on the change and not on the number of Services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_api::ObjectKey;
use machinery_api::names;
use machinery_rules::address_pool::AddressPool;
use machinery_serve::net::{Protocol, ServicePort};

use crate::names::published::{Published, Readiness, dashed, readiness};
use crate::routing::balance::Affinity;
pub use crate::routing::endpoint::{Endpoint, Hints};
use crate::routing::in_flight::InFlightCount;
use crate::routing::learned::LearnedProtocol;
use crate::routing::table::claims::Claims;
use crate::routing::table::listeners::listeners;
pub use crate::routing::table::listeners::{Entrance, Listen};
pub use crate::routing::table::reverse::EndpointName;
use crate::routing::table::reverse::ReverseNames;

/// Affinity timeout of a Service port without `sessionAffinityConfig` (Kubernetes' default: three hours).
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);
/// The annotation that preceded `loadBalancerSourceRanges`.
pub(crate) const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// The endpoints' protocol according to the port's `appProtocol`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum AppProtocol {
    /// None that the data plane supports.
    #[default]
    Unknown,
    /// HTTP/1.1 in plain.
    Http,
    /// HTTP/2 in plain, with prior knowledge.
    H2c,
}

/// Session affinity of a Service's port. Its clients are remembered as long as the port exists.
#[derive(Debug, Clone)]
pub struct Sticky {
    /// How long an absent client is remembered.
    pub timeout: Duration,
    /// The clients' endpoints.
    pub clients: Arc<Mutex<Affinity>>,
}

/// How a port of a Service reaches its endpoints.
#[derive(Debug, Default, Clone)]
pub struct PortRoute {
    /// The Service and its port's number.
    pub via: Option<Arc<ServicePort>>,
    /// The Service port's name; empty where it has none.
    pub name: String,
    /// The port on every node's address, where the Service has one.
    pub node_port: Option<u16>,
    /// The endpoints' protocol.
    pub app_protocol: AppProtocol,
    /// What the endpoints were last seen to understand, where `app_protocol` doesn't tell.
    pub learned: Arc<LearnedProtocol>,
    /// Session affinity, where the Service has it.
    pub sticky: Option<Sticky>,
    /// Only endpoints of the caller's node (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Only endpoints of this machine's nodes are left (`externalTrafficPolicy: Local`).
    pub external_local: bool,
    /// Source ranges of a load balancer's clients; empty: all.
    pub sources: Arc<[IpNet]>,
    /// Whether endpoints are hinted for nodes or zones (`trafficDistribution`).
    pub hinted: bool,
    /// Ready endpoints.
    pub ready: Vec<Arc<Endpoint>>,
    /// Serving endpoints of terminating pods: used where none is ready (KEP-1669).
    pub draining: Vec<Arc<Endpoint>>,
}

impl PortRoute {
    /// The endpoints for new requests: ready ones, else draining ones.
    #[must_use]
    pub fn usable(&self) -> &[Arc<Endpoint>] {
        if self.ready.is_empty() { &self.draining } else { &self.ready }
    }

    /// Whether an endpoint may serve a caller on a node (`internalTrafficPolicy`).
    #[must_use]
    pub fn admits_node(&self, endpoint: &Endpoint, node: &str) -> bool {
        !self.local_only || endpoint.node.as_deref() == Some(node)
    }

    /// Whether a client may use a load balancer's address.
    #[must_use]
    pub fn admits(&self, from: Option<IpAddr>) -> bool {
        // A dual-stack socket reports an IPv4 client as a mapped IPv6 address.
        let from = from.map(|from| from.to_canonical());
        self.sources.is_empty() || from.is_some_and(|from| self.sources.iter().any(|source| source.contains(&from)))
    }
}

/// A Service's routes.
#[derive(Debug, Default, Clone)]
pub struct ServiceRoutes {
    /// The Service.
    pub key: Option<ObjectKey>,
    /// The ClusterIP; `None` for headless Services.
    pub cluster_ip: Option<IpAddr>,
    /// Its load balancer addresses of the pool.
    pub balancer: BTreeSet<IpAddr>,
    /// Its `externalIPs` of the pool that are not its load balancer's.
    pub external: BTreeSet<IpAddr>,
    /// By protocol and number: one number may be a port of each protocol.
    pub ports: BTreeMap<(Protocol, u16), Arc<PortRoute>>,
    /// Routes of external traffic restricted to this machine (`externalTrafficPolicy: Local`).
    pub external_local: BTreeMap<(Protocol, u16), Arc<PortRoute>>,
    /// The health check port for load balancers, and the endpoints of this machine, each once.
    pub health: Option<(u16, Arc<PortRoute>)>,
    /// Whether names lead straight to endpoints.
    pub headless: bool,
    /// What cluster DNS publishes of it.
    pub published: Published,
}

impl ServiceRoutes {
    /// ClusterIP and load balancer addresses.
    fn ips(&self) -> BTreeSet<IpAddr> {
        self.balancer.iter().copied().chain(self.cluster_ip).collect()
    }

    /// The route of a port.
    #[must_use]
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<&Arc<PortRoute>> {
        self.ports.get(&(protocol, port))
    }

    /// The route of a TCP port.
    #[must_use]
    pub fn tcp(&self, port: u16) -> Option<&Arc<PortRoute>> {
        self.port(Protocol::Tcp, port)
    }

    /// The route of a TCP port for external traffic.
    #[must_use]
    pub fn from_outside(&self, port: u16) -> Option<&Arc<PortRoute>> {
        self.external_local.get(&(Protocol::Tcp, port)).or_else(|| self.tcp(port))
    }

    /// Restricts external traffic to this machine's endpoints for `externalTrafficPolicy: Local`.
    fn apply_external_traffic_policy(&mut self, key: &ObjectKey, spec: &ServiceSpec, nodes: &BTreeSet<String>) {
        if spec.external_traffic_policy.as_deref() != Some("Local") {
            return;
        }
        let here = |all: &[Arc<Endpoint>]| -> Vec<Arc<Endpoint>> {
            let here = |one: &&Arc<Endpoint>| one.node.as_ref().is_some_and(|node| nodes.contains(node));
            all.iter().filter(here).cloned().collect()
        };
        let external_local = |route: &PortRoute| {
            let (ready, draining) = (here(&route.ready), here(&route.draining));
            Arc::new(PortRoute { ready, draining, external_local: true, ..route.clone() })
        };
        self.external_local = self.ports.iter().map(|(place, route)| (*place, external_local(route))).collect();
        let number = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        self.health = number.map(|number| {
            let all = self.external_local.values().flat_map(|route| &route.ready);
            let ready: BTreeMap<IpAddr, Arc<Endpoint>> = all.map(|one| (one.ip, one.clone())).collect();
            let via = Some(Arc::new(ServicePort { service: key.clone(), port: number }));
            (number, Arc::new(PortRoute { via, ready: ready.into_values().collect(), ..PortRoute::default() }))
        });
    }
}

/// The effect of one object's change on the table.
#[derive(Debug, Default)]
pub struct Change {
    /// The changed Service.
    pub service: Option<ObjectKey>,
    /// Its new routes; `None` once it is deleted.
    pub routes: Option<Arc<ServiceRoutes>>,
    /// The new routes of its present and former addresses.
    pub cluster_ips: Vec<(IpAddr, Option<Arc<ServiceRoutes>>)>,
    /// Routes to install, by listener.
    pub set: BTreeMap<Listen, Arc<PortRoute>>,
    /// Listeners to close.
    pub closed: BTreeSet<Listen>,
    /// Addresses that became endpoints of a first Service.
    pub begun: Vec<IpAddr>,
    /// Addresses that stopped being endpoints of any Service.
    pub ceased: Vec<IpAddr>,
    /// The new names of endpoints' addresses; `None` for an address without one.
    pub reverse: Vec<(IpAddr, Option<Arc<[EndpointName]>>)>,
    /// The zones of this machine's nodes that its endpoints tell.
    pub zones: Vec<(String, String)>,
    /// The Service's namespace, if it got its first Service (true) or lost its last one (false).
    pub namespace: Option<(Arc<str>, bool)>,
}

/// Services, slices and the routes derived from them.
#[derive(Debug, Default)]
pub struct Table {
    /// Load balancers' addresses: addresses outside the pool are ignored, whatever a status contains.
    pool: AddressPool,
    /// This machine's nodes: their endpoints are local for external traffic.
    nodes: BTreeSet<String>,
    services: HashMap<ObjectKey, Service>,
    /// Slices by their Service.
    slices: HashMap<ObjectKey, BTreeMap<String, EndpointSlice>>,
    /// The Service of each slice, to follow a changed label.
    slice_owner: HashMap<ObjectKey, ObjectKey>,
    routes: HashMap<ObjectKey, Arc<ServiceRoutes>>,
    /// Claims on a ClusterIP or a listener; the last one wins. After a watch restart, a Service that reuses a deleted
    /// one's address arrives before the deletion.
    by_ip: Claims<IpAddr>,
    /// Claims on external addresses, which any user may make (CVE-2020-8554): the first one wins, and an address of
    /// `by_ip` is not affected.
    by_external_ip: Claims<IpAddr>,
    listeners: Claims<Listen>,
    /// Number of Services that send to an address: the union of ready endpoints.
    ready_ips: BTreeMap<IpAddr, usize>,
    /// Names of endpoints' addresses.
    reverse: ReverseNames,
    /// Number of Services by namespace.
    namespaces: BTreeMap<Arc<str>, usize>,
    in_flight: HashMap<(IpAddr, u16), InFlightCount>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn of(pool: AddressPool, nodes: BTreeSet<String>) -> Self {
        Self { pool, nodes, ..Self::default() }
    }

    /// Applies a Service's new state; `None` is a deletion.
    pub fn service(&mut self, key: &ObjectKey, service: Option<Service>) -> Change {
        match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
        self.recompute(key)
    }

    /// Applies a slice's new state; `None` is a deletion. Returns two changes if the slice moved to another Service.
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

    /// The keys of all Services.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// A Service and its slices.
    pub(crate) fn objects(&self, key: &ObjectKey) -> Option<(&Service, impl Iterator<Item = &EndpointSlice>)> {
        let slices = self.slices.get(key).into_iter().flat_map(BTreeMap::values);
        Some((self.services.get(key)?, slices))
    }

    /// The routes of a Service.
    #[must_use]
    pub fn routes(&self, service: &ObjectKey) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(service)
    }

    /// The routes of the Service that has this ClusterIP.
    #[must_use]
    pub fn by_ip(&self, ip: IpAddr) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(self.by_ip.last(&ip).or_else(|| self.by_external_ip.first(&ip))?)
    }

    /// Every address that receives new requests of some Service.
    #[cfg(test)]
    fn routed_ips(&self) -> BTreeSet<IpAddr> {
        self.ready_ips.keys().copied().collect()
    }

    /// The zones of this machine's nodes, from endpoints on them: the data plane reads no Nodes.
    fn zones(&self, service: &ObjectKey) -> Vec<(String, String)> {
        let slices = self.slices.get(service).into_iter().flat_map(BTreeMap::values);
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
        let placed = endpoints.filter_map(|endpoint| Some((endpoint.node_name.clone()?, endpoint.zone.clone()?)));
        let zones: BTreeMap<String, String> = placed.filter(|(node, _)| self.nodes.contains(node)).collect();
        zones.into_iter().collect()
    }

    fn recompute(&mut self, key: &ObjectKey) -> Change {
        let removed = self.routes.remove(key);
        let existed = removed.is_some();
        let before = removed.unwrap_or_default();
        let after = match self.services.get(key) {
            Some(service) => {
                let mut routes = routes(key, service, self.slices.get(key), &before, &mut self.in_flight);
                routes.balancer = load_balancer_ips(service).filter(|ip| self.pool.contains(*ip)).collect();
                let external = external_ips(service).filter(|ip| self.pool.contains(*ip));
                routes.external = external.filter(|ip| !routes.balancer.contains(ip)).collect();
                if let Some(spec) = &service.spec {
                    routes.apply_external_traffic_policy(key, spec, &self.nodes);
                }
                Arc::new(routes)
            }
            None => Arc::default(),
        };
        let mut change = Change { service: Some(key.clone()), zones: self.zones(key), ..Change::default() };
        self.count_ready(&before, &after, &mut change);
        change.reverse = self.reverse.update(key, &before.published, &after.published);
        let (had, has) = (before.ips(), after.ips());
        had.difference(&has).for_each(|ip| self.by_ip.release(ip, key));
        has.difference(&had).for_each(|ip| self.by_ip.claim(*ip, key));
        before.external.difference(&after.external).for_each(|ip| self.by_external_ip.release(ip, key));
        after.external.difference(&before.external).for_each(|ip| self.by_external_ip.claim(*ip, key));
        let (old, new) = (listeners(&before), listeners(&after));
        if self.services.contains_key(key) {
            self.routes.insert(key.clone(), after.clone());
            change.routes = Some(after.clone());
        }
        change.namespace = self.count_service(&key.namespace, existed, change.routes.is_some());
        let touched = had.iter().chain(&has).chain(&before.external).chain(&after.external);
        let touched: BTreeSet<IpAddr> = touched.copied().collect();
        change.cluster_ips = touched.into_iter().map(|ip| (ip, self.by_ip(ip).cloned())).collect();
        for listen in new.keys().filter(|listen| !old.contains_key(listen)) {
            self.listeners.claim(*listen, key);
        }
        for listen in old.into_keys().filter(|listen| !new.contains_key(listen)) {
            let owned = self.owner(&listen) == Some(key);
            self.listeners.release(&listen, key);
            if !owned {
                continue;
            }
            let heir = self.owner(&listen).and_then(|heir| self.routes.get(heir));
            match heir.and_then(|heir| listeners(heir).remove(&listen)) {
                Some(route) => {
                    change.set.insert(listen, route);
                }
                None => {
                    change.closed.insert(listen);
                }
            }
        }
        change.set.extend(new.into_iter().filter(|(listen, _)| self.owner(listen) == Some(key)));
        change
    }

    /// The Service that has a listener.
    fn owner(&self, listen: &Listen) -> Option<&ObjectKey> {
        match listen {
            Listen::External(..) | Listen::Datagrams(Entrance::External(..)) => self.listeners.first(listen),
            _ => self.listeners.last(listen),
        }
    }

    /// Counts the Services of a namespace; returns whether it got its first or lost its last one.
    fn count_service(&mut self, namespace: &str, existed: bool, exists: bool) -> Option<(Arc<str>, bool)> {
        match (existed, exists) {
            (false, true) => match self.namespaces.get_mut(namespace) {
                Some(count) => {
                    *count += 1;
                    None
                }
                None => {
                    let name: Arc<str> = namespace.into();
                    self.namespaces.insert(name.clone(), 1);
                    Some((name, true))
                }
            },
            (true, false) => {
                let count = self.namespaces.get_mut(namespace)?;
                *count -= 1;
                if *count > 0 {
                    return None;
                }
                self.namespaces.remove_entry(namespace).map(|(name, _)| (name, false))
            }
            _ => None,
        }
    }

    fn count_ready(&mut self, before: &ServiceRoutes, after: &ServiceRoutes, change: &mut Change) {
        for endpoint in after.ports.values().flat_map(|route| &route.ready) {
            let count = self.ready_ips.entry(endpoint.ip).or_default();
            *count += 1;
            if *count == 1 {
                change.begun.push(endpoint.ip);
            }
        }
        for endpoint in before.ports.values().flat_map(|route| &route.ready) {
            if let Some(count) = self.ready_ips.get_mut(&endpoint.ip) {
                *count -= 1;
                if *count == 0 {
                    self.ready_ips.remove(&endpoint.ip);
                    change.ceased.push(endpoint.ip);
                }
            }
        }
        // Drops counters of addresses that no route contains: only the table holds them.
        if self.in_flight.len() > 2 * (self.ready_ips.len() + 16) {
            let live: BTreeSet<(IpAddr, u16)> = self
                .routes
                .values()
                .map(|routes| &**routes)
                .chain([after])
                .flat_map(|routes| routes.ports.values())
                .flat_map(|route| route.ready.iter().chain(&route.draining))
                .map(|endpoint| (endpoint.ip, endpoint.port))
                .collect();
            self.in_flight.retain(|address, in_flight| live.contains(address) || in_flight.count() > 0);
        }
    }
}

/// The load balancer addresses that are served here; those of mode `Proxy` are served by another proxy.
fn load_balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_balancer = service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    let status = service.status.as_ref().filter(|_| is_balancer).and_then(|status| status.load_balancer.as_ref());
    let ingress = status.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let itself = ingress.filter(|one| one.ip_mode.as_deref() != Some("Proxy"));
    itself.filter_map(|one| one.ip.as_deref()?.parse().ok())
}

/// The addresses of `externalIPs`.
fn external_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let all = service.spec.as_ref().and_then(|spec| spec.external_ips.as_ref());
    all.into_iter().flatten().filter_map(|ip| ip.parse().ok())
}

/// The source ranges of a load balancer, from the spec or else from the older annotation.
fn sources(service: &Service) -> Arc<[IpNet]> {
    let spec = service.spec.as_ref().and_then(|spec| spec.load_balancer_source_ranges.as_deref()).unwrap_or_default();
    let annotation = service.metadata.annotations.as_ref().and_then(|all| all.get(SOURCE_RANGES));
    let annotated = annotation.filter(|_| spec.is_empty()).into_iter().flat_map(|text| text.split(','));
    // The API validates ranges.
    spec.iter().map(String::as_str).chain(annotated).filter_map(|range| range.trim().parse().ok()).collect()
}

/// Parses `appProtocol`; a known one makes the data plane balance requests, not connections (docs/contract.md §4).
fn app_protocol(text: Option<&str>) -> AppProtocol {
    match text {
        Some("http" | "ws" | "kubernetes.io/ws") => AppProtocol::Http,
        Some("h2c" | "grpc" | "kubernetes.io/h2c") => AppProtocol::H2c,
        _ => AppProtocol::Unknown,
    }
}

fn routes(
    key: &ObjectKey,
    service: &Service,
    slices: Option<&BTreeMap<String, EndpointSlice>>,
    before: &ServiceRoutes,
    in_flight: &mut HashMap<(IpAddr, u16), InFlightCount>,
) -> ServiceRoutes {
    let Some(spec) = &service.spec else { return ServiceRoutes::default() };
    let published = Published::of(spec, slices);
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceRoutes { key: Some(key.clone()), published, ..ServiceRoutes::default() };
    }
    let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured =
            spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        configured.map_or(AFFINITY_TIMEOUT, |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    });
    let sources = sources(service);
    let headless = cluster_ip.is_none();
    let key_of_routes = Some(key.clone());
    let mut result = ServiceRoutes { key: key_of_routes, cluster_ip, headless, published, ..ServiceRoutes::default() };
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => continue, // crate::unsupported reports it on the Service
        };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let name = port.name.clone().unwrap_or_default();
        let place = (protocol, number);
        let sticky = affinity.map(|timeout| {
            let known = before.ports.get(&place).and_then(|route| route.sticky.as_ref());
            Sticky { timeout, clients: known.map(|sticky| sticky.clients.clone()).unwrap_or_default() }
        });
        let mut route = PortRoute {
            via: Some(Arc::new(ServicePort { service: key.clone(), port: number })),
            name: name.clone(),
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            app_protocol: app_protocol(port.app_protocol.as_deref()),
            learned: before.ports.get(&place).map(|route| route.learned.clone()).unwrap_or_default(),
            sticky,
            sources: sources.clone(),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            ..PortRoute::default()
        };
        for slice in slices.into_iter().flat_map(BTreeMap::values) {
            collect(slice, &name, &mut route, in_flight);
        }
        route.hinted = route.usable().iter().any(|endpoint| !endpoint.hints.is_empty());
        result.ports.insert(place, Arc::new(route));
    }
    result
}

/// Adds the endpoints of one slice for a Service port's name.
fn collect(
    slice: &EndpointSlice,
    name: &str,
    route: &mut PortRoute,
    in_flight: &mut HashMap<(IpAddr, u16), InFlightCount>,
) {
    let named = slice.ports.iter().flatten().find(|port| port.name.as_deref().unwrap_or_default() == name);
    let Some(port) = named.and_then(|port| u16::try_from(port.port?).ok()) else { return };
    for endpoint in slice.endpoints.iter().flatten() {
        let list = match readiness(endpoint) {
            Readiness::Ready => &mut route.ready,
            Readiness::Draining => &mut route.draining,
            Readiness::Neither => continue,
        };
        let Some(ip) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else { continue };
        if list.iter().any(|other| other.ip == ip && other.port == port) {
            continue; // a moving pod may be in two slices
        }
        let in_flight = in_flight.entry((ip, port)).or_default().clone();
        list.push(Arc::new(Endpoint {
            ip,
            port,
            node: endpoint.node_name.clone(),
            hints: Hints::of(endpoint),
            hostname: endpoint.hostname.clone().unwrap_or_else(|| dashed(ip)),
            in_flight,
        }));
    }
}

mod claims;
mod listeners;
mod reverse;
#[cfg(test)]
pub(crate) mod tests;
