//! `endpointslice-mirroring-controller`: copies user-made Endpoints of a Service without a selector to EndpointSlices,
//! which the data plane reads.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use machinery_api::{ObjectKey, ip, names};
use machinery_client::selector::Labels;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Kind, ObjectCache, OutcomeEvents, Plan,
    controlled_by, value_of,
};
use serde_json::Value;

use super::{SLICE_MANAGED_BY, TRIGGER_TIME, is_lock, subsets};
use crate::Settings;

/// The maximum number of addresses in a subset.
const ADDRESSES_MAX: usize = 1000;
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// The component of events.
const SOURCE: &str = "endpoint-slice-mirroring-controller";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotations that are not copied.
const NOT_COPIED: [&str; 2] = [TRIGGER_TIME, "kubectl.kubernetes.io/last-applied-configuration"];

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "endpointslice-mirroring-controller",
    account: "endpointslicemirroring-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<Endpoints>(of_endpoints),
        Input::of::<EndpointSlice>(of_slice),
        Input::of::<Service>(of_service),
    ],
    reconcile,
};

fn selects(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty())
}

/// Endpoints of a Service with a selector derive from its pods and are never mirrored. Most are of this kind, and cost
/// nothing here.
fn of_endpoints(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let states = [change.before::<Endpoints>(), change.after::<Endpoints>()];
    let mirrored = states.into_iter().flatten().any(is_mirrored);
    let made = view.get::<Service>(&change.key).is_some_and(selects);
    if mirrored && !made { vec![(*change.key).clone()] } else { Vec::new() }
}

fn of_slice(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let labels = change.states().filter_map(|metadata| metadata.labels.as_ref());
    let services = labels.filter(|labels| is_ours(labels)).filter_map(|labels| labels.get(names::SERVICE_NAME));
    let mut keys: Vec<ObjectKey> = services.map(|name| ObjectKey::new(&*change.key.namespace, &**name)).collect();
    keys.dedup();
    keys
}

/// When a Service without a selector is added or removed, or a selector is added or removed.
fn of_service(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let looked_at = match (change.before::<Service>(), change.after::<Service>()) {
        (Some(old), Some(new)) => selects(old) != selects(new),
        (one, other) => one.or(other).is_some_and(|service| !selects(service)),
    };
    if looked_at { vec![(*change.key).clone()] } else { Vec::new() }
}

fn is_ours(labels: &Labels) -> bool {
    labels.get(SLICE_MANAGED_BY).is_some_and(|by| by == MANAGER)
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skip = endpoints.metadata.labels.as_ref().and_then(|labels| labels.get(SKIP));
    skip.is_none_or(|skip| skip != "true") && !is_lock(endpoints)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let ours = |slice: &&EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        slice.metadata.deletion_timestamp.is_none()
            && labels.is_some_and(|l| is_ours(l) && l.get(names::SERVICE_NAME).is_some_and(|name| *name == key.name))
    };
    let slices: Vec<&EndpointSlice> = view.list::<EndpointSlice>(&key.namespace).filter(ours).collect();
    let endpoints = view.get::<Endpoints>(key).filter(|endpoints| is_mirrored(endpoints));
    let bare = view.get::<Service>(key).is_some_and(|service| !selects(service));
    let Some(endpoints) = endpoints.filter(|_| bare) else {
        return slices.into_iter().map(Action::delete).collect::<Vec<_>>().into();
    };
    let wanted = DesiredSlices::of(endpoints);
    let mut actions = actions(endpoints, &wanted, &slices);
    if !actions.is_empty() {
        actions.splice(0..0, wanted.events(endpoints).into_iter().map(|event| Action::Event(event.from(SOURCE))));
    }
    actions.into()
}

/// The group of a slice: the family and the ports.
type GroupKey = (&'static str, BTreeSet<String>);

/// The desired content of the mirrored slices.
#[derive(Default)]
struct DesiredSlices {
    groups: BTreeMap<GroupKey, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)>,
    invalid: usize,
    skipped: usize,
}

impl DesiredSlices {
    fn of(endpoints: &Endpoints) -> Self {
        let mut wanted = Self::default();
        for subset in subsets::repack(endpoints.subsets.as_deref().unwrap_or_default()) {
            wanted.add(&subset);
        }
        wanted.groups.retain(|_, (_, endpoints)| !endpoints.is_empty());
        wanted
    }

    fn add(&mut self, subset: &EndpointSubset) {
        let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut added = 0;
        for (address, ready) in ready.chain(unready) {
            if added == ADDRESSES_MAX {
                break;
            }
            let Some((family, endpoint)) = endpoint(address, ready) else {
                self.invalid += 1;
                continue;
            };
            added += 1;
            let group = self.groups.entry((family, port_set(&ports)));
            let (_, endpoints) = group.or_insert_with(|| (ports.clone(), BTreeMap::new()));
            endpoints.insert(identity(&endpoint), endpoint);
        }
        self.skipped += subsets::count(subset) - added;
    }

    /// Events for the author of the Endpoints.
    fn events(&self, endpoints: &Endpoints) -> Vec<EventRecord> {
        let mut events = Vec::new();
        if self.invalid > 0 {
            let message = format!("Skipped {} invalid IP addresses when mirroring to EndpointSlices", self.invalid);
            events.push(EventRecord::warning(endpoints, "InvalidIPAddress", message));
        }
        if self.skipped > self.invalid {
            let message = format!(
                "A max of {ADDRESSES_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                self.skipped
            );
            events.push(EventRecord::warning(endpoints, "TooManyAddressesToMirror", message));
        }
        events
    }
}

fn port(of: &k8s_openapi::api::core::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        name: Some(of.name.clone().unwrap_or_default()),
        port: Some(of.port),
        protocol: Some(of.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: of.app_protocol.clone(),
    }
}

fn port_set(ports: &[EndpointPort]) -> BTreeSet<String> {
    ports.iter().map(|port| value_of(port).to_string()).collect()
}

fn endpoint(of: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip = ip::leniently(&of.ip)?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: of.hostname.clone().filter(|name| !name.is_empty()),
        node_name: of.node_name.clone(),
        target_ref: of.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((if ip.is_ipv4() { "IPv4" } else { "IPv6" }, endpoint))
}

/// The identity of an endpoint, independent of its conditions.
fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint.target_ref.as_ref();
    let part = |of: Option<&String>| of.map_or("", String::as_str).to_owned();
    let (namespace, name) = (target.and_then(|t| t.namespace.as_ref()), target.and_then(|t| t.name.as_ref()));
    let names = [part(endpoint.hostname.as_ref()), part(namespace), part(name)].join("|");
    format!("{}|{names}", endpoint.addresses.join(","))
}

/// The endpoints of a slice for comparison: in order, and without the pods' resource versions.
fn compared(endpoints: impl Iterator<Item = Endpoint>) -> BTreeMap<String, Endpoint> {
    endpoints
        .map(|mut endpoint| {
            if let Some(target) = &mut endpoint.target_ref {
                target.resource_version = None;
            }
            (identity(&endpoint), endpoint)
        })
        .collect()
}

fn actions(endpoints: &Endpoints, wanted: &DesiredSlices, slices: &[&EndpointSlice]) -> Vec<Action> {
    let mut present: BTreeMap<(&str, BTreeSet<String>), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let key = (slice.address_type.as_str(), port_set(slice.ports.as_deref().unwrap_or_default()));
        present.entry(key).or_default().push(slice);
    }
    let (mut create, mut update, mut delete) = (Vec::new(), Vec::new(), Vec::new());
    for ((family, ports_key), (ports, members)) in &wanted.groups {
        let new = slice(endpoints, family, ports, members);
        let mut there = present.remove(&(*family, ports_key.clone())).unwrap_or_default().into_iter();
        match there.next() {
            Some(known) if has_content_of(known, &new) => {}
            Some(known) => update.push(in_place_of(known, new)),
            None => create.push(new),
        }
        delete.extend(there);
    }
    delete.extend(present.into_values().flatten());
    // A slice to delete is updated to the content of a slice to create.
    create.retain(|new| match delete.iter().position(|old| old.address_type == new.address_type) {
        Some(at) => {
            update.push(in_place_of(delete.remove(at), new.clone()));
            false
        }
        None => true,
    });
    if endpoints.metadata.deletion_timestamp.is_some() {
        create.clear();
    }
    let kind = Kind::of::<EndpointSlice>();
    let creates = create.iter().map(to_wire);
    let creates = creates.map(|object| Action::Create { kind: kind.clone(), object, notes: OutcomeEvents::default() });
    let updates = update.iter().map(to_wire);
    let updates = updates.map(|object| Action::Update { kind: kind.clone(), object, subresource: None });
    creates.chain(updates).chain(delete.into_iter().map(Action::delete)).collect()
}

/// The wire form: empty ports are null, as upstream writes them.
fn to_wire(slice: &EndpointSlice) -> Value {
    let mut value = value_of(slice);
    if value["ports"].as_array().is_none_or(Vec::is_empty) {
        value["ports"] = Value::Null;
    }
    value
}

fn slice(
    endpoints: &Endpoints,
    family: &str,
    ports: &[EndpointPort],
    members: &BTreeMap<String, Endpoint>,
) -> EndpointSlice {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(names::SERVICE_NAME.to_owned(), name.clone());
    labels.insert(SLICE_MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|name, _| !NOT_COPIED.contains(&&**name));
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![controlled_by(endpoints)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(members.values().take(ADDRESSES_MAX).cloned().collect()),
        ports: Some(ports.to_vec()),
    }
}

/// Whether a slice has the content of a new one.
fn has_content_of(known: &EndpointSlice, new: &EndpointSlice) -> bool {
    let filled = |annotations: &Option<Labels>| annotations.clone().filter(|annotations| !annotations.is_empty());
    let members = |slice: &EndpointSlice| compared(slice.endpoints.iter().flatten().cloned());
    let owners = |slice: &EndpointSlice| -> Vec<OwnerReference> {
        slice.metadata.owner_references.iter().flatten().filter(|owner| owner.kind == "Endpoints").cloned().collect()
    };
    members(known) == members(new)
        && known.metadata.labels == new.metadata.labels
        && filled(&known.metadata.annotations) == filled(&new.metadata.annotations)
        && owners(known) == owners(new)
}

fn in_place_of(known: &EndpointSlice, new: EndpointSlice) -> EndpointSlice {
    let metadata = ObjectMeta {
        labels: new.metadata.labels,
        annotations: new.metadata.annotations,
        owner_references: new.metadata.owner_references,
        ..known.metadata.clone()
    };
    EndpointSlice { metadata, ..new }
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::json;

    use super::*;
    use crate::table_tests::{decide, start};

    fn service(selector: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "a"},
            "spec": {"clusterIP": "10.96.0.9", "selector": selector, "ports": [{"port": 80}]}})
    }

    fn endpoints(subsets: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "db", "namespace": "a", "uid": "e", "labels": {"of": "me"},
                "annotations": {"note": "x", TRIGGER_TIME: "2025-12-31T23:00:00Z"}},
            "subsets": subsets})
    }

    fn key() -> ObjectKey {
        ObjectKey::new("a", "db")
    }

    fn pass(simulation: &mut Simulation) -> Plan {
        let plan = decide("endpointslice-mirroring-controller", simulation, &key());
        assert_eq!(simulation.apply(plan.clone()), Vec::<String>::new());
        let again = decide("endpointslice-mirroring-controller", simulation, &key());
        assert_eq!(again, Plan::nothing());
        plan
    }

    fn slices(simulation: &Simulation) -> Vec<EndpointSlice> {
        simulation.view.all::<EndpointSlice>().cloned().collect()
    }

    #[test]
    fn each_family_of_a_subset_is_a_slice() {
        let subsets = json!([{"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "10.1.2.4"}],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}]);
        let mut simulation = crate::simulation(start(), [service(json!(null)), endpoints(subsets)]);
        pass(&mut simulation);
        let made = slices(&simulation);
        let four = made.iter().find(|slice| slice.address_type == "IPv4").unwrap();
        assert_eq!(made.len(), 2);
        let ready: Vec<_> = four
            .endpoints
            .iter()
            .flatten()
            .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().and_then(|c| c.ready)))
            .collect();
        assert_eq!(ready, [("10.1.2.3", Some(true)), ("10.1.2.4", Some(false))]);
        let labels = four.metadata.labels.as_ref().unwrap();
        assert_eq!((labels["of"].as_str(), labels[SLICE_MANAGED_BY].as_str()), ("me", MANAGER));
        assert_eq!(four.metadata.annotations, Some(Labels::from([("note".to_owned(), "x".to_owned())])));

        // A change of address and port is one update of the existing slice.
        let mut changed = simulation.view.get::<Endpoints>(&key()).map(value_of).unwrap();
        changed["subsets"] = json!([{"addresses": [{"ip": "10.1.2.9"}], "ports": [{"name": "https", "port": 443}]}]);
        simulation.write(&Kind::of::<Endpoints>(), changed);
        let plan = pass(&mut simulation);
        assert!(matches!(plan.actions.as_slice(), [Action::Update { .. }, Action::Delete { .. }]), "{plan:?}");
    }

    #[test]
    fn with_a_selector_a_lock_or_no_service_nothing_is_mirrored() {
        let subsets = || json!([{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]);
        let mut simulation = crate::simulation(start(), [service(json!(null)), endpoints(subsets())]);
        pass(&mut simulation);
        assert_eq!(slices(&simulation).len(), 1);
        simulation.write(&Kind::of::<Service>(), service(json!({"app": "x"})));
        pass(&mut simulation);
        assert_eq!(slices(&simulation).len(), 0, "the Service has a selector now");
        let mut skipped = endpoints(subsets());
        skipped["metadata"]["labels"] = json!({SKIP: "true"});
        for objects in [vec![endpoints(subsets())], vec![service(json!(null)), skipped]] {
            let mut simulation = crate::simulation(start(), objects);
            assert_eq!(pass(&mut simulation), Plan::nothing());
        }
    }

    #[test]
    fn excess_and_invalid_addresses_are_reported() {
        let many: Vec<Value> = (0..1005).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect();
        let subsets = json!([{"addresses": many, "ports": [{"port": 80}]}, {"addresses": [{"ip": "x"}], "ports": [{"port": 81}]}]);
        let mut simulation = crate::simulation(start(), [service(json!(null)), endpoints(subsets)]);
        let plan = pass(&mut simulation);
        let reported: Vec<_> = plan
            .actions
            .iter()
            .filter_map(|action| if let Action::Event(event) = action { Some(event.reason) } else { None })
            .collect();
        assert_eq!(reported, ["InvalidIPAddress", "TooManyAddressesToMirror"]);
        assert_eq!(slices(&simulation)[0].endpoints.as_ref().unwrap().len(), 1000);
    }
}
