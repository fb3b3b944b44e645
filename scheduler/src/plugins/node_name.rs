//! NodeName: a pod that names its node goes nowhere else.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use crate::node::NodeInfo;

pub(super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(|cycle| match &cycle.pod.node {
        None => PreFilterResult::Skip,
        Some(name) => PreFilterResult::Filter(Box::new(Named(name))),
    }),
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if change.added && pod.node.as_deref() == Some(node.name())),
    ..plugin("NodeName")
};

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (node.name() == self.0)
            .then_some(())
            .ok_or_else(|| Refusal::unresolvable("node(s) didn't match the requested node name"))
    }
}
