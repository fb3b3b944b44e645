//! `endpoints-controller` and `endpointslice-mirroring-controller`: write Endpoints of Services for clients of that
//! older API, and mirror user-made Endpoints to EndpointSlices.
//!
//! Endpoints derive from the slices of `endpointslice-controller`, which contain all the data. So pods and nodes are
//! processed once for both, and a pod's change costs as much as its Services' slices. Without that controller this one
//! does nothing.

pub(crate) mod mirroring;
mod subsets;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::{ObjectKey, names};
use machinery_client::driver::own_key;
use machinery_client::selector::Labels;
use machinery_client::{Action, BackOff, Change, Context, Controller, EventRecord, Input, Kind, ObjectCache, Plan};

use crate::Settings;
use crate::endpointslice::{MANAGED_BY as SLICE_MANAGED_BY, MANAGER as SLICE_MANAGER};

/// The maximum number of addresses in an object.
const ADDRESSES_MAX: usize = 1000;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// The annotation of leader election: such Endpoints are a lock and have no addresses.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "endpoints-controller",
    account: "endpoint-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<Service>(own_key),
        Input::of::<EndpointSlice>(of_slice),
        Input::of::<Endpoints>(of_endpoints),
    ],
    reconcile,
};

fn of_slice(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let service = |labels: &Labels| labels.get(names::SERVICE_NAME).cloned();
    let services =
        change.states().filter_map(|m| m.labels.as_ref()).filter(|labels| is_of_slices(labels)).filter_map(service);
    let mut keys: Vec<ObjectKey> = services.map(|name| ObjectKey::new(&*change.key.namespace, name)).collect();
    keys.dedup();
    keys.retain(|key| view.get::<Service>(key).is_some());
    keys
}

/// Deleted Endpoints whose Service exists; and on first sight those of this controller, which may be left over.
fn of_endpoints(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let looked_at = match change.after::<Endpoints>() {
        None => view.get::<Service>(&change.key).is_some(),
        Some(new) => change.old.is_none() && is_ours(new),
    };
    if looked_at { vec![(*change.key).clone()] } else { Vec::new() }
}

/// Whether the labels are of a slice of the endpointslice controller.
fn is_of_slices(labels: &Labels) -> bool {
    labels.get(SLICE_MANAGED_BY).is_some_and(|by| by == SLICE_MANAGER)
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
}

fn is_lock(endpoints: &Endpoints) -> bool {
    endpoints.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER))
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let known = view.get::<Endpoints>(key);
    let Some(service) = view.get::<Service>(key) else { return delete_left_over(key, known) };
    let Some(spec) = &service.spec else { return Plan::nothing() };
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    if !selects || spec.type_.as_deref() == Some("ExternalName") {
        return Plan::nothing();
    }
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let ours = |slice: &&EndpointSlice| slice.metadata.labels.as_ref().is_some_and(is_of_slices);
    let slices: Vec<&EndpointSlice> = view.owned::<EndpointSlice>(uid).filter(ours).collect();
    if slices.is_empty() {
        // Each Service gets at least an empty slice: before that its endpoints are unknown.
        return Plan::nothing();
    }
    let mut subsets = subsets::repack(&expanded(spec, &slices));
    let cut = subsets::truncate(&mut subsets, ADDRESSES_MAX);
    let labels = labels(service, spec);
    match known {
        None => {
            let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let metadata = ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            };
            let new = with(Endpoints { metadata, subsets: None }, subsets, cut, created);
            let message = format!("Failed to create endpoint for service {key}: {{error}}");
            let failed = EventRecord::warning(&new, "FailedToCreateEndpoint", message).from(MANAGER);
            vec![Action::create(&new).noted(None, Some(failed))].into()
        }
        Some(known) if same(known, &subsets, cut, &labels) => Plan::nothing(),
        Some(known) => {
            let mut changed = known.clone();
            changed.metadata.labels = Some(labels);
            let changed_at = slices.iter().filter_map(|slice| trigger_time(slice)).max();
            vec![Action::update(&with(changed, subsets, cut, changed_at))].into()
        }
    }
}

/// Deletes Endpoints without a Service, by any creator. The server confirms first, as a new Service may be
/// missing in the view.
fn delete_left_over(key: &ObjectKey, known: Option<&Endpoints>) -> Plan {
    let Some(known) = known.filter(|endpoints| !is_lock(endpoints)) else { return Plan::nothing() };
    let gone = Action::ExpectGone { kind: Kind::of::<Service>(), key: key.clone(), uid: None };
    vec![gone, Action::delete(known)].into()
}

fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()
}

/// One subset per endpoint, of the Service's first family.
fn expanded(spec: &ServiceSpec, slices: &[&EndpointSlice]) -> Vec<EndpointSubset> {
    let family = family(spec, slices);
    let portless = spec.ports.as_ref().is_none_or(Vec::is_empty);
    let mut found = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        let ports: Vec<EndpointPort> = slice.ports.iter().flatten().filter_map(port).collect();
        if ports.is_empty() && !portless {
            continue;
        }
        let (mut ready, mut unready) = (Vec::new(), Vec::new());
        for endpoint in slice.endpoints.iter().flatten() {
            let is = |of: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
                endpoint.conditions.as_ref().and_then(of) == Some(true)
            };
            if is(|c| c.terminating) && spec.publish_not_ready_addresses != Some(true) {
                continue;
            }
            let Some(address) = address(endpoint) else { continue };
            if is(|c| c.ready) { ready.push(address) } else { unready.push(address) }
        }
        let ports = (!ports.is_empty()).then_some(ports);
        found.push(EndpointSubset { addresses: Some(ready), not_ready_addresses: Some(unready), ports });
    }
    found.retain(|subset| subsets::count(subset) > 0);
    found
}

fn family(spec: &ServiceSpec, slices: &[&EndpointSlice]) -> &'static str {
    let named = |family: &str| if family == "IPv6" { "IPv6" } else { "IPv4" };
    if let Some(first) = spec.ip_families.iter().flatten().next() {
        return named(first);
    }
    match spec.cluster_ip.as_deref() {
        Some(ip) if ip != "None" && !ip.is_empty() => named(if ip.contains(':') { "IPv6" } else { "IPv4" }),
        _ => {
            let filled = slices.iter().filter(|slice| slice.endpoints.iter().flatten().next().is_some());
            named(filled.map(|slice| slice.address_type.as_str()).min().unwrap_or("IPv4"))
        }
    }
}

fn port(of: &k8s_openapi::api::discovery::v1::EndpointPort) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: of.name.clone().filter(|name| !name.is_empty()),
        port: of.port?,
        protocol: of.protocol.clone(),
        app_protocol: of.app_protocol.clone(),
    })
}

fn address(endpoint: &Endpoint) -> Option<EndpointAddress> {
    Some(EndpointAddress {
        ip: endpoint.addresses.first()?.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        target_ref: endpoint.target_ref.clone(),
    })
}

/// The Service's labels and the controller's.
fn labels(service: &Service, spec: &ServiceSpec) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    match spec.cluster_ip.as_deref() {
        None | Some("" | "None") => labels.insert(HEADLESS.to_owned(), String::new()),
        Some(_) => labels.remove(HEADLESS),
    };
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn same(known: &Endpoints, wanted: &[EndpointSubset], cut: bool, labels: &Labels) -> bool {
    let marked = known.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OVER_CAPACITY));
    let wanted = subsets::normal(wanted.to_vec());
    let there = subsets::normal(known.subsets.clone().unwrap_or_default());
    marked == cut
        && known.metadata.labels.as_ref() == Some(labels)
        && (there == wanted || subsets::repack(&there) == wanted)
}

fn with(mut endpoints: Endpoints, subsets: Vec<EndpointSubset>, cut: bool, changed_at: Option<Timestamp>) -> Endpoints {
    let mut annotations = endpoints.metadata.annotations.take().unwrap_or_default();
    match changed_at {
        Some(at) => annotations.insert(TRIGGER_TIME.to_owned(), at.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    if cut {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    endpoints.metadata.annotations = Some(annotations);
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    endpoints
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use machinery_client::value_of;
    use serde_json::{Value, json};

    use super::*;
    use crate::table_tests::{decide, settle, start};

    fn service(more: Value) -> Value {
        let mut service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"of": "me"}},
            "spec": {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
        for (field, value) in more.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        service
    }

    fn pod(name: &str, ip: &str, ready: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "m1", "hostname": name, "subdomain": "web", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2025-12-31T23:00:00Z"}]}})
    }

    fn node() -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m1"}})
    }

    fn key() -> ObjectKey {
        ObjectKey::new("a", "web")
    }

    /// The result of both controllers.
    fn made(objects: Vec<Value>) -> (Simulation, Option<Value>) {
        let mut simulation = crate::simulation(start(), objects);
        for _ in 0..2 {
            for name in ["endpointslice-controller", "endpoints-controller"] {
                let plan = decide(name, &simulation, &key());
                assert_eq!(simulation.apply(plan), Vec::<String>::new());
            }
        }
        let plan = decide("endpoints-controller", &simulation, &key());
        assert_eq!(plan, Plan::nothing(), "what is made is enough");
        let endpoints = simulation.view.get::<Endpoints>(&key()).map(value_of);
        (simulation, endpoints)
    }

    #[test]
    fn pods_are_addresses_by_their_readiness() {
        let objects = vec![service(json!({})), node(), pod("p1", "10.0.0.1", "True"), pod("p2", "10.0.0.2", "False")];
        let endpoints = made(objects).1.unwrap();
        let address = |name: &str, ip: &str| {
            json!({"ip": ip, "hostname": name, "nodeName": "m1",
                "targetRef": {"kind": "Pod", "namespace": "a", "name": name, "uid": name}})
        };
        let subset = json!({"addresses": [address("p1", "10.0.0.1")], "notReadyAddresses": [address("p2", "10.0.0.2")],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        assert_eq!(endpoints["subsets"], json!([subset]));
        assert_eq!(endpoints["metadata"]["labels"], json!({"of": "me", MANAGED_BY: MANAGER}));
        assert_eq!(endpoints["metadata"]["annotations"][TRIGGER_TIME], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn a_headless_service_without_ports_has_addresses_and_a_label() {
        let headless = json!({"clusterIP": "None", "ports": [], "publishNotReadyAddresses": true});
        let mut going = pod("p1", "10.0.0.1", "False");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        going["metadata"]["finalizers"] = json!(["example.com/x"]);
        let endpoints = made(vec![service(headless), node(), going]).1.unwrap();
        assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(endpoints["subsets"][0]["ports"], Value::Null);
        assert_eq!(endpoints["metadata"]["labels"][HEADLESS], "");
    }

    #[test]
    fn more_than_a_thousand_are_truncated_with_an_annotation() {
        let pods = (0..1010).map(|n| pod(&format!("p{n}"), &format!("10.0.{}.{}", n / 250, n % 250), "True"));
        let (_, endpoints) = made([service(json!({})), node()].into_iter().chain(pods).collect());
        let endpoints = endpoints.unwrap();
        assert_eq!(endpoints["subsets"][0]["addresses"].as_array().unwrap().len(), 1000);
        assert_eq!(endpoints["metadata"]["annotations"][OVER_CAPACITY], "truncated");
    }

    #[test]
    fn endpoints_are_deleted_with_their_service_only() {
        let (mut simulation, _) = made(vec![service(json!({})), node(), pod("p1", "10.0.0.1", "True")]);
        let named = |name: &str, annotations: Value| json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name, "namespace": "a", "annotations": annotations}});
        for object in [named("hand-made", json!({})), named("lock", json!({LEADER: "{}"}))] {
            simulation.create(&Kind::of::<Endpoints>(), object);
        }
        simulation.view.remove(&Kind::of::<Service>(), &key(), 1_000_000);
        let plan = decide("endpoints-controller", &simulation, &key());
        assert!(matches!(plan.actions.as_slice(), [Action::ExpectGone { .. }, Action::Delete { .. }]), "{plan:?}");
        let lock = decide("endpoints-controller", &simulation, &ObjectKey::new("a", "lock"));
        assert_eq!(lock, Plan::nothing());
        settle(&mut simulation);
        let left: Vec<_> = simulation.view.all::<Endpoints>().filter_map(|e| e.metadata.name.clone()).collect();
        assert_eq!(left, ["hand-made", "lock"]);
    }
}
