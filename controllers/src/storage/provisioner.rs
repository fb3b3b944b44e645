//! `local-volume-provisioner`: creates and deletes volumes for claims of classes with the provisioner
//! `local.coracle.dev`. It writes objects only: the node creates a volume's folder when a pod first uses it, and
//! removes the folder before the volume is deleted (`DELETION_PROTECTION`).

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, TopologySelectorTerm, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_api::names::VOLUME_NODE;
use machinery_api::selector::label_value_problems;
use machinery_client::claims::{
    self, DELETION_PROTECTION, LOCAL_DRIVER, NodeTopology, PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER,
    annotation, class_of_claim, local_node_of,
};
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, key_of};

use super::{claim::reference, is_local, named, phase, reclaim};
use crate::Settings;

/// The label by which volumes select their node.
const HOSTNAME: &str = "kubernetes.io/hostname";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "local-volume-provisioner",
    // As upstream's provisioners in the binder: the binder's rights suffice.
    account: "persistent-volume-binder",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<PersistentVolumeClaim>(of_claim),
        Input::of::<PersistentVolume>(of_volume),
        Input::of::<StorageClass>(of_class),
        Input::of::<Node>(of_node),
    ],
    reconcile,
};

/// Whether the claim waits for this provisioner.
fn waits(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(LOCAL_DRIVER)
        && claims::volume_name(claim).is_empty()
        && claim.metadata.deletion_timestamp.is_none()
}

fn of_claim(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let waits = change.after::<PersistentVolumeClaim>().is_some_and(waits);
    waits.then(|| (*change.key).clone()).into_iter().collect()
}

fn of_volume(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.latest::<PersistentVolume>().is_some_and(is_local) { own_key(view, change) } else { Vec::new() }
}

fn of_class(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    view.claims_of_class(&change.key.name).filter(|claim| waits(claim)).map(|claim| key_of(&claim.metadata)).collect()
}

/// A new node may satisfy claims, and the volumes of a deleted node are lost.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.old.is_some() && change.new.is_some() {
        return Vec::new();
    }
    let claims = view.all::<PersistentVolumeClaim>().filter(|claim| waits(claim)).map(|claim| key_of(&claim.metadata));
    let going = |volume: &&PersistentVolume| volume.metadata.deletion_timestamp.is_some() && is_local(volume);
    claims.chain(view.all().filter(going).map(|volume| key_of(&volume.metadata))).collect()
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    if key.namespace.is_empty() {
        return view.get::<PersistentVolume>(key).map(|volume| reconcile_volume(view, volume)).unwrap_or_default();
    }
    let claim = view.get::<PersistentVolumeClaim>(key).filter(|claim| waits(claim));
    let Some(claim) = claim else { return Plan::nothing() };
    let class = view.get::<StorageClass>(&ObjectKey::cluster(class_of_claim(claim)));
    let Some(class) = class.filter(|class| class.provisioner == LOCAL_DRIVER) else { return Plan::nothing() };
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    if view.get::<PersistentVolume>(&ObjectKey::cluster(&*name)).is_some() {
        return Plan::nothing();
    }
    let of_class = class.metadata.name.as_deref().unwrap_or_default();
    let failed = |why: &str| {
        let message = format!("failed to provision volume with StorageClass {of_class:?}: {why}");
        EventRecord::warning(claim, "ProvisioningFailed", message).from(LOCAL_DRIVER)
    };
    if let Some(why) = refusal(claim, class) {
        return vec![Action::Event(failed(&why))].into();
    }
    match choose_node(view, claim, class) {
        Err(NoNode::Wait) => Plan::nothing(),
        Err(NoNode::Failed(why)) => vec![Action::Event(failed(&why))].into(),
        // As upstream's provisioners: the scheduler selects a node again.
        Err(NoNode::Gone(why)) => {
            let mut again = claim.clone();
            again.metadata.annotations.get_or_insert_default().remove(SELECTED_NODE);
            vec![Action::Event(failed(&why)), Action::update(&again)].into()
        }
        Ok(node) => {
            let message = format!("External provisioner is provisioning volume for claim {:?}", named(claim));
            let begins = EventRecord::normal(claim, "Provisioning", message).from(LOCAL_DRIVER);
            let done = format!("Successfully provisioned volume {name}");
            let done = EventRecord::normal(claim, "ProvisioningSucceeded", done).from(LOCAL_DRIVER);
            let create =
                Action::create(&new_volume(claim, class, node, name)).noted(Some(done), Some(failed("{error}")));
            vec![Action::Event(begins), create].into()
        }
    }
}

/// Why no volume can be provisioned for a claim on any node.
fn refusal(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<String> {
    let spec = claim.spec.as_ref()?;
    let shared =
        spec.access_modes.iter().flatten().find(|mode| !["ReadWriteOnce", "ReadWriteOncePod"].contains(&&***mode));
    if let Some(mode) = shared {
        return Some(format!("access mode {mode} is not there: a volume is a folder of one node"));
    }
    if let Some(name) = class.parameters.iter().flatten().map(|(name, _)| name).next() {
        return Some(format!("unknown parameter {name:?}"));
    }
    if class.mount_options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Some("mountOptions mean nothing to a folder".to_owned());
    }
    let why = if spec.volume_mode.as_deref() == Some("Block") {
        "volumeMode Block is not there: WASI gives guests no devices"
    } else if spec.selector.is_some() {
        "claim Selector is not supported"
    } else if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        "a volume is made empty: dataSource is not supported"
    } else if spec.volume_attributes_class_name.as_ref().is_some_and(|name| !name.is_empty()) {
        "volumeAttributesClassName is not supported"
    } else {
        return None;
    };
    Some(why.to_owned())
}

/// Why there is no node for a volume.
enum NoNode {
    /// The claim waits for a pod.
    Wait,
    /// No node satisfies the claim.
    Failed(String),
    /// The selected node is gone or unusable.
    Gone(String),
}

/// The node for a claim's volume.
fn choose_node<'a>(
    view: &'a ObjectCache,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<&'a Node, NoNode> {
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    if let Some(name) = annotation(&claim.metadata, SELECTED_NODE) {
        let node = view.get::<Node>(&ObjectKey::cluster(name));
        let node = node.ok_or_else(|| NoNode::Gone(format!("failed to get target node: node {name:?} not found")))?;
        let why = || NoNode::Gone(format!("node {name:?} is not in the class' allowedTopologies"));
        return if is_allowed(topologies, node) { Ok(node) } else { Err(why()) };
    }
    if claims::waits_for_consumer(Some(class)) {
        return Err(NoNode::Wait);
    }
    let usable = |node: &&Node| {
        node.metadata.deletion_timestamp.is_none()
            && node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true)
            && is_allowed(topologies, node)
    };
    // The node with the fewest volumes: with immediate binding the other needs of pods are unknown.
    let chosen = view.all::<Node>().filter(usable).min_by_key(|node| view.local_volumes_on(hostname(node)));
    chosen.ok_or_else(|| NoNode::Failed("there is no node for it".to_owned()))
}

/// Whether a class allows volumes on a node.
fn is_allowed(topologies: &[TopologySelectorTerm], node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    topologies.is_empty()
        || topologies.iter().any(|term| {
            let all = term.match_label_expressions.iter().flatten();
            all.into_iter().all(|of| label(&of.key).is_some_and(|value| of.values.contains(value)))
        })
}

fn hostname(node: &Node) -> &str {
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME));
    label.or(node.metadata.name.as_ref()).map_or("", String::as_str)
}

fn new_volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node, name: String) -> PersistentVolume {
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned());
    let of = claim.spec.clone().unwrap_or_default();
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![hostname(node).to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![requirement]), match_fields: None };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_owned(), LOCAL_DRIVER.to_owned())].into()),
            labels: Some([(VOLUME_NODE.to_owned(), hostname(node).to_owned())].into()),
            finalizers: (policy == "Delete").then(|| vec![DELETION_PROTECTION.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: of.resources.and_then(|resources| resources.requests),
            access_modes: of.access_modes,
            volume_mode: of.volume_mode,
            claim_ref: Some(reference(claim)),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: class.metadata.name.clone(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            csi: Some(CSIPersistentVolumeSource {
                driver: LOCAL_DRIVER.to_owned(),
                // Informative: the folder's name derives from the volume's uid, which no client can choose.
                volume_handle: name,
                ..CSIPersistentVolumeSource::default()
            }),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// The label of the volume's node, by which that node finds it, if it is missing: on volumes of earlier versions and of
/// administrators.
fn missing_label(volume: &PersistentVolume) -> Option<Action> {
    let node = local_node_of(volume).filter(|node| label_value_problems(node).is_empty())?;
    let labels = volume.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(VOLUME_NODE)).map(String::as_str) == Some(node) {
        return None;
    }
    let mut labelled = volume.clone();
    labelled.metadata.labels.get_or_insert_default().insert(VOLUME_NODE.to_owned(), node.to_owned());
    Some(Action::update(&labelled))
}

/// The next write for a local volume: its label, then what its reclaim policy says if it is this provisioner's.
fn reconcile_volume(view: &ObjectCache, volume: &PersistentVolume) -> Plan {
    if let Some(label) = missing_label(volume) {
        return vec![label].into();
    }
    if annotation(&volume.metadata, PROVISIONED_BY) != Some(LOCAL_DRIVER) || !is_local(volume) {
        return Plan::nothing();
    }
    let deletes = reclaim::policy(volume) == "Delete";
    let is_held = volume.metadata.finalizers.iter().flatten().any(|name| name == DELETION_PROTECTION);
    if volume.metadata.deletion_timestamp.is_some() {
        let empty = std::collections::BTreeMap::new();
        let nodes = view.all::<Node>().map(|node| NodeTopology {
            name: node.metadata.name.as_deref().unwrap_or_default(),
            labels: node.metadata.labels.as_ref().unwrap_or(&empty),
        });
        // The node removes the folder, unless the node is gone or the policy is Retain.
        let there = nodes.into_iter().any(|node| claims::is_reachable(volume, node));
        return if is_held && !(there && deletes) {
            vec![set_deletion_protection(volume, false)].into()
        } else {
            Plan::nothing()
        };
    }
    if deletes != is_held {
        return vec![set_deletion_protection(volume, deletes)].into();
    }
    let over = deletes && phase(volume) == "Released";
    if over { vec![Action::delete(volume)].into() } else { Plan::nothing() }
}

fn set_deletion_protection(volume: &PersistentVolume, held: bool) -> Action {
    let mut volume = volume.clone();
    let finalizers = volume.metadata.finalizers.get_or_insert_default();
    finalizers.retain(|name| name != DELETION_PROTECTION);
    finalizers.extend(held.then(|| DELETION_PROTECTION.to_owned()));
    Action::update(&volume)
}
