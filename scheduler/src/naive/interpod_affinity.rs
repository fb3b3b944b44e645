//! InterPodAffinity without indexes: counts all pods of all nodes for each pod.

use std::collections::HashMap;

use crate::node::NodeInfo;
use crate::plugins::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::pod::{PodInfo, PodTerm};

/// The weight of an existing pod's required affinity for pods that match it (upstream's default).
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub(super) static PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(filter),
    pre_score: Some(score),
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

/// A domain: a label and its value.
type Domain<'a> = (&'a str, &'a str);

fn domain<'a>(node: &'a NodeInfo, key: &'a str) -> Option<Domain<'a>> {
    Some((key, node.facts.labels.get(key)?))
}

struct AffinityFilter<'a> {
    pod: &'a PodInfo,
    /// Existing pods whose required anti-affinity matches this pod, by domain.
    excluded: HashMap<Domain<'a>, usize>,
    /// Pods that match all required terms, by domain.
    near: HashMap<Domain<'a>, usize>,
    /// Pods that match a required anti-affinity term, by domain.
    away: HashMap<Domain<'a>, usize>,
    /// Whether no existing pod matches the required affinity, and the pod matches it itself.
    first: bool,
}

fn filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let mut excluded: HashMap<Domain<'_>, usize> = HashMap::new();
    let mut near: HashMap<Domain<'_>, usize> = HashMap::new();
    let mut away: HashMap<Domain<'_>, usize> = HashMap::new();
    let looks = !pod.requirements.affinity.required.is_empty() || !pod.requirements.anti_affinity.required.is_empty();
    for node in snapshot.nodes() {
        for other in node.pods.values() {
            for term in other.requirements.anti_affinity.required.iter().filter(|term| term.matches(pod, namespaces)) {
                if let Some(domain) = domain(node, &term.key) {
                    *excluded.entry(domain).or_default() += 1;
                }
            }
            if !looks || other.terminating {
                continue;
            }
            let all = pod.requirements.affinity.required.iter().all(|term| term.matches(other, namespaces));
            for term in pod.requirements.affinity.required.iter().filter(|_| all) {
                if let Some(domain) = domain(node, &term.key) {
                    *near.entry(domain).or_default() += 1;
                }
            }
            for term in pod.requirements.anti_affinity.required.iter().filter(|term| term.matches(other, namespaces)) {
                if let Some(domain) = domain(node, &term.key) {
                    *away.entry(domain).or_default() += 1;
                }
            }
        }
    }
    if excluded.is_empty() && !looks {
        return PreFilterResult::Skip;
    }
    let first = near.is_empty() && pod.requirements.affinity.required.iter().all(|term| term.matches(pod, namespaces));
    PreFilterResult::Filter(Box::new(AffinityFilter { pod, excluded, near, away, first }))
}

impl Filter for AffinityFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labels = &node.facts.labels;
        let among = |domains: &HashMap<Domain<'_>, usize>, term: &PodTerm| {
            labels.get(&term.key).is_some_and(|value| domains.contains_key(&(term.key.as_str(), value.as_str())))
        };
        let required = &self.pod.requirements.affinity.required;
        let labelled = required.iter().all(|term| labels.contains_key(&term.key));
        if !labelled || !(self.first || required.iter().all(|term| among(&self.near, term))) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.pod.requirements.anti_affinity.required.iter().any(|term| among(&self.away, term)) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules", false));
        }
        let excluded = labels.iter().any(|(key, value)| self.excluded.contains_key(&(key.as_str(), value.as_str())));
        if excluded {
            return Err(Refusal::new("node(s) didn't satisfy existing pods anti-affinity rules", false));
        }
        Ok(())
    }
}

struct Pull<'a>(HashMap<Domain<'a>, i64>);

fn score<'a>(cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<Box<dyn Score + 'a>> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let mut pull: HashMap<Domain<'a>, i64> = HashMap::new();
    for node in snapshot.nodes() {
        let mut add = |term: &'a PodTerm, weight: i64| {
            if let Some(domain) = domain(node, &term.key) {
                *pull.entry(domain).or_default() += weight;
            }
        };
        for other in node.pods.values() {
            let own = pod.requirements.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
            let own = own.chain(pod.requirements.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term)));
            own.filter(|(_, term)| term.matches(other, namespaces)).for_each(|(weight, term)| add(term, weight));
            let theirs = other.requirements.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
            let theirs =
                theirs.chain(other.requirements.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term)));
            let theirs =
                theirs.chain(other.requirements.affinity.required.iter().map(|term| (HARD_AFFINITY_WEIGHT, term)));
            theirs.filter(|(_, term)| term.matches(pod, namespaces)).for_each(|(weight, term)| add(term, weight));
        }
    }
    if pull.is_empty() { None } else { Some(Box::new(Pull(pull))) }
}

impl Score for Pull<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let of = |(key, value): (&String, &String)| self.0.get(&(key.as_str(), value.as_str())).copied();
        node.facts.labels.iter().filter_map(of).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let (max, min) = (scores.iter().copied().max().unwrap_or(0), scores.iter().copied().min().unwrap_or(0));
        for score in scores {
            *score = if max == min { 0 } else { SCORE_MAX * (*score - min) / (max - min) };
        }
    }
}
