//! `deployment-controller`: rolls pods from one template to the next through ReplicaSets.
//!
//! A pass reads the ReplicaSets of a Deployment ([`Rollout`]) and decides their sizes on copies ([`rolling`],
//! [`recreate`], [`proportional`] in `rollout.rs`). Each changed copy is one update, and the status is one more.

mod annotations;
mod create;
mod revision;
mod rollout;
mod status;
mod strategy;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::selector::{is_everything, selects};
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, controller_of, key_of,
};

use crate::Settings;
use crate::pods;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "deployment-controller",
    account: "deployment-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<Deployment>(own_key),
        Input::of::<ReplicaSet>(of_replica_set),
        Input::of::<Pod>(of_ended_pod),
    ],
    reconcile,
};

/// The Deployments that own or owned the set; for an orphan, the Deployments that may adopt it.
fn of_replica_set(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let namespace = &change.key.namespace;
    let mut keys: Vec<ObjectKey> = change
        .states()
        .filter_map(controller_of)
        .filter(|owner| owner.kind == "Deployment")
        .map(|owner| ObjectKey::new(&**namespace, &*owner.name))
        .collect();
    if let Some(set) = change.after::<ReplicaSet>()
        && controller_of(&set.metadata).is_none()
    {
        let willing = view.list::<Deployment>(namespace).filter(|d| chooses(d, set));
        keys.extend(willing.map(|d| key_of(&d.metadata)));
    }
    keys.dedup();
    keys
}

/// A Deployment with strategy Recreate waits for its last old pod.
fn of_ended_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.after::<Pod>().is_some_and(|pod| !pods::is_terminal(pod)) {
        return Vec::new();
    }
    let owner = change.states().filter_map(controller_of).find(|owner| owner.kind == "ReplicaSet");
    let set = owner.and_then(|o| view.get::<ReplicaSet>(&ObjectKey::new(&*change.key.namespace, &*o.name)));
    let deployment = set.and_then(|set| controller_of(&set.metadata));
    let key = deployment.map(|d| ObjectKey::new(&*change.key.namespace, &*d.name));
    key.into_iter().filter(|key| view.get::<Deployment>(key).is_some_and(|d| !strategy::is_rolling(d))).collect()
}

fn chooses(deployment: &Deployment, set: &ReplicaSet) -> bool {
    deployment.spec.as_ref().is_some_and(|spec| selects(&spec.selector, set.metadata.labels.as_ref()))
}

/// The Deployment's `spec.replicas`.
fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A set's `spec.replicas`.
fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The available replicas of a set.
fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The actual replicas of a set.
fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// The sum of the sets' `spec.replicas`.
fn total<'a>(sets: impl Iterator<Item = &'a ReplicaSet>) -> i32 {
    sets.map(size).fold(0, i32::saturating_add)
}

fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

/// A Deployment's sets, as copies that are written if they differ from the view.
struct Rollout<'a> {
    view: &'a ObjectCache,
    deployment: &'a Deployment,
    /// The set of the current template.
    new: Option<ReplicaSet>,
    /// All others, by age.
    old: Vec<ReplicaSet>,
    /// The new status, based on the known one.
    status: DeploymentStatus,
    /// The revision annotation to write.
    revision: Option<String>,
    now: Timestamp,
    plan: Plan,
}

impl Rollout<'_> {
    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    fn has_deadline(&self) -> bool {
        // A deadline of `i32::MAX` means none, as upstream.
        self.deadline_seconds().is_some_and(|s| s != i32::MAX)
    }

    fn deadline_seconds(&self) -> Option<i32> {
        self.deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds)
    }

    fn paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|s| s.paused) == Some(true)
    }

    /// Updates every copy that differs from the view, with the event about its size.
    fn write_sets(&mut self) {
        let mut actions = Vec::new();
        for set in self.all() {
            let Some(known) = self.view.get::<ReplicaSet>(&key_of(&set.metadata)) else { continue };
            if known == set {
                continue;
            }
            actions.push(Action::update(set));
            let (from, to) = (size(known), size(set));
            if from != to {
                let way = if from < to { "up" } else { "down" };
                let message = format!("Scaled {way} replica set {} from {from} to {to}", name(set));
                actions.push(Action::Event(EventRecord::normal(self.deployment, "ScalingReplicaSet", message)));
            }
        }
        self.plan.actions.extend(actions);
    }

    /// Whether a copy's size differs from the view.
    fn resized(&self) -> bool {
        self.all().any(|set| {
            self.view.get::<ReplicaSet>(&key_of(&set.metadata)).is_some_and(|known| size(known) != size(set))
        })
    }

    /// Writes status and revision if they differ.
    fn write_status(&mut self) {
        let update = self.status_update(&self.status);
        self.plan.actions.extend(update);
    }

    fn status_update(&self, status: &DeploymentStatus) -> Option<Action> {
        let known = self.deployment.status.clone().unwrap_or_default();
        let mut written = self.deployment.clone();
        let status = status::normal(status.clone());
        let mut differs = status::normal(known) != status;
        written.status = Some(status);
        if let Some(revision) = &self.revision {
            differs |= annotations::set(written.metadata.annotations.get_or_insert_default(), revision);
        }
        differs.then(|| Action::update_status(&written))
    }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(deployment) = view.get::<Deployment>(key) else { return Plan::nothing() };
    let Some(spec) = &deployment.spec else { return Plan::nothing() };
    let status = deployment.status.clone().unwrap_or_default();
    if is_everything(&spec.selector) {
        return reject_select_all(deployment, status);
    }
    let going = deployment.metadata.deletion_timestamp.is_some();
    if !going {
        let claims = claim(view, deployment, key);
        if !claims.is_empty() {
            return claims.into();
        }
    }
    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
    let mut sets: Vec<ReplicaSet> =
        view.controlled::<ReplicaSet>(uid).filter(|s| chooses(deployment, s)).cloned().collect();
    sets.sort_by(|a, b| age(a).cmp(&age(b)));
    let new = revision::find_new(deployment, &sets).map(|at| sets.remove(at));
    let mut rollout =
        Rollout { view, deployment, new, old: sets, status, revision: None, now: context.now, plan: Plan::nothing() };
    if going {
        status::count(&mut rollout);
        rollout.write_status();
        return rollout.plan;
    }
    status::note_pause(&mut rollout);
    revision::sync(&mut rollout);
    if rollout.paused() || rollout::is_scaling(&rollout) {
        rollout::proportional(&mut rollout);
        rollout.write_sets();
        if rollout.paused() {
            revision::clean_up(&mut rollout);
        }
        status::count(&mut rollout);
        rollout.write_status();
        return rollout.plan;
    }
    let done =
        if strategy::is_rolling(deployment) { rollout::rolling(&mut rollout) } else { rollout::recreate(&mut rollout) };
    if !done {
        // The new set needs another name first.
        return rollout.plan;
    }
    if !rollout.resized() && status::is_complete(&rollout, &deployment.status.clone().unwrap_or_default()) {
        revision::clean_up(&mut rollout);
    }
    status::count(&mut rollout);
    status::judge_progress(&mut rollout);
    rollout.plan.may_wait = rollout.plan.actions.is_empty() && status::is_progress(&rollout);
    rollout.write_status();
    rollout.plan
}

/// By age, then by name.
fn age(set: &ReplicaSet) -> (Option<Timestamp>, Option<&str>) {
    (set.metadata.creation_timestamp.as_ref().map(|t| t.0), set.metadata.name.as_deref())
}

/// A selector that matches everything is rejected.
fn reject_select_all(deployment: &Deployment, mut status: DeploymentStatus) -> Plan {
    let generation = deployment.metadata.generation.unwrap_or(0);
    if status.observed_generation.unwrap_or(0) >= generation {
        return Plan::nothing();
    }
    status.observed_generation = Some(generation);
    let message = "This deployment is selecting all pods. A non-empty selector is required.";
    vec![
        Action::Event(EventRecord::warning(deployment, "SelectingAll", message)),
        Action::update_status(&Deployment { status: Some(status), ..deployment.clone() }),
    ]
    .into()
}

/// Adopts orphaned sets that match, and releases sets that no longer match.
fn claim(view: &ObjectCache, deployment: &Deployment, key: &ObjectKey) -> Vec<Action> {
    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
    let strange = view.controlled::<ReplicaSet>(uid).filter(|set| !chooses(deployment, set)).map(pods::release);
    let orphans = view
        .uncontrolled::<ReplicaSet>(&key.namespace)
        .filter(|set| set.metadata.deletion_timestamp.is_none() && chooses(deployment, set));
    strange.chain(pods::adopt(deployment, orphans)).collect()
}
