//! TaintToleration: taints keep pods away, or are preferred against.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, Score, normalize, plugin};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 3,
    pre_filter: Some(|cycle| match cycle.snapshot.special_nodes().repelling {
        0 => PreFilterResult::Skip,
        _ => PreFilterResult::Filter(Box::new(Tolerance(cycle.pod))),
    }),
    // Without taints all nodes are equally good.
    pre_score: Some(|cycle, _| match cycle.snapshot.special_nodes().tainted {
        0 => None,
        _ => Some(Box::new(Tolerance(cycle.pod))),
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if (change.added || change.taints) && !node.facts.repels(pod)),
    ..plugin("TaintToleration")
};

struct Tolerance<'a>(&'a PodInfo);

impl Filter for Tolerance<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (!node.keeps_off(self.0)).then_some(()).ok_or_else(|| Refusal::unresolvable("node(s) had untolerated taint(s)"))
    }
}

impl Score for Tolerance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let unwanted = node.facts.taints.iter().filter(|t| !t.keeps_off() && !self.0.tolerates(t));
        unwanted.count() as i64
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}
