//! `namespace-controller`: empties a terminating namespace, pods first, and removes its finalizer when nothing is left.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Namespace, NamespaceCondition, NamespaceStatus};
use machinery_api::ObjectKey;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, Kind, ObjectCache, Plan, Pod, value_of};

use crate::Settings;
use crate::{conditions, pods};

/// The finalizer in `spec.finalizers` that this controller removes.
const FINALIZER: &str = "kubernetes";
/// The delay before the first conditions: most namespaces are empty by then, and need none.
const CONDITIONS_AFTER: Duration = Duration::from_secs(2);
/// The interval of passes over a namespace that doesn't become empty.
const REVISIT: Duration = Duration::from_secs(15);

const CONTENT_FAILURE: &str = "NamespaceDeletionContentFailure";
/// The conditions in order, with reason and message of success.
const CONDITIONS: [(&str, &str, &str); 5] = [
    ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
    ("NamespaceDeletionGroupVersionParsingFailure", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
    (CONTENT_FAILURE, "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    ("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
    ("NamespaceFinalizersRemaining", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
];

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "namespace-controller",
    account: "namespace-controller",
    workers: 10,
    // As upstream: a terminating namespace is retried at least once a minute.
    back_off: BackOff { most: Duration::from_mins(1), ..BackOff::DEFAULT },
    inputs: &[
        Input::of::<Namespace>(unless_status_only),
        Input::of::<Pod>(its_namespace),
        Input::everything(its_namespace),
    ],
    reconcile,
};

/// The namespace itself, unless only its status changed: this controller writes the status, of failures too, and a
/// failed key must wait for its back-off.
fn unless_status_only(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let status_only = match (change.before::<Namespace>(), change.after::<Namespace>()) {
        (Some(before), Some(after)) => {
            let (was, is) = (&before.metadata, &after.metadata);
            let same = was.uid == is.uid && was.finalizers == is.finalizers;
            same && was.deletion_timestamp == is.deletion_timestamp && before.spec == after.spec
        }
        _ => false,
    };
    if status_only { Vec::new() } else { vec![(*change.key).clone()] }
}

/// The namespace of an object, if it is terminating.
fn its_namespace(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let key = ObjectKey::cluster(&*change.key.namespace);
    let going = view.get::<Namespace>(&key).is_some_and(|n| n.metadata.deletion_timestamp.is_some());
    if going { vec![key] } else { Vec::new() }
}

/// The remaining objects of one kind.
#[derive(Default)]
struct RemainingObjects {
    objects: usize,
    /// Those that are not terminating yet.
    untouched: bool,
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(namespace) = view.get::<Namespace>(key) else { return Plan::nothing() };
    let Some(deleted_at) = namespace.metadata.deletion_timestamp.as_ref().map(|t| t.0) else { return Plan::nothing() };
    let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        return Plan::nothing();
    }
    let mut left: BTreeMap<&Kind, RemainingObjects> = BTreeMap::new();
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in view.kinds().filter(|kind| kind.namespaced) {
        for metadata in view.metadata_of(kind, &key.name) {
            let of_kind = left.entry(kind).or_default();
            of_kind.objects += 1;
            of_kind.untouched |= metadata.deletion_timestamp.is_none();
            for finalizer in metadata.finalizers.iter().flatten() {
                *held.entry(finalizer).or_default() += 1;
            }
        }
    }
    // Pods are deleted first, so that the objects that they use exist until they have ended.
    let pods_left = left.contains_key(&Kind::of::<Pod>());
    if pods_left {
        left.retain(|kind, _| **kind == Kind::of::<Pod>());
    }

    let mut plan = Plan::nothing();
    let settled = deleted_at.saturating_add(CONDITIONS_AFTER).unwrap_or(Timestamp::MAX);
    // As upstream: the remaining objects are counted after the pods are gone.
    let (remaining, held) = if pods_left { (BTreeMap::new(), BTreeMap::new()) } else { (counted(&left), held) };
    let status_write = |deletion_fails: bool| {
        let status = with_conditions(view, namespace, &remaining, &held, deletion_fails, context.now);
        let changed = context.now >= settled && namespace.status.as_ref() != Some(&status);
        changed.then(|| Namespace { status: Some(status), ..namespace.clone() })
    };
    let reporting = |deletion: Action| match status_write(true) {
        Some(failing) => {
            let mut conditions = failing.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let at = conditions.position(|c| c.type_ == CONTENT_FAILURE).unwrap_or_default();
            deletion.reporting(Action::update_status(&failing), format!("/status/conditions/{at}/message"))
        }
        None => deletion,
    };
    if left.is_empty() && view.undiscovered.is_empty() {
        plan.push(reporting(delete_all(&Kind::of::<Event>(), &key.name)));
        plan.actions.extend(finish(view, namespace, &key.name, &finalizers));
        return plan;
    }
    let untouched = left.iter().filter(|(_, of_kind)| of_kind.untouched);
    let deletions = untouched.map(|(kind, _)| delete_all(kind, &key.name)).collect::<Vec<_>>();
    if !deletions.is_empty() {
        plan.push(reporting(Action::Concurrent(deletions)));
    }
    plan.actions.extend(status_write(false).as_ref().map(Action::update_status));
    if context.now >= settled {
        plan.requeue_after(context.now, REVISIT);
    } else {
        plan.revisit(settled);
    }
    plan
}

fn delete_all(kind: &Kind, namespace: &str) -> Action {
    Action::DeleteCollection { kind: kind.clone(), namespace: namespace.to_owned() }
}

fn counted<'a>(left: &BTreeMap<&'a Kind, RemainingObjects>) -> BTreeMap<&'a Kind, usize> {
    left.iter().map(|(kind, of_kind)| (*kind, of_kind.objects)).collect()
}

/// Events aren't watched, and are deleted as a collection. Then the server instead of the view decides whether anything
/// is left.
fn finish(view: &ObjectCache, namespace: &Namespace, name: &str, finalizers: &[String]) -> Vec<Action> {
    let events = Kind::of::<Event>();
    let kinds = view.kinds().filter(|kind| kind.namespaced).chain([&events]);
    let expect = |kind: &Kind| Action::ExpectNone { kind: kind.clone(), namespace: name.to_owned() };
    let checks = Action::Concurrent(kinds.map(expect).collect());
    let mut freed = namespace.clone();
    let rest: Vec<String> = finalizers.iter().filter(|f| *f != FINALIZER).cloned().collect();
    freed.spec.get_or_insert_default().finalizers = Some(rest);
    let finalize =
        Action::Update { kind: Kind::of::<Namespace>(), object: value_of(&freed), subresource: Some("finalize") };
    vec![checks, finalize]
}

/// The namespace's status with the progress of its deletion.
fn with_conditions(
    view: &ObjectCache,
    namespace: &Namespace,
    left: &BTreeMap<&Kind, usize>,
    held: &BTreeMap<&str, usize>,
    deletion_fails: bool,
    now: Timestamp,
) -> NamespaceStatus {
    let mut bad: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    if !view.undiscovered.is_empty() {
        let groups: Vec<&str> = view.undiscovered.values().map(String::as_str).collect();
        let message = format!(
            "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
            groups.len(),
            groups.join(", ")
        );
        bad.insert("NamespaceDeletionDiscoveryFailure", ("DiscoveryFailed", message));
    }
    if deletion_fails {
        let message = "Failed to delete all resource types, 1 remaining: {error}".to_owned();
        bad.insert(CONTENT_FAILURE, ("ContentDeletionFailed", message));
    }
    if !left.is_empty() {
        let mut kinds: Vec<String> =
            left.iter().map(|(kind, n)| format!("{}.{} has {n} resource instances", kind.plural, kind.group)).collect();
        kinds.sort();
        let message = format!("Some resources are remaining: {}", kinds.join(", "));
        bad.insert("NamespaceContentRemaining", ("SomeResourcesRemain", message));
    }
    if !held.is_empty() {
        let finalizers: Vec<String> = held.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
        let message = format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", "));
        bad.insert("NamespaceFinalizersRemaining", ("SomeFinalizersRemain", message));
    }

    let mut status: NamespaceStatus = namespace.status.clone().unwrap_or_default();
    status.phase = Some("Terminating".into());
    let known = status.conditions.get_or_insert_default();
    for (type_, good_reason, good_message) in CONDITIONS {
        let (value, reason, message) = match bad.remove(type_) {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", good_reason, good_message.to_owned()),
        };
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(pods::stamp(now)),
        };
        conditions::set(known, condition);
    }
    status
}
