//! Matching of claims to volumes, shared by binder, scheduler and kubelets
//! (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/#binding>). Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimTemplate, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::quantity::Quantity;
use machinery_rules::placement::requirement_matches;

use crate::object::{controller_of, key_of};
use crate::pod::{Pod, Volume};
use crate::selector::selects;

/// The provisioner of this program and the driver of its volumes, one name for both as upstream's drivers have it. Each
/// volume is a folder on a node.
pub const LOCAL_DRIVER: &str = "local.coracle.dev";
/// The claim's binding is complete: from now on it is bound or lost.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// A binding made by the binder, which the binder may undo.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The node for which a volume is to be provisioned.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner of a claim's volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The beta name of [`STORAGE_PROVISIONER`].
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The provisioner that made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Finalizer that keeps a volume until its storage is removed.
pub const DELETION_PROTECTION: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// The class of a claim or a volume, from before there was a field.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The provisioner of classes without dynamic provisioning.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// An annotation's value.
#[must_use]
pub fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The class of a claim; empty without one.
#[must_use]
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let of_spec = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&claim.metadata, BETA_CLASS).or_else(of_spec).unwrap_or_default()
}

/// Whether a claim names a class, even the empty one: such a claim gets no default class.
#[must_use]
pub fn names_class(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BETA_CLASS).is_some()
        || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
}

/// The class of a volume; empty without one.
#[must_use]
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let of_spec = || volume.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&volume.metadata, BETA_CLASS).or_else(of_spec).unwrap_or_default()
}

/// Whether a class binds on the first consumer (`WaitForFirstConsumer`).
#[must_use]
pub fn waits_for_consumer(class: Option<&StorageClass>) -> bool {
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// The default class: the newest of several, as upstream.
#[must_use]
pub fn default_class<'a>(classes: impl Iterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let marked = |name: &str, class: &StorageClass| annotation(&class.metadata, name) == Some("true");
    let defaults = classes.filter(|class| {
        marked("storageclass.kubernetes.io/is-default-class", class)
            || marked("storageclass.beta.kubernetes.io/is-default-class", class)
    });
    let made = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    // The newest, then the first by its name.
    defaults.min_by_key(|class| (Reverse(made(class)), class.metadata.name.as_deref()))
}

/// The storage request of a claim.
#[must_use]
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let storage = resources.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    storage.and_then(|storage| Quantity::parse(&storage.0).ok()).unwrap_or_else(Quantity::zero)
}

/// The storage capacity of a volume.
#[must_use]
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    let storage = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    storage.and_then(|storage| Quantity::parse(&storage.0).ok()).unwrap_or_else(Quantity::zero)
}

/// The claim that a volume is bound to or reserved for.
#[must_use]
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The value of the label with the node of a [`LOCAL_DRIVER`] volume, as written by its provisioner.
#[must_use]
pub fn local_node_of(volume: &PersistentVolume) -> Option<&str> {
    let spec = volume.spec.as_ref().filter(|spec| spec.csi.as_ref().is_some_and(|csi| csi.driver == LOCAL_DRIVER))?;
    let required = spec.node_affinity.as_ref()?.required.as_ref()?;
    let of = required.node_selector_terms.first()?.match_expressions.as_ref()?.first()?;
    of.values.as_ref()?.first().map(String::as_str)
}

/// The name of the volume that a claim is bound to; empty if unbound.
#[must_use]
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Whether a claim's own fields mark its binding as complete.
#[must_use]
pub fn is_fully_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether a volume is bound to the claim, or reserved for a claim of its name.
#[must_use]
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|r| {
        let uid = r.uid.as_deref().unwrap_or_default();
        r.name == claim.metadata.name
            && r.namespace == claim.metadata.namespace
            && (uid.is_empty() || claim.metadata.uid.as_deref() == Some(uid))
    })
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether the volume modes (`Filesystem`, `Block`) differ.
#[must_use]
pub fn modes_differ(claim: &PersistentVolumeClaimSpec, volume: &PersistentVolumeSpec) -> bool {
    mode(claim.volume_mode.as_ref()) != mode(volume.volume_mode.as_ref())
}

/// Whether a volume has all access modes of a claim.
#[must_use]
pub fn has_access_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    modes.iter().all(|mode| offered.contains(mode))
}

/// Whether both name the same VolumeAttributesClass, or none.
#[must_use]
pub fn same_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let of_claim = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    of_volume.unwrap_or_default() == of_claim.unwrap_or_default()
}

/// A node's fields for volume affinity.
#[derive(Debug, Clone, Copy)]
pub struct NodeTopology<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Whether a volume's node affinity matches a node.
#[must_use]
pub fn is_reachable(volume: &PersistentVolume, node: NodeTopology<'_>) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return true };
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        let holds = |of: &NodeSelectorRequirement, value: Option<&str>| {
            requirement_matches(&of.operator, of.values.as_deref().unwrap_or_default(), value)
        };
        // An empty term matches nothing.
        (!expressions.is_empty() || !fields.is_empty())
            && expressions.iter().all(|of| holds(of, node.labels.get(&of.key).map(String::as_str)))
            && fields.iter().all(|of| of.key == "metadata.name" && holds(of, Some(node.name)))
    })
}

/// Returns the volume for a claim: one reserved for it, else the smallest match. With a node, its affinity must match.
/// With `waits` (the class waits for a consumer) and no node only a reserved volume counts.
pub fn find<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    node: Option<NodeTopology<'_>>,
    waits: bool,
) -> Option<&'a PersistentVolume> {
    let spec = claim.spec.as_ref()?;
    let (size, class) = (requested(claim), class_of_claim(claim));
    let mut best: Option<(usize, Quantity, &PersistentVolume)> = None;
    for volume in volumes {
        let Some(of_volume) = volume.spec.as_ref() else { continue };
        let kept = is_for(volume, claim);
        if (of_volume.claim_ref.is_some() && !kept) || (!kept && node.is_none() && waits) {
            continue;
        }
        if volume.metadata.deletion_timestamp.is_some()
            || modes_differ(spec, of_volume)
            || !has_access_modes(volume, claim)
            || !same_attributes(volume, claim)
        {
            continue;
        }
        let has = capacity(volume);
        if has < size {
            continue;
        }
        let reachable = node.is_none_or(|node| is_reachable(volume, node));
        if kept {
            return reachable.then_some(volume);
        }
        let free = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available");
        let selected = spec.selector.as_ref().is_none_or(|s| selects(s, volume.metadata.labels.as_ref()));
        if !free || !selected || !reachable || class_of_volume(volume) != class {
            continue;
        }
        // Fewer access modes first, as in upstream's index.
        let ways = of_volume.access_modes.as_ref().map_or(0, Vec::len);
        if best.as_ref().is_none_or(|(best_ways, size, _)| (ways, &has) < (*best_ways, size)) {
            best = Some((ways, has, volume));
        }
    }
    best.map(|(_, _, volume)| volume)
}

/// The name of the claim behind a pod's volume.
#[must_use]
pub fn claim_name(pod: &str, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => claim.claim_name.clone(),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name.as_deref().unwrap_or_default())),
        (None, None) => None,
    }
}

/// The names of the claims that a pod uses.
pub fn claim_names(pod: &Pod) -> impl Iterator<Item = String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.shape.volumes.iter().flatten());
    volumes.filter_map(move |volume| claim_name(name, volume))
}

/// Why a claim with the name of a pod's ephemeral volume isn't the pod's; `None` if it is.
#[must_use]
pub fn is_not_of_pod(pod: &ObjectMeta, claim: &PersistentVolumeClaim) -> Option<String> {
    let owner = controller_of(&claim.metadata).map(|owner| &owner.uid);
    let own = claim.metadata.namespace == pod.namespace && owner.is_some() && owner == pod.uid.as_ref();
    (!own).then(|| {
        let (claim, pod) = (key_of(&claim.metadata), key_of(pod));
        format!("PVC {claim} was not created for pod {pod} (pod is not owner)")
    })
}

/// The claim of an ephemeral volume.
#[must_use]
pub fn ephemeral_claim(pod: &Pod, name: String, template: &PersistentVolumeClaimTemplate) -> PersistentVolumeClaim {
    let metadata = template.metadata.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            owner_references: Some(vec![crate::plan::controlled_by(pod)]),
            annotations: metadata.annotations,
            labels: metadata.labels,
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let metadata = json!({"name": "c", "namespace": "a", "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
        let mut all = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let labels = json!({"disk": name});
        let volume =
            json!({"metadata": {"name": name, "labels": labels}, "spec": all, "status": {"phase": "Available"}});
        serde_json::from_value(volume).unwrap()
    }

    fn asks(more: Value) -> PersistentVolumeClaim {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        claim(all)
    }

    fn found(claim: &PersistentVolumeClaim, volumes: &[PersistentVolume], waits: bool) -> String {
        find(claim, volumes.iter(), None, waits).and_then(|volume| volume.metadata.name.clone()).unwrap_or_default()
    }

    #[test]
    fn the_smallest_that_has_all_is_taken() {
        let all = [
            volume("small", "512Mi", json!({})),
            volume("wide", "1Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]})),
            volume("large", "4Gi", json!({})),
            volume("fits", "2Gi", json!({})),
            volume("block", "1Gi", json!({"volumeMode": "Block"})),
            volume("classed", "1Gi", json!({"storageClassName": "fast"})),
            volume("taken", "1Gi", json!({"claimRef": {"name": "other", "namespace": "a", "uid": "x"}})),
        ];
        for (more, name) in [
            (json!({}), "fits"),
            (json!({"accessModes": ["ReadWriteMany"]}), "wide"),
            (json!({"accessModes": ["ReadOnlyMany"]}), ""),
            (json!({"volumeMode": "Block"}), "block"),
            (json!({"storageClassName": "fast"}), "classed"),
            (json!({"storageClassName": "slow"}), ""),
            (json!({"selector": {"matchLabels": {"disk": "large"}}}), "large"),
            (json!({"volumeAttributesClassName": "gold"}), ""),
            (json!({"resources": {"requests": {"storage": "3Gi"}}}), "large"),
        ] {
            assert_eq!(found(&asks(more.clone()), &all, false), name, "{more}");
            assert_eq!(found(&asks(more), &all, true), "", "waits for a pod");
        }
    }

    #[test]
    fn reserved_volumes_are_bound_first() {
        let kept = |uid: &str| json!({"claimRef": {"name": "c", "namespace": "a", "uid": uid}});
        let all = |uid: &str| [volume("best", "1Gi", json!({})), volume("kept", "9Gi", kept(uid))];
        assert_eq!(found(&asks(json!({})), &all(""), false), "kept");
        assert_eq!(found(&asks(json!({})), &all("u"), true), "kept");
        assert_eq!(found(&asks(json!({})), &all("another"), false), "best");
    }

    #[test]
    fn a_volume_follows_its_node_affinity() {
        let near = |key: &str, field: &str| {
            let of = |key: &str, value: &str| json!([{"key": key, "operator": "In", "values": [value]}]);
            let term = match field {
                "" => json!({"matchExpressions": of(key, "z")}),
                name => json!({"matchFields": of("metadata.name", name)}),
            };
            volume("v", "1Gi", json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}))
        };
        let labels = BTreeMap::from([("zone".to_owned(), "z".to_owned())]);
        let node = NodeTopology { name: "n", labels: &labels };
        for (volume, reachable) in [
            (near("zone", ""), true),
            (near("region", ""), false),
            (near("", "n"), true),
            (near("", "m"), false),
            (volume("v", "1Gi", json!({})), true),
            (volume("v", "1Gi", json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{}]}}})), false),
        ] {
            assert_eq!(is_reachable(&volume, node), reachable, "{volume:?}");
        }
    }

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, made: &str, default: &str| -> StorageClass {
            let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
            let metadata = json!({"name": name, "creationTimestamp": made, "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata, "provisioner": "p"})).unwrap()
        };
        let all = [
            class("old", "2025-01-01T00:00:00Z", "true"),
            class("b", "2026-01-01T00:00:00Z", "true"),
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("no", "2026-02-01T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(all.iter()).unwrap().metadata.name.as_deref(), Some("a"));
        assert_eq!(default_class(all[3..].iter()), None);
    }
}
