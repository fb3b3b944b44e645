//! Problems and text of whole results.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::problems::{Elsewhere, find};
use super::report::{
    Addresses, ClusterState, ControlPlane, NodeRow, NotReady, ProgramVersions, ReadyCheck, Section, StatusReport,
    Workloads,
};
use super::text::format;
use crate::inspection::certificates::CertificateEnd;
use crate::inspection::disk::{DiskUse, PartBytes};
use crate::inspection::lock::ProcessFacts;
use tools_command::data_dir::DataDir;

fn node(name: &str) -> NodeRow {
    NodeRow {
        name: name.to_owned(),
        ready: true,
        reason: None,
        pressures: Vec::new(),
        cordoned: false,
        version: "v1.36.0+coracle".to_owned(),
        address: Some("127.0.0.1".to_owned()),
        pods: Some(3),
        pods_max: Some(2000),
        cpu_millis: Some(120),
        cpu_millis_max: Some(2000),
        memory_bytes: Some(64 << 20),
        memory_bytes_max: Some(3 << 30),
    }
}

fn healthy() -> StatusReport {
    let certificate = CertificateEnd {
        file: "pki/ca.crt".to_owned(),
        not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
        not_after: "2036-01-01T00:00:00Z".parse().unwrap(),
        days_left: 3650,
        begins_later: false,
    };
    StatusReport {
        state: ClusterState::Running,
        healthy: true,
        problems: Vec::new(),
        program: ProgramVersions { version: "0.1.0".into(), commit: "c".into(), kubernetes: "v1.36.0+coracle".into() },
        control_plane: ControlPlane {
            kubeconfig: Some("/d/kubeconfig".to_owned()),
            server: Some("https://127.0.0.1:6443".to_owned()),
            version: Some("v1.36.0+coracle".to_owned()),
            checks: vec![ReadyCheck { name: "ping".to_owned(), passes: true }],
            store: Some("embedded, in /d/store".to_owned()),
            ..ControlPlane::default()
        },
        process: Some(ProcessFacts { pid: 7, running_seconds: 90, memory_bytes: 100 << 20 }),
        addresses: Addresses { registry: Some("127.0.0.1:5000".to_owned()), ..Addresses::default() },
        nodes: Some(Section::Read(vec![node("coracle-1")])),
        workloads: Some(Section::Read(Workloads {
            pods: BTreeMap::from([("Running".to_owned(), 3)]),
            ..Workloads::default()
        })),
        data_folder: Some(DiskUse {
            folder: PathBuf::from("/d"),
            parts: PartBytes { store: 1 << 20, ..PartBytes::default() },
            truncated: false,
            free_bytes: Some(50 << 30),
            total_bytes: Some(100 << 30),
            eviction_bytes: Some(1 << 30),
        }),
        certificates: vec![certificate],
    }
}

fn problems(report: &StatusReport) -> Vec<(String, String)> {
    let data = DataDir::at(PathBuf::from("/my d"));
    find(report, Some(&data), None).into_iter().map(|problem| (problem.message, problem.next)).collect()
}

#[test]
fn a_healthy_cluster_has_no_problems_and_all_parts() {
    let report = healthy();
    assert_eq!(problems(&report), []);
    let text = format(&report);
    for line in [
        "The cluster runs.",
        "  server          https://127.0.0.1:6443",
        "  /readyz         1 checks pass",
        "  process         7, for 1 min, 100.0 MiB of memory",
        "Nodes: 1 of 1 ready",
        "  coracle-1   Ready    v1.36.0+coracle   127.0.0.1   3 of 2000   120m of 2   64.0 MiB of 3.0 GiB",
        "  registry        127.0.0.1:5000",
        "Pods: 3 Running",
        "Data folder: 1.0 MiB in /d",
        "  free             50.0 GiB of 100.0 GiB (pods are evicted below 1.0 GiB)",
        "  pki/ca.crt    2036-01-01   3650",
        "No problems.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn a_cluster_that_does_not_run_has_the_command_that_starts_it() {
    let with = |state, process: Option<ProcessFacts>| StatusReport {
        state,
        process,
        control_plane: ControlPlane { error: Some("refused".to_owned()), ..ControlPlane::default() },
        nodes: None,
        workloads: None,
        ..healthy()
    };
    let of = |report: &StatusReport| problems(report).remove(0);
    let stopped = with(ClusterState::Stopped, None);
    let start = "coracle up --data-dir '/my d'".to_owned();
    assert_eq!(of(&stopped), ("the cluster of /my d is stopped".to_owned(), start.clone()));
    assert!(format(&stopped).contains("The cluster is stopped.") && format(&stopped).contains("Data folder: 1.0 MiB"));
    assert_eq!(of(&with(ClusterState::Absent, None)), ("no cluster has run in /my d".to_owned(), start));
    let service = DataDir::at(PathBuf::from("/var/lib/coracle/up"));
    assert_eq!(find(&stopped, Some(&service), None)[0].next, "sudo systemctl start coracle");
    let busy = of(&with(ClusterState::Unreachable, healthy().process)).0;
    assert!(busy.starts_with("process 7 has the data folder /my d") && busy.ends_with("refused"), "{busy}");
    assert_eq!(of(&with(ClusterState::Unreachable, None)).0, "the API server doesn't answer: refused");
    let data = DataDir::at(PathBuf::from("/n"));
    let node = find(&with(ClusterState::Absent, None), Some(&data), Some(&Elsewhere::OfNode)).remove(0);
    let other = Elsewhere::OfService("/var/lib/coracle/up".into());
    let other = find(&with(ClusterState::Absent, None), Some(&data), Some(&other)).remove(0);
    assert_eq!(other.next, "sudo coracle status --data-dir /var/lib/coracle/up");
    assert!(node.message.contains("data folder of a node") && node.next.contains("--kubeconfig"), "{node:?}");
}

#[test]
fn each_part_has_its_problem() {
    let mut report = healthy();
    report.control_plane.checks.push(ReadyCheck { name: "etcd".to_owned(), passes: false });
    let lost = NodeRow { ready: false, reason: Some("gone".to_owned()), ..node("a") };
    let full = NodeRow { pressures: vec!["DiskPressure".to_owned()], ..node("b") };
    let cordoned = NodeRow { cordoned: true, ..node("c") };
    report.nodes = Some(Section::Read(vec![lost, full, cordoned]));
    let row = |kind, reason: &str| NotReady {
        namespace: "shop".to_owned(),
        kind,
        name: "web".to_owned(),
        reason: reason.to_owned(),
        message: "a\nb".to_owned(),
    };
    report.workloads = Some(Section::Read(Workloads {
        pods_not_ready: vec![row("Pod", "CrashLoopBackOff")],
        pods_not_ready_count: 4,
        not_ready: vec![row("Deployment", "1 of 2 ready")],
        not_ready_count: 1,
        truncated: true,
        ..Workloads::default()
    }));
    let disk = report.data_folder.as_mut().unwrap();
    disk.free_bytes = Some(1 << 20);
    report.certificates[0].days_left = -1;
    let found = problems(&report);
    let messages: Vec<&str> = found.iter().map(|(message, _)| message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "the API server isn't ready: etcd",
            "node a isn't ready: gone",
            "node b reports DiskPressure",
            "node c takes no new pods: it is cordoned",
            "4 pods aren't ready",
            "1 workload isn't ready",
            "/d has 1.0 MiB free; below 1.0 GiB nodes evict pods",
            "the certificate pki/ca.crt has expired (2036-01-01T00:00:00Z)",
        ]
    );
    assert_eq!(found[4].1, "kubectl -n shop logs web --previous");
    assert_eq!(found[5].1, "kubectl -n shop describe deployment web");
    let text = format(&report);
    assert!(text.contains("  shop        pod/web     CrashLoopBackOff   a…\n  and 3 more"), "{text}");
    assert!(text.contains("not counted in time") && text.contains("1 of 2 checks fail: etcd"), "{text}");
}

#[test]
fn a_user_without_rights_sees_why() {
    let mut report = healthy();
    report.nodes = Some(Section::Forbidden("nodes is forbidden\u{1b}[2J".to_owned()));
    report.workloads = Some(Section::Failed("no answer within 5 s".to_owned()));
    assert_eq!(
        problems(&report),
        [("a part can't be read: no answer within 5 s".to_owned(), "repeat the command".to_owned())]
    );
    let text = format(&report);
    assert!(text.contains("Nodes: not allowed (nodes is forbidden?[2J)"), "{text}");
    assert!(text.contains("Workloads: not read (no answer within 5 s)"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["nodes"]["forbidden"], "nodes is forbidden\u{1b}[2J");
    assert_eq!(json["state"], "running");
    assert_eq!(json["dataFolder"]["parts"]["compiledModules"], 0);
}
