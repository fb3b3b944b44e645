//! `persistentvolume-binder-controller`: binds claims and volumes to each other.
//!
//! A key is a claim's, with a namespace, or a volume's, without. Each pass writes one field, in the order of upstream's
//! `bind`: the volume's claim, its phase, the claim's volume, its status. After any interruption the next pass
//! continues from the stored state. The volume's version is a precondition, so only one of two claims gets it.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use machinery_api::ObjectKey;
use machinery_client::claims::{self, class_of_claim, names_class};
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan, Pod, key_of};

use super::{claim, claim_and_volumes, claim_of_volume, phase, volume};
use crate::{Settings, pods};

/// The component of events: upstream's name from before today's controller names.
const EVENTS_SOURCE: &str = "persistentvolume-controller";
/// The maximum number of claims requeued by an available volume: one of them takes it.
const CLAIMS_WOKEN_MAX: usize = 64;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "persistentvolume-binder-controller",
    account: "persistent-volume-binder",
    // One worker alone assigns volumes to claims, as upstream.
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<PersistentVolumeClaim>(claim_and_volumes),
        Input::of::<PersistentVolume>(of_volume),
        Input::of::<StorageClass>(of_class),
        Input::of::<Pod>(of_pod),
    ],
    reconcile,
};

/// The volume, its claim, claims that request it by name, and, if it is available, claims that it matches.
fn of_volume(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let mut keys = claim_of_volume(view, change);
    keys.push((*change.key).clone());
    keys.extend(view.claims_naming(&change.key).map(|claim| key_of(&claim.metadata)));
    let free = |volume: &&PersistentVolume| phase(volume) == "Available" && claims::claim_ref(volume).is_none();
    if let Some(volume) = change.after::<PersistentVolume>().filter(free) {
        let waiting = view
            .claims_of_class(claims::class_of_volume(volume))
            .filter(|claim| claims::find(claim, std::iter::once(volume), None, false).is_some());
        keys.extend(waiting.take(CLAIMS_WOKEN_MAX).map(|claim| key_of(&claim.metadata)));
    }
    keys
}

/// Claims without a volume that have the class, or may get it now.
fn of_class(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let waiting = view.all::<PersistentVolumeClaim>().filter(|claim| {
        claims::volume_name(claim).is_empty() && (class_of_claim(claim) == change.key.name || !names_class(claim))
    });
    waiting.map(|claim| key_of(&claim.metadata)).collect()
}

/// The claims of a pod that is new or was bound to a node, as their events change. For a terminal pod the volumes of
/// its claims, which may be recycled now.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let moved = change.before::<Pod>().map(node) != change.after::<Pod>().map(node);
    let ended = change.after::<Pod>().is_none_or(pods::is_terminal);
    if !moved && !ended {
        return Vec::new();
    }
    let names = change.latest::<Pod>().into_iter().flat_map(claims::claim_names);
    let mut keys: Vec<ObjectKey> = names.map(|name| ObjectKey::new(&*change.key.namespace, name)).collect();
    if ended {
        let released = keys.iter().flat_map(|key| view.volumes_naming(key)).filter(|of| phase(of) == "Released");
        let released: Vec<ObjectKey> = released.map(|volume| key_of(&volume.metadata)).collect();
        keys.extend(released);
    }
    keys
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let plan = match key.namespace.is_empty() {
        true => view.get::<PersistentVolume>(key).map(|of| volume::sync(view, of)),
        false => view.get::<PersistentVolumeClaim>(key).map(|of| claim::sync(view, of)),
    };
    let mut plan = plan.unwrap_or_default();
    for action in &mut plan.actions {
        if let Action::Event(event) = action {
            event.source = Some(EVENTS_SOURCE);
        }
    }
    plan
}
