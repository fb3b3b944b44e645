//! Examples of CronJobs at chosen times.

use jiff::{Timestamp, ToSpan as _};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Plan};
use serde_json::{Value, json};

use crate::table_tests::decide;

fn at(text: &str) -> Timestamp {
    format!("2026-01-01T{text}Z").parse().unwrap()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("a", name)
}

/// A CronJob of every five minutes, created at midnight.
fn cron(more: &Value) -> Value {
    let mut cron = json!({"apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "c", "namespace": "a", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"schedule": "*/5 * * * *", "concurrencyPolicy": "Allow", "suspend": false,
            "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1,
            "jobTemplate": {"metadata": {"labels": {"app": "c"}, "annotations": {"note": "x"}},
                "spec": {"backoffLimit": 2, "template": {"spec": {"restartPolicy": "Never",
                    "containers": [{"name": "c", "image": "i"}]}}}}}});
    for (field, value) in more.as_object().unwrap() {
        cron["spec"][field] = value.clone();
    }
    cron
}

fn cluster(time: &str, more: &Value) -> Simulation {
    crate::simulation(at(time), [cron(more)])
}

fn pass(simulation: &mut Simulation) -> Plan {
    let plan = decide("cronjob-controller", simulation, &key("c"));
    assert_eq!(simulation.apply(plan.clone()), Vec::<String>::new());
    plan
}

/// Runs passes at a time until only events are left, and returns the reasons of the events.
fn settle(simulation: &mut Simulation, time: &str) -> Vec<&'static str> {
    simulation.now = at(time);
    let mut reported = Vec::new();
    for _ in 0..8 {
        let plan = pass(simulation);
        reported.extend(reasons(&plan));
        if plan.actions.iter().all(|action| matches!(action, Action::Event(_))) {
            return reported;
        }
    }
    panic!("never at rest");
}

fn reasons(plan: &Plan) -> Vec<&'static str> {
    let reason = |action: &Action| match action {
        Action::Event(event) => Some(event.reason),
        Action::Create { notes, .. } | Action::Delete { notes, .. } => notes.done.as_ref().map(|event| event.reason),
        _ => None,
    };
    plan.actions.iter().filter_map(reason).collect()
}

/// The Jobs, by their scheduled minutes since midnight.
fn jobs(simulation: &Simulation) -> Vec<i64> {
    let midnight = at("00:00:00").as_second() / 60;
    let minutes = |job: &Job| job.metadata.name.as_ref()?.strip_prefix("c-")?.parse::<i64>().ok();
    simulation.view.all::<Job>().filter_map(minutes).map(|n| n - midnight).collect()
}

fn job(minutes: i64) -> ObjectKey {
    key(&format!("c-{}", at("00:00:00").as_second() / 60 + minutes))
}

fn status(simulation: &Simulation) -> CronJobStatus {
    simulation.view.get::<CronJob>(&key("c")).unwrap().status.clone().unwrap_or_default()
}

fn active(simulation: &Simulation) -> usize {
    status(simulation).active.map_or(0, |active| active.len())
}

fn finish(simulation: &mut Simulation, minutes: i64, how: &str) {
    let kind = Kind::of::<Job>();
    let now = simulation.now.to_string();
    let mut object = simulation.view.object(&kind, &job(minutes)).unwrap().to_value();
    let started = object["metadata"]["creationTimestamp"].clone();
    object["status"] = json!({"startTime": started, "conditions": [{"type": how, "status": "True"}]});
    if how == "Complete" {
        object["status"]["completionTime"] = json!(now);
    }
    simulation.write(&kind, object);
}

#[test]
fn a_job_is_made_when_it_is_due() {
    let mut cluster = cluster("00:04:59.9", &json!({}));
    let plan = pass(&mut cluster);
    assert_eq!((plan.actions.len(), plan.requeue_at), (0, Some(at("00:05:00.1"))));
    cluster.now = at("00:05:00.1");
    let plan = pass(&mut cluster);
    let Some(Action::Create { object, notes, .. }) = plan.actions.first() else { panic!("{plan:?}") };
    assert_eq!(notes.done.as_ref().unwrap().message, "Created job {name}");
    assert_eq!(object["metadata"]["name"], job(5).name.as_str());
    assert_eq!(object["metadata"]["labels"], json!({"app": "c"}));
    let annotations = json!({"note": "x", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-01T00:05:00Z"});
    assert_eq!(object["metadata"]["annotations"], annotations);
    assert_eq!(object["metadata"]["ownerReferences"][0]["kind"], "CronJob");
    assert_eq!(object["spec"]["backoffLimit"], 2);
    assert_eq!(plan.requeue_at, Some(at("00:10:00.1")));
    assert_eq!(settle(&mut cluster, "00:05:01"), [""; 0]);
    let s = status(&cluster);
    assert_eq!((active(&cluster), s.last_schedule_time.map(|t| t.0)), (1, Some(at("00:05:00"))));

    cluster.now = at("00:05:30");
    finish(&mut cluster, 5, "Complete");
    assert_eq!(settle(&mut cluster, "00:05:31"), ["SawCompletedJob"]);
    assert_eq!(active(&cluster), 0);
    assert_eq!(status(&cluster).last_successful_time.map(|t| t.0), Some(at("00:05:30")));
    assert_eq!(settle(&mut cluster, "00:10:01"), ["SuccessfulCreate"]);
    assert_eq!(jobs(&cluster), [5, 10]);
}

#[test]
fn a_status_that_was_not_written_is_made_up_for() {
    let mut cluster = cluster("00:05:01", &json!({}));
    let mut plan = decide("cronjob-controller", &cluster, &key("c"));
    plan.actions.truncate(1);
    cluster.apply(plan);
    assert_eq!((jobs(&cluster), status(&cluster).last_schedule_time), (vec![5], None));
    assert_eq!(settle(&mut cluster, "00:05:02"), [""; 0]);
    assert_eq!(status(&cluster).last_schedule_time.map(|t| t.0), Some(at("00:05:00")));
    assert_eq!((jobs(&cluster), active(&cluster)), (vec![5], 1));
}

#[test]
fn concurrency_policies_handle_a_running_job() {
    for (policy, reported, left, running) in [
        ("Allow", vec!["SuccessfulCreate"], vec![5, 10], 2),
        ("Forbid", vec!["JobAlreadyActive"], vec![5], 1),
        ("Replace", vec!["SuccessfulDelete", "SuccessfulCreate"], vec![10], 1),
    ] {
        let mut cluster = cluster("00:05:01", &json!({"concurrencyPolicy": policy}));
        settle(&mut cluster, "00:05:01");
        assert_eq!(settle(&mut cluster, "00:10:01")[..reported.len()], reported, "{policy}");
        assert_eq!((jobs(&cluster), active(&cluster)), (left, running), "{policy}");
        if policy == "Forbid" {
            finish(&mut cluster, 5, "Failed");
            assert_eq!(settle(&mut cluster, "00:12:00"), ["SawCompletedJob", "SuccessfulCreate"], "late, but it comes");
            assert_eq!(jobs(&cluster), [5, 10]);
        }
    }
}

#[test]
fn only_the_last_of_many_missed_times_is_made_up_for() {
    let mut few = cluster("02:03:00", &json!({}));
    assert_eq!(settle(&mut few, "02:03:00"), ["SuccessfulCreate"]);
    assert_eq!(jobs(&few), [120]);
    let mut many = cluster("12:03:00", &json!({}));
    assert_eq!(settle(&mut many, "12:03:00"), ["TooManyMissedTimes", "SuccessfulCreate"]);
    assert_eq!(jobs(&many), [720]);
    let mut late = cluster("12:03:00", &json!({"startingDeadlineSeconds": 120}));
    assert_eq!(settle(&mut late, "12:03:00"), [""; 0], "the deadline is over");
    assert_eq!(pass(&mut late).requeue_at, Some(at("12:05:00.1")));
    let mut still = cluster("12:03:00", &json!({"startingDeadlineSeconds": 200}));
    assert_eq!(settle(&mut still, "12:03:00"), ["SuccessfulCreate"]);
}

#[test]
fn suspended_and_impossible_schedules_make_nothing() {
    for (more, reported) in [
        (json!({"suspend": true}), vec![]),
        (json!({"schedule": "0 0 31 2 *"}), vec!["InvalidSchedule"]),
        (json!({"schedule": "nonsense"}), vec!["UnparseableSchedule"]),
        (json!({"timeZone": "Nowhere/At"}), vec!["UnknownTimeZone"]),
    ] {
        let mut cluster = cluster("00:05:01", &more);
        assert_eq!(settle(&mut cluster, "00:05:01"), reported, "{more}");
        assert_eq!((jobs(&cluster), pass(&mut cluster).requeue_at), (vec![], None), "{more}");
    }
}

#[test]
fn a_time_zone_shifts_the_schedule() {
    let mut cluster = cluster("04:59:00", &json!({"schedule": "0 6 * * *", "timeZone": "Europe/Berlin"}));
    assert_eq!(pass(&mut cluster).requeue_at, Some(at("05:00:00.1")));
    settle(&mut cluster, "05:00:01");
    let made = cluster.view.get::<Job>(&job(300)).unwrap();
    let noted = &made.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(noted, "2026-01-01T06:00:00+01:00");
    assert_eq!(active(&cluster), 1);
}

#[test]
fn the_oldest_ended_jobs_go_beyond_the_limits() {
    let mut cluster = cluster("00:05:01", &json!({"successfulJobsHistoryLimit": 2}));
    for minute in (5..30).step_by(5) {
        let time = format!("00:{minute:02}:01");
        settle(&mut cluster, &time);
        finish(&mut cluster, minute, if minute % 2 == 0 { "Failed" } else { "Complete" });
        cluster.now = cluster.now.checked_add(1.minutes()).unwrap();
    }
    settle(&mut cluster, "00:29:00");
    assert_eq!(jobs(&cluster), [15, 20, 25]);
}

#[test]
fn foreign_job_changes_are_reported() {
    let mut cluster = cluster("00:05:01", &json!({}));
    settle(&mut cluster, "00:05:01");
    cluster.view.remove(&Kind::of::<Job>(), &job(5), 1_000_000);
    assert_eq!(settle(&mut cluster, "00:05:02"), ["MissingJob"]);
    assert_eq!((active(&cluster), jobs(&cluster)), (0, vec![]), "its time is over");
    let owner = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "cron", "controller": true}]);
    let manual = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "m", "namespace": "a", "ownerReferences": owner}});
    cluster.create(&Kind::of::<Job>(), manual);
    assert_eq!(settle(&mut cluster, "00:05:03"), ["UnexpectedJob"]);
    let strange =
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job(10).name, "namespace": "a"}});
    cluster.create(&Kind::of::<Job>(), strange);
    assert_eq!(settle(&mut cluster, "00:10:01"), ["UnexpectedJob"], "somebody else has the name");
}
