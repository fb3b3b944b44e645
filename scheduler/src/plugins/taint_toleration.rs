//! TaintToleration: taints keep pods away, or are preferred against.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, Score, normalize, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 3,
    pre_filter: Some(|cycle| PreFilterResult::Filter(Box::new(Tolerance(cycle.pod)))),
    pre_score: Some(|cycle, _| Some(Box::new(Tolerance(cycle.pod)))),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if (change.added || change.taints) && !node.facts.repels(pod)),
    ..plugin("TaintToleration")
};

struct Tolerance<'a>(&'a PodInfo);

impl Filter for Tolerance<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (!node.facts.repels(self.0))
            .then_some(())
            .ok_or_else(|| Refusal::unresolvable("node(s) had untolerated taint(s)"))
    }
}

impl Score for Tolerance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let unwanted = node.facts.taints.iter().filter(|t| t.effect == "PreferNoSchedule" && !self.0.tolerates(t));
        unwanted.count() as i64
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}
