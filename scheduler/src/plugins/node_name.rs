//! NodeName: a pod that names its node goes nowhere else.

use super::{Event, Filter, Point, PreFilterResult, Refusal, Row, row};
use crate::node::NodeInfo;

pub(super) const ROW: Row = Row {
    filter: |cycle| match &cycle.pod.node {
        None => PreFilterResult::Skip,
        Some(name) => PreFilterResult::Filter(Box::new(Named(name))),
    },
    queueing_hint: |event, pod| matches!(event, Event::Node(node, change) if change.added && pod.node.as_deref() == Some(node.name())),
    ..row("NodeName", &[Point::Filter])
};

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (node.name() == self.0)
            .then_some(())
            .ok_or_else(|| Refusal::unresolvable("node(s) didn't match the requested node name"))
    }
}
