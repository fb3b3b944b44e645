//! VolumeZone: a volume with a zone or region label is used in that zone or region.

use machinery_client::claims;

use super::super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use super::concerns;
use crate::node::NodeInfo;
use crate::volumes::claims_of;

const CONFLICT: &str = "node(s) had no available volume zone";
/// The beta labels, and their current names.
const LABELS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];
/// Separates the values of a volume in several zones.
const SEPARATOR: &str = "__";

pub(in super::super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(pre_filter),
    queueing_hint: |event, pod| {
        let node = matches!(event, Event::Node(_, change) if change.added || change.labels);
        (node && pod.claims.is_some()) || concerns(event, pod)
    },
    ..plugin("VolumeZone")
};

/// The two names of a label, and the accepted values.
struct Zones<'a>(Vec<(&'static str, &'static str, Vec<&'a str>)>);

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let volumes = &cycle.snapshot.volumes;
    let bound = claims_of(cycle.pod).filter_map(|(key, _)| volumes.volume(claims::volume_name(volumes.claim(&key)?)));
    let mut zones = Vec::new();
    for volume in bound {
        for (label, now) in LABELS {
            let value = volume.metadata.labels.as_ref().and_then(|labels| labels.get(label));
            zones.extend(value.map(|value| (label, now, value.split(SEPARATOR).collect())));
        }
    }
    if zones.is_empty() { PreFilterResult::Skip } else { PreFilterResult::Filter(Box::new(Zones(zones))) }
}

impl Filter for Zones<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let labels = &node.facts.labels;
        if !LABELS.iter().any(|(label, _)| labels.contains_key(*label)) {
            // A node without zone labels is accepted.
            return Ok(());
        }
        let fits = self.0.iter().all(|(label, now, values)| {
            let value = labels.get(*label).or_else(|| labels.get(*now));
            value.is_some_and(|value| values.contains(&&**value))
        });
        if fits { Ok(()) } else { Err(Refusal::unresolvable(CONFLICT)) }
    }
}
