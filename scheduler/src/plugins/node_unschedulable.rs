//! NodeUnschedulable: rejects cordoned nodes, unless the pod tolerates the taint.

use super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Taint};

pub(super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(|cycle| match cycle.snapshot.special_nodes().cordoned {
        0 => PreFilterResult::Skip,
        _ => PreFilterResult::Filter(Box::new(Cordon(cycle))),
    }),
    queueing_hint,
    ..plugin("NodeUnschedulable")
};

struct Cordon<'a>(Cycle<'a>);

fn fits(pod: &PodInfo, node: &NodeInfo) -> bool {
    let cordoned =
        || Taint { key: "node.kubernetes.io/unschedulable".into(), value: String::new(), effect: "NoSchedule".into() };
    !node.is_cordoned() || pod.tolerates(&cordoned())
}

impl Filter for Cordon<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        fits(self.0.pod, node).then_some(()).ok_or_else(|| Refusal::unresolvable("node(s) were unschedulable"))
    }
}

fn queueing_hint(event: &Event<'_>, pod: &PodInfo) -> bool {
    matches!(event, Event::Node(node, change) if (change.added || change.unschedulable) && fits(pod, node))
}
