//! `endpointslice-controller`: the endpoints of each Service, in slices of at most 100.
//!
//! Endpoints stay in their slice. New ones fill slices that change anyway, then the fullest slice with space for all of
//! them, then new slices. So a change of one pod changes one slice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_api::{ObjectKey, names};
use machinery_client::driver::own_key;
use machinery_client::selector::{Labels, contains};
use machinery_client::{
    Action, BackOff, Change, Context, Controller, Input, Kind, ObjectCache, OutcomeEvents, Plan, Pod, controlled_by,
    key_of, value_of,
};
use serde_json::Value;

use crate::Settings;
use crate::fnv::fnv128a;
use crate::pods;

/// The maximum number of endpoints in a slice (upstream's default).
const ENDPOINTS_MAX: usize = 100;
/// The label with the manager of a slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller's value of that label.
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "endpointslice-controller",
    account: "endpointslice-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<Service>(own_key),
        Input::of::<Pod>(of_pod),
        Input::of::<EndpointSlice>(of_slice),
        Input::of::<Node>(of_node),
    ],
    reconcile,
};

/// The Services that select or selected the pod, if the change affects its endpoints.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if let (Some(old), Some(new)) = (change.before::<Pod>(), change.after::<Pod>())
        && endpoint_inputs(old) == endpoint_inputs(new)
        && old.metadata.labels == new.metadata.labels
    {
        return Vec::new();
    }
    let chosen = |service: &&Service| change.states().any(|state| chooses(service, state.labels.as_ref()));
    view.list::<Service>(&change.key.namespace).filter(chosen).map(|s| key_of(&s.metadata)).collect()
}

/// The part of a pod that its endpoints contain, and whether it has endpoints.
fn endpoint_inputs(pod: &Pod) -> impl PartialEq {
    let status = pod.status.as_ref();
    let own = pod.spec.as_ref().map(|spec| (&spec.node_name, &spec.hostname, &spec.subdomain));
    let ips = status.map(|status| (&status.pod_ip, &status.pod_ips));
    let going = pod.metadata.deletion_timestamp.is_some();
    (own, ips, going, pods::is_ready(pod), pods::is_terminal(pod), &pod.metadata.uid)
}

fn of_slice(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let ours = |labels: &&Labels| labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER);
    let service = |labels: &Labels| labels.get(names::SERVICE_NAME).cloned();
    let services = change.states().filter_map(|m| m.labels.as_ref()).filter(ours).filter_map(service);
    services.map(|name| ObjectKey::new(&*change.key.namespace, name)).collect()
}

/// The Services of a node's pods, when the node is added, removed or changes its zone. Heartbeats are ignored.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let zone = |node: Option<&Node>| node.map(|n| n.metadata.labels.as_ref().and_then(|l| l.get(ZONE)).cloned());
    if zone(change.before()) == zone(change.after()) {
        return Vec::new();
    }
    let mut keys = BTreeSet::new();
    for pod in view.on_node(&change.key.name) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let services = view.list::<Service>(namespace).filter(|s| chooses(s, pod.metadata.labels.as_ref()));
        keys.extend(services.map(|s| key_of(&s.metadata)));
    }
    keys.into_iter().collect()
}

fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    spec.selector.as_ref().filter(|s| !s.is_empty() && spec.type_.as_deref() != Some("ExternalName"))
}

fn chooses(service: &Service, labels: Option<&Labels>) -> bool {
    selector(service).is_some_and(|wanted| contains(labels, wanted))
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let Some(service) = view.get::<Service>(key) else { return Plan::nothing() };
    let (Some(spec), Some(selector)) = (&service.spec, selector(service)) else { return Plan::nothing() };
    let families = families(spec);
    let mut chosen: Vec<&Pod> = view.labelled(&key.namespace, selector);
    chosen.retain(|pod| !pods::is_terminal(pod));
    let ours = [(names::SERVICE_NAME, &*key.name), (MANAGED_BY, MANAGER)].map(|(n, v)| (n.to_owned(), v.to_owned()));
    let ours = Labels::from(ours);
    let mut slices: Vec<&EndpointSlice> = view.labelled(&key.namespace, &ours);
    slices.retain(|slice| slice.metadata.deletion_timestamp.is_none());
    let mut plan = Plan::nothing();
    for family in &families {
        let present = slices.iter().copied().filter(|s| s.address_type == *family).collect();
        plan.actions.extend(of_family(view, service, spec, &chosen, present, family));
    }
    let unfit = slices.iter().filter(|s| !families.contains(&s.address_type.as_str()));
    plan.actions.extend(unfit.map(|slice| Action::delete(*slice)));
    plan
}

fn families(spec: &ServiceSpec) -> BTreeSet<&'static str> {
    let given: BTreeSet<&'static str> =
        spec.ip_families.iter().flatten().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if !given.is_empty() {
        return given;
    }
    match spec.cluster_ip.as_deref() {
        Some(ip) if ip != "None" && !ip.is_empty() => BTreeSet::from([if ip.contains(':') { "IPv6" } else { "IPv4" }]),
        _ => BTreeSet::from(["IPv4", "IPv6"]),
    }
}

/// Ports in canonical order: the key of a group of slices.
fn port_key(ports: &[EndpointPort]) -> Vec<String> {
    let mut key: Vec<String> = ports.iter().map(|p| value_of(p).to_string()).collect();
    key.sort();
    key
}

fn of_family(
    view: &ObjectCache,
    service: &Service,
    spec: &ServiceSpec,
    chosen: &[&Pod],
    present: Vec<&EndpointSlice>,
    family: &str,
) -> Vec<Action> {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    // Slices of a deleted Service of that name are left to the garbage collector.
    let (present, foreign): (Vec<&EndpointSlice>, Vec<&EndpointSlice>) = present.into_iter().partition(|slice| {
        slice.metadata.owner_references.iter().flatten().any(|o| o.uid == uid && o.kind == "Service")
    });
    let mut groups: BTreeMap<Vec<String>, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    let mut changed_at: Option<Timestamp> = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
    for pod in chosen {
        let node = node_name(pod).map(|name| view.get::<Node>(&ObjectKey::cluster(name)));
        if node.flatten().is_none() && spec.publish_not_ready_addresses != Some(true) {
            continue;
        }
        let Some(endpoint) = endpoint(pod, node.flatten(), service, spec, family) else { continue };
        let ports = ports(pod, spec);
        groups.entry(port_key(&ports)).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
        changed_at = changed_at.max(pods::ready_since(pod));
    }
    let mut changes = SliceChanges::default();
    changes.delete.extend(foreign.iter().copied());
    for slice in &present {
        if !groups.contains_key(&port_key(slice.ports.as_deref().unwrap_or_default())) {
            changes.delete.push(slice);
        }
    }
    for (key, (ports, endpoints)) in groups {
        let of_group =
            present.iter().copied().filter(|s| port_key(s.ports.as_deref().unwrap_or_default()) == key).collect();
        changes.add(service, family, ports, endpoints, of_group);
    }
    // A Service has at least one slice, if only an empty one.
    if changes.create.is_empty() && changes.delete.len() == present.len() + foreign.len() {
        let placeholder = new_slice(service, family, Vec::new(), Vec::new());
        let keep = changes.delete.iter().position(|slice| is_placeholder(slice, &placeholder));
        match keep {
            Some(at) => {
                changes.delete.remove(at);
            }
            None => changes.create.push(placeholder),
        }
    }
    changes.into_actions(uid, changed_at)
}

fn is_placeholder(slice: &EndpointSlice, placeholder: &EndpointSlice) -> bool {
    slice.endpoints.iter().flatten().next().is_none()
        && slice.ports.iter().flatten().next().is_none()
        && slice.metadata.labels == placeholder.metadata.labels
        && slice.metadata.owner_references == placeholder.metadata.owner_references
}

/// The changes of the slices of a Service and family.
#[derive(Default)]
struct SliceChanges<'a> {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<&'a EndpointSlice>,
}

impl<'a> SliceChanges<'a> {
    /// Distributes a group's endpoints.
    fn add(
        &mut self,
        service: &Service,
        family: &str,
        ports: Vec<EndpointPort>,
        wanted: Vec<Endpoint>,
        present: Vec<&'a EndpointSlice>,
    ) {
        let mut wanted: BTreeMap<String, Endpoint> = wanted.into_iter().map(|e| (identity(&e), e)).collect();
        let mut changed: Vec<EndpointSlice> = Vec::new();
        let mut same: Vec<&EndpointSlice> = Vec::new();
        for slice in present {
            let had = slice.endpoints.as_deref().unwrap_or_default();
            let kept: Vec<Endpoint> = had.iter().filter_map(|e| wanted.remove(&identity(e))).collect();
            let labels = labels(service, Some(slice));
            if kept == had && labels.is_none() {
                same.push(slice);
            } else if kept.is_empty() && !had.is_empty() {
                self.delete.push(slice);
            } else {
                let mut slice = slice.clone();
                slice.endpoints = Some(kept);
                if let Some(labels) = labels {
                    slice.metadata.labels = Some(labels);
                }
                changed.push(slice);
            }
        }
        let mut rest: Vec<Endpoint> = wanted.into_values().collect();
        changed.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.as_ref().map_or(0, Vec::len)));
        for slice in &mut changed {
            let endpoints = slice.endpoints.get_or_insert_default();
            let free = ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..free));
        }
        if !rest.is_empty() {
            let length = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
            let fits = same.iter().filter(|s| length(s) + rest.len() <= ENDPOINTS_MAX);
            if let Some(fullest) = fits.max_by_key(|s| length(s)) {
                let mut slice = (*fullest).clone();
                slice.endpoints.get_or_insert_default().append(&mut rest);
                changed.push(slice);
            }
        }
        for part in rest.chunks(ENDPOINTS_MAX) {
            self.create.push(new_slice(service, family, ports.clone(), part.to_vec()));
        }
        self.update.append(&mut changed);
    }

    /// Slices to delete are updated to the content of slices to create.
    fn into_actions(mut self, uid: &str, changed_at: Option<Timestamp>) -> Vec<Action> {
        let ours = |s: &&EndpointSlice| s.metadata.owner_references.iter().flatten().any(|o| o.uid == uid);
        while let Some(at) = self.delete.iter().position(ours) {
            let Some(new) = self.create.pop() else { break };
            let mut reused = self.delete.remove(at).clone();
            reused.metadata.labels = new.metadata.labels;
            reused.endpoints = new.endpoints;
            reused.ports = new.ports;
            self.update.push(reused);
        }
        let stamped = |mut slice: EndpointSlice| {
            let annotations = slice.metadata.annotations.get_or_insert_default();
            match changed_at {
                Some(at) => annotations.insert(TRIGGER_TIME.to_owned(), at.to_string()),
                None => annotations.remove(TRIGGER_TIME),
            };
            to_wire(&slice)
        };
        let kind = Kind::of::<EndpointSlice>();
        let creates = self.create.into_iter().map(stamped);
        let creates =
            creates.map(|object| Action::Create { kind: kind.clone(), object, notes: OutcomeEvents::default() });
        let updates = self.update.into_iter().map(stamped);
        let updates = updates.map(|object| Action::Update { kind: kind.clone(), object, subresource: None });
        let deletes = self.delete.iter().map(|slice| Action::delete(*slice));
        creates.chain(updates).chain(deletes).collect()
    }
}

/// The wire form: empty endpoints and ports are null, as upstream writes them.
fn to_wire(slice: &EndpointSlice) -> Value {
    let mut value = value_of(slice);
    for field in ["endpoints", "ports"] {
        if value[field].as_array().is_none_or(Vec::is_empty) {
            value[field] = Value::Null;
        }
    }
    value
}

/// The identity of an endpoint, independent of its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    let part = |of: Option<&String>| of.map_or("", String::as_str).to_owned();
    let (uid, name) = (part(target.and_then(|t| t.uid.as_ref())), part(target.and_then(|t| t.name.as_ref())));
    format!("{}|{name}|{uid}|{}", endpoint.addresses.join(","), part(endpoint.hostname.as_ref()))
}

fn new_slice(service: &Service, family: &str, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: labels(service, None),
            owner_references: Some(vec![controlled_by(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

/// A slice's labels: the Service's and the controller's. None if the slice has them already; the controller's alone
/// cause no write.
fn labels(service: &Service, present: Option<&EndpointSlice>) -> Option<Labels> {
    let reserved = |name: &str| matches!(name, names::SERVICE_NAME | MANAGED_BY | HEADLESS);
    let open = |labels: Option<&Labels>| -> Labels {
        labels.into_iter().flatten().filter(|(n, _)| !reserved(n)).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let mut labels = open(service.metadata.labels.as_ref());
    if present.is_some_and(|slice| open(slice.metadata.labels.as_ref()) == labels) {
        return None;
    }
    let ip = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
    if ip.is_empty() || ip == "None" {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(names::SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    Some(labels)
}

/// The pod's ports for the Service; a named port that the pod lacks is left out.
fn ports(pod: &Pod, spec: &ServiceSpec) -> Vec<EndpointPort> {
    let port = |port: &ServicePort| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
    };
    let mut ports: Vec<EndpointPort> = spec.ports.iter().flatten().filter_map(port).collect();
    ports.sort_by_cached_key(port_hash);
    ports
}

/// Upstream's order of a slice's ports: by a hash of Go's `%#v` form.
fn port_hash(port: &EndpointPort) -> u128 {
    let nil = || "<nil>".to_owned();
    let printed = format!(
        "(v1.EndpointPort){{Name:(*string){} Protocol:(*v1.Protocol){} Port:(*int32){} AppProtocol:(*string){}}}",
        port.name.clone().unwrap_or_else(nil),
        port.protocol.clone().unwrap_or_else(nil),
        port.port.map_or_else(nil, |n| n.to_string()),
        port.app_protocol.clone().unwrap_or_else(nil),
    );
    fnv128a(&printed)
}

fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let wanted = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(n)) => return Some(*n),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = |p: Option<&String>| p.map_or("TCP", String::as_str).to_owned();
    let shape = &pod.spec.as_ref()?.shape;
    let sidecars = shape.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = shape.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .find(|p| p.name.as_ref() == Some(wanted) && protocol(p.protocol.as_ref()) == protocol(port.protocol.as_ref()))
        .map(|p| p.container_port)
}

/// The endpoint of a pod; none if it has no address of the family.
fn endpoint(pod: &Pod, node: Option<&Node>, service: &Service, spec: &ServiceSpec, family: &str) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let ips: Vec<&str> = match &status.pod_ips {
        Some(ips) if !ips.is_empty() => ips.iter().map(|ip| ip.ip.as_str()).collect(),
        _ => status.pod_ip.iter().map(String::as_str).collect(),
    };
    let of_family = |ip: &IpAddr| ip.is_ipv6() == (family == "IPv6");
    let addresses: Vec<String> =
        ips.iter().filter_map(|ip| ip.parse().ok()).filter(of_family).map(|ip| ip.to_string()).collect();
    if addresses.is_empty() {
        return None;
    }
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = spec.publish_not_ready_addresses == Some(true) || (serving && !terminating);
    let zone = node.and_then(|n| n.metadata.labels.as_ref()?.get(ZONE).cloned()).filter(|z| !z.is_empty());
    let node_name = node_name(pod).map(str::to_owned);
    let own_name = pod.spec.as_ref().filter(|p| p.subdomain == service.metadata.name && p.subdomain.is_some());
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: own_name.and_then(|p| p.hostname.clone()).filter(|h| !h.is_empty()),
        hints: hints(spec, ready, zone.as_deref(), node_name.as_deref()),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
        deprecated_topology: None,
    })
}

/// The zones and nodes that should prefer the endpoint (`spec.trafficDistribution`).
fn hints(spec: &ServiceSpec, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let wish = spec.traffic_distribution.as_deref()?;
    if !ready || !matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        return None;
    }
    let zones = zone.map(|name| vec![ForZone { name: name.to_owned() }]);
    let node = node.filter(|_| wish == "PreferSameNode");
    let nodes = node.map(|name| vec![ForNode { name: name.to_owned() }]);
    (zones.is_some() || nodes.is_some()).then_some(EndpointHints { for_zones: zones, for_nodes: nodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_hashed_as_upstream_does() {
        let port = |name: &str, port, protocol: &str, app: Option<&str>| EndpointPort {
            name: Some(name.into()),
            port,
            protocol: Some(protocol.into()),
            app_protocol: app.map(str::to_owned),
        };
        for (given, hash) in [
            (port("a", Some(8080), "TCP", None), "4e47056c81e47ad2971aa4dc9c84bef8"),
            (port("b", Some(53), "UDP", None), "b7cc082b65ae9a284ebdd4deac08d5b3"),
            (port("d", Some(82), "TCP", Some("http")), "bd8f435355fd371920f078a026262dd4"),
            (port("x", None, "TCP", None), "aefeee96666e389b7f69439fddf716fe"),
        ] {
            assert_eq!(format!("{:032x}", port_hash(&given)), hash, "{given:?}");
        }
    }
}
