//! `node-ipam-controller`: allocates a pod network to every node from the cluster's networks.
//!
//! One key stands for all nodes: passes run one after the other, each with the allocations of the previous one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, ReconcilerState,
};
use machinery_options::OptionError;
use serde_json::json;

use crate::Settings;
use crate::pods::is_terminal;

/// The interval of a waiting node's events when the networks are exhausted.
const RETRY: Duration = Duration::from_secs(60);
/// The minimum interval of passes when the networks are exhausted: each visits all nodes.
const EXHAUSTED_INTERVAL: Duration = Duration::from_secs(1);

/// Options of the nodes' networks.
#[derive(Debug, Clone, Args)]
pub struct NetworkOptions {
    /// Allocates a block of the pods' addresses to each node
    #[arg(long, env = "CORACLE_ALLOCATE_NODE_CIDRS", requires = "cluster_cidr", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    allocate_node_cidrs: bool,
    /// Addresses of pods
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    cluster_cidr: Option<IpNet>,
    /// Prefix length of each node's share of the pod addresses [default: 24 of IPv4, 64 of IPv6]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=126))]
    node_cidr_mask_size: Option<u8>,
}

impl NetworkOptions {
    /// The networks of the nodes' pods, with the prefix length of a node's. None: nodes get none.
    ///
    /// # Errors
    /// If a node's share is no part of the network.
    pub fn cluster_cidrs(&self) -> Result<Vec<(IpNet, u8)>, OptionError> {
        let Some(cidr) = self.cluster_cidr.filter(|_| self.allocate_node_cidrs) else { return Ok(Vec::new()) };
        let usual = if cidr.addr().is_ipv4() { 24 } else { 64 };
        let mask = self.node_cidr_mask_size.unwrap_or(usual);
        if mask < cidr.prefix_len() || mask > cidr.max_prefix_len() {
            return Err(OptionError::new(format!("--node-cidr-mask-size {mask}: no part of --cluster-cidr {cidr}")));
        }
        Ok(vec![(cidr, mask)])
    }
}

/// What a pass knows of the earlier ones.
#[derive(Debug, Clone, Default)]
struct Allocations {
    /// The last allocated network of each cluster network. The search goes on behind it, as upstream's, so that the network of
    /// a deleted Node, whose pods may run on, is the last one to be given away.
    last: Arc<Vec<IpNet>>,
    /// When the last pass found no free network, on the scale of [`Context::elapsed`].
    exhausted: Option<Duration>,
    /// When the last event of each node without a network of its own was recorded, by the node's uid.
    reported: Arc<BTreeMap<String, Duration>>,
}

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "node-ipam-controller",
    account: "node-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<Node>(all_nodes),
        // Only read.
        Input::of::<Pod>(|_, _| Vec::new()),
    ],
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
    let mut known = context.reconciler_cache.of::<Allocations>(key).cloned().unwrap_or_default();
    if let Some(found) = known.exhausted
        && let Some(wait) = (found + EXHAUSTED_INTERVAL).checked_sub(context.elapsed).filter(|w| !w.is_zero())
    {
        plan.requeue_after(context.now, wait);
        plan.state = Some(ReconcilerState::of(known));
        return plan;
    }
    let mut used = Used {
        networks: view.all::<Node>().flat_map(given).filter_map(|c| c.parse().ok()).collect(),
        addresses: addresses_without_node(view),
    };
    let waiting = |node: &&Node| node.metadata.deletion_timestamp.is_none() && given(node).next().is_none();
    let mut nodes = view.all::<Node>().filter(waiting).peekable();
    let mut patches = Vec::new();
    while nodes.peek().is_some() {
        let Some(networks) = allocate(&context.settings.cluster_cidrs, &used, &known.last) else { break };
        let Some(node) = nodes.next() else { break };
        let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
        used.networks.extend(&networks);
        known.last = Arc::new(networks);
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        patches.push(Action::patch(node, patch));
    }
    if !patches.is_empty() {
        plan.push(Action::Concurrent(patches));
    }
    known.exhausted = nodes.peek().map(|_| context.elapsed);
    let waiting = nodes.map(|node| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        (node, format!("Node {name} status is now: CIDRNotAvailable"))
    });
    known.reported = report(&mut plan, waiting.chain(losers(view)), &known.reported, context);
    plan.state = Some(ReconcilerState::of(known));
    plan
}

/// The addresses of pods that may run though their Node was deleted. They have one until the pod garbage collector removes
/// them.
fn addresses_without_node(view: &ObjectCache) -> BTreeSet<IpAddr> {
    let may_run = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        node.is_some_and(|node| view.get::<Node>(&ObjectKey::cluster(node)).is_none()) && !is_terminal(pod)
    };
    let addresses = |pod: &Pod| {
        let listed = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        listed.filter_map(|listed| listed.ip.parse().ok()).collect::<Vec<IpAddr>>()
    };
    view.all::<Pod>().filter(|pod| may_run(pod)).flat_map(addresses).collect()
}

/// The Nodes whose network overlaps an older Node's, with a message. The data plane ignores these networks, and both of two
/// Nodes of one second (`proxy/src/tunnel/peers.rs`).
fn losers<'a>(view: &'a ObjectCache) -> Vec<(&'a Node, String)> {
    let born = |node: &Node| node.metadata.creation_timestamp.as_ref().map(|born| born.0);
    let mut claims: Vec<(IpNet, &Node)> =
        view.all::<Node>().flat_map(|node| given(node).filter_map(move |c| Some((c.parse().ok()?, node)))).collect();
    // Networks are nested or disjoint: in this order each one follows those that contain it.
    claims.sort_by_key(|(network, node)| (network.network(), network.prefix_len(), born(node), &node.metadata.name));
    let mut losers: BTreeMap<&str, (&Node, String)> = BTreeMap::new();
    let mut outer: Vec<(IpNet, &Node)> = Vec::new();
    for (network, node) in claims {
        while outer.last().is_some_and(|(last, _)| !last.contains(&network)) {
            outer.pop();
        }
        for &(other_network, other) in outer.iter().filter(|(_, other)| other.metadata.name != node.metadata.name) {
            let mut lose = |loser: &'a Node, own: IpNet, other: &Node| {
                let name = |node: &'a Node| node.metadata.name.as_deref().unwrap_or_default();
                let message = format!(
                    "the range {own} overlaps that of Node {}: the data plane ignores it, start the node again after \
                     kubectl delete node {}",
                    other.metadata.name.as_deref().unwrap_or_default(),
                    name(loser),
                );
                losers.entry(name(loser)).or_insert((loser, message));
            };
            if born(node) >= born(other) {
                lose(node, network, other);
            }
            if born(other) >= born(node) {
                lose(other, other_network, node);
            }
        }
        outer.push((network, node));
    }
    losers.into_values().collect()
}

/// Records an event for each node without a network of its own, at once and then every [`RETRY`]. Returns when.
fn report<'a>(
    plan: &mut Plan,
    nodes: impl Iterator<Item = (&'a Node, String)>,
    known: &BTreeMap<String, Duration>,
    context: &Context<'_, Settings>,
) -> Arc<BTreeMap<String, Duration>> {
    let mut reported = BTreeMap::new();
    for (node, message) in nodes {
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let last = known.get(&uid).copied().filter(|last| context.elapsed < *last + RETRY).unwrap_or_else(|| {
            plan.push(Action::Event(EventRecord::normal(node, "CIDRNotAvailable", message).from("cidrAllocator")));
            context.elapsed
        });
        reported.insert(uid, last);
    }
    if let Some(first) = reported.values().min() {
        plan.requeue_after(context.now, (*first + RETRY).saturating_sub(context.elapsed));
    }
    Arc::new(reported)
}

/// What no node may get.
#[derive(Default)]
struct Used {
    networks: BTreeSet<IpNet>,
    addresses: BTreeSet<IpAddr>,
}

impl Used {
    fn has_part_of(&self, network: &IpNet, odd: &[&IpNet]) -> bool {
        let overlaps = |other: &&IpNet| other.contains(network) || network.contains(*other);
        let (first, last) = (network.network(), network.broadcast());
        self.networks.contains(network)
            || odd.iter().any(overlaps)
            || self.addresses.range(first..=last).next().is_some()
    }
}

/// The next free network of each cluster network behind the `last` ones, and then from the beginning.
fn allocate(cluster: &[(IpNet, u8)], used: &Used, last: &[IpNet]) -> Option<Vec<IpNet>> {
    cluster
        .iter()
        .enumerate()
        .map(|(at, (whole, prefix))| {
            // Networks of another prefix length are rare: only those are compared one by one.
            let odd: Vec<&IpNet> = used.networks.iter().filter(|net| net.prefix_len() != *prefix).collect();
            let parts = whole.subnets(*prefix).ok()?;
            let behind = parts.filter(|part| last.get(at).is_some_and(|last| part > last));
            behind.chain(parts).find(|part| !used.has_part_of(part, &odd))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use machinery_client::{Pass, ReconcilerCache};
    use serde_json::Value;

    use super::*;

    #[test]
    fn networks_are_given_once_and_run_out() {
        let cluster = [("10.0.0.0/22".parse().unwrap(), 24)];
        let networks = BTreeSet::from(["10.0.1.0/25".parse().unwrap(), "10.0.2.0/24".parse().unwrap()]);
        let mut used = Used { networks, ..Used::default() };
        let mut next = || {
            let got = allocate(&cluster, &used, &[])?;
            used.networks.extend(&got);
            Some(got[0].to_string())
        };
        assert_eq!(next().as_deref(), Some("10.0.0.0/24"));
        assert_eq!(next().as_deref(), Some("10.0.3.0/24"));
        assert_eq!(next(), None);
    }

    #[test]
    fn the_network_of_a_deleted_node_is_the_last_to_be_given_away() {
        let cluster = [("10.0.0.0/22".parse().unwrap(), 24)];
        let mut used = Used { networks: ["10.0.0.0/24".parse().unwrap()].into(), ..Used::default() };
        let next = |used: &Used, last: &str| {
            allocate(&cluster, used, &[last.parse().unwrap()]).map(|networks| networks[0].to_string())
        };
        assert_eq!(next(&used, "10.0.1.0/24").as_deref(), Some("10.0.2.0/24"), "10.0.1.0/24 was just released");
        used.networks.extend(["10.0.2.0/24", "10.0.3.0/24"].map(|network| network.parse::<IpNet>().unwrap()));
        assert_eq!(next(&used, "10.0.3.0/24").as_deref(), Some("10.0.1.0/24"));
        used.addresses.insert("10.0.1.255".parse().unwrap());
        assert_eq!(next(&used, "10.0.3.0/24"), None, "a pod has an address in it");
    }

    fn plan_for(settings: &Settings, objects: Vec<Value>) -> Plan {
        let view = crate::simulation(jiff::Timestamp::UNIX_EPOCH, objects).view;
        let context = Context {
            now: jiff::Timestamp::UNIX_EPOCH,
            elapsed: Duration::ZERO,
            settings,
            pass: &Pass::default(),
            reconciler_cache: &ReconcilerCache::new(),
        };
        reconcile(&view, &ObjectKey::cluster("nodes"), &context)
    }

    #[test]
    fn pods_of_a_deleted_node_keep_its_network() {
        let settings = Settings { cluster_cidrs: vec![("10.0.0.0/23".parse().unwrap(), 24)], ..Settings::default() };
        let given = |phase: &str, node: &str| {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"},
                "spec": {"nodeName": node}, "status": {"phase": phase, "podIPs": [{"ip": "10.0.0.7"}]}});
            let new = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "new", "uid": "new"}});
            let plan = plan_for(&settings, vec![pod, new]);
            format!("{:?}", plan.actions)
        };
        assert!(given("Running", "deleted").contains("10.0.1.0/24"));
        assert!(given("Succeeded", "deleted").contains("10.0.0.0/24"));
        assert!(given("Running", "new").contains("10.0.0.0/24"), "a node could write any address");
        assert!(given("Running", "").contains("10.0.0.0/24"));
    }

    #[test]
    fn the_loser_of_a_network_gets_an_event() {
        let settings = Settings { cluster_cidrs: vec![("10.0.0.0/16".parse().unwrap(), 24)], ..Settings::default() };
        let losers = |nodes: &[(&str, &str, &str)]| {
            let node = |(name, born, network): &(&str, &str, &str)| {
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": name, "creationTimestamp": born},
                    "spec": {"podCIDRs": [network]}})
            };
            let plan = plan_for(&settings, nodes.iter().map(node).collect());
            let event = |action: &Action| match action {
                Action::Event(event) => format!("{event:?}"),
                other => panic!("{other:?}"),
            };
            let events: Vec<String> = plan.actions.iter().map(event).collect();
            assert_eq!(plan.requeue_at.is_some(), !events.is_empty());
            events
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        let events = losers(&[("a", late, "10.0.1.0/24"), ("b", early, "10.0.1.0/24"), ("c", early, "10.0.2.0/24")]);
        assert_eq!(events.len(), 1);
        for part in ["CIDRNotAvailable", "the range 10.0.1.0/24 overlaps that of Node b"] {
            assert!(events[0].contains(part), "{part}: {}", events[0]);
        }
        assert_eq!(losers(&[("a", early, "10.0.1.0/24"), ("b", early, "10.0.1.0/24")]).len(), 2, "no name decides");
        let nested = [("a", late, "10.0.0.0/20"), ("b", early, "10.0.1.0/24"), ("c", early, "10.0.15.0/24")];
        assert_eq!(losers(&nested).len(), 1);
        assert!(losers(&nested)[0].contains("10.0.0.0/20"));
        assert!(losers(&[("a", early, "10.0.0.0/24"), ("b", early, "10.0.1.0/24")]).is_empty());
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
