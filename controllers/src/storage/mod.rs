//! Persistent volumes: binding, local provisioning, expansion, and claims of generic ephemeral volumes
//! (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/>).

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

/// The claim of a volume's `claimRef`.
fn key_of_claim(volume: &PersistentVolume) -> Option<ObjectKey> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(claim.namespace.clone().unwrap_or_default(), claim.name.clone().unwrap_or_default()))
}

/// A claim, and its volumes before and after the change.
fn claim_and_volumes(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let states = [change.before::<PersistentVolumeClaim>(), change.after::<PersistentVolumeClaim>()];
    let volumes = states.into_iter().flatten().map(volume_name).filter(|name| !name.is_empty());
    let mut keys: Vec<ObjectKey> = volumes.map(ObjectKey::cluster).collect();
    keys.dedup();
    if change.new.is_none() && keys.is_empty() {
        // The claim may have been deleted in the middle of its binding.
        keys.extend(view.volumes_naming(&change.key).map(|volume| key_of(&volume.metadata)));
    }
    keys.push((*change.key).clone());
    keys
}

/// A volume's claim, before and after the change.
fn claim_of_volume(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let states = [change.before::<PersistentVolume>(), change.after::<PersistentVolume>()];
    let mut keys: Vec<ObjectKey> = states.into_iter().flatten().filter_map(key_of_claim).collect();
    keys.dedup();
    keys
}

/// Whether this program's nodes provide the volume.
fn is_local(volume: &PersistentVolume) -> bool {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    csi.is_some_and(|csi| csi.driver == LOCAL_DRIVER)
}

fn phase_of(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The claim's volume, if the volume is bound to the claim.
fn bound_volume<'a>(view: &'a ObjectCache, claim: &PersistentVolumeClaim) -> Option<&'a PersistentVolume> {
    let volume = view.get::<PersistentVolume>(&ObjectKey::cluster(volume_name(claim)))?;
    let uid = machinery_client::claims::claim_ref(volume)?.uid.as_ref();
    (uid == claim.metadata.uid.as_ref() && phase_of(claim) == "Bound").then_some(volume)
}

/// `namespace/name`, as in messages.
fn named(claim: &PersistentVolumeClaim) -> String {
    key_of(&claim.metadata).to_string()
}
