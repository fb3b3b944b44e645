//! What isn't healthy in a cluster, each with the next step. Pure.

use std::path::PathBuf;

use super::report::{ClusterState, NotReady, Problem, Section, StatusReport};
use crate::inspection::{amounts, shell_quoted};
use tools_command::data_dir::DataDir;
use tools_command::packaged;

/// Where the cluster of an empty data folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// On another machine: the folder is that of its node.
    OfNode,
    /// In the folder of this machine's service.
    OfService(PathBuf),
}

/// The problems of a cluster, the most urgent first. `folder`: the data folder, if the cluster is that of one; `elsewhere`:
/// where a cluster is, if not in that folder.
pub(crate) fn find(report: &StatusReport, folder: Option<&DataDir>, elsewhere: Option<&Elsewhere>) -> Vec<Problem> {
    let mut found = Vec::new();
    match report.state {
        ClusterState::Running => {
            found.extend(control_plane(report));
            found.extend(report.nodes.as_ref().and_then(unreadable));
            found.extend(nodes(report));
            found.extend(report.workloads.as_ref().and_then(unreadable));
            found.extend(workloads(report));
        }
        _ => found.push(not_running(report, folder, elsewhere)),
    }
    if let Some(disk) = report.data_folder.as_ref().filter(|disk| disk.is_short()) {
        let (free, threshold) = (disk.free_bytes.unwrap_or(0), disk.eviction_bytes.unwrap_or(0));
        found.push(problem(
            format!(
                "{} has {} free; below {} nodes evict pods",
                disk.folder.display(),
                amounts::bytes(free),
                amounts::bytes(threshold)
            ),
            "free disk space; `coracle image ls` lists images, `coracle image rm REF` removes one",
        ));
    }
    found.extend(
        report.certificates.iter().filter(|one| one.needs_attention()).map(|one| problem(one.warning(), one.remedy())),
    );
    found
}

fn problem(message: String, next: impl Into<String>) -> Problem {
    Problem { message, next: next.into() }
}

/// The command that starts the cluster of a folder.
fn start_command(folder: Option<&DataDir>) -> String {
    let Some(folder) = folder else { return "coracle up".to_owned() };
    match packaged::unit_of(folder.path()) {
        Some(unit) => format!("sudo systemctl start {unit}"),
        None => format!("coracle up --data-dir {}", shell_quoted(&folder.path().display().to_string())),
    }
}

fn not_running(report: &StatusReport, folder: Option<&DataDir>, elsewhere: Option<&Elsewhere>) -> Problem {
    let path = folder.map(|folder| folder.path().display().to_string()).unwrap_or_default();
    let why = report.control_plane.error.clone().unwrap_or_default();
    match report.state {
        ClusterState::Absent => match elsewhere {
            Some(Elsewhere::OfNode) => problem(
                format!("{path} is the data folder of a node; its cluster's API server is on another machine"),
                "coracle status --kubeconfig FILE, with a kubeconfig of that cluster",
            ),
            Some(Elsewhere::OfService(service)) => problem(
                format!("no cluster has run in {path}; that of this machine's service is in {}", service.display()),
                format!("sudo coracle status --data-dir {}", service.display()),
            ),
            None => problem(format!("no cluster has run in {path}"), start_command(folder)),
        },
        ClusterState::Stopped => problem(format!("the cluster of {path} is stopped"), start_command(folder)),
        ClusterState::Running | ClusterState::Unreachable => match &report.process {
            Some(process) => problem(
                format!("process {} has the data folder {path}, and its API server doesn't answer: {why}", process.pid),
                "repeat the command when the start is over; see the log of that process",
            ),
            None => problem(
                format!("the API server doesn't answer: {why}"),
                "check that the cluster runs and that the kubeconfig is its own",
            ),
        },
    }
}

fn control_plane(report: &StatusReport) -> Vec<Problem> {
    let error = report.control_plane.error.iter().map(|error| {
        problem(
            format!("the API server doesn't report its health: {error}"),
            "repeat the command; see the server's log",
        )
    });
    let failing: Vec<&str> =
        report.control_plane.checks.iter().filter(|check| !check.passes).map(|check| check.name.as_str()).collect();
    let failing = (!failing.is_empty()).then(|| {
        let next = "kubectl get --raw '/readyz?verbose'; see the log of the API server";
        problem(format!("the API server isn't ready: {}", failing.join(", ")), next)
    });
    error.chain(failing).collect()
}

/// A section that the server failed to give. Missing rights are no problem of the cluster.
fn unreadable<T>(section: &Section<T>) -> Option<Problem> {
    match section {
        Section::Failed(why) => Some(problem(format!("a part can't be read: {why}"), "repeat the command")),
        Section::Read(_) | Section::Forbidden(_) => None,
    }
}

fn nodes(report: &StatusReport) -> Vec<Problem> {
    let rows = report.nodes.as_ref().and_then(Section::read).map(Vec::as_slice).unwrap_or_default();
    let mut found = Vec::new();
    for row in rows {
        let describe = format!("kubectl describe node {}", row.name);
        if !row.ready {
            let why = row.reason.clone().unwrap_or_default();
            found.push(problem(format!("node {} isn't ready: {why}", row.name), describe));
        } else if !row.pressures.is_empty() {
            found.push(problem(format!("node {} reports {}", row.name, row.pressures.join(", ")), describe));
        } else if row.cordoned {
            let uncordon = format!("kubectl uncordon {}", row.name);
            found.push(problem(format!("node {} takes no new pods: it is cordoned", row.name), uncordon));
        }
    }
    found
}

fn workloads(report: &StatusReport) -> Vec<Problem> {
    let Some(workloads) = report.workloads.as_ref().and_then(Section::read) else { return Vec::new() };
    let count = |count: u64, one: &str, several: &str| match count {
        1 => format!("1 {one} isn't ready"),
        _ => format!("{count} {several} aren't ready"),
    };
    let mut found = Vec::new();
    if let Some(first) = workloads.pods_not_ready.first() {
        found.push(problem(count(workloads.pods_not_ready_count, "pod", "pods"), pod_command(first)));
    }
    if let Some(first) = workloads.not_ready.first() {
        let kind = first.kind.to_lowercase();
        let next = format!("kubectl -n {} describe {kind} {}", first.namespace, first.name);
        found.push(problem(count(workloads.not_ready_count, "workload", "workloads"), next));
    }
    found
}

/// The command that shows the cause.
fn pod_command(pod: &NotReady) -> String {
    let (namespace, name) = (&pod.namespace, &pod.name);
    match pod.reason.as_str() {
        "CrashLoopBackOff" | "Error" | "OOMKilled" | "FuelExhausted" => {
            format!("kubectl -n {namespace} logs {name} --previous")
        }
        _ => format!("kubectl -n {namespace} describe pod {name}"),
    }
}
