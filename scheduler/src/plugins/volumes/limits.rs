//! NodeVolumeLimits: the maximum number of volumes of a driver on a node, from the node's CSINode.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use machinery_client::claims::{self, class_of_claim};
use machinery_client::key_of;

use super::super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use super::concerns;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::{Volumes, claims_of};

const EXCEEDED: &str = "node(s) exceed max volume count";

pub(in super::super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(pre_filter),
    queueing_hint: |event, pod| match event {
        Event::PodGone(gone, _) => gone.claims.is_some() && pod.claims.is_some(),
        Event::Node(_, change) => change.added && pod.claims.is_some(),
        _ => concerns(event, pod),
    },
    ..plugin("NodeVolumeLimits")
};

/// The identifiers of a pod's volumes, by driver.
type ByDriver = BTreeMap<String, BTreeSet<String>>;

struct Limits<'a> {
    volumes: &'a Volumes,
    wanted: ByDriver,
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let volumes = &cycle.snapshot.volumes;
    if cycle.pod.claims.is_none() || !volumes.has_limits() {
        return PreFilterResult::Skip;
    }
    let wanted = by_driver(volumes, cycle.pod);
    if wanted.is_empty() {
        return PreFilterResult::Skip;
    }
    PreFilterResult::Filter(Box::new(Limits { volumes, wanted }))
}

fn by_driver(volumes: &Volumes, pod: &PodInfo) -> ByDriver {
    let mut all = ByDriver::new();
    for (driver, volume) in claims_of(pod).filter_map(|(key, _)| driver_of(volumes, volumes.claim(&key)?)) {
        all.entry(driver).or_default().insert(volume);
    }
    all
}

/// The driver of a claim's volume, provisioned or not, and the volume's identifier.
fn driver_of(volumes: &Volumes, claim: &PersistentVolumeClaim) -> Option<(String, String)> {
    if let Some(volume) = volumes.volume(claims::volume_name(claim)) {
        let csi = volume.spec.as_ref()?.csi.as_ref()?;
        return Some((csi.driver.clone(), csi.volume_handle.clone()));
    }
    let class = volumes.class(class_of_claim(claim))?;
    Some((class.provisioner.clone(), key_of(&claim.metadata).to_string()))
}

impl Filter for Limits<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for (driver, wanted) in &self.wanted {
            let Some(limit) = self.volumes.limit(node.name(), driver) else { continue };
            let mut used: BTreeSet<String> = BTreeSet::new();
            for pod in node.pods.values().filter(|pod| pod.claims.is_some()) {
                used.extend(by_driver(self.volumes, pod).remove(driver).unwrap_or_default());
            }
            if used.union(wanted).count() > limit && !wanted.is_subset(&used) {
                return Err(Refusal::new(EXCEEDED, false));
            }
        }
        Ok(())
    }
}
