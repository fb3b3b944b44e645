//! InterPodAffinity: pods near or away from others, by terms of the pod and of those that are there already.

use std::sync::Arc;

use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::index::{Peers, Topology};
use crate::node::{NodeId, NodeInfo};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(pre_filter),
    pre_score: Some(pre_score),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added || change.labels,
        Event::NodeGone | Event::Namespace => true,
        Event::PodGone(other, _) => {
            !other.wants.anti_affinity.required.is_empty() || !pod.wants.anti_affinity.required.is_empty()
        }
        Event::PodPlaced(_) => !pod.wants.affinity.required.is_empty(),
    },
    ..plugin("InterPodAffinity")
};

/// Pods by the domains of one label.
struct Domains {
    key: String,
    topology: Arc<Topology>,
    /// How many, or how much they pull.
    amounts: Vec<i64>,
}

impl Domains {
    fn of(&self, node: NodeId) -> i64 {
        self.topology.domain(node).map_or(0, |domain| self.amounts[domain])
    }
}

/// Adds to the domain of a label that a node is in, if it is in any.
fn add(all: &mut Vec<Domains>, snapshot: &Snapshot, key: &str, node: NodeId, amount: i64) {
    let at = all.iter().position(|domains| domains.key == key).unwrap_or_else(|| {
        let topology = snapshot.topology(key);
        all.push(Domains { key: key.to_owned(), amounts: vec![0; topology.domains()], topology });
        all.len() - 1
    });
    let domains = &mut all[at];
    if let Some(domain) = domains.topology.domain(node) {
        domains.amounts[domain] += amount;
    }
}

fn any(all: &[Domains], node: NodeId) -> bool {
    all.iter().any(|domains| domains.of(node) > 0)
}

fn empty(all: &[Domains]) -> bool {
    all.iter().all(|domains| domains.amounts.iter().all(|amount| *amount == 0))
}

struct Rules<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    /// The labels of the required affinity, with their domains.
    needed: Vec<(&'a str, Arc<Topology>)>,
    /// Pods there whose required anti-affinity means this pod.
    kept_off: Vec<Domains>,
    /// Pods that all required terms mean.
    near: Vec<Domains>,
    /// Pods that a required anti-affinity term means.
    away: Vec<Domains>,
    /// The pod is one of those that it wants to be near to: where there are none yet, it may be the first.
    means_itself: bool,
    nobody_near: bool,
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let (required, avoided) = (&pod.wants.affinity.required, &pod.wants.anti_affinity.required);
    let mut kept_off = Vec::new();
    for (term, used) in snapshot.terms().iter().filter(|(_, used)| !used.keeps_off.is_empty()) {
        if term.means(pod, namespaces) {
            for (node, pods) in &used.keeps_off {
                add(&mut kept_off, snapshot, &term.key, *node, i64::try_from(*pods).unwrap_or(i64::MAX));
            }
        }
    }
    let idle = empty(&kept_off) && required.is_empty() && avoided.is_empty();
    let (mut near, mut away) = (Vec::new(), Vec::new());
    if !required.is_empty() {
        for (node, pods) in snapshot.counts(Peers::Terms(required.clone(), false)).nodes() {
            required.iter().for_each(|term| add(&mut near, snapshot, &term.key, node, pods));
        }
    }
    for term in avoided {
        for (node, pods) in snapshot.counts(Peers::Terms(vec![term.clone()], false)).nodes() {
            add(&mut away, snapshot, &term.key, node, pods);
        }
    }
    let needed = required.iter().map(|term| (term.key.as_str(), snapshot.topology(&term.key))).collect();
    let means_itself = required.iter().all(|term| term.means(pod, namespaces));
    let nobody_near = empty(&near);
    let rules = Rules { pod, snapshot, needed, kept_off, near, away, means_itself, nobody_near };
    if idle { PreFilterResult::Idle(Box::new(rules)) } else { PreFilterResult::Filter(Box::new(rules)) }
}

impl Rules<'_> {
    fn change(&mut self, other: &PodInfo, node: &NodeInfo, by: i64) {
        let Self { pod, snapshot, kept_off, near, away, .. } = self;
        let namespaces = snapshot.namespaces();
        for term in other.wants.anti_affinity.required.iter().filter(|term| term.means(pod, namespaces)) {
            add(kept_off, snapshot, &term.key, node.id, by);
        }
        if other.terminating {
            return;
        }
        let required = &pod.wants.affinity.required;
        if required.iter().all(|term| term.means(other, namespaces)) {
            required.iter().for_each(|term| add(near, snapshot, &term.key, node.id, by));
        }
        for term in pod.wants.anti_affinity.required.iter().filter(|term| term.means(other, namespaces)) {
            add(away, snapshot, &term.key, node.id, by);
        }
        self.nobody_near = empty(near);
    }
}

impl Filter for Rules<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labelled = self.needed.iter().all(|(_, topology)| topology.domain(node.id).is_some());
        let near = |key: &str| self.near.iter().any(|domains| domains.key == key && domains.of(node.id) > 0);
        let first = self.nobody_near && self.means_itself;
        if !labelled || !(first || self.needed.iter().all(|(key, _)| near(key))) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if any(&self.away, node.id) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules", false));
        }
        if any(&self.kept_off, node.id) {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules", false));
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

struct Pull(Vec<Domains>);

fn pre_score<'a>(cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let mut pull = Vec::new();
    let own = pod.wants.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
    for (weight, term) in own.chain(pod.wants.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term))) {
        for (node, pods) in snapshot.counts(Peers::Terms(vec![term.clone()], true)).nodes() {
            add(&mut pull, snapshot, &term.key, node, weight * pods);
        }
    }
    for (term, used) in snapshot.terms().iter().filter(|(_, used)| !used.pulls.is_empty()) {
        if term.means(pod, namespaces) {
            used.pulls.iter().for_each(|(node, by)| add(&mut pull, snapshot, &term.key, *node, by.weight));
        }
    }
    (!empty(&pull)).then(|| -> Box<dyn Score> { Box::new(Pull(pull)) })
}

impl Score for Pull {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().map(|domains| domains.of(node.id)).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let (max, min) = (scores.iter().copied().max().unwrap_or(0), scores.iter().copied().min().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { SCORE_MAX * (*score - min) / (max - min) };
        }
    }
}
