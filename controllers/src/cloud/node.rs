//! `cloud-node-controller`: initializes a node that registered with the taint
//! `node.cloudprovider.kubernetes.io/uninitialized` from its machine's data, and removes the taint. Afterwards the
//! node's addresses follow the provider.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeAddress};
use machinery_api::ObjectKey;
use machinery_api::names::{PROVIDED_IP, UNINITIALIZED};
use machinery_client::{Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan};
use serde_json::{Map, Value, json};

use super::{Instance, Instances, all_of_new, instance_of, taints};
use crate::Settings;

const SOURCE: &str = "cloud-node-controller";
/// Beta and stable names of labels; if their values differ the beta label counts, as upstream.
const LABELS: [(&str, &str); 3] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];
/// The maximum number of nodes updated in one pass over all nodes; the next pass follows at once.
const AT_ONCE: usize = 32;

/// The key is a node's, or empty for the pass over all nodes.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "cloud-node-controller",
    account: "node-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Node>(of_node)],
    reconcile,
};

fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let mut keys = all_of_new(view, change);
    keys.extend(change.new.is_some().then(|| (*change.key).clone()));
    keys
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(instances) = context.settings.instances.as_deref() else { return Plan::nothing() };
    if !key.name.is_empty() {
        let node = view.get::<Node>(key).filter(|node| node.metadata.deletion_timestamp.is_none());
        return node.map(|node| sync_node(instances, node)).unwrap_or_default();
    }
    let nodes: Vec<&Node> = view.all::<Node>().collect();
    // The starting node rotates, so that a node whose writes fail doesn't block the others.
    let turn = context.elapsed.as_secs() / context.settings.options.node_lifecycle.monitor_period.as_secs().max(1);
    let from = usize::try_from(turn).unwrap_or_default().checked_rem(nodes.len()).unwrap_or_default();
    let differ = nodes[from..].iter().chain(&nodes[..from]).filter(|node| node.metadata.deletion_timestamp.is_none());
    let plans = differ.map(|node| sync_node(instances, node)).filter(|plan| !plan.actions.is_empty());
    let actions: Vec<Action> = plans.take(AT_ONCE).flat_map(|plan| plan.actions).collect();
    let mut plan = Plan::from(actions);
    if !nodes.is_empty() {
        plan.requeue_after(context.now, context.settings.options.node_lifecycle.monitor_period);
    }
    plan
}

/// The next write for a node; the change requeues it.
fn sync_node(instances: &dyn Instances, node: &Node) -> Plan {
    let waits = taints(node).iter().any(|taint| taint.key == UNINITIALIZED);
    let instance = match instance_of(instances, node) {
        Ok(Some(instance)) => instance,
        // The node keeps its data, and its taint if it has one.
        Ok(None) | Err(_) => return if waits { Plan::nothing() } else { sync_labels(node) },
    };
    let addresses = match addresses(node, &instance) {
        Ok(addresses) => addresses,
        Err(why) => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let message = format!("provided node ip for node {name:?} is not valid: {why}");
            return vec![Action::Event(EventRecord::warning(node, "InvalidNodeIP", message).from(SOURCE))].into();
        }
    };
    if waits {
        let synced = EventRecord::normal(node, "Synced", "Node synced successfully".to_owned()).from(SOURCE);
        return vec![initialize(node, &instance), Action::Event(synced)].into();
    }
    let known = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    if addresses.is_empty() || addresses == known || !is_provided(node) {
        return sync_labels(node);
    }
    vec![Action::patch(node, json!({"status": {"addresses": addresses}})).on("status")].into()
}

/// Whether the node has been described, or its kubelet expects it. Another kubelet reports addresses of its own, again after
/// each change.
fn is_provided(node: &Node) -> bool {
    let has_id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_ref()).is_some_and(|id| !id.is_empty());
    has_id || node.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(PROVIDED_IP))
}

fn label<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// Copies beta labels to their stable names.
fn sync_labels(node: &Node) -> Plan {
    let mut labels = Map::new();
    for (old, new) in LABELS {
        if let Some(value) = label(node, old).filter(|value| label(node, new) != Some(value)) {
            labels.insert(new.to_owned(), json!(value));
        }
    }
    if labels.is_empty() {
        return Plan::nothing();
    }
    vec![Action::patch(node, json!({"metadata": {"labels": labels}}))].into()
}

/// Applies all data and removes the taint in one write, so that a node is never half initialized.
fn initialize(node: &Node, instance: &Instance) -> Action {
    let mut labels = Map::new();
    for ((old, new), value) in LABELS.iter().zip([&instance.zone, &instance.region, &instance.instance_type]) {
        if !value.is_empty() {
            labels.insert((*old).to_owned(), json!(value));
            labels.insert((*new).to_owned(), json!(value));
        }
    }
    for (name, value) in &instance.labels {
        if label(node, name).is_none() {
            labels.insert(name.clone(), json!(value));
        }
    }
    let left: Vec<_> = taints(node).iter().filter(|taint| taint.key != UNINITIALIZED).collect();
    let mut patch = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version, "labels": labels},
        "spec": {"taints": if left.is_empty() { Value::Null } else { json!(left) }},
    });
    let own = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).unwrap_or_default();
    if own.is_empty() && !instance.provider_id.is_empty() {
        patch["spec"]["providerID"] = json!(instance.provider_id);
    }
    Action::patch(node, patch)
}

/// The addresses for a node. The address that the kubelet was started with comes first, as the only one of its type.
fn addresses(node: &Node, instance: &Instance) -> Result<Vec<NodeAddress>, String> {
    let mut all = instance.addresses.clone();
    if all.is_empty() {
        return Ok(all);
    }
    // As upstream: the host name is written, but doesn't count for the check of the kubelet's address.
    let hostname = all.iter().any(|address| address.type_ == "Hostname");
    if !hostname {
        let own = node.status.as_ref().and_then(|status| status.addresses.as_ref());
        all.extend(own.into_iter().flatten().filter(|address| address.type_ == "Hostname").cloned());
    }
    let provided = node.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROVIDED_IP));
    let Some(provided) = provided else { return Ok(all) };
    let mut first: Vec<NodeAddress> = Vec::new();
    for text in provided.split(',') {
        let ip: IpAddr = text.trim().parse().map_err(|_| format!("failed to parse node IP {provided:?}"))?;
        let same = |address: &&NodeAddress| address.address.parse::<IpAddr>() == Ok(ip);
        let before = first.len();
        first.extend(all.iter().filter(same).cloned());
        if first.len() == before {
            return Err(format!("failed to get node address from cloud provider that matches ip: {ip}"));
        }
    }
    let others = all.into_iter().filter(|address| first.iter().all(|own| own.type_ != address.type_));
    let others: Vec<NodeAddress> = others.collect();
    Ok(first.into_iter().chain(others).collect())
}
