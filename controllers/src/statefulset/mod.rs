//! `statefulset-controller`: pods with stable names, ordinals and claims, created and deleted in order.
//!
//! A pass claims pods and revisions and finds the revision of the current template. [`Rollout`] then walks the ordinals
//! and plans the changes for the first that isn't right (or for all, if the set is `Parallel`). A terminating pod is
//! waited for, as its name is free only after its deletion.

mod claims;
mod identity;
mod status;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PodTemplateSpec};
use machinery_api::ObjectKey;
use machinery_api::features::Feature;
use machinery_client::driver::own_key;
use machinery_client::selector::selects;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, ReconcilerState,
    controller_of, key_of,
};
use serde_json::json;

use self::identity::{in_range, ordinal_in, pod_name, set_name, start, wanted};
use crate::replacement::Replacement;
use crate::revisions::{self, CurrentRevision};
use crate::{Settings, pods};

/// The maximum number of pods created in one pass without order (upstream's largest batch).
const BURST_PODS: usize = 500;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "statefulset-controller",
    account: "statefulset-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<StatefulSet>(own_key),
        Input::of::<Pod>(of_pod),
        Input::of::<ControllerRevision>(of_revision),
        Input::of::<PersistentVolumeClaim>(of_claim),
    ],
    reconcile,
};

/// The sets that own or owned the object.
fn owners(change: &Change) -> impl Iterator<Item = ObjectKey> {
    let owners = change.states().filter_map(controller_of).filter(|owner| owner.kind == "StatefulSet");
    owners.map(|owner| ObjectKey::new(&*change.key.namespace, &*owner.name))
}

/// The sets that own or owned the pod, and the set of its name, which may adopt it or waits for the name.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let named = identity::parent_and_ordinal(&change.key.name);
    let named = named.map(|(parent, _)| ObjectKey::new(&*change.key.namespace, parent));
    let mut keys: Vec<ObjectKey> = owners(change).collect();
    keys.extend(named.filter(|key| view.get::<StatefulSet>(key).is_some()));
    keys.dedup();
    keys
}

/// The sets that own or owned the revision; for an orphan, the sets that may adopt it.
fn of_revision(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let mut keys: Vec<ObjectKey> = owners(change).collect();
    if let Some(revision) = change.after::<ControllerRevision>()
        && controller_of(&revision.metadata).is_none()
    {
        let labels = revision.metadata.labels.as_ref();
        let chooses = |set: &&StatefulSet| set.spec.as_ref().is_some_and(|spec| selects(&spec.selector, labels));
        let willing = view.list::<StatefulSet>(&change.key.namespace).filter(chooses);
        keys.extend(willing.map(|set| key_of(&set.metadata)));
    }
    keys.dedup();
    keys
}

/// The sets of the claim's name: `VOLUME-SET-ORDINAL`, where volume and set may contain dashes.
fn of_claim(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some((parent, _)) = identity::parent_and_ordinal(&change.key.name) else { return Vec::new() };
    let dashes = parent.match_indices('-').map(|(at, _)| &parent[at + 1..]);
    let keys = dashes.map(|name| ObjectKey::new(&*change.key.namespace, name));
    keys.filter(|key| view.get::<StatefulSet>(key).is_some()).collect()
}

/// A revision of the set's template.
struct SetRevision<'a> {
    name: &'a str,
    template: PodTemplateSpec,
}

impl<'a> SetRevision<'a> {
    fn of(revision: &'a ControllerRevision) -> Option<Self> {
        let template = revisions::template_of(revision)?;
        Some(Self { name: revision.metadata.name.as_deref().unwrap_or_default(), template })
    }
}

/// The set in this pass.
struct Rollout<'a> {
    view: &'a ObjectCache,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    /// The set's pods by ordinal, surplus ordinals included.
    pods: BTreeMap<i64, &'a Pod>,
    /// The revisions before and after the update.
    current: SetRevision<'a>,
    update: SetRevision<'a>,
    now: Timestamp,
    /// The number of pods that may be created in this pass.
    allowed: usize,
    /// The feature gate `MaxUnavailableStatefulSet`.
    replaces_several: bool,
    plan: Plan,
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(set) = view.get::<StatefulSet>(key) else { return Plan::nothing() };
    let Some(spec) = &set.spec else { return Plan::nothing() };
    let going = set.metadata.deletion_timestamp.is_some();
    let known = revisions::of_owner(view, set, &spec.selector);
    let mut plan = Plan::nothing();
    if !going {
        plan.actions.extend(revisions::adopt(set, &known));
    }
    let pods = claim_pods(view, set, spec, going, &mut plan);
    let mut collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let update = match revisions::present(view, set, &spec.template, revisions::HASH, &known, &mut collisions) {
        CurrentRevision::Exists(revision) => revision,
        CurrentRevision::Write(_) if going => return plan,
        CurrentRevision::Write(write) => {
            let status = set.status.clone().unwrap_or_default();
            plan.push(if collisions == status.collision_count.unwrap_or(0) {
                *write
            } else {
                // The next name derives from the collision count, so the count is written before it is used.
                let status = StatefulSetStatus { collision_count: Some(collisions), ..status };
                Action::update_status(&StatefulSet { status: Some(status), ..set.clone() })
            });
            return plan;
        }
    };
    let current = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
    let is_current = |r: &&&ControllerRevision| current.is_some() && r.metadata.name.as_deref() == current;
    let current = known.iter().find(is_current).copied().unwrap_or(update);
    // A revision with foreign data can't be restored.
    let (Some(current), Some(update)) = (SetRevision::of(current), SetRevision::of(update)) else { return plan };
    let size = usize::try_from(wanted(set)).unwrap_or(0);
    // A failed pod is deleted first, and created again in a later pass: it counts as missing. Existing pods are
    // counted, as a set may have 2^31 replicas.
    let present = pods.range(start(set)..start(set) + wanted(set)).filter(|(_, pod)| pods::is_active(pod)).count();
    let missing = if going { 0 } else { size.saturating_sub(present) };
    let (uid, known_losses) =
        (set.metadata.uid.as_deref().unwrap_or_default(), context.reconciler_cache.of::<Replacement>(key));
    let size = (missing, size);
    let (allowed, replacement) = Replacement::next(known_losses, view, uid, size, context.elapsed);
    allowed.next_in.into_iter().for_each(|wait| plan.requeue_after(context.now, wait));
    let allowed = allowed.pods;
    let replaces_several = context.settings.features.has(Feature::MaxUnavailableStatefulSet);
    let now = context.now;
    let mut rollout = Rollout { view, set, spec, pods, current, update, now, allowed, replaces_several, plan };
    rollout.write_status(collisions);
    if !going {
        rollout.plan_changes();
        let live = |name: &str| {
            [rollout.current.name, rollout.update.name].contains(&name)
                || rollout.pods.values().any(|pod| identity::revision_of(pod) == name)
        };
        let surplus = revisions::truncate(&known, live, spec.revision_history_limit);
        rollout.plan.actions.extend(surplus);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let upcoming = rollout.pods.values().filter_map(|pod| pods::available_at(pod, min_ready));
    upcoming.filter(|at| *at > context.now).for_each(|at| rollout.plan.revisit(at));
    let replacement = Replacement::noted(replacement, uid, &rollout.plan, view, context.elapsed);
    rollout.plan.state = replacement.map(ReconcilerState::of);
    rollout.plan
}

/// The set's pods, by ordinal. Adopts orphans that match, and releases pods that no longer match.
fn claim_pods<'a>(
    view: &'a ObjectCache,
    set: &'a StatefulSet,
    spec: &StatefulSetSpec,
    going: bool,
    plan: &mut Plan,
) -> BTreeMap<i64, &'a Pod> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let fits =
        |pod: &Pod| selects(&spec.selector, pod.metadata.labels.as_ref()).then(|| ordinal_in(set, pod)).flatten();
    let mut mine = BTreeMap::new();
    for pod in view.controlled::<Pod>(uid) {
        match fits(pod) {
            Some(ordinal) => drop(mine.insert(ordinal, pod)),
            None if going || pod.metadata.deletion_timestamp.is_some() => {}
            None => plan.push(pods::release(pod)),
        }
    }
    if going {
        return mine;
    }
    let staying = view.uncontrolled::<Pod>(namespace).filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let orphans: Vec<(i64, &Pod)> = staying.filter_map(|pod| Some((fits(pod)?, pod))).collect();
    plan.actions.extend(pods::adopt(set, orphans.iter().map(|(_, pod)| *pod)));
    mine.extend(orphans);
    mine
}

impl<'a> Rollout<'a> {
    fn is_ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn ordinals(&self) -> std::ops::Range<i64> {
        start(self.set)..start(self.set) + wanted(self.set)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || pod.metadata.deletion_timestamp.is_some()
    }

    /// Plans the next changes: missing pods, then surplus pods, then pods of an old template.
    fn plan_changes(&mut self) {
        let settled = if self.is_ordered() { self.in_order() } else { self.all_at_once() };
        if settled && self.scale_down() {
            self.update_pods();
        }
    }

    /// One ordinal after the other; returns false if one must be waited for.
    fn in_order(&mut self) -> bool {
        for ordinal in self.ordinals() {
            let Some(pod) = self.pods.get(&ordinal).copied() else {
                if self.allowed == 0 {
                    return false;
                }
                let (claims, pod) = self.create_pod(ordinal);
                self.plan.actions.extend(claims);
                self.plan.actions.extend(pod);
                return false;
            };
            self.repair_pod(pod, ordinal);
            let done = !pods::is_terminal(pod)
                && pod.metadata.deletion_timestamp.is_none()
                && status::is_running_and_ready(pod)
                && self.is_available(pod);
            if !done {
                return false;
            }
        }
        true
    }

    /// All ordinals, independent of each other.
    fn all_at_once(&mut self) -> bool {
        let ordinals = self.ordinals();
        let living: Vec<(i64, &'a Pod)> = self.pods.range(ordinals.clone()).map(|(o, pod)| (*o, *pod)).collect();
        living.into_iter().for_each(|(ordinal, pod)| self.repair_pod(pod, ordinal));
        let absent = ordinals.filter(|o| !self.pods.contains_key(o)).take(BURST_PODS.min(self.allowed));
        let absent: Vec<i64> = absent.collect();
        let (mut claims, mut made) = (Vec::new(), Vec::new());
        for ordinal in absent {
            let (of_pod, pod) = self.create_pod(ordinal);
            claims.extend(of_pod);
            made.extend(pod);
        }
        let batches = [claims, made].into_iter().filter(|batch| !batch.is_empty());
        self.plan.actions.extend(batches.map(Action::SlowStart));
        true
    }

    /// The claims and the pod of an ordinal without a pod; nothing if its name or a claim isn't free yet.
    fn create_pod(&mut self, ordinal: i64) -> (Vec<Action>, Option<Action>) {
        let (set, name) = (self.set, pod_name(self.set, ordinal));
        let key = ObjectKey::new(set.metadata.namespace.as_deref().unwrap_or_default(), &*name);
        if self.view.get::<Pod>(&key).is_some() || claims::are_stale(self.view, set, ordinal) {
            return (Vec::new(), None);
        }
        let failed = format!("Create Pod {name} in StatefulSet {} failed error: ", set_name(set));
        let claims = match claims::missing(self.view, set, ordinal) {
            Ok(claims) => claims,
            Err(error) => {
                let event = EventRecord::warning(set, "FailedCreate", failed + &error);
                return (vec![Action::Event(event)], None);
            }
        };
        let version = if self.keeps_current_revision(ordinal) { &self.current } else { &self.update };
        let pod = identity::pod(set, &version.template, version.name, ordinal);
        let done = format!("Create Pod {name} in StatefulSet {} successful", set_name(set));
        let create = Action::create(&pod).noted(
            Some(EventRecord::normal(set, "SuccessfulCreate", done)),
            Some(EventRecord::warning(set, "FailedCreate", failed + "{error}")),
        );
        (claims, Some(create))
    }

    /// Repairs a pod within the replicas: replacement, claims, labels.
    fn repair_pod(&mut self, pod: &Pod, ordinal: i64) {
        let set = self.set;
        if pods::is_terminal(pod) {
            // Its successor is created once it is gone.
            if pod.metadata.deletion_timestamp.is_none() {
                self.delete(pod);
            }
            return;
        }
        if pods::phase(pod) == "Pending" {
            // A claim may have been deleted before the pod used it.
            self.plan.actions.extend(claims::missing(self.view, set, ordinal).unwrap_or_default());
        }
        self.plan.actions.extend(claims::retention(self.view, set, pod, ordinal));
        if !identity::identity_matches(pod) {
            let name = pod_name(set, ordinal);
            let labels = json!({identity::POD_NAME: name, identity::POD_INDEX: ordinal.to_string()});
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": labels}});
            self.plan.push(Action::patch(pod, patch));
            let message = format!("Update Pod {name} in StatefulSet {} successful", set_name(set));
            self.plan.push(Action::Event(EventRecord::normal(set, "SuccessfulUpdate", message)));
        }
    }

    fn delete(&mut self, pod: &Pod) {
        let action = self.deletion(pod);
        self.plan.push(action);
    }

    fn deletion(&self, pod: &Pod) -> Action {
        let (set, name) = (self.set, pod.metadata.name.as_deref().unwrap_or_default());
        let message = |end: &str| format!("Delete Pod {name} in StatefulSet {} {end}", set_name(set));
        Action::delete(pod).noted(
            Some(EventRecord::normal(set, "SuccessfulDelete", message("successful"))),
            Some(EventRecord::warning(set, "FailedDelete", message("failed error: {error}"))),
        )
    }

    /// Deletes the pods of surplus ordinals, the highest first. Returns false if one must be waited for.
    fn scale_down(&mut self) -> bool {
        let (set, view) = (self.set, self.view);
        let condemned: Vec<(i64, &'a Pod)> =
            self.pods.iter().rev().filter(|(o, _)| !in_range(set, **o)).map(|(o, pod)| (*o, *pod)).collect();
        let repairs = condemned.iter().flat_map(|(ordinal, pod)| claims::retention(view, set, pod, *ordinal));
        self.plan.actions.extend(repairs.collect::<Vec<_>>());
        let staying = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
        if !self.is_ordered() {
            let gone = condemned.iter().map(|(_, pod)| *pod).filter(staying).map(|pod| self.deletion(pod));
            let gone: Vec<Action> = gone.take(BURST_PODS).collect();
            if !gone.is_empty() {
                self.plan.push(Action::SlowStart(gone));
            }
            return true;
        }
        let Some((_, highest)) = condemned.first().copied() else { return true };
        // An unavailable pod blocks the others, unless it is the one to delete.
        let first_unwell = condemned.iter().rev().map(|(_, pod)| *pod).find(|pod| self.is_unavailable(pod));
        let well = status::is_running_and_ready(highest) && self.is_available(highest);
        let in_turn = well || first_unwell.is_some_and(|pod| pod.metadata.uid == highest.metadata.uid);
        if staying(&highest) && in_turn {
            self.delete(highest);
        }
        false
    }
}
