//! PodTopologySpread without indexes: counts all pods of all nodes for each pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use machinery_api::names::HOSTNAME;
use machinery_api::selector::LabelSelector;

use crate::node::NodeInfo;
use crate::plugins::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::pod::{Labels, PodInfo, Spread};
use crate::snapshot::Snapshot;

/// Upstream's default constraints, for scores only.
const DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), ("topology.kubernetes.io/zone", 5)];

pub(super) static PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(filter),
    pre_score: Some(score),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added || change.labels || change.taints,
        Event::NodeGone => true,
        Event::PodGone(other, _) | Event::PodPlaced(other) => {
            other.key.namespace == pod.key.namespace
                && pod.requirements.spread.iter().any(|s| s.selector.matches(&*other.labels))
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

fn count(node: &NodeInfo, pod: &PodInfo, selects: impl Fn(&PodInfo) -> bool) -> i64 {
    let same = |other: &&std::sync::Arc<PodInfo>| other.key.namespace == pod.key.namespace && !other.terminating;
    node.pods.values().filter(same).filter(|other| selects(other)).count() as i64
}

struct Hard<'a> {
    pod: &'a PodInfo,
    /// Each constraint with its pods per domain.
    constraints: Vec<(&'a Spread, BTreeMap<&'a str, i64>)>,
}

fn filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let pod = cycle.pod;
    let required: Vec<&Spread> = pod.requirements.spread.iter().filter(|spread| spread.required).collect();
    if required.is_empty() {
        return PreFilterResult::Skip;
    }
    let mut domains: Vec<BTreeMap<&str, i64>> = vec![BTreeMap::new(); required.len()];
    for node in cycle.snapshot.nodes() {
        if !required.iter().all(|spread| node.facts.labels.contains_key(&spread.key)) {
            continue;
        }
        for (spread, domains) in required.iter().zip(&mut domains) {
            if included(node, pod, spread)
                && let Some(value) = node.facts.labels.get(&spread.key)
            {
                *domains.entry(value).or_default() += count(node, pod, |other| spread.selector.matches(&*other.labels));
            }
        }
    }
    PreFilterResult::Filter(Box::new(Hard { pod, constraints: required.into_iter().zip(domains).collect() }))
}

impl Filter for Hard<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for (spread, domains) in &self.constraints {
            let Some(value) = node.facts.labels.get(&spread.key) else {
                let reason = "node(s) didn't match pod topology spread constraints (missing required label)";
                return Err(Refusal::unresolvable(reason));
            };
            let few = domains.len() < spread.min_domains;
            let least = if few { 0 } else { domains.values().copied().min().unwrap_or(0) };
            let here = domains.get(value.as_str()).copied().unwrap_or(0);
            let own = i64::from(spread.selector.matches(&*self.pod.labels));
            if here + own - least > spread.max_skew {
                return Err(Refusal::new("node(s) didn't match pod topology spread constraints", false));
            }
        }
        Ok(())
    }
}

/// The pods that count for a soft constraint.
enum Peers<'a> {
    Selected(&'a LabelSelector),
    /// Pods of the same workload that have these labels, which the selectors of the pod's Services require.
    Default(Option<&'a str>, Labels),
}

impl Peers<'_> {
    fn has(&self, other: &PodInfo) -> bool {
        match self {
            Self::Selected(selector) => selector.matches(&*other.labels),
            Self::Default(workload, labels) => {
                workload.is_none_or(|uid| other.workload.as_deref() == Some(uid))
                    && labels.iter().all(|(key, value)| other.labels.get(key) == Some(value))
            }
        }
    }
}

struct Soft<'a> {
    pod: &'a PodInfo,
    constraints: Vec<SoftConstraint<'a>>,
    ignored: BTreeSet<&'a str>,
}

struct SoftConstraint<'a> {
    key: &'a str,
    max_skew: i64,
    peers: Peers<'a>,
    weight: f64,
    domains: HashMap<&'a str, i64>,
}

/// The labels that the selectors of the pod's Services require; none if the pod has neither Service nor workload.
fn default_peers<'a>(snapshot: &Snapshot, pod: &'a PodInfo) -> Option<Peers<'a>> {
    let from = machinery_api::ObjectKey::new(pod.key.namespace.clone(), "");
    let services = snapshot.services.range(from..).take_while(|(key, _)| key.namespace == pod.key.namespace);
    let selects = |selector: &Labels| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    let mut labels = Labels::new();
    for (_, selector) in services.filter(|(_, selector)| !selector.is_empty() && selects(selector)) {
        labels.extend(selector.clone());
    }
    let workload = pod.workload.as_deref();
    (workload.is_some() || !labels.is_empty()).then_some(Peers::Default(workload, labels))
}

fn score<'a>(cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let pod = cycle.pod;
    let by_default = pod.requirements.spread.is_empty();
    let mut wanted: Vec<(&'a str, i64, Peers<'a>, Option<&'a Spread>)> = Vec::new();
    if by_default {
        for (key, max_skew) in DEFAULTS {
            wanted.push((key, max_skew, default_peers(cycle.snapshot, pod)?, None));
        }
    } else {
        for spread in pod.requirements.spread.iter().filter(|spread| !spread.required) {
            wanted.push((&spread.key, spread.max_skew, Peers::Selected(&spread.selector), Some(spread)));
        }
    }
    if wanted.is_empty() {
        return None;
    }
    // Nodes that lack one of the labels are left out, except with the default constraints.
    let keys: Vec<&str> = wanted.iter().map(|(key, ..)| *key).collect();
    let lacks = |node: &NodeInfo| !by_default && keys.iter().any(|key| !node.facts.labels.contains_key(*key));
    let ignored: BTreeSet<&str> = feasible.iter().filter(|node| lacks(node)).map(|node| node.name()).collect();
    let considered: Vec<&NodeInfo> = feasible.iter().copied().filter(|node| !ignored.contains(node.name())).collect();
    let mut constraints = Vec::new();
    for (key, max_skew, peers, spread) in wanted {
        let mut domains: HashMap<&str, i64> = HashMap::new();
        let size = if key == HOSTNAME {
            considered.len()
        } else {
            let values = considered.iter().filter_map(|node| node.facts.labels.get(key));
            domains.extend(values.map(|value| (value.as_str(), 0)));
            domains.len()
        };
        if !domains.is_empty() {
            for node in cycle.snapshot.nodes() {
                if (by_default || !lacks(node))
                    && spread.is_none_or(|spread| included(node, pod, spread))
                    && let Some(domain) = node.facts.labels.get(key).and_then(|value| domains.get_mut(value.as_str()))
                {
                    *domain += count(node, pod, |other| peers.has(other));
                }
            }
        }
        constraints.push(SoftConstraint { key, max_skew, peers, weight: ((size + 2) as f64).ln(), domains });
    }
    Some(Box::new(Soft { pod, constraints, ignored }))
}

impl Score for Soft<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if self.ignored.contains(node.name()) {
            return 0;
        }
        let mut score = 0.0;
        for constraint in &self.constraints {
            let Some(value) = node.facts.labels.get(constraint.key) else { continue };
            let pods = if constraint.key == HOSTNAME {
                count(node, self.pod, |other| constraint.peers.has(other))
            } else {
                constraint.domains.get(value.as_str()).copied().unwrap_or(0)
            };
            score += pods as f64 * constraint.weight + (constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let ignored = |node: &NodeInfo| self.ignored.contains(node.name());
        let counted = || nodes.iter().zip(&*scores).filter(|(node, _)| !ignored(node)).map(|(_, score)| *score);
        let (max, min) = (counted().max().unwrap_or(0), counted().min().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores) {
            *score = if ignored(node) {
                0
            } else if max == 0 {
                SCORE_MAX
            } else {
                SCORE_MAX * (max + min - *score) / max
            };
        }
    }
}
