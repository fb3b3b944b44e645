//! Volumes that outlive pods: who binds claims to them, makes them on nodes, makes room in them, and makes the claims of pods' own
//! volumes (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/>).

pub(crate) mod binder;
mod claim;
pub(crate) mod ephemeral;
pub(crate) mod expand;
#[cfg(test)]
mod facts;
pub(crate) mod provisioner;
#[cfg(test)]
mod races;
mod reclaim;
#[cfg(test)]
mod tests;
mod volume;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;
use machinery_client::claims::{LOCAL_DRIVER, volume_name};
use machinery_client::{Change, ObjectCache, key_of};

/// The claim that a volume names.
fn key_of_claim(volume: &PersistentVolume) -> Option<ObjectKey> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default()))
}

/// A claim, and the volumes that it named and names.
fn claim_and_volumes(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let states = [change.before::<PersistentVolumeClaim>(), change.after::<PersistentVolumeClaim>()];
    let volumes = states.into_iter().flatten().map(volume_name).filter(|name| !name.is_empty());
    let mut keys: Vec<ObjectKey> = volumes.map(ObjectKey::cluster).collect();
    keys.dedup();
    if change.new.is_none() && keys.is_empty() {
        // It may have gone in the middle of its binding.
        keys.extend(view.volumes_naming(&change.key).map(|volume| key_of(&volume.metadata)));
    }
    keys.push((*change.key).clone());
    keys
}

/// A volume's claim, before and now.
fn claim_of_volume(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let states = [change.before::<PersistentVolume>(), change.after::<PersistentVolume>()];
    let mut keys: Vec<ObjectKey> = states.into_iter().flatten().filter_map(key_of_claim).collect();
    keys.dedup();
    keys
}

/// Whether a volume is one of those that this program's nodes keep.
fn is_local(volume: &PersistentVolume) -> bool {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.is_some_and(|csi| csi.driver == LOCAL_DRIVER)
}

/// A claim's phase.
fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// A volume's phase.
fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The volume that a claim names, where that volume is bound to it.
fn bound_volume<'a>(view: &'a ObjectCache, claim: &PersistentVolumeClaim) -> Option<&'a PersistentVolume> {
    let volume = view.get::<PersistentVolume>(&ObjectKey::cluster(volume_name(claim)))?;
    let uid = machinery_client::claims::claim_ref(volume)?.uid.as_ref();
    (uid == claim.metadata.uid.as_ref() && phase_of(claim) == "Bound").then_some(volume)
}

/// `namespace/name`, as messages have it.
fn named(claim: &PersistentVolumeClaim) -> String {
    key_of(&claim.metadata).to_string()
}
