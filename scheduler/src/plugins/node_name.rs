//! NodeName: rejects all nodes but the one in `spec.nodeName`.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use crate::node::NodeInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(|cycle| match &cycle.pod.node {
        None => PreFilterResult::Skip,
        Some(name) => PreFilterResult::Filter(Box::new(NodeNameFilter(name))),
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if change.added && pod.node.as_deref() == Some(node.name())),
    ..plugin("NodeName")
};

struct NodeNameFilter<'a>(&'a str);

impl Filter for NodeNameFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (node.name() == self.0)
            .then_some(())
            .ok_or_else(|| Refusal::unresolvable("node(s) didn't match the requested node name"))
    }
}
