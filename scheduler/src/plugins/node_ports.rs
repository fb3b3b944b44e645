//! NodePorts: rejects nodes where another pod has one of the pod's host ports.

use super::{Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};

pub(super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(|cycle| match cycle.pod.requirements.ports.is_empty() {
        true => PreFilterResult::Skip,
        false => PreFilterResult::Filter(Box::new(HostPortsFilter(cycle.pod))),
    }),
    queueing_hint: |event, pod| match event {
        Event::Node(_, change) => change.added,
        Event::PodGone(gone, _) => {
            pod.requirements.ports.iter().any(|port| gone.requirements.ports.iter().any(|other| clash(port, other)))
        }
        _ => false,
    },
    ..plugin("NodePorts")
};

struct HostPortsFilter<'a>(&'a PodInfo);

fn clash(a: &HostPort, b: &HostPort) -> bool {
    let everywhere = |port: &HostPort| port.ip == "0.0.0.0" || port.ip == "::";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || everywhere(a) || everywhere(b))
}

impl Filter for HostPortsFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let mut taken = node.pods.values().flat_map(|pod| &pod.requirements.ports);
        if taken.any(|taken| self.0.requirements.ports.iter().any(|wanted| clash(wanted, taken))) {
            return Err(Refusal::new("node(s) didn't have free ports for the requested pod ports", false));
        }
        Ok(())
    }
}
