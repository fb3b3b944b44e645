//! `daemonset-controller`: one pod on every node that takes it.
//!
//! Shape: pods are claimed and put to their nodes; what a node lacks or has too many of comes first, and only where
//! nothing does, pods of an old template are replaced ([`update`]).

mod failed;
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
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Memory, ObjectCache, Plan, Pod, controlled_by,
    controller_of, key_of,
};

use self::failed::Failed;
use self::node::{Fit, Placement};
use crate::replacement::Replacement;
use crate::revisions::{self, POD_HASH, Present};
use crate::{Settings, pods};

/// Pods made or deleted in one pass (upstream's burst).
const BURST_PODS: usize = 250;
/// What is remembered of a set.
#[derive(Debug, Clone, Default)]
struct Remembered {
    set_uid: String,
    failed: Failed,
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

/// The sets that own the object or did; those that might adopt it where nobody owns it.
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

/// All sets, where a node comes or goes or what placement depends on changes.
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
struct Daemons<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    placement: Placement,
    /// The present template's.
    hash: &'a str,
    nodes: BTreeMap<&'a str, Fit>,
    /// By the node that they are on or made for, each node's oldest first.
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
    now: Timestamp,
    elapsed: Duration,
    known: Remembered,
    plan: Plan,
}

/// What is to be done: pods to make, by node, and pods to delete.
#[derive(Default)]
struct Changes<'a> {
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
        Present::Is(revision) => revision,
        Present::Write(write) => {
            plan.push(if collisions == status.collision_count.unwrap_or(0) {
                *write
            } else {
                // The name that follows from it comes next: what is counted must be known before it is used.
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
    let remembered = context.memories.of::<Remembered>(key).filter(|known| known.set_uid == uid).cloned();
    let remembered = remembered.unwrap_or_else(|| Remembered { set_uid: uid.to_owned(), ..Remembered::default() });
    let mut daemons = Daemons { set, spec, placement, hash, nodes, pods, now, elapsed, known: remembered, plan };
    daemons.write_status();
    daemons.go_on(view);
    let old: Vec<_> = known.iter().copied().filter(|r| r.metadata.name != current.metadata.name).collect();
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(usize::MAX);
    let dead = old.iter().filter(|r| !live.iter().any(|hash| hash == revisions::hash_of(r, POD_HASH)));
    let surplus: Vec<Action> = dead.take(old.len().saturating_sub(limit)).map(|r| Action::delete(*r)).collect();
    daemons.plan.actions.extend(surplus);
    daemons.known.failed.forget(elapsed);
    let known = daemons.known;
    let mut plan = daemons.plan;
    plan.memory = (!known.failed.is_empty() || known.replacement.is_some()).then(|| Memory::of(known));
    plan
}

/// The set's pods. Adopts those that nobody owns, and releases those that no longer fit.
fn claim<'a>(view: &'a ObjectCache, set: &'a DaemonSet, plan: &mut Plan) -> Vec<&'a Pod> {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let fits = |pod: &&Pod| chooses(set, pod.metadata.labels.as_ref());
    let staying = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none();
    let (mut mine, strange): (Vec<&Pod>, Vec<&Pod>) = view.controlled::<Pod>(uid).partition(fits);
    plan.actions.extend(strange.into_iter().filter(staying).map(pods::release));
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    for pod in view.uncontrolled::<Pod>(namespace).filter(fits).filter(staying) {
        plan.push(pods::adopt(pod, controlled_by(set)));
        mine.push(pod);
    }
    mine
}

/// Pods by node, without those that have ended and are as good as gone.
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

impl<'a> Daemons<'a> {
    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        node::is_updated(self.set, self.hash, pod)
    }

    fn fit(&self, node: &str) -> Option<Fit> {
        self.nodes.get(node).copied()
    }

    /// Plans what comes next: pods where there are none, those that are too many, then those of an old template.
    fn go_on(&mut self, view: &ObjectCache) {
        let mut changes = self.missing_and_surplus();
        if changes.make.is_empty() && changes.delete.is_empty() {
            changes = self.updates();
        }
        let (set, mut actions) = (self.set, Vec::new());
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let wanted = self.nodes.values().filter(|fit| **fit == Fit::Runs).count();
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

    fn missing_and_surplus(&mut self) -> Changes<'a> {
        let mut changes = Changes::default();
        let surges = update::surge(self.spec, 1) > 0;
        let nodes: Vec<(&'a str, Fit)> = self.nodes.iter().map(|(name, fit)| (*name, *fit)).collect();
        for (name, fit) in nodes {
            let pods = self.pods.get(name).cloned().unwrap_or_default();
            match fit {
                Fit::Runs if pods.is_empty() => changes.make.push(name),
                Fit::Not => {
                    changes.delete.extend(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()));
                }
                Fit::Runs | Fit::Keeps => {
                    let running = self.without_ended(name, pods, &mut changes);
                    if surges {
                        if running.is_empty() && fit == Fit::Runs {
                            changes.make.push(name);
                        }
                        self.keep_two(&running, &mut changes);
                    } else {
                        changes.delete.extend(running.into_iter().skip(1));
                    }
                }
            }
        }
        // Made for a node that is gone, and placed nowhere.
        let gone = self.pods.iter().filter(|(name, _)| !self.nodes.contains_key(*name)).flat_map(|(_, pods)| pods);
        let unplaced = |pod: &&&Pod| pod.spec.as_ref().is_none_or(|s| s.node_name.as_deref().unwrap_or("").is_empty());
        let staying = |pod: &&&Pod| pod.metadata.deletion_timestamp.is_none();
        changes.delete.extend(gone.filter(unplaced).filter(staying).copied());
        changes
    }

    /// The pods of a node that go on; those that have ended are to be deleted.
    fn without_ended(&mut self, node: &str, pods: Vec<&'a Pod>, changes: &mut Changes<'a>) -> Vec<&'a Pod> {
        let mut running = Vec::new();
        for pod in pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let key = key_of(&pod.metadata);
            let said = |what: &str| format!("Found {what} daemon pod {key} on node {node}, will try to");
            match pods::phase(pod) {
                "Failed" => {
                    if let Some(wait) = self.known.failed.wait(node, self.elapsed) {
                        self.plan.requeue_after(self.now, wait);
                        continue;
                    }
                    self.known.failed.goes(node, self.elapsed);
                    let message = said("failed") + " kill it";
                    self.plan.push(Action::Event(EventRecord::warning(self.set, "FailedDaemonPod", message)));
                    changes.delete.push(pod);
                }
                "Succeeded" => {
                    let message = said("succeeded") + " delete it";
                    self.plan.push(Action::Event(EventRecord::normal(self.set, "SucceededDaemonPod", message)));
                    changes.delete.push(pod);
                }
                _ => running.push(pod),
            }
        }
        running
    }

    /// While pods surge, a node may have two: the oldest of the present template, and the oldest of another until the new
    /// one is available or the old one no longer is ready.
    fn keep_two(&self, running: &[&'a Pod], changes: &mut Changes<'a>) {
        let (new, old): (Vec<&'a Pod>, Vec<&'a Pod>) = running.iter().copied().partition(|pod| self.is_updated(pod));
        changes.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)));
        if let ([new, ..], [old, ..]) = (new.as_slice(), old.as_slice())
            && (!pods::is_ready(old) || self.is_available(new))
        {
            changes.delete.push(*old);
        }
    }
}
