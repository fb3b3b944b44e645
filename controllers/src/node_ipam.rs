//! `node-ipam-controller`: allocates a pod network to every node from the cluster's networks.
//!
//! One key stands for all nodes: passes run one after the other, each with the allocations of the previous one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, ReconcilerState,
};
use serde_json::json;

use crate::Settings;

/// The interval of a waiting node's events when the networks are exhausted.
const RETRY: Duration = Duration::from_secs(60);
/// The minimum interval of passes when the networks are exhausted: each visits all nodes.
const EXHAUSTED_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a cluster with more nodes than networks.
#[derive(Debug, Clone)]
struct Exhausted {
    /// When the last pass found no free network, on the scale of [`Context::elapsed`].
    found: Duration,
    /// When each waiting node's last event was recorded, by the node's uid.
    reported: Arc<BTreeMap<String, Duration>>,
}

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "node-ipam-controller",
    account: "node-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Node>(all_nodes)],
    reconcile,
};

/// Only when a node is added, removed or gets its network; heartbeats are ignored.
fn all_nodes(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let networks = |node: Option<&Node>| node.map(|n| given(n).map(str::to_owned).collect::<Vec<_>>());
    let same = networks(change.before()) == networks(change.after());
    if same { Vec::new() } else { vec![ObjectKey::cluster("nodes")] }
}

fn given(node: &Node) -> impl Iterator<Item = &str> {
    let spec = node.spec.as_ref();
    let several = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let one = spec.and_then(|s| s.pod_cidr.as_deref()).filter(|c| !c.is_empty() && several.is_empty());
    several.iter().map(String::as_str).chain(one)
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let mut plan = Plan::nothing();
    if context.settings.cluster_cidrs.is_empty() {
        return plan;
    }
    let known = context.reconciler_cache.of::<Exhausted>(key);
    if let Some(known) = known
        && let Some(wait) = (known.found + EXHAUSTED_INTERVAL).checked_sub(context.elapsed).filter(|w| !w.is_zero())
    {
        plan.requeue_after(context.now, wait);
        plan.state = Some(ReconcilerState::of(known.clone()));
        return plan;
    }
    let mut used: BTreeSet<IpNet> = view.all::<Node>().flat_map(given).filter_map(|c| c.parse().ok()).collect();
    let waiting = |node: &&Node| node.metadata.deletion_timestamp.is_none() && given(node).next().is_none();
    let mut nodes = view.all::<Node>().filter(waiting).peekable();
    let mut patches = Vec::new();
    while nodes.peek().is_some() {
        let Some(networks) = allocate(&context.settings.cluster_cidrs, &used) else { break };
        let Some(node) = nodes.next() else { break };
        let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
        used.extend(networks);
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        patches.push(Action::patch(node, patch));
    }
    if !patches.is_empty() {
        plan.push(Action::Concurrent(patches));
    }
    report(&mut plan, nodes, known, context);
    plan
}

/// Records an event for each node without a network, at once and then every [`RETRY`].
fn report<'a>(
    plan: &mut Plan,
    nodes: impl Iterator<Item = &'a Node>,
    known: Option<&Exhausted>,
    context: &Context<'_, Settings>,
) {
    let mut reported = BTreeMap::new();
    for node in nodes {
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let last = known.and_then(|known| known.reported.get(&uid)).copied();
        let last = last.filter(|last| context.elapsed < *last + RETRY).unwrap_or_else(|| {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            plan.push(Action::Event(EventRecord::normal(node, "CIDRNotAvailable", message).from("cidrAllocator")));
            context.elapsed
        });
        reported.insert(uid, last);
    }
    if let Some(first) = reported.values().min() {
        plan.requeue_after(context.now, (*first + RETRY).saturating_sub(context.elapsed));
        plan.state = Some(ReconcilerState::of(Exhausted { found: context.elapsed, reported: reported.into() }));
    }
}

/// The lowest free network of each cluster network.
fn allocate(cluster: &[(IpNet, u8)], used: &BTreeSet<IpNet>) -> Option<Vec<IpNet>> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    cluster
        .iter()
        .map(|(whole, prefix)| {
            // Networks of another prefix length are rare: only those are compared one by one.
            let odd: Vec<&IpNet> = used.iter().filter(|net| net.prefix_len() != *prefix).collect();
            let mut parts = whole.subnets(*prefix).ok()?;
            parts.find(|part| !used.contains(part) && !odd.iter().any(|net| overlaps(net, part)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use machinery_client::{Pass, ReconcilerCache};

    use super::*;

    #[test]
    fn networks_are_given_once_and_run_out() {
        let cluster = [("10.0.0.0/22".parse().unwrap(), 24)];
        let mut used = BTreeSet::from(["10.0.1.0/25".parse().unwrap(), "10.0.2.0/24".parse().unwrap()]);
        let mut next = || {
            let got = allocate(&cluster, &used)?;
            used.extend(got.clone());
            Some(got[0].to_string())
        };
        assert_eq!(next().as_deref(), Some("10.0.0.0/24"));
        assert_eq!(next().as_deref(), Some("10.0.3.0/24"));
        assert_eq!(next(), None);
    }

    #[test]
    fn nodes_without_a_network_are_reported_once_a_minute() {
        let settings = Settings { cluster_cidrs: vec![("10.0.0.0/24".parse().unwrap(), 24)], ..Settings::default() };
        let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name}});
        let view = crate::simulation(jiff::Timestamp::UNIX_EPOCH, ["a", "b", "c"].map(node)).view;
        let key = ObjectKey::cluster("nodes");
        let mut cache = ReconcilerCache::new();
        let mut pass = |at: u64| {
            let context = Context {
                now: jiff::Timestamp::UNIX_EPOCH,
                elapsed: Duration::from_millis(at),
                settings: &settings,
                pass: &Pass::default(),
                reconciler_cache: &cache,
            };
            let plan = reconcile(&view, &key, &context);
            let events = plan.actions.iter().filter(|action| matches!(action, Action::Event(_))).count();
            cache.set(&key, plan.state);
            (events, plan.actions.len() - events, plan.requeue_at.is_some())
        };
        assert_eq!(pass(0), (2, 1, true), "one network for three nodes");
        assert_eq!(pass(10), (0, 0, true), "too early to visit all nodes again");
        assert_eq!(pass(1000), (0, 1, true), "the view doesn't show the patch: the same plan without events");
        assert_eq!(pass(59_999), (0, 1, true));
        assert_eq!(pass(61_000), (2, 1, true), "a minute later");
    }
}
