//! The binder's decision about one claim: verify its binding, bind it to a volume, request provisioning, or wait. Pure.

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::claims::{
    self, BETA_STORAGE_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, STORAGE_PROVISIONER,
    annotation, capacity, class_of_claim, requested,
};
use machinery_client::{Action, EventRecord, ObjectCache, Plan, Pod, key_of};

use super::phase_of;
use crate::pods;

/// In-tree provisioners that upstream migrated to CSI drivers.
const MIGRATED: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

pub(super) fn sync(view: &ObjectCache, claim: &PersistentVolumeClaim) -> Plan {
    let name = claims::volume_name(claim);
    let volume = view.get::<PersistentVolume>(&ObjectKey::cluster(name)).filter(|_| !name.is_empty());
    match (annotation(&claim.metadata, BIND_COMPLETED), name) {
        (Some(_), name) => verify_bound(claim, volume, name),
        (None, "") => unbound(view, claim),
        (None, _) => bind_requested(claim, volume),
    }
}

/// A claim that was bound: its binding is verified, or it is lost.
fn verify_bound(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>, name: &str) -> Plan {
    let (reason, message) = match volume.map(|volume| (volume, claims::claim_ref(volume))) {
        Some((volume, None)) => return bind(volume, claim),
        Some((volume, Some(r))) if r.uid == claim.metadata.uid => return bind(volume, claim),
        Some(_) => ("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"),
        None if name.is_empty() => {
            ("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        }
        None => ("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
    };
    if phase_of(claim) == "Lost" {
        return Plan::nothing();
    }
    let event = EventRecord::warning(claim, reason, message);
    Plan::from(Vec::from_iter(waiting(claim, "Lost").into_iter().chain([Action::Event(event)])))
}

/// A claim that requests a volume by name.
fn bind_requested(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> Plan {
    let Some(volume) = volume else { return pending(claim, None) };
    if claims::is_for(volume, claim) {
        return bind(volume, claim);
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if claims::claim_ref(volume).is_some() {
        let message = format!("volume {name:?} already bound to a different claim.");
        return pending(claim, Some(EventRecord::warning(claim, "FailedBinding", message)));
    }
    match mismatch(volume, claim) {
        None => bind(volume, claim),
        Some(why) => {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            pending(claim, Some(EventRecord::warning(claim, "VolumeMismatch", message)))
        }
    }
}

/// Why a claim can't have the requested volume.
fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (of_claim, of_volume) = (claim.spec.as_ref()?, volume.spec.as_ref()?);
    let why = if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Some(format!("the volume is marked for deletion {name:?}"));
    } else if capacity(volume).value() < requested(claim).value() {
        "requested PV is too small"
    } else if claims::class_of_volume(volume) != class_of_claim(claim) {
        "storageClassName does not match"
    } else if !claims::same_attributes(volume, claim) {
        "volumeAttributesClassName does not match"
    } else if claims::modes_differ(of_claim, of_volume) {
        "incompatible volumeMode"
    } else if !claims::has_access_modes(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// A claim that any matching volume satisfies.
fn unbound(view: &ObjectCache, claim: &PersistentVolumeClaim) -> Plan {
    let name = class_of_claim(claim);
    let class = view.get::<StorageClass>(&ObjectKey::cluster(name)).filter(|_| !name.is_empty());
    let waits = claims::waits_for_consumer(class);
    let key = key_of(&claim.metadata);
    let volumes = view.volumes_naming(&key).chain(view.volumes_of_class(name));
    if let Some(volume) = claims::find(claim, volumes, None, waits) {
        return bind(volume, claim);
    }
    if !claims::names_class(claim)
        && let Some(default) = claims::default_class(view.all())
    {
        let mut claim = claim.clone();
        claim.spec.get_or_insert_default().storage_class_name.clone_from(&default.metadata.name);
        return vec![Action::update(&claim)].into();
    }
    if waits && annotation(&claim.metadata, SELECTED_NODE).is_none() {
        return pending(claim, Some(waits_for(view, claim)));
    }
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return pending(claim, Some(EventRecord::normal(claim, "FailedBinding", message)));
    }
    provision(claim, class, name)
}

/// Requests a volume from the class' provisioner, by an annotation.
fn provision(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, name: &str) -> Plan {
    let failed =
        |message: String| vec![Action::Event(EventRecord::warning(claim, "ProvisioningFailed", message))].into();
    let Some(class) = class else {
        return failed(format!("storageclass.storage.k8s.io {name:?} not found"));
    };
    let migrated = MIGRATED.iter().find(|(in_tree, _)| *in_tree == class.provisioner);
    let provisioner = migrated.map_or(&*class.provisioner, |(_, driver)| driver);
    if provisioner.starts_with("kubernetes.io/") {
        return failed(format!("no volume plugin matched name: {provisioner}"));
    }
    let mut plan = Plan::nothing();
    if annotation(&claim.metadata, STORAGE_PROVISIONER) != Some(provisioner) {
        let mut claim = claim.clone();
        for name in [BETA_STORAGE_PROVISIONER, STORAGE_PROVISIONER] {
            annotate(&mut claim.metadata, name, provisioner);
        }
        plan.push(Action::update(&claim));
    }
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system \
         administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
    );
    plan.push(Action::Event(EventRecord::normal(claim, "ExternalProvisioning", message)));
    plan
}

/// The event of a claim whose class waits for a pod.
fn waits_for(view: &ObjectCache, claim: &PersistentVolumeClaim) -> EventRecord {
    let key = key_of(&claim.metadata);
    let waits = |pod: &&Pod| {
        !pods::is_terminal(pod)
            && pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().unwrap_or_default().is_empty())
    };
    let names: Vec<&str> =
        view.users_of_claim(&key).filter(waits).filter_map(|pod| pod.metadata.name.as_deref()).collect();
    let (reason, message) = match &*names {
        [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
        [one] => ("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
        several => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", several.join(","))),
    };
    EventRecord::normal(claim, reason, message)
}

pub(super) fn annotate(metadata: &mut ObjectMeta, name: &str, value: &str) {
    metadata.annotations.get_or_insert_default().insert(name.to_owned(), value.to_owned());
}

/// A pending claim, with the event of the reason.
fn pending(claim: &PersistentVolumeClaim, event: Option<EventRecord>) -> Plan {
    Plan::from(Vec::from_iter(event.map(Action::Event).into_iter().chain(waiting(claim, "Pending"))))
}

/// The status of a claim without a volume, if it differs.
fn waiting(claim: &PersistentVolumeClaim, phase: &str) -> Option<Action> {
    let old = claim.status.clone().unwrap_or_default();
    let status = PersistentVolumeClaimStatus {
        phase: Some(phase.to_owned()),
        access_modes: None,
        capacity: None,
        current_volume_attributes_class_name: None,
        ..old.clone()
    };
    (status != old).then(|| Action::update_status(&PersistentVolumeClaim { status: Some(status), ..claim.clone() }))
}

/// The next step of a binding.
fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Plan {
    let step = write_claim_ref(volume, claim)
        .or_else(|| super::volume::in_phase(volume, "Bound"))
        .or_else(|| write_volume_name(volume, claim))
        .or_else(|| write_claim_status(volume, claim));
    Vec::from_iter(step).into()
}

/// Writes the claim into the volume.
fn write_claim_ref(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Action> {
    let mut taken = volume.clone();
    let uid = claim.metadata.uid.as_ref();
    if !claims::is_for(volume, claim) {
        annotate(&mut taken.metadata, BOUND_BY_CONTROLLER, "yes");
    }
    if !claims::is_for(volume, claim) || claims::claim_ref(volume).and_then(|r| r.uid.as_ref()) != uid {
        taken.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    }
    (taken != *volume).then(|| Action::update(&taken))
}

pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    machinery_client::reference_to(claim)
}

/// Writes the volume into the claim.
fn write_volume_name(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Action> {
    let mut taken = claim.clone();
    if claims::volume_name(claim) != volume.metadata.name.as_deref().unwrap_or_default() {
        taken.spec.get_or_insert_default().volume_name.clone_from(&volume.metadata.name);
        annotate(&mut taken.metadata, BOUND_BY_CONTROLLER, "yes");
    }
    if annotation(&claim.metadata, BIND_COMPLETED).is_none() {
        annotate(&mut taken.metadata, BIND_COMPLETED, "yes");
    }
    (taken != *claim).then(|| Action::update(&taken))
}

/// Writes the claim's status. Later changes of its capacity come from the expand controllers.
fn write_claim_status(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Action> {
    let (old, spec) = (claim.status.clone().unwrap_or_default(), volume.spec.as_ref()?);
    let mut status = PersistentVolumeClaimStatus {
        phase: Some("Bound".to_owned()),
        access_modes: spec.access_modes.clone(),
        ..old.clone()
    };
    if phase_of(claim) != "Bound" {
        let before = annotation(&volume.metadata, "volume.alpha.kubernetes.io/pre-resize-capacity");
        match before {
            Some(size) => {
                status.capacity.get_or_insert_default().insert("storage".to_owned(), Wire(size.to_owned()));
            }
            None => status.capacity.clone_from(&spec.capacity),
        }
        status.current_volume_attributes_class_name.clone_from(&spec.volume_attributes_class_name);
    }
    (status != old).then(|| Action::update_status(&PersistentVolumeClaim { status: Some(status), ..claim.clone() }))
}
