//! Plans the creation of the ReplicaSet for a Deployment's current template, with its initial replicas. A name
//! collision is counted in the status and retried.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_client::{Action, EventRecord, controlled_by};

use super::revision::{self, HASH, hash};
use super::strategy::{is_rolling, max_surge};
use super::{Rollout, annotations, size, status, total, wanted};
use crate::pods;

/// The maximum length of a ReplicaSet's name.
const NAME_LENGTH_MAX: usize = 253;
/// Creates the set of the current template. Returns false if the pass must end.
pub(super) fn create(rollout: &mut Rollout<'_>) -> bool {
    let deployment = rollout.deployment;
    let Some(spec) = &deployment.spec else { return false };
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = hash(&spec.template, collisions);
    let set_name = named(deployment.metadata.name.as_deref().unwrap_or_default(), &hash);
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    if rollout.view.get::<ReplicaSet>(&ObjectKey::new(&*namespace, &*set_name)).is_some() {
        // The set has another owner or template: a hash collision.
        rollout.status.collision_count = Some(collisions.unwrap_or(0).saturating_add(1));
        rollout.write_status();
        return false;
    }
    let Some(set) = new_set(rollout, set_name.clone(), hash) else { return false };
    let replicas = size(&set);
    if deployment.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0) == 0 {
        // An orphan to adopt may have been created just before.
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        rollout.plan.push(pods::require_fresh_cache::<ReplicaSet>(rollout.view, namespace, &spec.selector));
    }
    let message = format!("Failed to create new replica set {set_name:?}: {{error}}");
    let scaled = EventRecord::normal(
        deployment,
        "ScalingReplicaSet",
        format!("Scaled up replica set {set_name} from 0 to {replicas}"),
    );
    let failed_note = EventRecord::warning(deployment, "ReplicaSetCreateError", message.clone());
    let attempt = Action::create(&set).noted((replicas > 0).then_some(scaled), Some(failed_note));
    let attempt = match failing(rollout, message) {
        Some((update, message_at)) => attempt.reporting(update, message_at),
        None => attempt,
    };
    rollout.plan.push(attempt);
    rollout.revision = set.metadata.annotations.as_ref().and_then(|a| a.get(annotations::REVISION)).cloned();
    if rollout.has_deadline() {
        let message = format!("Created new replica set {set_name:?}");
        status::set_condition(
            &mut rollout.status,
            "Progressing",
            "True",
            "NewReplicaSetCreated",
            &message,
            rollout.now,
        );
    }
    rollout.new = Some(set);
    true
}

/// The status to write if the creation fails, with the place of the error in it.
fn failing(rollout: &mut Rollout<'_>, message: String) -> Option<(Action, String)> {
    if !rollout.has_deadline() {
        return None;
    }
    let before = rollout.status.clone();
    let (progressing, reason) = (status::PROGRESSING, "ReplicaSetCreateError");
    status::set_condition(&mut rollout.status, progressing, "False", reason, &message, rollout.now);
    status::count(rollout);
    let failing = std::mem::replace(&mut rollout.status, before);
    let at = failing.conditions.iter().flatten().position(|c| c.type_ == progressing)?;
    Some((rollout.status_update(&failing)?, format!("/status/conditions/{at}/message")))
}

/// The set of the current template.
fn new_set(rollout: &Rollout<'_>, name: String, hash: String) -> Option<ReplicaSet> {
    let deployment = rollout.deployment;
    let spec = deployment.spec.as_ref()?;
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![controlled_by(deployment)]),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotations::annotate(&mut set, deployment, revision::next_revision(rollout));
    annotations::note_size(&mut set, deployment);
    let replicas = replicas_of_new(rollout, 0);
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(replicas);
    }
    Some(set)
}

/// The replicas that the new set, which has `present`, may have now.
pub(super) fn replicas_of_new(rollout: &Rollout<'_>, present: i32) -> i32 {
    let wanted = wanted(rollout.deployment);
    if !is_rolling(rollout.deployment) {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(rollout.deployment));
    let spare = most.saturating_sub(total(rollout.all()));
    if spare <= 0 { present } else { present + spare.min(wanted - present) }
}

fn named(deployment: &str, hash: &str) -> String {
    let length_max = NAME_LENGTH_MAX - 1 - hash.len();
    let mut end = deployment.len().min(length_max);
    while !deployment.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{hash}", &deployment[..end])
}
