//! InterPodAffinity, counted anew over all pods of all nodes for each pod.

use std::collections::HashMap;

use crate::node::NodeInfo;
use crate::plugins::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, SCORE_MAX, Score, plugin};
use crate::pod::{PodInfo, PodTerm};

/// How much the required affinity of a pod that is there draws others that it means (upstream's default).
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
            !other.wants.anti_affinity.required.is_empty() || !pod.wants.anti_affinity.required.is_empty()
        }
        Event::PodPlaced(_) => !pod.wants.affinity.required.is_empty(),
    },
    ..plugin("InterPodAffinity")
};

/// A label and its value: a domain.
type Domain<'a> = (&'a str, &'a str);

fn domain<'a>(node: &'a NodeInfo, key: &'a str) -> Option<Domain<'a>> {
    Some((key, node.facts.labels.get(key)?))
}

struct Rules<'a> {
    pod: &'a PodInfo,
    /// Pods there whose required anti-affinity means this pod, by domain.
    kept_off: HashMap<Domain<'a>, usize>,
    /// Pods that all required terms mean, by domain.
    near: HashMap<Domain<'a>, usize>,
    /// Pods that a required anti-affinity term means, by domain.
    away: HashMap<Domain<'a>, usize>,
    /// Nothing is there yet that the pod wants to be near to, and it is one of those itself.
    first: bool,
}

fn filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    let namespaces = snapshot.namespaces();
    let mut kept_off: HashMap<Domain<'_>, usize> = HashMap::new();
    let mut near: HashMap<Domain<'_>, usize> = HashMap::new();
    let mut away: HashMap<Domain<'_>, usize> = HashMap::new();
    let looks = !pod.wants.affinity.required.is_empty() || !pod.wants.anti_affinity.required.is_empty();
    for node in snapshot.nodes() {
        for other in node.pods.values() {
            for term in other.wants.anti_affinity.required.iter().filter(|term| term.means(pod, namespaces)) {
                if let Some(domain) = domain(node, &term.key) {
                    *kept_off.entry(domain).or_default() += 1;
                }
            }
            if !looks || other.terminating {
                continue;
            }
            let all = pod.wants.affinity.required.iter().all(|term| term.means(other, namespaces));
            for term in pod.wants.affinity.required.iter().filter(|_| all) {
                if let Some(domain) = domain(node, &term.key) {
                    *near.entry(domain).or_default() += 1;
                }
            }
            for term in pod.wants.anti_affinity.required.iter().filter(|term| term.means(other, namespaces)) {
                if let Some(domain) = domain(node, &term.key) {
                    *away.entry(domain).or_default() += 1;
                }
            }
        }
    }
    if kept_off.is_empty() && !looks {
        return PreFilterResult::Skip;
    }
    let first = near.is_empty() && pod.wants.affinity.required.iter().all(|term| term.means(pod, namespaces));
    PreFilterResult::Filter(Box::new(Rules { pod, kept_off, near, away, first }))
}

impl Filter for Rules<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labels = &node.facts.labels;
        let among = |domains: &HashMap<Domain<'_>, usize>, term: &PodTerm| {
            labels.get(&term.key).is_some_and(|value| domains.contains_key(&(term.key.as_str(), value.as_str())))
        };
        let required = &self.pod.wants.affinity.required;
        let labelled = required.iter().all(|term| labels.contains_key(&term.key));
        if !labelled || !(self.first || required.iter().all(|term| among(&self.near, term))) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.pod.wants.anti_affinity.required.iter().any(|term| among(&self.away, term)) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules", false));
        }
        let kept_off = labels.iter().any(|(key, value)| self.kept_off.contains_key(&(key.as_str(), value.as_str())));
        if kept_off {
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
            let own = pod.wants.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
            let own = own.chain(pod.wants.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term)));
            own.filter(|(_, term)| term.means(other, namespaces)).for_each(|(weight, term)| add(term, weight));
            let theirs = other.wants.affinity.preferred.iter().map(|(weight, term)| (*weight, term));
            let theirs = theirs.chain(other.wants.anti_affinity.preferred.iter().map(|(weight, term)| (-weight, term)));
            let theirs = theirs.chain(other.wants.affinity.required.iter().map(|term| (HARD_AFFINITY_WEIGHT, term)));
            theirs.filter(|(_, term)| term.means(pod, namespaces)).for_each(|(weight, term)| add(term, weight));
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
