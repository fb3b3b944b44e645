//! A pod's part of the node's checkpoint. The file changes with what a later run needs: the object, the address, starts
//! and exits. Readiness and messages don't count, as probes decide on them again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::{PodWorker, StatusTarget};
use crate::checkpoint::record::{PodRecord, with_status};
use crate::pod::lifecycle::state::Stage;
use crate::volume::claims::{BoundVolume, ClaimVolumes};
use crate::volume::manager::object_hash;

/// What an earlier run of the agent left of a pod; the default has nothing.
#[derive(Debug, Default)]
pub(crate) struct EarlierRun {
    /// The reserved address.
    pub(crate) ip: Option<IpAddr>,
    /// The agent's last status, if the API's is older.
    pub(crate) status: Option<Box<PodStatus>>,
    /// The volumes of the pod's claims.
    pub(crate) claims: BTreeMap<String, BoundVolume>,
    /// The uid of the pod's namespace.
    pub(crate) namespace_uid: Option<String>,
    /// The identity of its cluster.
    pub(crate) cluster_uid: Option<String>,
}

impl EarlierRun {
    /// The run that a checkpoint has recorded.
    pub(crate) fn of_checkpoint(record: PodRecord, ip: Option<IpAddr>) -> Self {
        let status = Some(Box::new(record.status()));
        let PodRecord { claims, namespace_uid, cluster_uid, .. } = record;
        Self { ip, status, claims, namespace_uid, cluster_uid }
    }
}

/// The recorded state of a pod.
pub(super) struct KeptState {
    /// The agent's last status in its earlier run, until the first step.
    earlier: Option<Box<PodStatus>>,
    /// The pod's object is that of the checkpoint.
    restored: bool,
    /// The volumes of its claims; `None` if it has none.
    pub(super) claims: Option<Arc<ClaimVolumes>>,
    /// The hash of the object without its status.
    object: u64,
    /// The hash of the last recorded state.
    recorded: Option<u64>,
}

impl KeptState {
    pub(super) fn new(
        pod: &Pod,
        earlier: Option<Box<PodStatus>>,
        claims: BTreeMap<String, BoundVolume>,
        enabled: bool,
    ) -> Self {
        let restored = earlier.is_some() && earlier.as_deref() == pod.status.as_ref();
        Self {
            earlier,
            restored,
            claims: ClaimVolumes::of(pod, claims),
            object: if enabled { object_hash(pod) } else { 0 },
            recorded: None,
        }
    }

    pub(super) fn take_earlier_status(&mut self) -> Option<Box<PodStatus>> {
        self.earlier.take()
    }

    /// Whether the pod's object is that of the checkpoint: the API hasn't answered.
    pub(super) fn is_restored(&self) -> bool {
        self.restored
    }
}

impl PodWorker {
    /// The object was replaced.
    pub(super) fn keep_pod(&mut self) {
        self.kept.restored = false;
        if self.node.checkpoint.is_enabled() {
            self.kept.object = object_hash(self.object.get());
        }
    }

    /// Records the pod if its state has changed. A static pod is recorded by its manifest.
    pub(super) fn keep_state(&mut self) {
        if !self.node.checkpoint.is_enabled() || *self.writer.target() != StatusTarget::Pod || self.state.is_removed() {
            return;
        }
        let state = self.state_hash();
        if self.kept.recorded.replace(state) == Some(state) {
            return;
        }
        let (pod, status) = (self.object.compressed().clone(), self.writer.desired().clone());
        let (claims, keyvalue) = (self.kept.claims.clone(), self.keyvalue.clone());
        let uid = self.pod().metadata.uid.clone().unwrap_or_default();
        self.node.checkpoint.set_pod(&uid, move |origin| {
            let record = PodRecord {
                origin,
                pod: with_status(&pod.get(), &status.get()),
                claims: claims.as_ref().map(|claims| claims.all()).unwrap_or_default(),
                namespace_uid: keyvalue.get().map(|owner| owner.uid.clone()),
                cluster_uid: keyvalue.get().and_then(|owner| owner.cluster.clone()),
            };
            pod.settle();
            status.settle();
            record
        });
    }

    fn state_hash(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        let ended = *self.state.stage() == Stage::Ended;
        (self.kept.object, self.sandbox.ip, self.state.succeeded(), ended, self.state.began()).hash(&mut hash);
        for machine in self.state.machines() {
            let exit = machine.exit.as_ref().map(|exit| (exit.code, exit.finished));
            (machine.attempt, exit, machine.passed, &machine.image_id).hash(&mut hash);
        }
        hash.finish()
    }
}
