//! InterPodAffinity: affinity and anti-affinity terms of the pod and of existing pods.

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
            !other.requirements.anti_affinity.required.is_empty() || !pod.requirements.anti_affinity.required.is_empty()
        }
        Event::PodPlaced(_) => !pod.requirements.affinity.required.is_empty(),
    },
    ..plugin("InterPodAffinity")
};

/// The effect of terms on domains: the number of pods that exclude a pod, or the sum of weights.
#[derive(Default)]
struct Influence<'a> {
    /// Per term: the snapshot's sums, copied on the first change. Without a term: the sums of all other terms, combined
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

    /// Adds or removes a pod that matches the term on a node.
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

struct AffinityFilter<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    /// The topologies of the required affinity.
    needed: Vec<Arc<Topology>>,
    /// Existing pods whose required anti-affinity matches this pod.
    excluded: Influence<'a>,
    /// Pods that match all required terms, by each term's label.
    near: Influence<'a>,
    /// Pods that match a required anti-affinity term.
    away: Influence<'a>,
    /// Whether the pod matches its own required affinity: if no other pod does, it may be the first.
    matches_itself: bool,
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let (required, avoided) = (&pod.requirements.affinity.required, &pod.requirements.anti_affinity.required);
    let mut excluded = Influence::default();
    for (term, used) in
        snapshot.terms().matching(pod, namespaces).filter(|(_, used)| !used.required_anti_affinity.is_empty())
    {
        excluded.take(snapshot, term, &used.required_anti_affinity);
    }
    let idle = excluded.is_zero() && required.is_empty() && avoided.is_empty();
    let (mut near, mut away) = (Influence::default(), Influence::default());
    for term in required {
        near.share(term, snapshot.sums(Peers::Terms(required.clone(), false), &term.key));
    }
    for term in avoided {
        away.share(term, snapshot.sums(Peers::Terms(vec![term.clone()], false), &term.key));
    }
    let needed = required.iter().map(|term| snapshot.topology(&term.key)).collect();
    let matches_itself = required.iter().all(|term| term.matches(pod, namespaces));
    let rules = AffinityFilter { pod, snapshot, needed, excluded, near, away, matches_itself };
    if idle { PreFilterResult::Idle(Box::new(rules)) } else { PreFilterResult::Filter(Box::new(rules)) }
}

impl AffinityFilter<'_> {
    fn change(&mut self, other: &PodInfo, node: NodeId, by: i64) {
        let Self { pod, snapshot, excluded, near, away, .. } = self;
        let namespaces = snapshot.namespaces();
        for term in other.requirements.anti_affinity.required.iter().filter(|term| term.matches(pod, namespaces)) {
            excluded.change(snapshot, term, node, by);
        }
        if other.terminating {
            return;
        }
        // Each sum belongs to one term, in the order of the pod's.
        if pod.requirements.affinity.required.iter().all(|term| term.matches(other, namespaces)) {
            near.sums.iter_mut().for_each(|(_, sums)| Arc::make_mut(sums).add(node, by));
        }
        let matches = |term: &Option<&PodTerm>| term.is_some_and(|term| term.matches(other, namespaces));
        for (_, sums) in away.sums.iter_mut().filter(|(term, _)| matches(term)) {
            Arc::make_mut(sums).add(node, by);
        }
    }
}

impl Filter for AffinityFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labelled = self.needed.iter().all(|topology| topology.domain(node.id).is_some());
        let first = || self.matches_itself && self.near.is_zero();
        if !labelled || !(self.near.sums.iter().all(|(_, sums)| sums.on(node.id) > 0) || first()) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.away.any_on(node.id) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules", false));
        }
        if self.excluded.any_on(node.id) {
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

/// The weighted preferences for a pod.
struct PodAffinityScore<'a> {
    by_preferred: Influence<'a>,
    /// Existing pods whose required affinity matches the pod.
    by_required: Influence<'a>,
    weight: i64,
}

fn pre_score<'a>(cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let Cycle { pod, snapshot, args, .. } = cycle;
    let prefers =
        !pod.requirements.affinity.preferred.is_empty() || !pod.requirements.anti_affinity.preferred.is_empty();
    if args.ignore_preferences_of_existing && !prefers {
        return None;
    }
    let (mut by_preferred, mut by_required) = (Influence::default(), Influence::default());
    let own = pod.requirements.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
    for (weight, term) in
        own.chain(pod.requirements.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term)))
    {
        let counts = snapshot.counts(Peers::Terms(vec![term.clone()], true));
        let sums = by_preferred.together(snapshot, term);
        counts.nodes().for_each(|(node, pods)| sums.add(node, weight * pods));
    }
    let weight = args.hard_affinity_weight.0;
    for (term, used) in snapshot.terms().matching(pod, snapshot.namespaces()) {
        if !used.preferred.is_empty() {
            by_preferred.take(snapshot, term, &used.preferred);
        }
        if weight > 0 && !used.required_affinity.is_empty() {
            by_required.take(snapshot, term, &used.required_affinity);
        }
    }
    let any = !(by_preferred.is_zero() && by_required.is_zero());
    any.then(|| -> Box<dyn Score + 'a> { Box::new(PodAffinityScore { by_preferred, by_required, weight }) })
}

impl Score for PodAffinityScore<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let sum = |of: &Influence<'_>| of.sums.iter().map(|(_, sums)| sums.on(node.id)).sum::<i64>();
        sum(&self.by_preferred) + self.weight * sum(&self.by_required)
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let (max, min) = (scores.iter().copied().max().unwrap_or(0), scores.iter().copied().min().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { SCORE_MAX * (*score - min) / (max - min) };
        }
    }
}
