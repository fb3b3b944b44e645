//! The result of `coracle status` for people. Pure. Names and messages of a cluster are untrusted: control characters don't
//! reach the terminal.

use std::fmt::Write as _;

use super::report::{ClusterState, NodeRow, NotReady, Section, StatusReport, Workloads};
use crate::inspection::amounts::{bytes, duration};
use crate::inspection::disk::DiskUse;
use tools_command::output::{columns, plain};

/// Maximum listed objects of a kind; `--output json` has more.
const LISTED_MAX: usize = 20;
/// Maximum characters of a message in a table.
const MESSAGE_CHARS_MAX: usize = 100;
/// Width of the names in a part.
const LABEL_WIDTH: usize = 16;

/// The whole text.
pub(crate) fn format(report: &StatusReport) -> String {
    let mut text = String::new();
    let parts = [
        control_plane(report),
        report.nodes.as_ref().map(nodes).unwrap_or_default(),
        addresses(report),
        report.workloads.as_ref().map(workloads).unwrap_or_default(),
        report.data_folder.as_ref().map(disk).unwrap_or_default(),
        certificates(report),
        problems(report),
    ];
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(part);
    }
    plain(&text)
}

/// A line of a part. Writing to a string doesn't fail.
fn line(text: &mut String, label: &str, value: &str) {
    let _ = writeln!(text, "  {label:<LABEL_WIDTH$}{value}");
}

fn control_plane(report: &StatusReport) -> String {
    let state = match report.state {
        ClusterState::Running if report.control_plane.checks.iter().all(|check| check.passes) => "runs",
        ClusterState::Running => "isn't ready",
        ClusterState::Stopped => "is stopped",
        ClusterState::Unreachable => "doesn't answer",
        ClusterState::Absent => "has never run here",
    };
    let mut text = format!("The cluster {state}.\n");
    let plane = &report.control_plane;
    if let Some(server) = &plane.server {
        line(&mut text, "server", server);
    }
    if let Some(kubeconfig) = &plane.kubeconfig {
        line(&mut text, "kubeconfig", kubeconfig);
    }
    if let Some(version) = &plane.version {
        line(&mut text, "version", version);
    }
    let program = &report.program;
    line(
        &mut text,
        "this program",
        &format!("{} (commit {}), Kubernetes {}", program.version, program.commit, program.kubernetes),
    );
    if !plane.checks.is_empty() {
        let failing: Vec<&str> =
            plane.checks.iter().filter(|check| !check.passes).map(|check| check.name.as_str()).collect();
        let checks = match failing.len() {
            0 => format!("{} checks pass", plane.checks.len()),
            _ => format!("{} of {} checks fail: {}", failing.len(), plane.checks.len(), failing.join(", ")),
        };
        line(&mut text, "/readyz", &checks);
    }
    if let Some(store) = &plane.store {
        line(&mut text, "store", store);
    }
    if let Some(process) = &report.process {
        let (age, memory) = (duration(process.running_seconds), bytes(process.memory_bytes));
        line(&mut text, "process", &format!("{}, for {age}, {memory} of memory", process.pid));
    }
    text
}

/// The lines of a part that can't be read.
fn without<T>(title: &str, section: &Section<T>) -> String {
    match section {
        Section::Forbidden(why) => format!("{title}: not allowed ({why})\n"),
        Section::Failed(why) => format!("{title}: not read ({why})\n"),
        Section::Read(_) => String::new(),
    }
}

fn nodes(section: &Section<Vec<NodeRow>>) -> String {
    let Some(rows) = section.read() else { return without("Nodes", section) };
    let ready = rows.iter().filter(|row| row.ready).count();
    let mut table = vec![["NAME", "STATUS", "VERSION", "ADDRESS", "PODS", "CPU", "MEMORY"].map(str::to_owned).to_vec()];
    let of = |used: Option<String>, max: Option<String>| {
        let unknown = || "?".to_owned();
        format!("{} of {}", used.unwrap_or_else(unknown), max.unwrap_or_else(unknown))
    };
    table.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            node_state(row),
            row.version.clone(),
            row.address.clone().unwrap_or_default(),
            of(row.pods.map(|pods| pods.to_string()), row.pods_max.map(|pods| pods.to_string())),
            of(row.cpu_millis.map(cores), row.cpu_millis_max.map(cores)),
            of(row.memory_bytes.map(bytes), row.memory_bytes_max.map(bytes)),
        ]
    }));
    format!(
        "Nodes: {ready} of {} ready\n{}",
        rows.len(),
        if rows.is_empty() { String::new() } else { indented(&table) }
    )
}

fn node_state(row: &NodeRow) -> String {
    let mut parts = vec![if row.ready { "Ready" } else { "NotReady" }];
    parts.extend(row.pressures.iter().map(String::as_str));
    if row.cordoned {
        parts.push("SchedulingDisabled");
    }
    parts.join(",")
}

/// Thousandths of a core as cores.
fn cores(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

fn indented(table: &[Vec<String>]) -> String {
    columns(table).lines().map(|line| format!("  {line}\n")).collect()
}

fn addresses(report: &StatusReport) -> String {
    let addresses = &report.addresses;
    let rows = [
        ("API server", report.control_plane.server.as_ref()),
        ("registry", addresses.registry.as_ref()),
        ("DNS", addresses.dns.as_ref()),
        ("DNS for pods", addresses.cluster_dns.as_ref()),
        ("Services", addresses.service_cidr.as_ref()),
        ("pods", addresses.pod_cidr.as_ref()),
    ];
    let title = if report.state == ClusterState::Running { "Addresses\n" } else { "Addresses of the last run\n" };
    let mut text = String::new();
    for (label, value) in rows.into_iter().filter_map(|(label, value)| Some((label, value?))) {
        line(&mut text, label, value);
    }
    if text.is_empty() { text } else { format!("{title}{text}") }
}

fn workloads(section: &Section<Workloads>) -> String {
    let Some(found) = section.read() else { return without("Workloads", section) };
    let phases: Vec<String> = found.pods.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    let phases = if phases.is_empty() { "none".to_owned() } else { phases.join(", ") };
    let more = if found.truncated { ", and more that were not counted in time" } else { "" };
    let mut text = format!("Pods: {phases}{more}\n");
    text.push_str(&not_ready(&found.not_ready, found.not_ready_count));
    text.push_str(&not_ready(&found.pods_not_ready, found.pods_not_ready_count));
    text
}

fn not_ready(rows: &[NotReady], count: u64) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = vec![["NAMESPACE", "NOT READY", "REASON", "MESSAGE"].map(str::to_owned).to_vec()];
    table.extend(rows.iter().take(LISTED_MAX).map(|row| {
        let name = format!("{}/{}", row.kind.to_lowercase(), row.name);
        vec![row.namespace.clone(), name, row.reason.clone(), shortened(&row.message)]
    }));
    let left = count - rows.len().min(LISTED_MAX) as u64;
    let more = if left > 0 { format!("  and {left} more\n") } else { String::new() };
    format!("{}{more}", indented(&table))
}

/// The first line of a message.
fn shortened(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let short: String = first.chars().take(MESSAGE_CHARS_MAX).collect();
    if short.len() < message.len() { format!("{short}…") } else { short }
}

fn disk(found: &DiskUse) -> String {
    let parts = found.parts;
    let more = if found.truncated { "at least " } else { "" };
    let mut text = format!("Data folder: {more}{} in {}\n", bytes(parts.total()), found.folder.display());
    for (label, size) in [
        ("store", parts.store),
        ("images", parts.images),
        ("compiled modules", parts.compiled_modules),
        ("logs", parts.logs),
        ("volumes", parts.volumes),
        ("key-value data", parts.key_value),
        ("other", parts.other),
    ] {
        line(&mut text, label, &format!(" {}", bytes(size)));
    }
    if let (Some(free), Some(total)) = (found.free_bytes, found.total_bytes) {
        let eviction = found.eviction_bytes.map(|at| format!(" (pods are evicted below {})", bytes(at)));
        let eviction = eviction.unwrap_or_default();
        line(&mut text, "free", &format!(" {} of {}{eviction}", bytes(free), bytes(total)));
    }
    text
}

fn certificates(report: &StatusReport) -> String {
    if report.certificates.is_empty() {
        return String::new();
    }
    let mut table = vec![["CERTIFICATE", "ENDS", "DAYS LEFT"].map(str::to_owned).to_vec()];
    table.extend(report.certificates.iter().map(|one| {
        let day = one.not_after.strftime("%Y-%m-%d").to_string();
        vec![one.file.clone(), day, one.days_left.to_string()]
    }));
    format!("Certificates\n{}", indented(&table))
}

fn problems(report: &StatusReport) -> String {
    if report.problems.is_empty() {
        return "No problems.\n".to_owned();
    }
    let mut text = format!("Problems: {}\n", report.problems.len());
    for problem in &report.problems {
        let _ = writeln!(text, "  - {}\n    next: {}", problem.message, problem.next);
    }
    text
}
