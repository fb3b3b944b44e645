//! InterPodAffinity: pods near or away from others, by terms of the pod and of those that are there already.

use std::sync::Arc;

use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::index::{DomainSums, NodeAmounts, Peers, Topology};
use crate::node::{NodeId, NodeInfo};
use crate::pod::{PodInfo, PodTerm};
use crate::snapshot::Snapshot;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(pre_filter),
    pre_score: Some(pre_score),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added || change.labels,
        Event::NodeGone | Event::Namespace => true,
        Event::Claim(_) | Event::Volume => false,
        Event::PodGone(other, _) => {
            !other.wants.anti_affinity.required.is_empty() || !pod.wants.anti_affinity.required.is_empty()
        }
        Event::PodPlaced(_) => !pod.wants.affinity.required.is_empty(),
    },
    ..plugin("InterPodAffinity")
};

/// What terms make of the domains: how many keep a pod off, or how much they pull.
#[derive(Default)]
struct Influence<'a> {
    /// With a term: the snapshot's own sums, copies once they are changed. Without: those of all other terms, together
    /// by label.
    sums: Vec<(Option<&'a PodTerm>, Arc<DomainSums>)>,
}

impl<'a> Influence<'a> {
    fn take(&mut self, snapshot: &Snapshot, term: &'a PodTerm, amounts: &NodeAmounts) {
        match amounts.sums(&snapshot.topology(&term.key)) {
            Some(sums) => self.share(term, sums),
            None => {
                let sums = self.together(snapshot, term);
                amounts.nodes().for_each(|(node, amount)| sums.add(node, amount));
            }
        }
    }

    fn share(&mut self, term: &'a PodTerm, sums: Arc<DomainSums>) {
        self.sums.push((Some(term), sums));
    }

    fn together(&mut self, snapshot: &Snapshot, term: &PodTerm) -> &mut DomainSums {
        let topology = snapshot.topology(&term.key);
        let known = self.sums.iter().position(|(term, sums)| term.is_none() && sums.is_of(&topology));
        let at = known.unwrap_or_else(|| {
            self.sums.push((None, Arc::new(DomainSums::new(topology))));
            self.sums.len() - 1
        });
        Arc::make_mut(&mut self.sums[at].1)
    }

    /// As if a pod that the term is about were on a node, or not any more.
    fn change(&mut self, snapshot: &Snapshot, term: &PodTerm, node: NodeId, by: i64) {
        match self.sums.iter_mut().find(|(shared, _)| *shared == Some(term)) {
            Some((_, sums)) => Arc::make_mut(sums).add(node, by),
            None => self.together(snapshot, term).add(node, by),
        }
    }

    fn any_on(&self, node: NodeId) -> bool {
        self.sums.iter().any(|(_, sums)| sums.on(node) > 0)
    }

    fn is_zero(&self) -> bool {
        self.sums.iter().all(|(_, sums)| sums.is_zero())
    }
}

struct Rules<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    /// The labels of the required affinity.
    needed: Vec<Arc<Topology>>,
    /// Pods there whose required anti-affinity means this pod.
    kept_off: Influence<'a>,
    /// Pods that all required terms mean, by the label of each.
    near: Influence<'a>,
    /// Pods that a required anti-affinity term means.
    away: Influence<'a>,
    /// The pod is one of those that it wants to be near to: where there are none yet, it may be the first.
    means_itself: bool,
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let (required, avoided) = (&pod.wants.affinity.required, &pod.wants.anti_affinity.required);
    let mut kept_off = Influence::default();
    for (term, used) in snapshot.terms().meaning(pod, namespaces).filter(|(_, used)| !used.keeps_off.is_empty()) {
        kept_off.take(snapshot, term, &used.keeps_off);
    }
    let idle = kept_off.is_zero() && required.is_empty() && avoided.is_empty();
    let (mut near, mut away) = (Influence::default(), Influence::default());
    for term in required {
        near.share(term, snapshot.sums(Peers::Terms(required.clone(), false), &term.key));
    }
    for term in avoided {
        away.share(term, snapshot.sums(Peers::Terms(vec![term.clone()], false), &term.key));
    }
    let needed = required.iter().map(|term| snapshot.topology(&term.key)).collect();
    let means_itself = required.iter().all(|term| term.means(pod, namespaces));
    let rules = Rules { pod, snapshot, needed, kept_off, near, away, means_itself };
    if idle { PreFilterResult::Idle(Box::new(rules)) } else { PreFilterResult::Filter(Box::new(rules)) }
}

impl Rules<'_> {
    fn change(&mut self, other: &PodInfo, node: NodeId, by: i64) {
        let Self { pod, snapshot, kept_off, near, away, .. } = self;
        let namespaces = snapshot.namespaces();
        for term in other.wants.anti_affinity.required.iter().filter(|term| term.means(pod, namespaces)) {
            kept_off.change(snapshot, term, node, by);
        }
        if other.terminating {
            return;
        }
        // Each sum is of one term, in the order of the pod's.
        if pod.wants.affinity.required.iter().all(|term| term.means(other, namespaces)) {
            near.sums.iter_mut().for_each(|(_, sums)| Arc::make_mut(sums).add(node, by));
        }
        let means = |term: &Option<&PodTerm>| term.is_some_and(|term| term.means(other, namespaces));
        for (_, sums) in away.sums.iter_mut().filter(|(term, _)| means(term)) {
            Arc::make_mut(sums).add(node, by);
        }
    }
}

impl Filter for Rules<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labelled = self.needed.iter().all(|topology| topology.domain(node.id).is_some());
        let first = || self.means_itself && self.near.is_zero();
        if !labelled || !(self.near.sums.iter().all(|(_, sums)| sums.on(node.id) > 0) || first()) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.away.any_on(node.id) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules", false));
        }
        if self.kept_off.any_on(node.id) {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules", false));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node.id, 1);
    }

    fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        self.change(pod, node.id, -1);
    }
}

/// What draws the pod, and with which weight.
struct Pull<'a> {
    once: Influence<'a>,
    /// Pods there that require to be near to such pods.
    drawn: Influence<'a>,
    weight: i64,
}

fn pre_score<'a>(cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let Cycle { pod, snapshot, args, .. } = cycle;
    let prefers = !pod.wants.affinity.preferred.is_empty() || !pod.wants.anti_affinity.preferred.is_empty();
    if args.ignore_preferences_of_existing && !prefers {
        return None;
    }
    let (mut once, mut drawn) = (Influence::default(), Influence::default());
    let own = pod.wants.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
    for (weight, term) in own.chain(pod.wants.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term))) {
        let counts = snapshot.counts(Peers::Terms(vec![term.clone()], true));
        let sums = once.together(snapshot, term);
        counts.nodes().for_each(|(node, pods)| sums.add(node, weight * pods));
    }
    let weight = args.hard_affinity_weight.0;
    for (term, used) in snapshot.terms().meaning(pod, snapshot.namespaces()) {
        if !used.pulls.is_empty() {
            once.take(snapshot, term, &used.pulls);
        }
        if weight > 0 && !used.draws.is_empty() {
            drawn.take(snapshot, term, &used.draws);
        }
    }
    let any = !(once.is_zero() && drawn.is_zero());
    any.then(|| -> Box<dyn Score + 'a> { Box::new(Pull { once, drawn, weight }) })
}

impl Score for Pull<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let sum = |of: &Influence<'_>| of.sums.iter().map(|(_, sums)| sums.on(node.id)).sum::<i64>();
        sum(&self.once) + self.weight * sum(&self.drawn)
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let (max, min) = (scores.iter().copied().max().unwrap_or(0), scores.iter().copied().min().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { SCORE_MAX * (*score - min) / (max - min) };
        }
    }
}
