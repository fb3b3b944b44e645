//! PodTopologySpread: spreads pods over nodes and zones by their constraints, or by upstream's default constraints for
//! pods of a Service or a workload.

use std::borrow::Cow;
use std::sync::Arc;

use machinery_api::names::HOSTNAME;
use machinery_api::selector::LabelSelector;

use super::args::DefaultConstraint;
use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::index::{Peers, PodCounts, Topology};
use crate::node::{NodeId, NodeInfo};
use crate::pod::{Labels, PodInfo, Spread};
use crate::snapshot::Snapshot;

/// Upstream's default constraints, for scores only.
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(pre_filter),
    pre_score: Some(pre_score),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added || change.labels || change.taints,
        Event::NodeGone => true,
        Event::PodGone(other, _) | Event::PodPlaced(other) => {
            // A pod without constraints was rejected by the default constraints of its profile.
            other.key.namespace == pod.key.namespace
                && (pod.requirements.spread.is_empty()
                    || pod.requirements.spread.iter().any(|s| s.selector.matches(&*other.labels)))
        }
        Event::Namespace | Event::Claim(_) | Event::Volume => false,
    },
    ..plugin("PodTopologySpread")
};

/// Whether the pods of a node count for a constraint.
fn included(node: &NodeInfo, pod: &PodInfo, spread: &Spread) -> bool {
    (!spread.honor_affinity || node.facts.admits(pod))
        && (!spread.honor_taints || !node.facts.has_untolerated_taint(pod))
}

/// Whether the pods of every node count.
fn includes_all(pod: &PodInfo, spread: &Spread) -> bool {
    let anywhere = pod.requirements.node_selector.is_empty() && pod.requirements.node_required.is_none();
    (!spread.honor_affinity || anywhere) && !spread.honor_taints
}

struct Hard<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    constraints: Vec<HardConstraint<'a>>,
}

struct HardConstraint<'a> {
    spread: Cow<'a, Spread>,
    /// The pods that count.
    peers: Peers,
    topology: Arc<Topology>,
    /// Pods per domain; none for a domain without a node that counts.
    pods: Vec<Option<i64>>,
    /// The smallest number of pods in a domain.
    least: i64,
    /// 1 if the pod itself counts, else 0.
    own: i64,
}

impl HardConstraint<'_> {
    fn find_least(&mut self) {
        let few = self.pods.iter().flatten().count() < self.spread.min_domains;
        self.least = if few { 0 } else { self.pods.iter().flatten().copied().min().unwrap_or(0) };
    }
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let mut constraints: Vec<HardConstraint<'_>> = Vec::new();
    for (spread, peers) in required(cycle) {
        let topology = snapshot.topology(&spread.key);
        let pods = vec![None; topology.domains()];
        let own = i64::from(matches!(spread, Cow::Owned(_)) || spread.selector.matches(&*pod.labels));
        constraints.push(HardConstraint { spread, peers, topology, pods, least: 0, own });
    }
    if constraints.is_empty() {
        return PreFilterResult::Skip;
    }
    let everywhere = constraints.iter().all(|c| includes_all(pod, &c.spread) && covers_all(snapshot, &c.topology));
    if everywhere || constraints.len() == 1 && includes_all(pod, &constraints[0].spread) {
        for constraint in &mut constraints {
            let sums = snapshot.sums(constraint.peers.clone(), &constraint.spread.key);
            constraint.pods = sums.by_domain().iter().copied().map(Some).collect();
        }
    } else {
        count_each(snapshot, pod, &mut constraints);
    }
    constraints.iter_mut().for_each(HardConstraint::find_least);
    PreFilterResult::Filter(Box::new(Hard { pod, snapshot, constraints }))
}

/// The hard constraints: the pod's own, or the profile's defaults for pods without constraints.
fn required<'a>(cycle: Cycle<'a>) -> Vec<(Cow<'a, Spread>, Peers)> {
    let Cycle { pod, snapshot, args, .. } = cycle;
    if !pod.requirements.spread.is_empty() {
        let own = pod.requirements.spread.iter().filter(|spread| spread.required);
        return own.map(|spread| (Cow::Borrowed(spread), selected(pod, spread))).collect();
    }
    let mut given = args.default_constraints.iter().flatten().filter(|given| given.required).peekable();
    if given.peek().is_none() {
        return Vec::new();
    }
    let Some(peers) = default_peers(snapshot, pod) else { return Vec::new() };
    let spread = |given: &DefaultConstraint| Spread {
        max_skew: given.max_skew,
        key: given.key.clone(),
        required: true,
        selector: LabelSelector::nothing(),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    };
    given.map(|given| (Cow::Owned(spread(given)), peers.clone())).collect()
}

fn selected(pod: &PodInfo, spread: &Spread) -> Peers {
    Peers::Selected(pod.key.namespace.clone(), spread.selector.clone())
}

/// Whether each node is in a domain.
fn covers_all(snapshot: &Snapshot, topology: &Topology) -> bool {
    topology.nodes() == snapshot.node_count()
}

/// Counts node by node, if some nodes don't count.
fn count_each(snapshot: &Snapshot, pod: &PodInfo, constraints: &mut [HardConstraint<'_>]) {
    let counts: Vec<_> = constraints.iter().map(|c| snapshot.counts(c.peers.clone())).collect();
    // By number: a number without a node is in no domain. The node itself is read only if needed.
    for id in (0..snapshot.node_ids()).map(NodeId::new) {
        if constraints.iter().any(|constraint| constraint.topology.domain(id).is_none()) {
            continue;
        }
        for (constraint, counts) in constraints.iter_mut().zip(&counts) {
            if let Some(domain) = constraint.topology.domain(id)
                && (includes_all(pod, &constraint.spread) || included(snapshot.node_by_id(id), pod, &constraint.spread))
            {
                *constraint.pods[domain].get_or_insert(0) += counts.on(id);
            }
        }
    }
}

impl Hard<'_> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        let counted = other.key.namespace == self.pod.key.namespace && !other.terminating;
        if !counted || self.constraints.iter().any(|c| c.topology.domain(node.id).is_none()) {
            return;
        }
        for constraint in &mut self.constraints {
            if constraint.peers.has(other, self.snapshot.namespaces())
                && included(node, self.pod, &constraint.spread)
                && let Some(domain) = constraint.topology.domain(node.id)
            {
                let pods = constraint.pods[domain].get_or_insert(0);
                let before = *pods;
                *pods += by;
                // Only a change of the smallest domain affects all others, and thousands of domains may change in turn.
                if before <= constraint.least || before + by < constraint.least {
                    constraint.find_least();
                }
            }
        }
    }
}

impl Filter for Hard<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for constraint in &self.constraints {
            let Some(domain) = constraint.topology.domain(node.id) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::unresolvable(reason));
            };
            let here = constraint.pods[domain].unwrap_or(0);
            if here + constraint.own - constraint.least > constraint.spread.max_skew {
                return Err(Refusal::new("node(s) didn't match pod topology spread constraints", false));
            }
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node, -1);
    }
}

struct Soft {
    constraints: Vec<SoftConstraint>,
    /// Nodes that lack a label, by number; empty if there are none.
    ignored: Vec<bool>,
}

struct SoftConstraint {
    /// Whether each node is its own domain.
    per_node: bool,
    max_skew: i64,
    weight: f64,
    topology: Arc<Topology>,
    counts: Arc<PodCounts>,
    /// Pods per domain, if nodes share domains.
    pods: Vec<i64>,
}

/// The pods to spread with by default: those of the workload that have the labels required by the selectors of the
/// pod's Services; none if the pod has neither Service nor workload.
fn default_peers(snapshot: &Snapshot, pod: &PodInfo) -> Option<Peers> {
    let from = machinery_api::ObjectKey::new(pod.key.namespace.clone(), "");
    let services = snapshot.services.range(from..).take_while(|(key, _)| key.namespace == pod.key.namespace);
    let selects = |selector: &Labels| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let mut labels = Labels::new();
    for (_, selector) in services.filter(|(_, selector)| !selector.is_empty() && selects(selector)) {
        labels.extend(selector.clone());
    }
    let workload = pod.workload.clone();
    let namespace = pod.key.namespace.clone();
    (workload.is_some() || !labels.is_empty()).then_some(Peers::Workload(namespace, workload, labels))
}

/// A constraint to score, with the pod's constraint if it isn't a default.
type ScoredConstraint<'a> = (&'a str, i64, Peers, Option<&'a Spread>);

fn wanted<'a>(cycle: Cycle<'a>) -> Vec<ScoredConstraint<'a>> {
    let Cycle { pod, snapshot, .. } = cycle;
    if pod.requirements.spread.is_empty() {
        let Some(peers) = default_peers(snapshot, pod) else { return Vec::new() };
        if let Some(given) = &cycle.args.default_constraints {
            let soft = given.iter().filter(|given| !given.required);
            return soft.map(|given| (given.key.as_str(), given.max_skew, peers.clone(), None)).collect();
        }
        return DEFAULTS.iter().map(|(key, max_skew)| (*key, *max_skew, peers.clone(), None)).collect();
    }
    let soft = pod.requirements.spread.iter().filter(|spread| !spread.required);
    soft.map(|spread| (spread.key.as_str(), spread.max_skew, selected(pod, spread), Some(spread))).collect()
}

fn pre_score<'a>(cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let Cycle { pod, snapshot, .. } = cycle;
    let wanted = wanted(cycle);
    if wanted.is_empty() {
        return None;
    }
    // Nodes that lack one of the labels are left out, except with the default constraints.
    let by_default = pod.requirements.spread.is_empty() && cycle.args.default_constraints.is_none();
    let topologies: Vec<Arc<Topology>> = wanted.iter().map(|(key, ..)| snapshot.topology(key)).collect();
    let lacks = |id: NodeId| !by_default && topologies.iter().any(|t| t.domain(id).is_none());
    let mut ignored = Vec::new();
    for node in feasible.iter().filter(|node| lacks(node.id)) {
        ignored.resize(snapshot.node_ids(), false);
        ignored[node.id.index()] = true;
    }
    let considered = || feasible.iter().filter(|node| !ignored.get(node.id.index()).is_some_and(|ignored| *ignored));
    let mut constraints = Vec::new();
    let none_lacks = by_default || topologies.iter().all(|topology| covers_all(snapshot, topology));
    for ((key, max_skew, peers, spread), topology) in wanted.into_iter().zip(&topologies) {
        let counts = snapshot.counts(peers.clone());
        let per_node = key == HOSTNAME;
        let mut size = 0;
        let mut pods: Vec<Option<i64>> = Vec::new();
        if per_node {
            size = considered().count();
        } else {
            pods.resize(topology.domains(), None);
            for domain in considered().filter_map(|node| topology.domain(node.id)) {
                size += usize::from(pods[domain].replace(0).is_none());
            }
            let filtered = spread.filter(|spread| !includes_all(pod, spread));
            let by_domain = none_lacks && filtered.is_none();
            if by_domain {
                let sums = snapshot.sums(peers, key);
                pods.iter_mut().zip(sums.by_domain()).for_each(|(pods, sum)| *pods = pods.map(|_| *sum));
            }
            let all = if size > 0 && !by_domain { snapshot.node_ids() } else { 0 };
            for id in (0..all).map(NodeId::new) {
                if let Some(sum) = topology.domain(id).and_then(|domain| pods[domain].as_mut())
                    && !lacks(id)
                    && filtered.is_none_or(|spread| included(snapshot.node_by_id(id), pod, spread))
                {
                    *sum += counts.on(id);
                }
            }
        }
        let pods = pods.into_iter().map(Option::unwrap_or_default).collect();
        let weight = ((size + 2) as f64).ln();
        constraints.push(SoftConstraint { per_node, max_skew, weight, topology: topology.clone(), counts, pods });
    }
    Some(Box::new(Soft { constraints, ignored }))
}

impl Soft {
    fn ignores(&self, node: &NodeInfo) -> bool {
        self.ignored.get(node.id.index()).copied().unwrap_or(false)
    }
}

impl Score for Soft {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.ignores(node) {
            return 0;
        }
        let mut score = 0.0;
        for constraint in &self.constraints {
            let Some(domain) = constraint.topology.domain(node.id) else { continue };
            let pods = if constraint.per_node { constraint.counts.on(node.id) } else { constraint.pods[domain] };
            score += pods as f64 * constraint.weight + (constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let counted = || nodes.iter().zip(&*scores).filter(|(node, _)| !self.ignores(node)).map(|(_, score)| *score);
        let (max, min) = (counted().max().unwrap_or(0), counted().min().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores) {
            *score = if self.ignores(node) {
                0
            } else if max == 0 {
                SCORE_MAX
            } else {
                SCORE_MAX * (max + min - *score) / max
            };
        }
    }
}
