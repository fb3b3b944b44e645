//! Pod rates of broken manifests in steady state: each kind of workload with pods that are evicted, rejected, failed,
//! deleted or refused at once. Controllers, a node and the fault run in virtual time. Pods per minute are bounded by
//! upstream's.
//!
//! Sources of upstream's figures. `MEASURED`: one pod a second of a Deployment that is evicted at once, and one in 20
//! to 60 seconds on a node that is gone, from the review of 2026-11-24 beside v1.36.3. `QUEUE`: client-go's back-off of
//! a failing key (5 ms, doubling, up to 1000 s). `DAEMONS`: the DaemonSet controller's back-off of failed pods (1 s,
//! doubling, up to 15 min). `JOBS`: the Job controller's (10 s, doubling, up to 10 min), and `backoffLimit`. `PLACED`:
//! no pod is created for a node whose taints it doesn't tolerate. Upstream's client sends twenty requests a second; one
//! pod a second stays below that, too. [`WRITES_EACH`] has upstream's writes per pod.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Pod, ReconcilerCache};
use serde_json::{Value, json};

use crate::table_tests::{decide, keys, start};

/// The controllers that create, end or follow pods.
const PARTICIPANTS: [&str; 10] = [
    "cronjob-controller",
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "replicationcontroller-controller",
    "statefulset-controller",
    "taint-eviction-controller",
];
/// The duration of one round of the loop.
const ROUND: Duration = Duration::from_millis(10);
/// The start of the steady state, and the duration of the measurement.
const REST_AFTER: Duration = Duration::from_secs(90);
const MEASURED_FOR: Duration = Duration::from_secs(60);
/// Upstream's writes per pod, in tenths: of pods, their workloads, ReplicaSets and ControllerRevisions. Measured with
/// v1.36.3 and kwok on 2026-11-25 over 60 s, on an evicting and on a missing node, and with a client that deletes each pod.
const WRITES_EACH: [(&str, u32); 7] = [
    ("Deployment", 92),
    ("ReplicaSet", 69),
    ("ReplicationController", 67),
    ("StatefulSet", 88),
    ("DaemonSet", 54),
    ("Job", 120),
    ("CronJob", 120),
];
/// Other writes per minute.
const WRITES_BESIDE: u32 = 12;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// The node has a taint that the pod doesn't tolerate.
    Evicted,
    /// The node rejects the pod.
    Rejected,
    /// A client deletes the pod.
    Deleted,
    /// Admission rejects the creation.
    Refused,
    /// The node is gone.
    Gone,
    /// The node is out of service.
    OutOfService,
}
use Mishap::{Deleted, Evicted, Gone, OutOfService, Refused, Rejected};

/// Kind, mishap, maximum of pods per minute (created or attempted), and the source of upstream's figure.
const TABLE: [(&str, Mishap, u32, &str); 33] = [
    ("Deployment", Evicted, 62, "MEASURED"),
    ("Deployment", Rejected, 62, "MEASURED"),
    ("Deployment", Deleted, 62, "MEASURED"),
    ("Deployment", Refused, 2, "QUEUE"),
    ("Deployment", Gone, 3, "MEASURED"),
    ("Deployment", OutOfService, 62, "MEASURED"),
    ("ReplicaSet", Evicted, 62, "MEASURED"),
    ("ReplicaSet", Rejected, 62, "MEASURED"),
    ("ReplicaSet", Deleted, 62, "MEASURED"),
    ("ReplicaSet", Refused, 2, "QUEUE"),
    ("ReplicaSet", Gone, 3, "MEASURED"),
    ("ReplicationController", Evicted, 62, "MEASURED"),
    ("ReplicationController", Rejected, 62, "MEASURED"),
    ("ReplicationController", Deleted, 62, "MEASURED"),
    ("ReplicationController", Refused, 2, "QUEUE"),
    ("ReplicationController", Gone, 3, "MEASURED"),
    ("StatefulSet", Evicted, 62, "MEASURED"),
    ("StatefulSet", Rejected, 62, "MEASURED"),
    ("StatefulSet", Deleted, 62, "MEASURED"),
    ("StatefulSet", Refused, 2, "QUEUE"),
    ("StatefulSet", Gone, 3, "MEASURED"),
    ("StatefulSet", OutOfService, 3, "MEASURED"),
    ("DaemonSet", Evicted, 0, "PLACED"),
    ("DaemonSet", Rejected, 2, "DAEMONS"),
    ("DaemonSet", Deleted, 62, "MEASURED"),
    ("DaemonSet", Refused, 2, "QUEUE"),
    ("Job", Evicted, 2, "JOBS"),
    ("Job", Rejected, 2, "JOBS"),
    ("Job", Deleted, 2, "JOBS"),
    ("Job", Refused, 2, "JOBS"),
    ("Job", Gone, 2, "JOBS"),
    ("CronJob", Rejected, 10, "JOBS"),
    ("CronJob", Refused, 12, "JOBS"),
];

/// A cluster with one broken workload.
struct BrokenCluster {
    simulation: Simulation,
    mishap: Mishap,
    reconciler_cache: BTreeMap<&'static str, ReconcilerCache>,
    /// Consecutive failures, and the end of the key's back-off.
    held: BTreeMap<(&'static str, ObjectKey), (u32, Timestamp)>,
    pods: u32,
    writes: u32,
}

fn workload(kind: &str) -> Value {
    let labels = json!({"app": "w"});
    let job = kind == "Job" || kind == "CronJob";
    let pod_spec = json!({"nodeName": if kind == "DaemonSet" { json!(null) } else { json!("n") },
        "restartPolicy": if job { "Never" } else { "Always" }, "containers": [{"name": "c", "image": "i"}]});
    let template = json!({"metadata": {"labels": labels}, "spec": pod_spec});
    let selector = json!({"matchLabels": labels});
    let (api, spec) = match kind {
        "ReplicationController" => ("v1", json!({"replicas": 1, "selector": labels, "template": template})),
        "Job" => ("batch/v1", json!({"completions": 1, "parallelism": 1, "selector": selector, "template": template})),
        "CronJob" => {
            let job = json!({"spec": {"completions": 1, "parallelism": 1, "selector": selector, "template": template}});
            ("batch/v1", json!({"schedule": "* * * * *", "concurrencyPolicy": "Allow", "jobTemplate": job}))
        }
        _ => (
            "apps/v1",
            json!({"replicas": 1, "serviceName": "w", "revisionHistoryLimit": 10, "selector": selector,
                "template": template}),
        ),
    };
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": "w", "namespace": "a"}, "spec": spec})
}

impl BrokenCluster {
    fn new(kind: &str, mishap: Mishap) -> Self {
        let taints = match mishap {
            Evicted => json!([{"key": "k", "effect": "NoExecute"}]),
            OutOfService => json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]),
            _ => json!([]),
        };
        let ready = if mishap == OutOfService { "Unknown" } else { "True" };
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let nodes = if mishap == Gone { Vec::new() } else { vec![node] };
        let mut simulation = crate::simulation(start(), nodes);
        let workload = workload(kind);
        let kind = simulation.kind_of(&workload);
        simulation.create(&kind, workload);
        let (reconciler_cache, held) = Default::default();
        Self { simulation, mishap, reconciler_cache, held, pods: 0, writes: 0 }
    }

    /// Performs actions; false if one fails.
    fn act(&mut self, actions: Vec<Action>) -> bool {
        let pods = Kind::of::<Pod>();
        actions.into_iter().all(|action| match action {
            Action::Concurrent(several) | Action::SlowStart(several) => self.act(several),
            Action::Reporting { tried, otherwise, .. } => {
                let done = self.act(vec![*tried]);
                if !done {
                    self.act(vec![*otherwise]);
                }
                done
            }
            Action::Create { kind, .. } if kind == pods && self.mishap == Refused => {
                self.pods += 1;
                self.writes += 1;
                false
            }
            // A running pod ends when its node says so, and this node is gone.
            Action::Delete { kind, key, grace_seconds, .. } if kind == pods && self.mishap == OutOfService => {
                self.writes += 1;
                let Some(pod) = self.simulation.view.object(&kind, &key).map(|pod| pod.to_value()) else { return true };
                let mut going = pod;
                if grace_seconds == Some(0) {
                    self.simulation.view.remove(&kind, &key, 0);
                } else if going["metadata"]["deletionTimestamp"].is_null() {
                    going["metadata"]["deletionTimestamp"] = json!(self.simulation.now.to_string());
                    going["metadata"]["finalizers"] = json!(["example.com/runs"]);
                    self.simulation.write(&kind, going);
                }
                true
            }
            action => {
                let writes = matches!(
                    action,
                    Action::Create { .. } | Action::Update { .. } | Action::Patch { .. } | Action::Delete { .. }
                );
                self.writes += u32::from(writes);
                self.pods += u32::from(matches!(&action, Action::Create { kind, .. } if *kind == pods));
                self.simulation.view.set_elapsed(self.simulation.elapsed());
                self.simulation.apply(vec![action].into()).is_empty()
            }
        })
    }

    /// One pass of every controller over every key. Returns whether one acted, and when the next is due.
    fn round(&mut self) -> (bool, Option<Timestamp>) {
        let (mut acted, mut next) = (false, None::<Timestamp>);
        let now = self.simulation.now;
        let mut at = |when: Timestamp| next = Some(next.map_or(when, |known| known.min(when)));
        let all = keys(&self.simulation);
        for (name, keys) in all.into_iter().filter(|(name, _)| PARTICIPANTS.contains(name)) {
            for key in keys {
                let held = self.held.get(&(name, key.clone())).filter(|(_, until)| *until > now);
                if let Some((_, until)) = held {
                    at(*until);
                    continue;
                }
                self.simulation.reconciler_cache = self.reconciler_cache.remove(name).unwrap_or_default();
                let plan = decide(name, &self.simulation, &key);
                self.simulation.reconciler_cache.set(&key, plan.state.clone());
                self.reconciler_cache.insert(name, std::mem::take(&mut self.simulation.reconciler_cache));
                plan.requeue_at.into_iter().for_each(&mut at);
                if plan.actions.is_empty() {
                    continue;
                }
                acted = true;
                if self.act(plan.actions) {
                    self.held.remove(&(name, key));
                    continue;
                }
                let row = crate::CONTROLLERS.iter().find(|row| row.name == name).expect("a row");
                let failures = self.held.get(&(name, key.clone())).map_or(0, |(failures, _)| *failures);
                let wait = row.back_off.first.saturating_mul(1 << failures.min(30)).min(row.back_off.most);
                let until = now.saturating_add(wait).unwrap();
                at(until);
                self.held.insert((name, key), (failures + 1, until));
            }
        }
        (acted, next)
    }

    /// Applies the mishap to the pods.
    fn apply_mishap(&mut self) {
        let kind = Kind::of::<Pod>();
        let there: Vec<Value> = self.simulation.view.all::<Pod>().map(machinery_client::Object::to_value).collect();
        for mut pod in there {
            let text = |name: &str| pod["metadata"][name].as_str().unwrap_or_default().to_owned();
            let key = ObjectKey::new(text("namespace"), text("name"));
            match self.mishap {
                Rejected if pod["status"]["phase"] != "Failed" => {
                    self.writes += 1;
                    pod["spec"]["nodeName"] = json!("n");
                    pod["status"] = json!({"phase": "Failed", "reason": "NodeAffinity"});
                    self.simulation.write(&kind, pod);
                }
                Deleted if pod["metadata"]["deletionTimestamp"].is_null() => {
                    self.writes += 1;
                    let plan = self.simulation.view.get::<Pod>(&key).map(Action::delete);
                    self.simulation.apply(plan.into_iter().collect::<Vec<_>>().into());
                }
                _ => {}
            }
        }
    }

    fn until(&mut self, end: Duration) {
        while self.simulation.elapsed() < end {
            let (acted, next) = self.round();
            self.apply_mishap();
            let soon = self.simulation.now.saturating_add(ROUND).unwrap();
            let end = start().saturating_add(end).unwrap();
            self.simulation.now = if acted { soon } else { next.map_or(end, |next| next.max(soon)).min(end) };
        }
    }
}

#[test]
fn no_broken_manifest_costs_more_than_upstreams() {
    let mut wrong = Vec::new();
    for (kind, mishap, pods_max, source) in TABLE {
        let mut broken = BrokenCluster::new(kind, mishap);
        broken.until(REST_AFTER);
        let before = (broken.pods, broken.writes);
        broken.until(REST_AFTER + MEASURED_FOR);
        let (pods, writes) = (broken.pods - before.0, broken.writes - before.1);
        let line = format!("{kind} {mishap:?}: {pods} pods and {writes} writes a minute, {source}: {pods_max} pods");
        eprintln!("{line}; {} before", before.0);
        let (_, each) = WRITES_EACH.iter().find(|(row, _)| *row == kind).expect("a figure of upstream's");
        let writes_max = (pods_max * each).div_ceil(10) + WRITES_BESIDE;
        if pods > pods_max || writes > writes_max || before.0 == 0 && pods_max > 0 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
