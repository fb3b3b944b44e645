//! `daemonset-controller`: one pod on every eligible node.
//!
//! A pass claims pods and groups them by node. It creates missing pods and deletes surplus ones first; only if there
//! are none, it replaces pods of an old template ([`update`]).

mod back_off;
mod node;
mod status;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::selector::{is_everything, selects};
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan, Pod, ReconcilerState,
    controller_of, key_of,
};

use self::back_off::FailedPodBackOff;
use self::node::{Eligibility, Placement};
use crate::replacement::Replacement;
use crate::revisions::{self, CurrentRevision, POD_HASH};
use crate::{Settings, pods};

/// The maximum number of pods created or deleted in one pass (upstream's burst).
const BURST_PODS: usize = 250;
/// The memory of a set between passes.
#[derive(Debug, Clone, Default)]
struct DaemonSetMemory {
    set_uid: String,
    failed: FailedPodBackOff,
    replacement: Option<Replacement>,
}

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "daemonset-controller",
    account: "daemon-set-controller",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<DaemonSet>(own_key),
        Input::of::<Pod>(of_dependent::<Pod>),
        Input::of::<ControllerRevision>(of_dependent::<ControllerRevision>),
        Input::of::<Node>(of_node),
    ],
    reconcile,
};

/// The sets that own or owned the object; for an orphan, the sets that may adopt it.
fn of_dependent<K: machinery_client::Typed>(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let namespace = &change.key.namespace;
    let owners = change.states().filter_map(controller_of).filter(|owner| owner.kind == "DaemonSet");
    let mut keys: Vec<ObjectKey> = owners.map(|owner| ObjectKey::new(&**namespace, &*owner.name)).collect();
    if let Some(metadata) = change.after::<K>().map(<K as machinery_client::Object>::metadata)
        && controller_of(metadata).is_none()
    {
        let willing = view.list::<DaemonSet>(namespace).filter(|set| chooses(set, metadata.labels.as_ref()));
        keys.extend(willing.map(|set| key_of(&set.metadata)));
    }
    keys.dedup();
    keys
}

/// All sets, if a node is added or removed, or changes in a way that affects placement.
fn of_node(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let placed_by = |node: Option<&Node>| {
        node.map(|n| (n.metadata.labels.clone(), n.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default()))
    };
    if placed_by(change.before()) == placed_by(change.after()) {
        return Vec::new();
    }
    view.all::<DaemonSet>().map(|set| key_of(&set.metadata)).collect()
}

fn chooses(set: &DaemonSet, labels: Option<&BTreeMap<String, String>>) -> bool {
    set.spec.as_ref().is_some_and(|spec| selects(&spec.selector, labels))
}

/// A set, its nodes and its pods.
struct DaemonSetPass<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    placement: Placement,
    /// The hash of the current template.
    hash: &'a str,
    nodes: BTreeMap<&'a str, Eligibility>,
    /// By assigned or intended node, each node's oldest first.
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
    now: Timestamp,
    elapsed: Duration,
    known: DaemonSetMemory,
    plan: Plan,
}

/// Pods to create, by node, and pods to delete.
#[derive(Default)]
struct PodChanges<'a> {
    make: Vec<&'a str>,
    delete: Vec<&'a Pod>,
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(set) = view.get::<DaemonSet>(key) else { return Plan::nothing() };
    let Some(spec) = &set.spec else { return Plan::nothing() };
    if is_everything(&spec.selector) {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.";
        return vec![Action::Event(EventRecord::warning(set, "SelectingAll", message))].into();
    }
    if set.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let known = revisions::of_owner(view, set, &spec.selector);
    let mut plan = Plan::nothing();
    plan.actions.extend(revisions::adopt(set, &known));
    let strange = view.controlled::<ControllerRevision>(uid).filter(|r| !chooses(set, r.metadata.labels.as_ref()));
    plan.actions.extend(strange.map(pods::release));
    let status = set.status.clone().unwrap_or_default();
    let mut collisions = status.collision_count.unwrap_or(0);
    let current = match revisions::present(view, set, &spec.template, POD_HASH, &known, &mut collisions) {
        CurrentRevision::Exists(revision) => revision,
        CurrentRevision::Write(write) => {
            plan.push(if collisions == status.collision_count.unwrap_or(0) {
                *write
            } else {
                // The next name derives from the collision count, so the count is written before it is used.
                let status = DaemonSetStatus { collision_count: Some(collisions), ..status };
                Action::update_status(&DaemonSet { status: Some(status), ..set.clone() })
            });
            return plan;
        }
    };
    let placement = Placement::of(set);
    let nodes = view.all::<Node>().filter_map(|n| Some((n.metadata.name.as_deref()?, placement.fit(n)))).collect();
    let claimed = claim(view, set, &mut plan);
    let live: Vec<String> =
        claimed.iter().filter_map(|pod| pod.metadata.labels.as_ref()?.get(POD_HASH).cloned()).collect();
    let hash = revisions::hash_of(current, POD_HASH);
    let (now, elapsed, pods) = (context.now, context.elapsed, by_node(claimed));
    let remembered = context.reconciler_cache.of::<DaemonSetMemory>(key).filter(|known| known.set_uid == uid).cloned();
    let remembered =
        remembered.unwrap_or_else(|| DaemonSetMemory { set_uid: uid.to_owned(), ..DaemonSetMemory::default() });
    let mut daemons = DaemonSetPass { set, spec, placement, hash, nodes, pods, now, elapsed, known: remembered, plan };
    daemons.write_status();
    daemons.plan_changes(view);
    let old: Vec<_> = known.iter().copied().filter(|r| r.metadata.name != current.metadata.name).collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let dead = old.iter().filter(|r| !live.iter().any(|hash| hash == revisions::hash_of(r, POD_HASH)));
    let surplus: Vec<Action> = dead.take(old.len().saturating_sub(limit)).map(|r| Action::delete(*r)).collect();
    daemons.plan.actions.extend(surplus);
    daemons.known.failed.drop_expired(elapsed);
    let known = daemons.known;
    let mut plan = daemons.plan;
    plan.state = (!known.failed.is_empty() || known.replacement.is_some()).then(|| ReconcilerState::of(known));
    plan
}

/// The set's pods. Adopts orphans that match, and releases pods that no longer match.
fn claim<'a>(view: &'a ObjectCache, set: &'a DaemonSet, plan: &mut Plan) -> Vec<&'a Pod> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let fits = |pod: &&Pod| chooses(set, pod.metadata.labels.as_ref());
    let staying = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let (mut mine, strange): (Vec<&Pod>, Vec<&Pod>) = view.controlled::<Pod>(uid).partition(fits);
    plan.actions.extend(strange.into_iter().filter(staying).map(pods::release));
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let orphans: Vec<&Pod> = view.uncontrolled::<Pod>(namespace).filter(fits).filter(staying).collect();
    plan.actions.extend(pods::adopt(set, orphans.iter().copied()));
    mine.extend(orphans);
    mine
}

/// Pods by node, without terminal pods that are being deleted.
fn by_node(claimed: Vec<&Pod>) -> BTreeMap<&str, Vec<&Pod>> {
    let mut by_node = BTreeMap::<&str, Vec<&Pod>>::new();
    for pod in claimed {
        let ended = pods::is_terminal(pod) && pod.metadata.deletion_timestamp.is_some();
        if let Some(node) = node::of_pod(pod).filter(|_| !ended) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref().is_some_and(|n| !n.is_empty()));
    let made = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
    by_node.values_mut().for_each(|pods| {
        pods.sort_by(|a, b| (!placed(a), made(a), &a.metadata.name).cmp(&(!placed(b), made(b), &b.metadata.name)));
    });
    by_node
}

impl<'a> DaemonSetPass<'a> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        node::is_updated(self.set, self.hash, pod)
    }

    fn fit(&self, node: &str) -> Option<Eligibility> {
        self.nodes.get(node).copied()
    }

    /// Plans the next changes: missing pods, then surplus pods, then pods of an old template.
    fn plan_changes(&mut self, view: &ObjectCache) {
        let mut changes = self.missing_and_surplus();
        if changes.make.is_empty() && changes.delete.is_empty() {
            changes = self.updates();
        }
        let (set, mut actions) = (self.set, Vec::new());
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let wanted = self.nodes.values().filter(|fit| **fit == Eligibility::ShouldRun).count();
        let known = self.known.replacement.take();
        let (allowed, replacement) =
            Replacement::next(known.as_ref(), view, uid, (changes.make.len(), wanted), self.elapsed);
        allowed.next_in.into_iter().for_each(|wait| self.plan.requeue_after(self.now, wait));
        for node in changes.make.into_iter().take(BURST_PODS.min(allowed.pods)) {
            let pod = self.placement.pod(set, self.hash, node);
            actions.push(Action::create(&pod).noted(
                Some(EventRecord::normal(set, "SuccessfulCreate", "Created pod: {name}")),
                Some(EventRecord::warning(set, "FailedCreate", "Error creating: {error}")),
            ));
        }
        if !actions.is_empty() {
            self.plan.push(Action::SlowStart(actions));
        }
        let delete = |pod: &Pod| {
            Action::delete(pod).noted(
                Some(EventRecord::normal(set, "SuccessfulDelete", "Deleted pod: {name}")),
                Some(EventRecord::warning(set, "FailedDelete", "Error deleting: {error}")),
            )
        };
        let deletions: Vec<Action> = changes.delete.into_iter().take(BURST_PODS).map(delete).collect();
        if !deletions.is_empty() {
            self.plan.push(Action::Concurrent(deletions));
        }
        self.known.replacement = Replacement::noted(replacement, uid, &self.plan, view, self.elapsed);
    }

    fn missing_and_surplus(&mut self) -> PodChanges<'a> {
        let mut changes = PodChanges::default();
        let surges = update::surge(self.spec, 1) > 0;
        let nodes: Vec<(&'a str, Eligibility)> = self.nodes.iter().map(|(name, fit)| (*name, *fit)).collect();
        for (name, fit) in nodes {
            let pods = self.pods.get(name).cloned().unwrap_or_default();
            match fit {
                Eligibility::ShouldRun if pods.is_empty() => changes.make.push(name),
                Eligibility::Ineligible => {
                    changes.delete.extend(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()));
                }
                Eligibility::ShouldRun | Eligibility::MayContinue => {
                    let running = self.delete_terminal(name, pods, &mut changes);
                    if surges {
                        if running.is_empty() && fit == Eligibility::ShouldRun {
                            changes.make.push(name);
                        }
                        self.keep_surging(&running, &mut changes);
                    } else {
                        changes.delete.extend(running.into_iter().skip(1));
                    }
                }
            }
        }
        // The pod is unscheduled, and its node is gone.
        let gone = self.pods.iter().filter(|(name, _)| !self.nodes.contains_key(*name)).flat_map(|(_, pods)| pods);
        let unplaced = |pod: &&&Pod| pod.spec.as_ref().is_none_or(|s| s.node_name.as_deref().unwrap_or("").is_empty());
        let staying = |pod: &&&Pod| pod.metadata.deletion_timestamp.is_none();
        changes.delete.extend(gone.filter(unplaced).filter(staying).copied());
        changes
    }

    /// The running pods of a node; terminal ones are deleted.
    fn delete_terminal(&mut self, node: &str, pods: Vec<&'a Pod>, changes: &mut PodChanges<'a>) -> Vec<&'a Pod> {
        let mut running = Vec::new();
        for pod in pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let key = key_of(&pod.metadata);
            let prefix = |what: &str| format!("Found {what} daemon pod {key} on node {node}, will try to");
            match pods::phase(pod) {
                "Failed" => {
                    if let Some(wait) = self.known.failed.remaining(node, self.elapsed) {
                        self.plan.requeue_after(self.now, wait);
                        continue;
                    }
                    self.known.failed.record_deletion(node, self.elapsed);
                    let message = prefix("failed") + " kill it";
                    self.plan.push(Action::Event(EventRecord::warning(self.set, "FailedDaemonPod", message)));
                    changes.delete.push(pod);
                }
                "Succeeded" => {
                    let message = prefix("succeeded") + " delete it";
                    self.plan.push(Action::Event(EventRecord::normal(self.set, "SucceededDaemonPod", message)));
                    changes.delete.push(pod);
                }
                _ => running.push(pod),
            }
        }
        running
    }

    /// With surge a node may have two pods: the oldest of the current template, and the oldest of another until the new
    /// one is available or the old one is no longer ready.
    fn keep_surging(&self, running: &[&'a Pod], changes: &mut PodChanges<'a>) {
        let (new, old): (Vec<&'a Pod>, Vec<&'a Pod>) = running.iter().copied().partition(|pod| self.is_updated(pod));
        changes.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)));
        if let ([new, ..], [old, ..]) = (new.as_slice(), old.as_slice())
            && (!pods::is_ready(old) || self.is_available(new))
        {
            changes.delete.push(*old);
        }
    }
}
