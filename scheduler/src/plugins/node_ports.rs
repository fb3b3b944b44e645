//! NodePorts: one taker per port of the host.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};

pub(super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(|cycle| match cycle.pod.wants.ports.is_empty() {
        true => PreFilterResult::Skip,
        false => PreFilterResult::Filter(Box::new(Ports(cycle.pod))),
    }),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added,
        Event::PodGone(gone, _) => {
            pod.wants.ports.iter().any(|port| gone.wants.ports.iter().any(|other| clash(port, other)))
        }
        _ => false,
    },
    ..plugin("NodePorts")
};

struct Ports<'a>(&'a PodInfo);

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let everywhere = |port: &HostPort| port.ip == "0.0.0.0" || port.ip == "::";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || everywhere(a) || everywhere(b))
}

impl Filter for Ports<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let mut taken = node.pods.values().flat_map(|pod| &pod.wants.ports);
        if taken.any(|taken| self.0.wants.ports.iter().any(|wanted| clash(wanted, taken))) {
            return Err(Refusal::new("node(s) didn't have free ports for the requested pod ports", false));
        }
        Ok(())
    }
}
