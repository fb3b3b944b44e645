//! NodeName: a pod that names its node goes nowhere else.

use super::{Before, Event, Filter, Point, Refusal, Row, row};
use crate::node::NodeInfo;

pub(super) const ROW: Row = Row {
    filter: |cycle| match &cycle.pod.node {
        None => Before::Skip,
        Some(name) => Before::Check(Box::new(Named(name))),
    },
    helps: |event, pod| matches!(event, Event::Node(node, change) if change.added && pod.node.as_deref() == Some(node.name())),
    ..row("NodeName", &[Point::Filter])
};

struct Named<'a>(&'a str);

impl Filter for Named<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        (node.name() == self.0)
            .then_some(())
            .ok_or_else(|| Refusal::helpless("node(s) didn't match the requested node name"))
    }
}
