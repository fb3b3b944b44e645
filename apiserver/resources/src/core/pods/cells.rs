//! A pod's table row for `kubectl get`. The displayed status is upstream's computation over phase, reasons and
//! containers.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Column;
use crate::cells::{AGE, NAME, age, column, name, since, wide};
use crate::read::{flag, get, has, int, items, text, time};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string"),
    column("Status", "string"),
    column("Restarts", "string"),
    AGE,
    wide("IP", "string"),
    wide("Node", "string"),
    wide("Nominated Node", "string"),
    wide("Readiness Gates", "string"),
];

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "restartCount").unwrap_or(0);
        self.last = self.last.max(time(get(get(status, "lastState"), "terminated"), "finishedAt"));
    }
}

/// The cells of [`COLUMNS`].
pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (get(pod, "spec"), get(pod, "status"));
    let status_cells = PodStatusCells::of(pod, spec, status);
    let restarts = match status_cells.restarts.last {
        Some(_) if status_cells.restarts.count != 0 => {
            format!("{} ({} ago)", status_cells.restarts.count, since(status_cells.restarts.last, now))
        }
        _ => status_cells.restarts.count.to_string(),
    };
    let or_none = |text: &str| json!(if text.is_empty() { "<none>" } else { text });
    let gates = items(spec, "readinessGates");
    let open = gates
        .iter()
        .filter(|gate| {
            let kind = text(gate, "conditionType");
            let condition = items(status, "conditions").iter().find(|c| text(c, "type") == kind);
            condition.is_some_and(|c| text(c, "status") == "True")
        })
        .count();
    let ip = items(status, "podIPs").first().map_or("", |ip| text(ip, "ip"));
    vec![
        name(pod),
        json!(format!("{}/{}", status_cells.ready, status_cells.containers)),
        json!(status_cells.reason),
        json!(restarts),
        age(pod, now),
        or_none(ip),
        or_none(text(spec, "nodeName")),
        or_none(text(status, "nominatedNodeName")),
        if gates.is_empty() { json!("<none>") } else { json!(format!("{open}/{}", gates.len())) },
    ]
}

struct PodStatusCells {
    reason: String,
    ready: usize,
    containers: usize,
    restarts: Restarts,
}

fn termination_reason(state: &Value, prefix: &str) -> String {
    let reason = text(state, "reason");
    match int(state, "signal").unwrap_or(0) {
        _ if !reason.is_empty() => format!("{prefix}{reason}"),
        0 => format!("{prefix}ExitCode:{}", int(state, "exitCode").unwrap_or(0)),
        signal => format!("{prefix}Signal:{signal}"),
    }
}

impl PodStatusCells {
    fn of(pod: &Value, spec: &Value, status: &Value) -> Self {
        let phase = text(status, "phase");
        let own = text(status, "reason");
        let condition =
            |kind: &'static str| items(status, "conditions").iter().filter(move |c| text(c, "type") == kind);
        let mut status_cells = Self {
            reason: if own.is_empty() { phase } else { own }.to_owned(),
            ready: 0,
            containers: items(spec, "containers").len(),
            restarts: Restarts::default(),
        };
        if condition("PodScheduled").any(|c| text(c, "reason") == "SchedulingGated") {
            status_cells.reason = "SchedulingGated".into();
        }
        let sidecar = |name: &str| {
            items(spec, "initContainers")
                .iter()
                .any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
        };
        status_cells.containers +=
            items(spec, "initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").count();
        let (initializing, of_sidecars) = status_cells.init(spec, status, &sidecar);
        if !initializing || condition("Initialized").any(|c| text(c, "status") == "True") {
            status_cells.restarts = of_sidecars;
            let ready = condition("Ready").any(|c| text(c, "status") == "True");
            status_cells.running(status, ready);
        }
        if has(get(pod, "metadata"), "deletionTimestamp") {
            if own == "NodeLost" {
                status_cells.reason = "Unknown".into();
            } else if phase != "Failed" && phase != "Succeeded" {
                status_cells.reason = "Terminating".into();
            }
        }
        status_cells
    }

    /// Computes the status from init containers; returns whether one is pending, and the sidecars' restarts.
    fn init(&mut self, spec: &Value, status: &Value, sidecar: &dyn Fn(&str) -> bool) -> (bool, Restarts) {
        let mut of_sidecars = Restarts::default();
        for (i, container) in items(status, "initContainerStatuses").iter().enumerate() {
            self.restarts.add(container);
            let sidecar = sidecar(text(container, "name"));
            if sidecar {
                of_sidecars.add(container);
            }
            let state = get(container, "state");
            let (terminated, waiting) = (get(state, "terminated"), get(state, "waiting"));
            if !terminated.is_null() && int(terminated, "exitCode").unwrap_or(0) == 0 {
                continue;
            }
            if sidecar && flag(container, "started") {
                self.ready += usize::from(flag(container, "ready"));
                continue;
            }
            let why = text(waiting, "reason");
            self.reason = if !terminated.is_null() {
                termination_reason(terminated, "Init:")
            } else if !why.is_empty() && why != "PodInitializing" {
                format!("Init:{why}")
            } else {
                format!("Init:{i}/{}", items(spec, "initContainers").len())
            };
            return (true, of_sidecars);
        }
        (false, of_sidecars)
    }

    fn running(&mut self, status: &Value, pod_ready: bool) {
        let (mut running, mut failure) = (false, String::new());
        for container in items(status, "containerStatuses").iter().rev() {
            self.restarts.add(container);
            let state = get(container, "state");
            let (terminated, why) = (get(state, "terminated"), text(get(state, "waiting"), "reason"));
            if !why.is_empty() {
                self.reason = why.into();
            } else if !terminated.is_null() {
                self.reason = termination_reason(terminated, "");
                if int(terminated, "exitCode").unwrap_or(0) != 0 {
                    failure.clone_from(&self.reason);
                }
            } else if flag(container, "ready") && has(state, "running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if running && pod_ready {
                self.reason = "Running".into();
            } else if !failure.is_empty() {
                self.reason = failure;
            } else if running {
                self.reason = "NotReady".into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_for_a_pod() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let check = |status: Value, expected: [&str; 3]| {
            let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}, "status": status});
            let cells = cells(&pod, now);
            assert_eq!([&cells[1], &cells[2], &cells[3]], expected);
            assert_eq!(cells[4], "60s");
        };
        check(json!({"phase": "Pending"}), ["0/1", "Pending", "0"]);
        check(
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            ["0/1", "Init:0/1", "0"],
        );
        check(
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:55Z", "exitCode": 1}}}]}),
            ["0/1", "CrashLoopBackOff", "2 (5s ago)"],
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses": [{"name": "c",
                "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}),
            ["0/1", "Completed", "0"],
        );
        check(
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]}),
            ["1/1", "Running", "0"],
        );
        check(
            json!({"phase": "Failed", "containerStatuses": [{"name": "c",
                "state": {"terminated": {"exitCode": 3}}}]}),
            ["0/1", "ExitCode:3", "0"],
        );
    }
}
