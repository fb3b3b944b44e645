//! Identity of a set's pods: names with ordinals, labels, host names, and the pods and claims for an ordinal.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    self as core, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume,
};
use machinery_client::{Pod, controlled_by};

use crate::pods;
use crate::revisions::POD_HASH;

/// The label with the pod's name.
pub(super) const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with the pod's ordinal.
pub(super) const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The set's name and the ordinal in a pod's name.
pub(super) fn parent_and_ordinal(pod_name: &str) -> Option<(&str, i64)> {
    let (parent, digits) = pod_name.rsplit_once('-')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<i32>().ok().map(|ordinal| (parent, i64::from(ordinal)))
}

/// The ordinal of a pod with the set's name.
pub(super) fn ordinal_in(set: &StatefulSet, pod: &Pod) -> Option<i64> {
    let (parent, ordinal) = parent_and_ordinal(pod.metadata.name.as_deref()?)?;
    (Some(parent) == set.metadata.name.as_deref()).then_some(ordinal)
}

pub(super) fn set_name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set_name(set))
}

/// The first ordinal.
pub(super) fn start(set: &StatefulSet) -> i64 {
    let start = set.spec.as_ref().and_then(|s| s.ordinals.as_ref()?.start);
    i64::from(start.unwrap_or(0))
}

/// The set's `spec.replicas`.
pub(super) fn wanted(set: &StatefulSet) -> i64 {
    i64::from(set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0))
}

/// Whether an ordinal is within `spec.replicas`.
pub(super) fn in_range(set: &StatefulSet, ordinal: i64) -> bool {
    (start(set)..start(set) + wanted(set)).contains(&ordinal)
}

/// The revision of a pod.
pub(super) fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|l| l.get(POD_HASH)).map_or("", String::as_str)
}

pub(super) fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

/// The name of a template's claim for an ordinal.
pub(super) fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    let volume = template.metadata.name.as_deref().unwrap_or_default();
    format!("{volume}-{}-{ordinal}", set_name(set))
}

/// A template's claim for an ordinal.
pub(super) fn claim(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim { status: None, ..template.clone() };
    let selected = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    claim.metadata.labels.get_or_insert_default().extend(selected);
    claim.metadata.name = Some(claim_name(set, template, ordinal));
    claim.metadata.namespace.clone_from(&set.metadata.namespace);
    claim
}

/// The pod of an ordinal.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i64) -> core::Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pods::from_template(template, namespace, set_name(set), controlled_by(set));
    let name = pod_name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(POD_HASH.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    let subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone());
    spec.subdomain = subdomain.filter(|service| !service.is_empty());
    let mut volumes: Vec<Volume> = claim_templates(set).iter().map(|template| volume(set, template, ordinal)).collect();
    let claimed = volumes.len();
    for other in spec.volumes.take().unwrap_or_default() {
        if !volumes[..claimed].iter().any(|volume| volume.name == other.name) {
            volumes.push(other);
        }
    }
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    pod.metadata.name = Some(name);
    pod
}

fn volume(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> Volume {
    let claim_name = claim_name(set, template, ordinal);
    Volume {
        name: template.metadata.name.clone().unwrap_or_default(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
        ..Volume::default()
    }
}

/// Whether the pod's labels match its identity.
pub(super) fn identity_matches(pod: &Pod) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get(POD_NAME));
    label.is_some() && label == pod.metadata.name.as_ref()
}
