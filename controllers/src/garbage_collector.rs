//! `garbage-collector-controller`: deletes dependents of deleted owners in the background or foreground, or orphans
//! them (Kubernetes documentation, "Garbage Collection").
//!
//! A key is a uid. Before a dependent is deleted, the server confirms that its owner is gone: the view of the owner's
//! kind may be older than that of the dependent's. The reverse holds, too: the view may show an owner that the dependent
//! has lost on the server, so a dependent is deleted only at the version that was decided on.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use machinery_api::selector::go_quoted;
use machinery_api::{GroupVersion, ObjectKey};
use machinery_client::request::PatchType;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Kind, ObjectCache, OutcomeEvents, Plan,
    Propagation, value_of, version_of,
};
use serde_json::{Value, json};

use crate::Settings;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "garbage-collector-controller",
    account: "generic-garbage-collector",
    workers: 10,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::everything(affected)],
    reconcile,
};

fn key(uid: &str) -> ObjectKey {
    ObjectKey::cluster(uid)
}

/// The object; its owners, as one may wait for it; and its dependents, once it is gone or terminating. None where the
/// change is one of fields that this controller doesn't read, as most changes of pods are.
fn affected(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && read_fields(old.metadata()) == read_fields(new.metadata())
    {
        return Vec::new();
    }
    let mut keys = Vec::new();
    let going = change.new.as_ref().is_none_or(|object| object.metadata().deletion_timestamp.is_some());
    for metadata in change.states() {
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let owners = owners(metadata);
        if !owners.is_empty() || going {
            keys.push(key(uid));
        }
        keys.extend(
            owners
                .iter()
                .filter(|owner| view.by_uid(&owner.uid).is_some_and(|(_, _, owner)| is_terminating(owner)))
                .map(|owner| key(&owner.uid)),
        );
        if going {
            keys.extend(view.dependents(uid).filter_map(|(_, _, dependent)| dependent.uid.as_deref()).map(key));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// The fields that decisions read.
fn read_fields(metadata: &ObjectMeta) -> impl PartialEq {
    (&metadata.uid, &metadata.owner_references, &metadata.deletion_timestamp, &metadata.finalizers)
}

fn owners(metadata: &ObjectMeta) -> &[OwnerReference] {
    metadata.owner_references.as_deref().unwrap_or_default()
}

fn is_terminating(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
}

fn has(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Whether it is in foreground deletion.
fn waits_for_dependents(metadata: &ObjectMeta) -> bool {
    is_terminating(metadata) && has(metadata, FOREGROUND)
}

/// An object in the view.
struct GcItem<'a> {
    kind: &'a Kind,
    key: &'a ObjectKey,
    metadata: &'a ObjectMeta,
}

impl GcItem<'_> {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn patch(&self, mut metadata: Value) -> Action {
        metadata["uid"] = json!(self.metadata.uid);
        metadata["resourceVersion"] = json!(self.metadata.resource_version);
        Action::Patch {
            kind: self.kind.clone(),
            key: self.key.clone(),
            patch: json!({ "metadata": metadata }),
            patch_type: PatchType::Merge,
            subresource: None,
        }
    }

    fn without_finalizer(&self, finalizer: &str) -> Action {
        let rest: Vec<&String> = self.metadata.finalizers.iter().flatten().filter(|f| *f != finalizer).collect();
        self.patch(json!({"finalizers": if rest.is_empty() { json!(null) } else { json!(rest) }}))
    }

    fn with_owners(&self, owners: &[&OwnerReference]) -> Action {
        let owners: Vec<Value> = owners.iter().map(value_of).collect();
        self.patch(json!({"ownerReferences": if owners.is_empty() { json!(null) } else { json!(owners) }}))
    }

    /// Deletes the item unless it has changed: its owners may have been removed or replaced.
    fn delete(&self, propagation: Propagation) -> Action {
        Action::Delete {
            kind: self.kind.clone(),
            key: self.key.clone(),
            uid: self.metadata.uid.clone(),
            resource_version: self.metadata.resource_version.clone(),
            propagation: Some(propagation),
            grace_seconds: None,
            notes: OutcomeEvents::default(),
        }
    }
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let Some((kind, own, metadata)) = view.by_uid(&key.name) else { return Plan::nothing() };
    let item = GcItem { kind, key: own, metadata };
    if is_terminating(metadata) {
        return finish(view, &item);
    }
    collect(view, &item)
}

/// A terminating object: removes its finalizers once its dependents are deleted or orphaned.
fn finish(view: &ObjectCache, item: &GcItem<'_>) -> Plan {
    if has(item.metadata, ORPHAN) {
        let dependents = view.dependents(item.uid()).map(|(kind, key, metadata)| {
            let dependent = GcItem { kind, key, metadata };
            let others: Vec<&OwnerReference> =
                owners(metadata).iter().filter(|owner| owner.uid != item.uid()).collect();
            dependent.with_owners(&others)
        });
        let orphaned: Vec<Action> = dependents.collect();
        let checks = unseen_dependents(view, item);
        let batches = [orphaned, checks].into_iter().filter(|batch| !batch.is_empty());
        let mut plan: Plan = batches.map(Action::Concurrent).collect::<Vec<_>>().into();
        plan.push(item.without_finalizer(ORPHAN));
        return plan;
    }
    if has(item.metadata, FOREGROUND) {
        let blocks = |metadata: &ObjectMeta| {
            owners(metadata).iter().any(|owner| owner.uid == item.uid() && owner.block_owner_deletion == Some(true))
        };
        if !view.dependents(item.uid()).any(|(_, _, dependent)| blocks(dependent)) {
            return vec![item.without_finalizer(FOREGROUND)].into();
        }
    }
    Plan::nothing()
}

/// Checks for dependents that were committed before the owner's deletion and that the view doesn't show yet: for the
/// kinds whose view may be older than the owner's. A custom kind with a broken watch is skipped, as its view may stay
/// old forever.
fn unseen_dependents(view: &ObjectCache, item: &GcItem<'_>) -> Vec<Action> {
    let version = version_of(item.metadata);
    let namespace = if item.kind.namespaced { item.key.namespace.as_str() } else { "" };
    let behind = |kind: &&Kind| {
        let own = kind.group.contains('.') && !kind.group.ends_with(".k8s.io");
        let may_depend = kind.namespaced || !item.kind.namespaced;
        let known = view.synced(kind) && !view.is_polled(kind) && (!own || view.is_followed(kind));
        may_depend && known && view.seen(kind).unwrap_or(0) < version
    };
    let question = |kind: &Kind| {
        let known = view.dependents(item.uid()).filter(|(of, _, _)| *of == kind);
        Action::RequireDependents {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            owner_uid: item.uid().to_owned(),
            known: known.filter_map(|(_, _, dependent)| dependent.uid.clone()).collect(),
        }
    };
    view.kinds().filter(behind).map(question).collect()
}

/// The state of an owner.
#[derive(Debug, PartialEq, Eq)]
enum OwnerState {
    /// It exists.
    Solid,
    /// It exists, and is in foreground deletion.
    Waiting,
    /// The view doesn't have it; the server must confirm that under this kind.
    Absent(Kind),
    /// Its kind is unknown, so its state is too.
    Unknown,
}

fn classify(view: &ObjectCache, item: &GcItem<'_>, owner: &OwnerReference) -> OwnerState {
    let found = view.kinds().find(|kind| kind.kind == owner.kind && kind.api_version() == owner.api_version);
    let group = GroupVersion::parse(&owner.api_version).group;
    // Another version of the same group has the same objects.
    let same = || view.kinds().find(|kind| kind.kind == owner.kind && kind.group == group);
    let Some(kind) = found.or_else(same) else { return OwnerState::Unknown };
    // A cluster-scoped object can't have a namespaced owner: it is left as it is.
    if kind.namespaced && item.key.namespace.is_empty() {
        return OwnerState::Unknown;
    }
    match view.by_uid(&owner.uid) {
        Some((real, at, metadata))
            if real.kind == owner.kind && (!real.namespaced || at.namespace == item.key.namespace) =>
        {
            if waits_for_dependents(metadata) {
                OwnerState::Waiting
            } else {
                OwnerState::Solid
            }
        }
        _ if view.synced(kind) => OwnerState::Absent(kind.clone()),
        _ => OwnerState::Unknown,
    }
}

/// An event if the owner exists in a namespace where it can't own the object.
fn owner_in_other_namespace(view: &ObjectCache, item: &GcItem<'_>, owner: &OwnerReference) -> Option<EventRecord> {
    let (kind, at, _) = view.by_uid(&owner.uid)?;
    if !kind.namespaced || at.namespace == item.key.namespace {
        return None;
    }
    let namespace = &item.key.namespace;
    let reference = ObjectReference {
        api_version: Some(item.kind.api_version()),
        kind: Some(item.kind.kind.to_string()),
        namespace: (!namespace.is_empty()).then(|| namespace.clone()),
        name: item.metadata.name.clone(),
        uid: item.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    let message = format!(
        "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {}",
        owner.api_version,
        owner.kind,
        owner.name,
        owner.uid,
        go_quoted(namespace)
    );
    Some(EventRecord { about: reference, warning: true, reason: "OwnerRefInvalidNamespace", message, source: None })
}

/// A live object: deleted when all its owners are gone; otherwise the references to deleted owners are removed.
fn collect(view: &ObjectCache, item: &GcItem<'_>) -> Plan {
    let owners = owners(item.metadata);
    if owners.is_empty() {
        return Plan::nothing();
    }
    let standing: Vec<(&OwnerReference, OwnerState)> =
        owners.iter().map(|owner| (owner, classify(view, item, owner))).collect();
    let mut plan = Plan::nothing();
    plan.actions
        .extend(owners.iter().filter_map(|owner| owner_in_other_namespace(view, item, owner)).map(Action::Event));
    if standing.iter().any(|(_, owner)| *owner == OwnerState::Unknown) {
        return plan;
    }
    for (reference, owner) in &standing {
        if let OwnerState::Absent(kind) = owner {
            let namespace = if kind.namespaced { item.key.namespace.clone() } else { String::new() };
            let gone = ObjectKey::new(namespace, reference.name.clone());
            plan.push(Action::ExpectGone { kind: kind.clone(), key: gone, uid: Some(reference.uid.clone()) });
        }
    }
    let solid: Vec<&OwnerReference> =
        standing.iter().filter(|(_, owner)| *owner == OwnerState::Solid).map(|(reference, _)| *reference).collect();
    if !solid.is_empty() {
        if solid.len() == owners.len() {
            return plan;
        }
        plan.push(item.with_owners(&solid));
        return plan;
    }
    let waiting = standing.iter().any(|(_, owner)| *owner == OwnerState::Waiting);
    let mut dependents = view.dependents(item.uid()).map(|(_, _, metadata)| metadata).peekable();
    let has_dependents = dependents.peek().is_some();
    if waiting && has_dependents {
        // A cycle of blocking dependents: this one no longer blocks its owners.
        let blocks = owners.iter().any(|owner| owner.block_owner_deletion == Some(true));
        if blocks && dependents.any(waits_for_dependents) {
            let unblocked: Vec<OwnerReference> = owners
                .iter()
                .map(|owner| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() })
                .collect();
            plan.push(item.with_owners(&unblocked.iter().collect::<Vec<_>>()));
            return plan; // the patch changes the version; the next pass deletes
        }
        plan.push(item.delete(Propagation::Foreground));
        return plan;
    }
    plan.push(item.delete(match () {
        () if has(item.metadata, ORPHAN) => Propagation::Orphan,
        () if has(item.metadata, FOREGROUND) => Propagation::Foreground,
        () => Propagation::Background,
    }));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery_client::simulate::Simulation;

    fn object(kind: &str, name: &str, uid: &str, owners: &[(&str, &str, &str)]) -> Value {
        let api = if kind == "ReplicaSet" || kind == "Deployment" { "apps/v1" } else { "v1" };
        let owners: Vec<Value> = owners
            .iter()
            .map(|(kind, name, uid)| {
                let api = if *kind == "Pod" || *kind == "ConfigMap" { "v1" } else { "apps/v1" };
                json!({"apiVersion": api, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": true})
            })
            .collect();
        let mut object = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "default", "uid": uid, "ownerReferences": owners}});
        if api == "apps/v1" {
            object["spec"] = json!({"selector": {}, "template": {}});
        }
        object
    }

    /// Reconciles every object until nothing is left to do, and returns the names of the remaining objects.
    fn settle(cluster: &mut Simulation) -> Vec<String> {
        let settings = Settings::default();
        for _ in 0..50 {
            let uids: Vec<String> =
                cluster.view.as_changes().filter_map(|change| change.new?.metadata().uid.clone()).collect();
            let mut quiet = true;
            for uid in uids {
                let context = cluster.context(&settings);
                let plan = reconcile(&cluster.view, &key(&uid), &context);
                quiet &= plan.actions.is_empty();
                let problems = cluster.apply(plan);
                assert!(problems.is_empty(), "{problems:?}");
            }
            if quiet {
                let mut names: Vec<String> = cluster.view.as_changes().map(|change| change.key.name.clone()).collect();
                names.sort();
                return names;
            }
        }
        panic!("the garbage collector never comes to rest");
    }

    fn delete(cluster: &mut Simulation, kind: &Kind, name: &str, propagation: Propagation) {
        let plan = vec![Action::Delete {
            kind: kind.clone(),
            key: ObjectKey::new("default", name),
            uid: None,
            resource_version: None,
            propagation: Some(propagation),
            grace_seconds: None,
            notes: OutcomeEvents::default(),
        }];
        assert!(cluster.apply(plan.into()).is_empty());
    }

    fn family() -> Simulation {
        crate::simulation(
            "2026-01-01T00:00:00Z".parse().unwrap(),
            [
                object("Deployment", "web", "d", &[]),
                object("ReplicaSet", "web-1", "r", &[("Deployment", "web", "d")]),
                object("Pod", "web-1-a", "p", &[("ReplicaSet", "web-1", "r")]),
                object("ConfigMap", "other", "c", &[]),
            ],
        )
    }

    fn deployments() -> Kind {
        Kind::of::<k8s_openapi::api::apps::v1::Deployment>()
    }

    #[test]
    fn dependents_follow_every_propagation_policy() {
        for (how, left) in [
            (Propagation::Background, vec!["other"]),
            (Propagation::Foreground, vec!["other"]),
            (Propagation::Orphan, vec!["other", "web-1", "web-1-a"]),
        ] {
            let mut cluster = family();
            assert_eq!(settle(&mut cluster).len(), 4, "nothing to do before");
            delete(&mut cluster, &deployments(), "web", how);
            assert_eq!(settle(&mut cluster), left, "{how:?}");
        }
    }

    /// The watch of pods may lag behind that of Jobs: a pod that was created just before its owner's deletion is
    /// orphaned, too.
    #[test]
    fn an_owner_stays_until_all_that_it_leaves_behind_is_seen() {
        let mut cluster = family();
        delete(&mut cluster, &deployments(), "web", Propagation::Orphan);
        let settings = Settings::default();
        let plan = reconcile(&cluster.view, &key("d"), &cluster.context(&settings));
        let version = |kind: &Kind| cluster.view.seen(kind).unwrap_or_default();
        let owner = version(&deployments());
        let [Action::Concurrent(orphaned), Action::Concurrent(checks), Action::Patch { .. }] = plan.actions.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert_eq!(orphaned.len(), 1);
        for check in checks {
            let Action::RequireDependents { kind, namespace, owner_uid, known } = check else { panic!("{check:?}") };
            assert!(version(kind) < owner && kind.namespaced && namespace == "default" && owner_uid == "d");
            let sets = kind.kind == "ReplicaSet";
            assert_eq!(known.iter().map(String::as_str).collect::<Vec<_>>(), if sets { vec!["r"] } else { vec![] });
        }
        let is_checked = |kind: &str| {
            checks.iter().any(|check| matches!(check, Action::RequireDependents { kind: of, .. } if of.kind == kind))
        };
        assert!(is_checked("Pod") && is_checked("ReplicaSet") && !is_checked("Deployment") && !is_checked("Node"));
        let kinds: Vec<Kind> = cluster.view.kinds().cloned().collect();
        kinds.iter().for_each(|kind| cluster.view.progress(kind, owner));
        let plan = reconcile(&cluster.view, &key("d"), &cluster.context(&settings));
        assert_eq!(plan.actions.len(), 2, "all is seen: {plan:?}");
    }

    #[test]
    fn only_changes_of_relevant_fields_wake_the_controller() {
        let woken = |change: &dyn Fn(&mut Value)| {
            let mut cluster = family();
            let pods = Kind::of::<machinery_client::Pod>();
            let mut pod = object("Pod", "web-1-a", "p", &[("ReplicaSet", "web-1", "r")]);
            change(&mut pod);
            let change = cluster
                .view
                .put(&pods, machinery_client::object::decode::<machinery_client::Pod>(&pod.to_string()).unwrap());
            affected(&cluster.view, &change.unwrap())
        };
        assert_eq!(woken(&|pod| pod["status"] = json!({"phase": "Running"})), []);
        assert_eq!(woken(&|pod| pod["metadata"]["labels"] = json!({"a": "b"})), []);
        assert_eq!(woken(&|pod| pod["metadata"]["finalizers"] = json!([FOREGROUND])), [key("p")]);
        assert_eq!(woken(&|pod| pod["metadata"]["ownerReferences"] = json!([])), [key("p")]);
        assert_eq!(woken(&|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")), [key("p")]);
    }

    #[test]
    fn in_the_foreground_the_owner_goes_last() {
        let mut cluster = family();
        delete(&mut cluster, &deployments(), "web", Propagation::Foreground);
        let settings = Settings::default();
        let context = cluster.context(&settings);
        assert!(reconcile(&cluster.view, &key("d"), &context).actions.is_empty(), "its ReplicaSet is still there");
        let plan = reconcile(&cluster.view, &key("r"), &context);
        assert!(
            matches!(plan.actions.as_slice(), [Action::Delete { propagation: Some(Propagation::Foreground), .. }]),
            "{plan:?}"
        );
    }

    /// The watch of the dependents may lag behind that of the owner: the view still shows a reference that the server
    /// has removed, and the owner is gone. Neither an orphan nor an object of other owners may be deleted then.
    #[test]
    fn a_dependent_that_has_lost_its_owner_on_the_server_stays() {
        let pods = Kind::of::<machinery_client::Pod>();
        let settings = Settings::default();
        for how in [Propagation::Background, Propagation::Orphan, Propagation::Foreground] {
            for owners in
                [json!(null), json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d"}])]
            {
                let mut server = family();
                let old = server.view.object(&pods, &ObjectKey::new("default", "web-1-a")).cloned().unwrap();
                let mut pod = old.to_value();
                pod["metadata"]["ownerReferences"] = owners;
                server.write(&pods, pod);
                let key_of_set = ObjectKey::new("default", "web-1");
                let sets = Kind::of::<k8s_openapi::api::apps::v1::ReplicaSet>();
                delete(&mut server, &sets, "web-1", Propagation::Background);
                assert!(server.view.object(&sets, &key_of_set).is_none());
                let mut stale = server.clone();
                let finalizers = match how {
                    Propagation::Background => json!(null),
                    Propagation::Orphan => json!([ORPHAN]),
                    Propagation::Foreground => json!([FOREGROUND]),
                };
                let mut shown = old.to_value();
                shown["metadata"]["finalizers"] = finalizers;
                let shown = machinery_client::object::decode::<machinery_client::Pod>(&shown.to_string()).unwrap();
                stale.view.remove(&pods, &ObjectKey::new("default", "web-1-a"), 0);
                stale.view.put(&pods, shown);
                let plan = reconcile(&stale.view, &key("p"), &stale.context(&settings));
                assert!(plan.actions.iter().any(|action| matches!(action, Action::Delete { .. })), "{plan:?}");
                assert_eq!(server.apply(plan).len(), 1, "the server has another version");
                assert!(server.view.by_uid("p").is_some_and(|(_, _, pod)| pod.deletion_timestamp.is_none()));
            }
        }
    }

    #[test]
    fn an_owner_of_several_that_goes_is_forgotten() {
        let mut cluster = family();
        cluster.create(&deployments(), object("Deployment", "api", "d2", &[]));
        let both = [("Deployment", "web", "d"), ("Deployment", "api", "d2")];
        cluster.write(&Kind::of::<k8s_openapi::api::apps::v1::ReplicaSet>(), object("ReplicaSet", "web-1", "r", &both));
        delete(&mut cluster, &deployments(), "web", Propagation::Background);
        assert_eq!(settle(&mut cluster), ["api", "other", "web-1", "web-1-a"]);
        assert_eq!(owners(cluster.view.by_uid("r").unwrap().2).len(), 1);
    }

    #[test]
    fn cluster_scoped_dependents_of_namespaced_owners_stay() {
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "c"}]);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "uid": "n", "ownerReferences": owner}});
        let mut cluster = family();
        cluster.create(&Kind::of::<k8s_openapi::api::core::v1::Node>(), node);
        let settings = Settings::default();
        let context = cluster.context(&settings);
        let plan = reconcile(&cluster.view, &key("n"), &context);
        let [Action::Event(reported)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        let message = "ownerRef [v1/ConfigMap, namespace: , name: other, uid: c] does not exist in namespace \"\"";
        assert_eq!((reported.reason, reported.message.as_str()), ("OwnerRefInvalidNamespace", message));
        delete(&mut cluster, &Kind::of::<k8s_openapi::api::core::v1::ConfigMap>(), "other", Propagation::Background);
        assert!(settle(&mut cluster).contains(&"n".to_owned()));
    }

    #[test]
    fn a_circle_does_not_block_itself() {
        let pods = [
            object("Pod", "one", "1", &[("Pod", "three", "3")]),
            object("Pod", "two", "2", &[("Pod", "one", "1")]),
            object("Pod", "three", "3", &[("Pod", "two", "2")]),
        ];
        let mut cluster = crate::simulation("2026-01-01T00:00:00Z".parse().unwrap(), pods);
        assert_eq!(settle(&mut cluster).len(), 3);
        delete(&mut cluster, &Kind::of::<machinery_client::Pod>(), "one", Propagation::Foreground);
        assert_eq!(settle(&mut cluster), Vec::<String>::new());
    }
}
