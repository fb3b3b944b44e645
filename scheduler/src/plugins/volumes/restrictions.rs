//! VolumeRestrictions: one pod at a time may use a `ReadWriteOncePod` claim. (Cloud disks that attach to one node at a
//! time are no volumes of this program's nodes.)

use machinery_api::ObjectKey;

use super::super::{Cycle, Event, Filter, Plugin, PreFilterResult, Refusal, plugin};
use super::concerns;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::claims_of;

const CONFLICT: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by \
                        another pod";

pub(in super::super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(pre_filter),
    queueing_hint: |event, pod| match event {
        Event::PodGone(gone, _) => claims_of(gone).any(|(key, _)| claims_of(pod).any(|(own, _)| own == key)),
        _ => concerns(event, pod),
    },
    ..plugin("VolumeRestrictions")
};

/// The pod's `ReadWriteOncePod` claims, and the number of other uses of them.
struct ReadWriteOncePod {
    claims: Vec<ObjectKey>,
    users: usize,
}

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let volumes = &cycle.snapshot.volumes;
    let mut alone = ReadWriteOncePod { claims: Vec::new(), users: 0 };
    for (key, _) in claims_of(cycle.pod).filter(|(_, claim)| !claim.ephemeral) {
        let Some(claim) = volumes.claim(&key) else {
            return PreFilterResult::Unschedulable(format!("persistentvolumeclaim {:?} not found", key.name));
        };
        let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        if modes.iter().any(|mode| mode == "ReadWriteOncePod") {
            alone.users += volumes.users(&key);
            alone.claims.push(key);
        }
    }
    match (alone.claims.is_empty(), alone.users) {
        (true, _) => PreFilterResult::Skip,
        (false, 0) => PreFilterResult::Idle(Box::new(alone)),
        (false, _) => PreFilterResult::Filter(Box::new(alone)),
    }
}

impl ReadWriteOncePod {
    fn used_by(&self, pod: &PodInfo) -> usize {
        claims_of(pod).filter(|(key, _)| self.claims.contains(key)).count()
    }
}

impl Filter for ReadWriteOncePod {
    fn check(&self, _: &NodeInfo) -> Result<(), Refusal> {
        if self.users == 0 { Ok(()) } else { Err(Refusal::new(CONFLICT, false)) }
    }

    fn add_pod(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.users += self.used_by(pod);
    }

    fn remove_pod(&mut self, pod: &PodInfo, _: &NodeInfo) {
        self.users = self.users.saturating_sub(self.used_by(pod));
    }
}
