//! TaintToleration: rejects nodes with `NoSchedule` and `NoExecute` taints, and scores against `PreferNoSchedule`.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, Score, normalize, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 3,
    pre_filter: Some(|cycle| match cycle.snapshot.special_nodes().hard_tainted {
        0 => PreFilterResult::Skip,
        _ => PreFilterResult::Filter(Box::new(Tolerance(cycle.pod))),
    }),
    // Without taints all nodes score the same.
    pre_score: Some(|cycle, _| match cycle.snapshot.special_nodes().tainted {
        0 => None,
        _ => Some(Box::new(Tolerance(cycle.pod))),
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if (change.added || change.taints) && !node.facts.has_untolerated_taint(pod)),
    ..plugin("TaintToleration")
};

struct Tolerance<'a>(&'a PodInfo);

impl Filter for Tolerance<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (!node.has_untolerated_taint(self.0))
            .then_some(())
            .ok_or_else(|| Refusal::unresolvable("node(s) had untolerated taint(s)"))
    }
}

impl Score for Tolerance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let unwanted = node.facts.taints.iter().filter(|t| !t.prevents_scheduling() && !self.0.tolerates(t));
        unwanted.count() as i64
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}
