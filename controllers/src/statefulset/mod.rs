//! `statefulset-controller`: pods with names, ordinals and claims of their own, made and given up in order.
//!
//! Shape: pods and revisions are claimed, the revision of the present template is found, then [`Rollout`] walks over the
//! ordinals and plans what the first of them that isn't right needs (or all, where the set is `Parallel`). A pod that goes
//! is waited for: its name is free only when it is gone.

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
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Memory, ObjectCache, Plan, Pod, controlled_by,
    controller_of, key_of,
};
use serde_json::json;

use self::identity::{in_range, ordinal_in, pod_name, set_name, start, wanted};
use crate::replacement::Replacement;
use crate::revisions::{self, Present};
use crate::{Settings, pods};

/// Pods made in one pass where there is no order (upstream's largest batch).
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

/// The sets that own the object or did.
fn owners(change: &Change) -> impl Iterator<Item = ObjectKey> {
    let owners = change.states().filter_map(controller_of).filter(|owner| owner.kind == "StatefulSet");
    owners.map(|owner| ObjectKey::new(&*change.key.namespace, &*owner.name))
}

/// The sets that own the pod or did, and the one that it is named after: that may adopt it, or waits for its name.
fn of_pod(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let named = identity::parent_and_ordinal(&change.key.name);
    let named = named.map(|(parent, _)| ObjectKey::new(&*change.key.namespace, parent));
    let mut keys: Vec<ObjectKey> = owners(change).collect();
    keys.extend(named.filter(|key| view.get::<StatefulSet>(key).is_some()));
    keys.dedup();
    keys
}

/// The sets that own the revision or did; those that might adopt it where nobody owns it.
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

/// The sets after which the claim may be named: `VOLUME-SET-ORDINAL`, and both names may have dashes in them.
fn of_claim(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some((parent, _)) = identity::parent_and_ordinal(&change.key.name) else { return Vec::new() };
    let dashes = parent.match_indices('-').map(|(at, _)| &parent[at + 1..]);
    let keys = dashes.map(|name| ObjectKey::new(&*change.key.namespace, name));
    keys.filter(|key| view.get::<StatefulSet>(key).is_some()).collect()
}

/// A revision of the set's template.
struct Version<'a> {
    name: &'a str,
    template: PodTemplateSpec,
}

impl<'a> Version<'a> {
    fn of(revision: &'a ControllerRevision) -> Option<Self> {
        let template = revisions::template_of(revision)?;
        Some(Self { name: revision.metadata.name.as_deref().unwrap_or_default(), template })
    }
}

/// A set on its way to what it shall be.
struct Rollout<'a> {
    view: &'a ObjectCache,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    /// The set's pods by ordinal, those of no wanted ordinal too.
    pods: BTreeMap<i64, &'a Pod>,
    /// The revision from which it comes, and the one to which it goes.
    current: Version<'a>,
    update: Version<'a>,
    now: Timestamp,
    /// How many pods may be made in this pass.
    allowed: usize,
    /// The gate `MaxUnavailableStatefulSet`.
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
        Present::Is(revision) => revision,
        Present::Write(_) if going => return plan,
        Present::Write(write) => {
            let status = set.status.clone().unwrap_or_default();
            plan.push(if collisions == status.collision_count.unwrap_or(0) {
                *write
            } else {
                // The name that follows from it comes next: what is counted must be known before it is used.
                let status = StatefulSetStatus { collision_count: Some(collisions), ..status };
                Action::update_status(&StatefulSet { status: Some(status), ..set.clone() })
            });
            return plan;
        }
    };
    let current = set.status.as_ref().and_then(|s| s.current_revision.as_deref());
    let is_current = |r: &&&ControllerRevision| current.is_some() && r.metadata.name.as_deref() == current;
    let current = known.iter().find(is_current).copied().unwrap_or(update);
    // A revision into which somebody wrote something else can't be gone back to.
    let (Some(current), Some(update)) = (Version::of(current), Version::of(update)) else { return plan };
    let size = usize::try_from(wanted(set)).unwrap_or(0);
    // A pod that has failed is deleted first, and made again in a later pass: it is missing from now on. Counted by the pods that
    // are there, as a set may ask for 2^31 of them.
    let present = pods.range(start(set)..start(set) + wanted(set)).filter(|(_, pod)| pods::is_active(pod)).count();
    let missing = if going { 0 } else { size.saturating_sub(present) };
    let (uid, known_losses) =
        (set.metadata.uid.as_deref().unwrap_or_default(), context.memories.of::<Replacement>(key));
    let size = (missing, size);
    let (allowed, replacement) = Replacement::next(known_losses, view, uid, size, context.elapsed);
    allowed.next_in.into_iter().for_each(|wait| plan.requeue_after(context.now, wait));
    let allowed = allowed.pods;
    let replaces_several = context.settings.features.has(Feature::MaxUnavailableStatefulSet);
    let now = context.now;
    let mut rollout = Rollout { view, set, spec, pods, current, update, now, allowed, replaces_several, plan };
    rollout.write_status(collisions);
    if !going {
        rollout.go_on();
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
    rollout.plan.memory = replacement.map(Memory::of);
    rollout.plan
}

/// The pods that are the set's, by ordinal. Adopts those that nobody owns, and releases those that no longer fit.
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
    for pod in view.uncontrolled::<Pod>(namespace).filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        if let Some(ordinal) = fits(pod) {
            plan.push(pods::adopt(pod, controlled_by(set)));
            mine.insert(ordinal, pod);
        }
    }
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

    /// Plans what comes next: pods that are asked for, then those that are too many, then those of an old template.
    fn go_on(&mut self) {
        let settled = if self.is_ordered() { self.in_order() } else { self.all_at_once() };
        if settled && self.scale_down() {
            self.update_pods();
        }
    }

    /// One ordinal after the other; answers false where one is to be waited for.
    fn in_order(&mut self) -> bool {
        for ordinal in self.ordinals() {
            let Some(pod) = self.pods.get(&ordinal).copied() else {
                if self.allowed == 0 {
                    return false;
                }
                let (claims, pod) = self.make(ordinal);
                self.plan.actions.extend(claims);
                self.plan.actions.extend(pod);
                return false;
            };
            self.mend(pod, ordinal);
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

    /// All ordinals, whatever their neighbours do.
    fn all_at_once(&mut self) -> bool {
        let ordinals = self.ordinals();
        let living: Vec<(i64, &'a Pod)> = self.pods.range(ordinals.clone()).map(|(o, pod)| (*o, *pod)).collect();
        living.into_iter().for_each(|(ordinal, pod)| self.mend(pod, ordinal));
        let absent = ordinals.filter(|o| !self.pods.contains_key(o)).take(BURST_PODS.min(self.allowed));
        let absent: Vec<i64> = absent.collect();
        let (mut claims, mut made) = (Vec::new(), Vec::new());
        for ordinal in absent {
            let (of_pod, pod) = self.make(ordinal);
            claims.extend(of_pod);
            made.extend(pod);
        }
        let batches = [claims, made].into_iter().filter(|batch| !batch.is_empty());
        self.plan.actions.extend(batches.map(Action::SlowStart));
        true
    }

    /// The claims and the pod of an ordinal that has none; nothing where its name or a claim isn't free yet.
    fn make(&mut self, ordinal: i64) -> (Vec<Action>, Option<Action>) {
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
        let version = if self.stays_behind(ordinal) { &self.current } else { &self.update };
        let pod = identity::pod(set, &version.template, version.name, ordinal);
        let done = format!("Create Pod {name} in StatefulSet {} successful", set_name(set));
        let create = Action::create(&pod).noted(
            Some(EventRecord::normal(set, "SuccessfulCreate", done)),
            Some(EventRecord::warning(set, "FailedCreate", failed + "{error}")),
        );
        (claims, Some(create))
    }

    /// What a pod of a wanted ordinal needs: to be replaced, its claims, its labels.
    fn mend(&mut self, pod: &Pod, ordinal: i64) {
        let set = self.set;
        if pods::is_terminal(pod) {
            // The next one comes when this one is gone.
            if pod.metadata.deletion_timestamp.is_none() {
                self.delete(pod);
            }
            return;
        }
        if pods::phase(pod) == "Pending" {
            // Somebody may have deleted a claim before the pod could use it.
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
        let said = |end: &str| format!("Delete Pod {name} in StatefulSet {} {end}", set_name(set));
        Action::delete(pod).noted(
            Some(EventRecord::normal(set, "SuccessfulDelete", said("successful"))),
            Some(EventRecord::warning(set, "FailedDelete", said("failed error: {error}"))),
        )
    }

    /// Gives up the pods of ordinals that nobody asks for, the highest first. Answers false where one is to be waited for.
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
        // One that isn't well holds the others up, unless it is the one to go.
        let first_unwell = condemned.iter().rev().map(|(_, pod)| *pod).find(|pod| self.is_unavailable(pod));
        let well = status::is_running_and_ready(highest) && self.is_available(highest);
        let in_turn = well || first_unwell.is_some_and(|pod| pod.metadata.uid == highest.metadata.uid);
        if staying(&highest) && in_turn {
            self.delete(highest);
        }
        false
    }
}
