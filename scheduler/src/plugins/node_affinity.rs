//! NodeAffinity: node selector and node affinity, required and preferred. Requirements are evaluated once for each value
//! of their label, and a node is found by its number: a decision reads the labels of no node.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, Score, normalize, plugin};
use crate::index::Topology;
use crate::node::{NodeInfo, holds};
use crate::pod::{NodeTerm, PodInfo};
use crate::snapshot::Snapshot;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(pre_filter),
    pre_score: Some(|cycle, _| {
        let preferred = cycle.pod.requirements.node_preferred.iter().chain(&cycle.args.added_affinity.preferred);
        let preferred: Vec<_> =
            preferred.map(|(weight, term)| (*weight, EvaluatedTerm::of(term, cycle.snapshot))).collect();
        if preferred.is_empty() { None } else { Some(Box::new(Preferred(preferred))) }
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if (change.added || change.labels) && node.facts.admits(pod)),
    ..plugin("NodeAffinity")
};

/// A requirement on a label, evaluated for each of its values.
struct EvaluatedLabel {
    topology: Arc<Topology>,
    by_domain: Vec<bool>,
    /// On nodes without the label.
    absent: bool,
}

impl EvaluatedLabel {
    fn of(key: &str, snapshot: &Snapshot, holds: impl Fn(Option<&str>) -> bool) -> Self {
        let topology = snapshot.topology(key);
        Self {
            by_domain: topology.values().iter().map(|value| holds(Some(value))).collect(),
            absent: holds(None),
            topology,
        }
    }

    fn holds(&self, node: &NodeInfo) -> bool {
        self.topology.domain(node.id).map_or(self.absent, |domain| self.by_domain[domain])
    }
}

/// A node selector term, evaluated for each value of its labels.
struct EvaluatedTerm<'a> {
    term: &'a NodeTerm,
    labels: Vec<EvaluatedLabel>,
}

impl<'a> EvaluatedTerm<'a> {
    fn of(term: &'a NodeTerm, snapshot: &Snapshot) -> Self {
        let labels = term.labels.iter().map(|r| EvaluatedLabel::of(&r.key, snapshot, |value| holds(r, value)));
        Self { labels: labels.collect(), term }
    }

    fn matches(&self, node: &NodeInfo) -> bool {
        !self.term.is_empty()
            && self.labels.iter().all(|label| label.holds(node))
            && node.facts.matches_fields(self.term)
    }
}

/// Terms of which one must match; none: every node matches.
struct Required<'a>(Option<Vec<EvaluatedTerm<'a>>>);

impl<'a> Required<'a> {
    fn of(terms: Option<&'a Vec<NodeTerm>>, snapshot: &Snapshot) -> Self {
        Self(terms.map(|terms| terms.iter().map(|term| EvaluatedTerm::of(term, snapshot)).collect()))
    }

    fn matches(&self, node: &NodeInfo) -> bool {
        self.0.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)))
    }
}

struct Affinity<'a> {
    selector: Vec<EvaluatedLabel>,
    required: Required<'a>,
    /// The profile's `addedAffinity`.
    added: Required<'a>,
}

impl<'a> Affinity<'a> {
    fn of(cycle: Cycle<'a>) -> Self {
        let (requirements, snapshot) = (&cycle.pod.requirements, cycle.snapshot);
        let selected = |(key, wanted): (&String, &'a String)| {
            EvaluatedLabel::of(key, snapshot, |value| value == Some(wanted.as_str()))
        };
        Self {
            selector: requirements.node_selector.iter().map(selected).collect(),
            required: Required::of(requirements.node_required.as_ref(), snapshot),
            added: Required::of(cycle.args.added_affinity.required.as_ref(), snapshot),
        }
    }
}

struct Preferred<'a>(Vec<(i64, EvaluatedTerm<'a>)>);

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let (pod, added) = (cycle.pod, &cycle.args.added_affinity);
    if pod.requirements.node_selector.is_empty() && pod.requirements.node_required.is_none() && added.required.is_none()
    {
        return PreFilterResult::Skip;
    }
    match named(pod) {
        None => PreFilterResult::Filter(Box::new(Affinity::of(cycle))),
        Some(names) if names.is_empty() => PreFilterResult::Unschedulable("pod affinity terms conflict".into()),
        Some(names) => PreFilterResult::Nodes(names, Box::new(Affinity::of(cycle))),
    }
}

/// The nodes that the terms name, if every term names some.
fn named(pod: &PodInfo) -> Option<BTreeSet<&str>> {
    let mut all = BTreeSet::new();
    let terms = pod.requirements.node_required.as_ref().filter(|terms| !terms.is_empty())?;
    for term in terms {
        let mut of_term: Option<BTreeSet<&str>> = None;
        for field in term.fields.iter().filter(|field| field.key == "metadata.name" && field.operator == "In") {
            let values: BTreeSet<&str> = field.values.iter().map(String::as_str).collect();
            of_term = Some(of_term.map_or(values.clone(), |names| names.intersection(&values).copied().collect()));
        }
        all.extend(of_term?);
    }
    Some(all)
}

impl Filter for Affinity<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.added.matches(node) {
            return Err(Refusal::unresolvable("node(s) didn't match scheduler-enforced node affinity"));
        }
        let admits = self.selector.iter().all(|label| label.holds(node)) && self.required.matches(node);
        admits.then_some(()).ok_or_else(|| Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        self.0.iter().filter(|(_, term)| term.matches(node)).map(|(weight, _)| *weight).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, false);
    }
}
