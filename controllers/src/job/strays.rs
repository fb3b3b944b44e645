//! Pods of deleted Jobs: removes the tracking finalizer that keeps them until they are counted.
//!
//! A Job is gone if no Job has its uid: another Job of the same name doesn't count. Before the removal the server
//! confirms a missing Job, as the view of Jobs may lag behind that of pods.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use machinery_api::ObjectKey;
use machinery_client::{Action, Change, Kind, ObjectCache, Plan, Pod, controller_of};

use super::ending::is_tracked;
use super::{chooses, finished_at, untrack};
use crate::pods;

/// The key of a namespace's strays: no Job has an empty name.
pub(super) fn key(namespace: &str) -> ObjectKey {
    ObjectKey::new(namespace, "")
}

/// The key of the namespace's strays, when a Job is deleted or replaced by one with another uid.
pub(super) fn of_job(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let went = match (change.before::<Job>(), change.after::<Job>()) {
        (Some(before), Some(after)) => before.metadata.uid != after.metadata.uid,
        (before, None) => before.is_some(),
        (None, Some(_)) => false,
    };
    let strays = went.then(|| key(&change.key.namespace));
    std::iter::once((*change.key).clone()).chain(strays).collect()
}

/// The relation of a pod to Jobs.
enum JobRelation {
    /// Its Job exists or will adopt it, or it is no Job's pod.
    NoStray,
    /// It has no owner.
    Orphan,
    /// Its Job, by name and uid, is missing in the view.
    MissingJob(String, String),
}

fn job_relation(view: &ObjectCache, pod: &Pod) -> JobRelation {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(owner) = controller_of(&pod.metadata) else {
        let adopts =
            |job: &Job| job.metadata.deletion_timestamp.is_none() && finished_at(job).is_none() && chooses(job, pod);
        let adopted = pods::is_active(pod) && view.list::<Job>(namespace).any(adopts);
        return if adopted { JobRelation::NoStray } else { JobRelation::Orphan };
    };
    if owner.kind != "Job" || owner.api_version != "batch/v1" {
        return JobRelation::NoStray;
    }
    let there = view.get::<Job>(&ObjectKey::new(namespace, &*owner.name));
    if there.is_some_and(|job| job.metadata.uid.as_deref() == Some(&*owner.uid)) {
        return JobRelation::NoStray;
    }
    JobRelation::MissingJob(owner.name.clone(), owner.uid.clone())
}

/// Whether the finalizer of a pod waits for a Job that is missing in the view, or for none.
pub(super) fn is_stray(view: &ObjectCache, pod: &Pod) -> bool {
    is_tracked(pod) && !matches!(job_relation(view, pod), JobRelation::NoStray)
}

/// Releases all strays of a namespace.
pub(super) fn release_all(view: &ObjectCache, namespace: &str) -> Plan {
    let mut orphans = Vec::new();
    let mut left: BTreeMap<(String, String), Vec<Action>> = BTreeMap::new();
    for pod in view.list::<Pod>(namespace).filter(|pod| is_tracked(pod)) {
        match job_relation(view, pod) {
            JobRelation::NoStray => {}
            JobRelation::Orphan => orphans.push(untrack(pod)),
            JobRelation::MissingJob(name, uid) => left.entry((name, uid)).or_default().push(untrack(pod)),
        }
    }
    let mut plan = Plan::nothing();
    if !orphans.is_empty() {
        plan.push(Action::Concurrent(orphans));
    }
    for ((name, uid), pods) in left {
        plan.push(Action::ExpectGone { kind: Kind::of::<Job>(), key: ObjectKey::new(namespace, name), uid: Some(uid) });
        plan.push(Action::Concurrent(pods));
    }
    plan
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::{Value, json};

    use super::super::CONTROLLER;
    use super::*;
    use crate::Settings;

    fn job(uid: &str) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum", "namespace": "a", "uid": uid},
            "spec": {"suspend": true, "selector": {"matchLabels": {"uid": uid}}, "template": {}}})
    }

    /// A pod whose Job's namespace is being deleted, as the garbage collector leaves it.
    fn pod(name: &str, owner: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "a", "uid": name, "ownerReferences": owner,
                "labels": {"uid": "first", "batch.kubernetes.io/job-name": "sum"},
                "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [super::super::create::TRACKING]},
            "spec": {"containers": []}, "status": {"phase": "Failed"}})
    }

    fn owned(kind: &str, uid: &str) -> Value {
        let api_version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        json!([{"apiVersion": api_version, "kind": kind, "name": "sum", "uid": uid, "controller": true}])
    }

    fn cluster(objects: impl IntoIterator<Item = Value>) -> Simulation {
        crate::simulation("2026-01-01T00:00:00Z".parse().unwrap(), objects)
    }

    fn names(cluster: &Simulation) -> Vec<&str> {
        cluster.view.list::<Pod>("a").filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    /// Reconciles the keys of all objects and of all deletions.
    fn settle(cluster: &mut Simulation, went: &[Change]) {
        let settings = Settings::default();
        for _ in 0..10 {
            let changes: Vec<Change> = cluster.view.as_changes().chain(went.iter().cloned()).collect();
            let mut keys: Vec<ObjectKey> = Vec::new();
            for (change, input) in changes.iter().flat_map(|change| CONTROLLER.inputs.iter().map(move |i| (change, i)))
            {
                keys.extend(input.keys(&cluster.view, change));
            }
            keys.sort();
            keys.dedup();
            for key in keys {
                let plan = (CONTROLLER.reconcile)(&cluster.view, &key, &cluster.context(&settings));
                assert_eq!(cluster.apply(plan), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn the_pod_of_a_job_that_is_gone_goes() {
        let mut cluster = cluster([pod("p", owned("Job", "first"))]);
        settle(&mut cluster, &[]);
        assert!(names(&cluster).is_empty());
    }

    /// In a terminating namespace pods are deleted first: the next Job of the name exists as long as they do.
    #[test]
    fn the_next_job_of_the_name_keeps_no_pod_of_the_last_one() {
        let mut cluster = cluster([job("second"), pod("p", owned("Job", "first"))]);
        settle(&mut cluster, &[]);
        assert!(names(&cluster).is_empty());
    }

    #[test]
    fn orphaned_pods_are_deleted_beside_a_new_job_of_the_name() {
        let mut cluster = cluster([job("second"), pod("p", json!([]))]);
        settle(&mut cluster, &[]);
        assert!(names(&cluster).is_empty());
    }

    /// Even if the label with its Job's name is gone.
    #[test]
    fn an_orphan_without_labels_goes() {
        let mut bare = pod("p", json!([]));
        bare["metadata"]["labels"] = json!({});
        let mut cluster = cluster([bare]);
        settle(&mut cluster, &[]);
        assert!(names(&cluster).is_empty());
    }

    #[test]
    fn unselected_pods_of_a_job_are_deleted_with_it() {
        let mut going = job("first");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        going["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
        let mut strange = pod("p", owned("Job", "first"));
        strange["metadata"]["labels"] = json!({"uid": "other"});
        let mut cluster = cluster([going, strange]);
        settle(&mut cluster, &[]);
        assert!(names(&cluster).is_empty());
    }

    /// A deleted Job wakes its pods; so does one that is replaced by another of the same name.
    #[test]
    fn a_job_that_goes_wakes_its_strays() {
        for next in [None, Some("second")] {
            let mut cluster = cluster([job("first"), pod("p", owned("Job", "first"))]);
            let key = ObjectKey::new("a", "sum");
            let old = cluster.view.object(&Kind::of::<Job>(), &key).cloned();
            let went = cluster.view.remove(&Kind::of::<Job>(), &key, 100).unwrap();
            let change = match next {
                None => went,
                Some(uid) => {
                    cluster.create(&Kind::of::<Job>(), job(uid));
                    let new = cluster.view.object(&Kind::of::<Job>(), &key).cloned();
                    Change { old, new, ..went }
                }
            };
            let keys = CONTROLLER.inputs[0].keys(&cluster.view, &change);
            assert!(keys.contains(&super::key("a")), "{keys:?}");
        }
    }

    #[test]
    fn uncounted_or_foreign_pods_stay() {
        let there = pod("there", owned("Job", "first"));
        let others = pod("others", owned("ReplicaSet", "r"));
        let cluster = cluster([job("first"), there, others]);
        assert_eq!(release_all(&cluster.view, "a"), Plan::nothing());
        let mut alive = pod("alive", json!([]));
        alive["metadata"].as_object_mut().unwrap().remove("deletionTimestamp");
        alive["status"]["phase"] = json!("Running");
        let mut unknown = cluster.clone();
        unknown.create(&Kind::of::<Pod>(), alive);
        assert_eq!(release_all(&unknown.view, "a"), Plan::nothing(), "it will be adopted");
    }

    /// The view of Jobs may lag behind that of pods, so the server decides.
    #[test]
    fn a_read_of_the_server_confirms_a_deleted_job() {
        let cluster = cluster([pod("p", owned("Job", "first"))]);
        let plan = release_all(&cluster.view, "a");
        let [Action::ExpectGone { key, uid, .. }, Action::Concurrent(untracked)] = plan.actions.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!((key, uid.as_deref(), untracked.len()), (&ObjectKey::new("a", "sum"), Some("first"), 1));
    }
}
