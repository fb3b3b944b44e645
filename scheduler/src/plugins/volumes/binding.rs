//! VolumeBinding: schedules pods to nodes that can reach their volumes, and selects or provisions volumes for claims
//! that wait for a consumer.
//!
//! The decision selects the volumes. They are written before the binding, and the pod is bound after the claims are.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use machinery_api::ObjectKey;
use machinery_client::claims::{
    self, BOUND_BY_CONTROLLER, NO_PROVISIONER, NodeTopology, SELECTED_NODE, annotation, class_of_claim, is_fully_bound,
};
use machinery_client::request::PatchType;
use machinery_client::{Kind, ObjectCache, key_of, reference_to, value_of};
use serde_json::json;

use super::super::{Cycle, Event, Filter, Plugin, PreBindPatch, PreFilterResult, Reasons, Refusal, Reserve, plugin};
use super::concerns;
use crate::node::{NodeFacts, NodeInfo};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::volumes::{Volumes, claims_of};

const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

pub(in super::super) const PLUGIN: Plugin = Plugin {
    pre_filter: Some(pre_filter),
    reserve: Some(Reserve { reserve, unreserve }),
    pre_bind: Some(pre_bind),
    queueing_hint: |event, pod| {
        let node = matches!(event, Event::Node(_, change) if change.added || change.labels);
        (node && pod.claims.is_some()) || concerns(event, pod)
    },
    ..plugin("VolumeBinding")
};

fn pre_filter(cycle: Cycle<'_>) -> PreFilterResult<'_> {
    let Cycle { pod, snapshot, .. } = cycle;
    if pod.claims.is_none() {
        return PreFilterResult::Skip;
    }
    let volumes = &snapshot.volumes;
    if let Err(why) = check_claims(volumes, pod) {
        return PreFilterResult::Unschedulable(why);
    }
    match sorted(volumes, pod) {
        Some(sorted) => PreFilterResult::Filter(Box::new(BindingFilter { volumes, sorted })),
        None => PreFilterResult::Unschedulable("pod has unbound immediate PersistentVolumeClaims".into()),
    }
}

/// Whether the pod's claims are usable at all.
fn check_claims(volumes: &Volumes, pod: &PodInfo) -> Result<(), String> {
    for (key, claim) in claims_of(pod) {
        let name = &key.name;
        let Some(found) = volumes.claim(&key) else {
            return Err(match claim.ephemeral {
                true => {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                }
                false => format!("persistentvolumeclaim {name:?} not found"),
            });
        };
        if found.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = claims::volume_name(found);
            return Err(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"));
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let owner = machinery_client::controller_of(&found.metadata).map(|owner| &*owner.uid);
        if claim.ephemeral && owner != Some(&*pod.uid) {
            return Err(format!("PVC {key} was not created for pod {} (pod is not owner)", pod.key));
        }
    }
    Ok(())
}

/// The pod's claims by state.
struct SortedClaims<'a> {
    bound: Vec<&'a PersistentVolumeClaim>,
    waiting: Vec<&'a PersistentVolumeClaim>,
}

/// None if a claim with immediate binding is not bound yet.
fn sorted<'a>(volumes: &'a Volumes, pod: &PodInfo) -> Option<SortedClaims<'a>> {
    let mut sorted = SortedClaims { bound: Vec::new(), waiting: Vec::new() };
    for claim in claims_of(pod).filter_map(|(key, _)| volumes.claim(&key)) {
        if is_fully_bound(claim) {
            sorted.bound.push(claim);
        } else if claims::volume_name(claim).is_empty() && claims::waits_for_consumer(class(volumes, claim)) {
            sorted.waiting.push(claim);
        } else {
            return None;
        }
    }
    // The smallest request first, so that it doesn't take a volume that only the larger request needs.
    sorted.waiting.sort_by_key(|claim| claims::requested(claim));
    Some(sorted)
}

fn class<'a>(volumes: &'a Volumes, claim: &PersistentVolumeClaim) -> Option<&'a StorageClass> {
    volumes.class(class_of_claim(claim))
}

struct BindingFilter<'a> {
    volumes: &'a Volumes,
    sorted: SortedClaims<'a>,
}

impl Filter for BindingFilter<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let place = place(&node.facts);
        let (mut reasons, mut missing) = (Vec::new(), false);
        let mut far = false;
        for claim in &self.sorted.bound {
            match self.volumes.volume(claims::volume_name(claim)) {
                None => missing = true,
                Some(volume) => far |= !claims::is_reachable(volume, place),
            }
        }
        if far {
            reasons.push(NODE_CONFLICT.into());
        }
        if choose(self.volumes, &self.sorted.waiting, &node.facts).is_none() {
            reasons.push(BIND_CONFLICT.into());
        }
        if missing {
            reasons.push(NO_VOLUME.into());
        }
        if reasons.is_empty() {
            return Ok(());
        }
        Err(Refusal { reasons: Reasons::Many(reasons), unresolvable: true })
    }
}

fn place(facts: &NodeFacts) -> NodeTopology<'_> {
    NodeTopology { name: &facts.name, labels: &facts.labels }
}

/// The volumes of claims on one node.
#[derive(Default)]
struct VolumeChoice<'a> {
    /// Claims that bind an existing volume.
    given: Vec<(&'a PersistentVolumeClaim, &'a PersistentVolume)>,
    /// Claims whose volume is provisioned.
    made: Vec<&'a PersistentVolumeClaim>,
}

/// None if a claim can get no volume on the node.
fn choose<'a>(
    volumes: &'a Volumes,
    waiting: &[&'a PersistentVolumeClaim],
    facts: &NodeFacts,
) -> Option<VolumeChoice<'a>> {
    let mut choice = VolumeChoice::default();
    for claim in waiting {
        if let Some(node) = annotation(&claim.metadata, SELECTED_NODE) {
            if node != facts.name {
                return None;
            }
            choice.made.push(claim);
            continue;
        }
        let given = &choice.given;
        let key = key_of(&claim.metadata);
        let free = volumes.free(class_of_claim(claim), &key);
        let free = free.filter(|volume| !given.iter().any(|(_, taken)| taken.metadata.name == volume.metadata.name));
        match claims::find(claim, free, Some(place(facts)), true) {
            Some(volume) => choice.given.push((claim, volume)),
            None => choice.made.push(claim),
        }
    }
    let can_be_made = |claim: &&PersistentVolumeClaim| {
        class(volumes, claim)
            .is_some_and(|class| !["", NO_PROVISIONER].contains(&&*class.provisioner) && is_allowed(class, facts))
    };
    choice.made.iter().all(can_be_made).then_some(choice)
}

/// Whether a class provisions volumes for a node.
fn is_allowed(class: &StorageClass, facts: &NodeFacts) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    terms.is_empty()
        || terms.iter().any(|term| {
            let mut all = term.match_label_expressions.iter().flatten();
            all.all(|of| facts.labels.get(&of.key).is_some_and(|value| of.values.contains(value)))
        })
}

fn reserve(snapshot: &mut Snapshot, pod: &PodInfo, node: &str) -> Result<(), String> {
    if pod.claims.is_none() {
        return Ok(());
    }
    let Some(facts) = snapshot.node(node).map(|node| node.facts.clone()) else {
        return Err(format!("node {node:?} not found"));
    };
    let given = {
        let volumes = &snapshot.volumes;
        let sorted = sorted(volumes, pod).ok_or("pod has unbound immediate PersistentVolumeClaims")?;
        let choice = choose(volumes, &sorted.waiting, &facts).ok_or(BIND_CONFLICT)?;
        let name = |volume: &PersistentVolume| volume.metadata.name.clone().unwrap_or_default();
        choice.given.iter().map(|(claim, volume)| (name(volume), key_of(&claim.metadata))).collect::<Vec<_>>()
    };
    for (volume, claim) in given {
        snapshot.volumes.assume(&volume, claim);
    }
    Ok(())
}

fn unreserve(snapshot: &mut Snapshot, pod: &PodInfo, _: &str) {
    if pod.claims.is_some() {
        let own: Vec<ObjectKey> = claims_of(pod).map(|(key, _)| key).collect();
        snapshot.volumes.drop_assumptions(|claim| own.contains(claim));
    }
}

fn pre_bind(snapshot: &Snapshot, pod: &PodInfo, node: &str) -> Vec<PreBindPatch> {
    let (Some(_), Some(at)) = (&pod.claims, snapshot.node(node)) else { return Vec::new() };
    let volumes = &snapshot.volumes;
    let Some(choice) = sorted(volumes, pod).and_then(|sorted| choose(volumes, &sorted.waiting, &at.facts)) else {
        return Vec::new();
    };
    let given = choice.given.iter().map(|(claim, volume)| {
        let mut metadata = json!({"resourceVersion": volume.metadata.resource_version});
        if !claims::is_for(volume, claim) {
            metadata["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        let claim = value_of(&reference_to(*claim));
        PreBindPatch {
            kind: Kind::of::<PersistentVolume>(),
            key: key_of(&volume.metadata),
            subresource: None,
            patch_type: PatchType::Merge,
            patch: json!({"metadata": metadata, "spec": {"claimRef": claim}}),
        }
    });
    let unmarked = choice.made.iter().filter(|claim| annotation(&claim.metadata, SELECTED_NODE) != Some(node));
    let made = unmarked.map(|claim| {
        let version = &claim.metadata.resource_version;
        PreBindPatch {
            kind: Kind::of::<PersistentVolumeClaim>(),
            key: key_of(&claim.metadata),
            subresource: None,
            patch_type: PatchType::Merge,
            patch: json!({"metadata": {"resourceVersion": version, "annotations": {SELECTED_NODE: node}}}),
        }
    });
    given.chain(made).collect()
}

/// Whether all claims of a pod are bound, after the `PreBind` patches were written; an error if they can't be.
///
/// # Errors
/// A claim or the pod is gone, or the volume is provisioned for another node.
pub fn are_bound(view: &ObjectCache, pod: &PodInfo, node: &str) -> Result<bool, String> {
    let there = view.metadata(&Kind::of::<machinery_client::Pod>(), &pod.key);
    if there.and_then(|metadata| metadata.uid.as_deref()) != Some(&*pod.uid) {
        return Err("pod does not exist any more".into());
    }
    for (key, _) in claims_of(pod) {
        let claim = view.get::<PersistentVolumeClaim>(&key);
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {:?} not found", key.name))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim {:?} is being deleted", key.name));
        }
        if !is_fully_bound(claim) {
            return match annotation(&claim.metadata, SELECTED_NODE) {
                Some(other) if other != node => Err(format!("provisioning failed for PVC {:?}", key.name)),
                _ => Ok(false),
            };
        }
    }
    Ok(true)
}
