//! Lives of Jobs, against a simulated server.

use std::time::Duration;

use k8s_openapi::api::batch::v1::JobStatus;
use machinery_client::simulate::Simulation;
use machinery_client::{Kind, Object};
use serde_json::{Value, json};

use super::*;

/// A Job in a cluster of its own.
struct Play {
    cluster: Simulation,
    events: Vec<String>,
}

impl Play {
    fn of(spec: Value) -> Self {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"job-name": "sum"}});
        let mut template = json!({"metadata": {"labels": {"job-name": "sum"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "sum"}]}});
        if spec["template"].is_object() {
            template["spec"]["restartPolicy"] = spec["template"]["spec"]["restartPolicy"].clone();
        }
        spec["template"] = template;
        let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "sum", "namespace": "default"}, "spec": spec});
        let mut play =
            Self { cluster: crate::simulation("2026-01-01T00:00:00Z".parse().unwrap(), [job]), events: Vec::new() };
        play.settle();
        play
    }

    fn key() -> ObjectKey {
        ObjectKey::new("default", "sum")
    }

    fn plan(&self) -> Plan {
        let settings = Settings::default();
        let context = self.cluster.context(&settings);
        reconcile(&self.cluster.view, &Self::key(), &context)
    }

    /// Reconciles until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            let plan = self.plan();
            self.cluster.reconciler_cache.set(&Self::key(), plan.state.clone());
            if plan.actions.is_empty() {
                return;
            }
            for action in &plan.actions {
                if let Action::Event(note) = action {
                    self.events.push(note.reason.to_owned());
                }
            }
            let problems = self.cluster.apply(plan);
            assert!(problems.is_empty(), "{problems:?}");
        }
        panic!("the controller never comes to rest: {:?}", self.plan());
    }

    fn wait(&mut self, seconds: u64) {
        self.cluster.now += Duration::from_secs(seconds);
        self.settle();
    }

    fn active(&self) -> Vec<Pod> {
        self.cluster.view.list::<Pod>("default").filter(|pod| pods::is_active(pod)).cloned().collect()
    }

    fn all(&self) -> Vec<Pod> {
        self.cluster.view.list::<Pod>("default").cloned().collect()
    }

    /// Ends the oldest active pod, or that of an index.
    fn end(&mut self, index: Option<i32>, phase: &str, code: i32) {
        let pod = self
            .active()
            .into_iter()
            .find(|pod| index.is_none() || index::of_pod(pod) == index)
            .expect("an active pod");
        let mut value = Object::to_value(&pod);
        let finished = self.cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        value["status"] = json!({"phase": phase, "containerStatuses": [{"name": "sum", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code, "finishedAt": finished}}}]});
        self.cluster.write(&Kind::of::<Pod>(), value);
        self.settle();
    }

    fn status(&self) -> JobStatus {
        self.cluster.view.get::<Job>(&Self::key()).and_then(|job| job.status.clone()).unwrap_or_default()
    }

    fn conditions(&self) -> Vec<(String, String)> {
        let conditions = self.status().conditions.unwrap_or_default();
        conditions.into_iter().filter(|c| c.status == "True").map(|c| (c.type_, c.reason.unwrap_or_default())).collect()
    }
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn a_job_completes_and_lets_its_pods_go() {
    let mut play = Play::of(json!({"completions": 3, "parallelism": 2}));
    assert_eq!(play.active().len(), 2);
    assert_eq!(play.status().active, Some(2));
    play.end(None, "Succeeded", 0);
    assert_eq!(play.active().len(), 2);
    play.end(None, "Succeeded", 0);
    assert_eq!(play.active().len(), 1, "only one completion is missing");
    play.end(None, "Succeeded", 0);
    let status = play.status();
    assert_eq!((status.succeeded, status.active, status.failed), (Some(3), None, None));
    assert_eq!(status.uncounted_terminated_pods, Some(Default::default()));
    assert!(status.completion_time.is_some());
    assert_eq!(
        play.conditions(),
        pairs(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")])
    );
    assert!(play.all().iter().all(|pod| !is_tracked(pod)));
    assert_eq!(play.events, ["Completed"]);
}

/// After an outage of the controllers, thousands of pods may be terminal: a status with all their uids would exceed the
/// store's limit.
#[test]
fn ended_pods_are_named_and_counted_some_at_a_time() {
    let mut play = Play::of(json!({"completions": 1200, "parallelism": 1200}));
    assert_eq!(play.active().len(), 1200);
    for pod in play.active() {
        let mut value = Object::to_value(&pod);
        value["status"] = json!({"phase": "Succeeded"});
        play.cluster.write(&Kind::of::<Pod>(), value);
    }
    let mut named_at_once = Vec::new();
    loop {
        let plan = play.plan();
        if plan.actions.is_empty() {
            break;
        }
        assert!(play.cluster.apply(plan).is_empty());
        let (status, left) = (play.status(), play.all().iter().filter(|pod| is_tracked(pod)).count());
        let named = status.uncounted_terminated_pods.unwrap_or_default().succeeded.unwrap_or_default().len();
        assert!(usize::try_from(status.succeeded.unwrap_or(0)).unwrap() + named + left >= 1200, "nobody is lost");
        named_at_once.push(named);
    }
    assert_eq!(named_at_once.iter().max(), Some(&tally::UNCOUNTED_MAX));
    assert_eq!(play.status().succeeded, Some(1200));
    assert!(play.all().iter().all(|pod| !is_tracked(pod)));
    assert_eq!(play.conditions().last(), pairs(&[("Complete", "CompletionsReached")]).last());
}

#[test]
fn failures_wait_longer_each_time_until_the_limit() {
    let mut play = Play::of(json!({"completions": 1, "parallelism": 1, "backoffLimit": 2}));
    for wait in [10, 20] {
        play.end(None, "Failed", 1);
        assert!(play.active().is_empty());
        play.wait(wait - 1);
        assert!(play.active().is_empty(), "too early");
        play.wait(1);
        assert_eq!(play.active().len(), 1);
    }
    play.end(None, "Failed", 1);
    assert_eq!(play.status().failed, Some(3));
    assert_eq!(
        play.conditions(),
        pairs(&[("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")])
    );
    assert_eq!(play.events, ["BackoffLimitExceeded"]);
}

/// Evicted pods are deleted, but their failures are remembered, whether or not they count.
#[test]
fn failures_of_pods_that_are_gone_wait_longer_each_time() {
    let rules =
        json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    let mut play = Play::of(json!({"completions": 1, "parallelism": 1, "backoffLimit": 0, "podFailurePolicy": rules,
        "podReplacementPolicy": "Failed"}));
    for wait in [10, 20, 40, 80] {
        let mut evicted = Object::to_value(&play.active()[0]);
        let now = play.cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        evicted["metadata"]["deletionTimestamp"] = json!(now);
        evicted["status"] = json!({"phase": "Failed", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": now}]});
        play.cluster.write(&Kind::of::<Pod>(), evicted);
        play.settle();
        assert!(play.all().is_empty(), "its finalizer held it");
        play.wait(wait - 1);
        assert!(play.all().is_empty(), "{wait} s are not over");
        play.wait(1);
        assert_eq!(play.active().len(), 1, "after {wait} s");
    }
}

#[test]
fn a_failed_job_ends_its_other_pods_first() {
    let mut play = Play::of(json!({"completions": 2, "parallelism": 2, "backoffLimit": 0}));
    play.end(None, "Failed", 1);
    assert!(play.active().is_empty());
    assert_eq!(play.conditions().last(), pairs(&[("Failed", "BackoffLimitExceeded")]).first());
    assert!(play.all().iter().all(|pod| !is_tracked(pod)), "nothing keeps them");
}

#[test]
fn an_indexed_job_runs_each_index_once() {
    let mut play = Play::of(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}));
    let indexes: Vec<_> = play.active().iter().filter_map(index::of_pod).collect();
    assert_eq!(indexes, [0, 1, 2]);
    let first = &play.active()[0];
    assert_eq!(first.metadata.generate_name.as_deref(), Some("sum-0-"));
    assert_eq!(first.spec.as_ref().unwrap().hostname.as_deref(), Some("sum-0"));
    play.end(Some(2), "Succeeded", 0);
    play.end(Some(0), "Succeeded", 0);
    assert_eq!(play.status().completed_indexes.as_deref(), Some("0,2"));
    play.end(Some(1), "Succeeded", 0);
    assert_eq!(play.status().completed_indexes.as_deref(), Some("0-2"));
    assert_eq!(play.conditions().last(), pairs(&[("Complete", "CompletionsReached")]).first());
}

#[test]
fn a_limit_per_index_fails_that_index_only() {
    let mut play = Play::of(
        json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "backoffLimit": 2_147_483_647}),
    );
    play.end(Some(0), "Failed", 1);
    play.wait(10);
    assert_eq!(play.active().len(), 2);
    let replacement = play.active().into_iter().find(|pod| index::of_pod(pod) == Some(0)).unwrap();
    assert_eq!(replacement.metadata.annotations.unwrap()[create::FAILURE_COUNT], "1");
    play.end(Some(0), "Failed", 1);
    assert_eq!(play.status().failed_indexes.as_deref(), Some("0"));
    assert_eq!(play.active().len(), 1, "index 0 is given up");
    play.end(Some(1), "Succeeded", 0);
    assert_eq!(play.conditions().last(), pairs(&[("Failed", "FailedIndexes")]).first());
    assert_eq!((play.status().succeeded, play.status().failed), (Some(1), Some(2)));
}

#[test]
fn policies_end_a_job_early() {
    let rules = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let mut play = Play::of(
        json!({"completions": 1, "parallelism": 1, "podFailurePolicy": rules, "podReplacementPolicy": "Failed"}),
    );
    play.end(None, "Failed", 42);
    assert_eq!(play.conditions(), pairs(&[("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")]));
    assert_eq!(play.status().failed, Some(1));

    let policy = json!({"rules": [{"succeededIndexes": "0"}]});
    let mut play =
        Play::of(json!({"completions": 3, "parallelism": 1, "completionMode": "Indexed", "successPolicy": policy}));
    play.end(Some(0), "Succeeded", 0);
    assert_eq!(play.conditions(), pairs(&[("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]));
}

#[test]
fn ignored_failures_do_not_count() {
    let rules = json!({"rules": [{"action": "Ignore", "onExitCodes": {"operator": "In", "values": [7]}}]});
    let mut play = Play::of(
        json!({"completions": 1, "parallelism": 1, "backoffLimit": 0, "podFailurePolicy": rules, "podReplacementPolicy": "Failed"}),
    );
    play.end(None, "Failed", 7);
    play.wait(10);
    assert_eq!(play.active().len(), 1);
    assert_eq!(play.status().failed, None);
}

#[test]
fn suspending_takes_the_pods_away_without_counting_them() {
    let mut play = Play::of(json!({"completions": 1, "parallelism": 1, "backoffLimit": 0}));
    let suspend = |play: &mut Play, on: bool| {
        let mut job = Object::to_value(play.cluster.view.get::<Job>(&Play::key()).unwrap());
        job["spec"]["suspend"] = json!(on);
        play.cluster.write(&Kind::of::<Job>(), job);
        play.settle();
    };
    suspend(&mut play, true);
    assert!(play.all().is_empty());
    assert_eq!((play.status().start_time, play.status().failed), (None, None));
    assert_eq!(play.conditions(), pairs(&[("Suspended", "JobSuspended")]));
    suspend(&mut play, false);
    assert_eq!(play.active().len(), 1);
    assert!(play.status().start_time.is_some());
    assert_eq!(play.events, ["Suspended", "Resumed"]);
}

/// Pods that the controller itself deletes are no failures: the next pods don't wait for a back-off, as long as the old
/// ones take to end, however they end, and however often the Job is suspended.
#[test]
fn pods_that_the_controller_deletes_delay_no_others() {
    for mode in ["NonIndexed", "Indexed"] {
        let mut play = Play::of(json!({"completions": 4, "parallelism": 2, "backoffLimit": 0, "completionMode": mode}));
        let set = |play: &mut Play, field: &str, value: Value| {
            // Nodes stop pods: each one is there for a while.
            for pod in play.active() {
                let mut pod = Object::to_value(&pod);
                pod["metadata"]["finalizers"].as_array_mut().unwrap().push(json!("example.com/runs"));
                play.cluster.write(&Kind::of::<Pod>(), pod);
            }
            let mut job = Object::to_value(play.cluster.view.get::<Job>(&Play::key()).unwrap());
            job["spec"][field] = value;
            play.cluster.write(&Kind::of::<Job>(), job);
            play.settle();
        };
        for round in 1..4 {
            set(&mut play, "suspend", json!(true));
            assert_eq!((play.active().len(), play.all().len()), (0, 2 * round));
            set(&mut play, "suspend", json!(false));
            assert_eq!(play.active().len(), 2, "{mode}, round {round}");
        }
        for pod in play.all().iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
            let mut pod = Object::to_value(pod);
            pod["status"] = json!({"phase": "Failed"});
            play.cluster.write(&Kind::of::<Pod>(), pod);
        }
        play.settle();
        set(&mut play, "parallelism", json!(1));
        set(&mut play, "parallelism", json!(2));
        assert_eq!((play.active().len(), play.status().failed), (2, None), "{mode}");
    }
}

/// A user who deletes a pod makes a failure, and its replacement waits from the request on: not until the grace period
/// ends in addition.
#[test]
fn the_replacement_of_a_deleted_pod_waits_for_one_back_off() {
    let mut play = Play::of(json!({"completions": 1, "parallelism": 1}));
    let mut pod = Object::to_value(&play.active()[0]);
    pod["metadata"]["finalizers"].as_array_mut().unwrap().push(json!("example.com/runs"));
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:30Z");
    pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
    play.cluster.write(&Kind::of::<Pod>(), pod);
    play.settle();
    assert_eq!((play.active().len(), play.status().failed), (0, Some(1)));
    play.wait(9);
    assert_eq!(play.active().len(), 0);
    play.wait(1);
    assert_eq!(play.active().len(), 1);
}

#[test]
fn a_deadline_ends_the_job() {
    let mut play = Play::of(json!({"completions": 1, "parallelism": 1, "activeDeadlineSeconds": 5}));
    play.wait(4);
    assert_eq!(play.active().len(), 1);
    play.wait(1);
    assert!(play.active().is_empty());
    assert_eq!(play.conditions(), pairs(&[("FailureTarget", "DeadlineExceeded"), ("Failed", "DeadlineExceeded")]));
}

#[test]
fn a_work_queue_ends_with_its_last_pod() {
    let mut play = Play::of(json!({"parallelism": 3}));
    assert_eq!(play.active().len(), 3);
    play.end(None, "Succeeded", 0);
    assert_eq!(play.active().len(), 2, "nothing is replaced once one pod found the queue empty");
    play.end(None, "Succeeded", 0);
    play.end(None, "Succeeded", 0);
    assert_eq!(play.conditions().last(), pairs(&[("Complete", "CompletionsReached")]).first());
}

#[test]
fn nothing_to_complete_is_complete_at_once() {
    let play = Play::of(json!({"completions": 0, "parallelism": 1}));
    assert!(play.all().is_empty());
    assert!(play.status().start_time.is_some(), "the API wants it of a finished Job");
    assert_eq!(
        play.conditions(),
        pairs(&[("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")])
    );
}

#[test]
fn indexes_stopped_with_the_job_have_not_failed() {
    let mut play = Play::of(
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 0, "backoffLimit": 2_147_483_647}),
    );
    play.end(Some(1), "Failed", 1);
    assert_eq!(play.status().failed_indexes.as_deref(), Some("1"));
    assert_eq!(play.conditions().last(), pairs(&[("Failed", "MaxFailedIndexesExceeded")]).first());
}

/// A pod counts as failed once while it is terminating; a later success changes no count.
#[test]
fn a_pod_that_counts_as_failed_and_then_succeeds_is_let_go() {
    let mut play = Play::of(json!({"completions": 1}));
    // The pod was counted while it was terminating; it ended before its finalizer was removed.
    let pod = play.active().remove(0);
    let mut job = Object::to_value(play.cluster.view.get::<Job>(&Play::key()).unwrap());
    job["status"]["uncountedTerminatedPods"] = json!({"failed": [pod.metadata.uid]});
    play.cluster.write(&Kind::of::<Job>(), job);
    play.end(None, "Succeeded", 0);
    assert_eq!((play.status().failed, play.status().succeeded), (Some(1), None));
    let tracked: Vec<Pod> = play.all().into_iter().filter(is_tracked).collect();
    assert!(tracked.iter().all(|one| one.metadata.uid != pod.metadata.uid), "{tracked:?}");
}

#[test]
fn pods_that_a_suspended_job_gives_up_fail_no_index() {
    let mut play =
        Play::of(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0}));
    // As in a real cluster: without the finalizer, and terminating until their processes end.
    for pod in play.active() {
        let mut pod = Object::to_value(&pod);
        pod["metadata"]["finalizers"] = json!(["example.com/hold"]);
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        play.cluster.write(&Kind::of::<Pod>(), pod);
    }
    let mut job = Object::to_value(play.cluster.view.get::<Job>(&Play::key()).unwrap());
    job["spec"]["suspend"] = json!(true);
    play.cluster.write(&Kind::of::<Job>(), job);
    play.settle();
    assert_eq!(play.conditions(), pairs(&[("Suspended", "JobSuspended")]));
    assert_eq!((play.status().failed_indexes.as_deref(), play.status().failed), (Some(""), None));
}

#[test]
fn indexes_stopped_by_a_success_have_not_failed() {
    let policy = json!({"rules": [{"succeededIndexes": "0"}]});
    let mut play = Play::of(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "backoffLimitPerIndex": 0, "successPolicy": policy}));
    play.end(Some(0), "Succeeded", 0);
    assert_eq!(
        (play.status().failed_indexes.as_deref(), play.status().completed_indexes.as_deref()),
        (Some(""), Some("0"))
    );
}

#[test]
fn pods_stopped_by_a_failure_count_as_failed() {
    let mut play =
        Play::of(json!({"completions": 3, "parallelism": 3, "podReplacementPolicy": "Failed", "backoffLimit": 0}));
    play.end(None, "Failed", 1);
    assert!(play.conditions().contains(&("FailureTarget".into(), "BackoffLimitExceeded".into())));
    assert_eq!(play.status().failed, Some(3));
}

/// Ten characters mean 2^31 indexes, in each text that a Job's author, or the author of its status, may write.
#[test]
fn a_job_of_2147483647_indexes_costs_by_its_text_length() {
    let spec = |more: Value| {
        let mut spec = json!({"completions": i32::MAX, "parallelism": 2, "completionMode": "Indexed"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let mut play = Play::of(spec(json!({"successPolicy": {"rules": [{"succeededIndexes": "0-2147483646"}]}})));
    let indexes = |play: &Play| play.active().iter().filter_map(index::of_pod).collect::<Vec<i32>>();
    assert_eq!(indexes(&play), [0, 1]);
    let mut write_status = |status: Value| {
        let job = play.cluster.view.get::<Job>(&Play::key()).unwrap();
        let mut value = Object::to_value(job);
        value["status"] = status;
        play.cluster.write(&Kind::of::<Job>(), value);
        play.settle();
        play.status()
    };
    let status = write_status(json!({"completedIndexes": "2-2147483646"}));
    assert_eq!((status.succeeded, status.active), (Some(i32::MAX - 2), Some(2)), "all but the two that run");
    let status = write_status(json!({"completedIndexes": "0-2147483646"}));
    let met = status.conditions.unwrap();
    assert!(met.iter().any(|c| c.type_ == "SuccessCriteriaMet" && c.status == "True"), "{met:?}");

    let mut play = Play::of(spec(json!({"backoffLimitPerIndex": 1})));
    let job = play.cluster.view.get::<Job>(&Play::key()).unwrap();
    let mut value = Object::to_value(job);
    value["status"] = json!({"failedIndexes": "2-2147483646"});
    play.cluster.write(&Kind::of::<Job>(), value);
    play.settle();
    assert_eq!(indexes(&play), [0, 1], "no index is left to make pods for");
}
