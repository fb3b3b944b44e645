//! NodeAffinity: node selector and node affinity, required and preferred.

use std::collections::BTreeSet;

use super::args::AddedAffinity;
use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, Score, normalize, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 2,
    pre_filter: Some(pre_filter),
    pre_score: Some(|cycle, _| {
        let added = &cycle.args.added_affinity;
        match cycle.pod.requirements.node_preferred.is_empty() && added.preferred.is_empty() {
            true => None,
            false => Some(Box::new(Affinity(cycle.pod, added))),
        }
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if (change.added || change.labels) && node.facts.admits(pod)),
    ..plugin("NodeAffinity")
};

struct Affinity<'a>(&'a PodInfo, &'a AddedAffinity);

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let (pod, added) = (cycle.pod, &cycle.args.added_affinity);
    if pod.requirements.node_selector.is_empty() && pod.requirements.node_required.is_none() && added.required.is_none()
    {
        return PreFilterResult::Skip;
    }
    match named(pod) {
        None => PreFilterResult::Filter(Box::new(Affinity(pod, added))),
        Some(names) if names.is_empty() => PreFilterResult::Unschedulable("pod affinity terms conflict".into()),
        Some(names) => PreFilterResult::Nodes(names, Box::new(Affinity(pod, added))),
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
        let added = self.1.required.as_ref();
        if added.is_some_and(|terms| !terms.iter().any(|term| node.facts.matches_term(term))) {
            return Err(Refusal::unresolvable("node(s) didn't match scheduler-enforced node affinity"));
        }
        let admits = node.facts.admits(self.0);
        admits.then_some(()).ok_or_else(|| Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for Affinity<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let preferred = self.0.requirements.node_preferred.iter().chain(&self.1.preferred);
        let held = preferred.filter(|(_, term)| node.facts.matches_term(term));
        held.map(|(weight, _)| *weight).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, false);
    }
}
