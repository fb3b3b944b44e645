//! Each check, from facts to findings.

use std::path::PathBuf;

use wasm_runtime::engine::PoolCapacity;

use super::checks::{CHECKS, CheckResult, Level};
use super::facts::{ClockFacts, Facts, FileMode, FolderFacts, Kubectl, MachineFacts, PortState, ToolFacts};
use super::report::DoctorReport;
use crate::inspection::certificates::CertificateEnd;
use crate::inspection::disk::DiskSpace;

/// A machine on which all is well.
fn well() -> Facts {
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    Facts {
        machine: MachineFacts {
            descriptor_shortage: None,
            api_address: "127.0.0.1:6443".parse().unwrap(),
            api_port: PortState::Free,
            http_port: Some(PortState::Free),
            unprivileged_port_start: Some(80),
            pool: PoolCapacity {
                live: 1000,
                live_max: 1000,
                is_pooled: true,
                mappings: Some(65_530),
                mappings_needed: 24_000,
                error: None,
            },
            overcommit: Some(0),
            memory_bytes: Some(4 << 30),
            memory_limit_bytes: None,
            free_blocks: Some(47),
        },
        clock: ClockFacts {
            now,
            built_at: Some("2026-05-01T00:00:00Z".parse().unwrap()),
            server_time: Some(now),
            authority_since: Some("2026-05-02T00:00:00Z".parse().unwrap()),
            synchronized: Some(true),
        },
        folder: FolderFacts {
            path: PathBuf::from("/d"),
            disk: Some(DiskSpace { total_bytes: 100 << 30, free_bytes: 50 << 30, eviction_bytes: Some(1 << 30) }),
            modes: Some(vec![FileMode { path: PathBuf::from("/d"), mode: 0o700, is_folder: true }]),
            error: None,
            certificates: vec![certificate(300)],
            is_running: false,
            leftover_socket: None,
        },
        tools: ToolFacts {
            kubeconfig: Some(PathBuf::from("/d/kubeconfig")),
            kubeconfig_variable: vec![PathBuf::from("/d/kubeconfig")],
            kubectl: Kubectl::Version("v1.36.2".to_owned()),
        },
    }
}

fn certificate(days_left: i64) -> CertificateEnd {
    CertificateEnd {
        file: "pki/apiserver.crt".to_owned(),
        not_before: "2026-01-01T00:00:00Z".parse().unwrap(),
        not_after: "2027-01-01T00:00:00Z".parse().unwrap(),
        days_left,
        begins_later: false,
    }
}

/// The result of one check after a change of the facts.
fn result(check: &str, change: impl FnOnce(&mut Facts)) -> CheckResult {
    let mut facts = well();
    change(&mut facts);
    let check = CHECKS.iter().find(|one| one.name == check).unwrap();
    (check.run)(&facts)
}

/// Level, message and command of the only finding.
fn finding(check: &str, change: impl FnOnce(&mut Facts)) -> (Level, String, String) {
    match result(check, change) {
        CheckResult::Findings(findings) if findings.len() == 1 => {
            let finding = findings.into_iter().next().unwrap();
            (finding.level, finding.message, finding.fix)
        }
        other => panic!("{check}: {other:?}"),
    }
}

#[track_caller]
fn expect(check: &str, level: Level, parts: [&str; 2], change: impl FnOnce(&mut Facts)) {
    let (found, message, fix) = finding(check, change);
    assert_eq!(found, level, "{message}");
    assert!(message.contains(parts[0]) && fix.contains(parts[1]), "{message}: {fix}");
}

#[test]
fn nothing_is_found_where_all_is_well() {
    let report = DoctorReport::of(&well());
    let passed = |check: &super::report::CheckReport| matches!(check.result, CheckResult::Passed(_));
    assert!(report.healthy && report.checks.iter().all(passed), "{report:?}");
    assert!(report.text().contains("ok       open-files       the limit is ample\n"), "{}", report.text());
    assert!(report.text().ends_with("\n0 errors, 0 warnings\n"));
}

#[test]
fn names_are_unique_and_documented() {
    let names: std::collections::BTreeSet<&str> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(names.len(), CHECKS.len());
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md")).unwrap();
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "docs/operations.md lists the check {name}");
    }
}

#[test]
fn limits_of_the_machine_are_found() {
    expect("open-files", Level::Warning, ["few", "65536"], |facts| {
        facts.machine.descriptor_shortage = Some("few files".to_owned());
    });
    expect("memory-limit", Level::Warning, ["1.0 GiB of the machine's 4.0 GiB", "MemoryMax"], |facts| {
        facts.machine.memory_limit_bytes = Some(1 << 30);
    });
    let small = |facts: &mut Facts| facts.machine.pool.live = 100;
    expect("instance-pool", Level::Warning, ["100 guest instances at once instead of 1000", "ulimit -v"], small);
    expect("instance-pool", Level::Warning, ["8000 memory mappings, and 24000", "vm.max_map_count"], |facts| {
        small(facts);
        facts.machine.pool.mappings = Some(8000);
    });
    expect("instance-pool", Level::Warning, ["Cannot allocate", "vm.overcommit_memory=0"], |facts| {
        facts.machine.pool.is_pooled = false;
        facts.machine.pool.error = Some("Cannot allocate memory".to_owned());
        facts.machine.overcommit = Some(2);
    });
    expect("address-blocks", Level::Error, ["all blocks", "--service-cidr"], |facts| {
        facts.machine.free_blocks = Some(0)
    });
    expect("address-blocks", Level::Info, ["2 blocks", "ss -ltnp"], |facts| facts.machine.free_blocks = Some(2));
}

#[test]
fn ports_are_found() {
    let state = |state: PortState| move |facts: &mut Facts| facts.machine.api_port = state;
    expect("api-port", Level::Error, ["127.0.0.1:6443 is in use by another", "--port 0"], state(PortState::Taken));
    expect("api-port", Level::Error, ["may not listen", "above 1023"], state(PortState::Forbidden));
    expect("api-port", Level::Error, ["no such address", "--bind"], state(PortState::Failed("no such address".into())));
    let own = result("api-port", |facts| {
        facts.machine.api_port = PortState::Taken;
        facts.folder.is_running = true;
    });
    assert!(matches!(&own, CheckResult::Passed(what) if what.contains("runs")), "{own:?}");
    let any = result("api-port", |facts| facts.machine.api_address.set_port(0));
    assert!(matches!(any, CheckResult::Passed(_)));
    let http = |state: PortState| move |facts: &mut Facts| facts.machine.http_port = Some(state);
    expect("http-port", Level::Warning, ["below 80", "ip_unprivileged_port_start=80"], http(PortState::Forbidden));
    expect("http-port", Level::Warning, ["port 80 of all addresses", "bind it to one"], http(PortState::Taken));
    expect("http-port", Level::Warning, ["down", "ip link set lo up"], http(PortState::Failed("down".into())));
}

#[test]
fn a_wrong_clock_is_found() {
    let now = |text: &'static str| {
        move |facts: &mut Facts| {
            facts.clock.now = text.parse().unwrap();
            facts.clock.server_time = None;
        }
    };
    expect("clock", Level::Error, ["certificates are valid from 2026-05-02", ""], now("2026-05-01T12:00:00Z"));
    let both = result("clock", now("2020-01-01T00:00:00Z"));
    assert!(matches!(&both, CheckResult::Findings(findings) if findings.len() == 2), "{both:?}");
    for (server, level, text) in [
        ("2026-05-31T23:59:50Z", Level::Warning, "10 s ahead of"),
        ("2026-06-01T00:10:00Z", Level::Error, "600 s behind"),
    ] {
        expect("clock", level, [text, ""], |facts| facts.clock.server_time = Some(server.parse().unwrap()));
    }
    let close = result("clock", |facts| facts.clock.server_time = Some("2026-06-01T00:00:05Z".parse().unwrap()));
    assert!(matches!(close, CheckResult::Passed(_)));
    expect("clock-sync", Level::Warning, ["no time service", ""], |facts| facts.clock.synchronized = Some(false));
}

#[test]
fn the_data_folder_s_state_is_found() {
    let free = |free_bytes: u64| move |facts: &mut Facts| facts.folder.disk.as_mut().unwrap().free_bytes = free_bytes;
    expect("disk", Level::Error, ["1.0 MiB free: below 1.0 GiB nodes evict pods", "--data-dir"], free(1 << 20));
    expect("disk", Level::Warning, ["1.5 GiB free, and nodes evict", "--data-dir"], free(3 << 29));
    expect("permissions", Level::Error, ["/d/my kubeconfig (mode 644)", "chmod 600 '/d/my kubeconfig'"], |facts| {
        let file = FileMode { path: PathBuf::from("/d/my kubeconfig"), mode: 0o644, is_folder: false };
        facts.folder.modes = Some(vec![file]);
    });
    expect("permissions", Level::Error, ["/d can't be read: denied", "chown"], |facts| {
        facts.folder.error = Some("denied".to_owned());
    });
    let certificates = |days: i64| move |facts: &mut Facts| facts.folder.certificates = vec![certificate(days)];
    expect("certificates", Level::Warning, ["ends in 29 days", "renews"], certificates(29));
    expect("certificates", Level::Error, ["has expired", "renews"], certificates(-1));
    expect("certificates", Level::Error, ["not valid before 2026-01-01", "clock"], |facts| {
        facts.folder.certificates = vec![CertificateEnd { begins_later: true, ..certificate(764) }];
    });
    expect("sockets", Level::Info, ["left from a process", "rm /d/control"], |facts| {
        facts.folder.leftover_socket = Some(PathBuf::from("/d/control"));
    });
}

#[test]
fn tools_are_found() {
    expect("kubeconfig", Level::Warning, ["/other, which is not", "export KUBECONFIG=/d/kubeconfig"], |facts| {
        facts.tools.kubeconfig_variable = vec![PathBuf::from("/other")];
    });
    expect("kubeconfig", Level::Info, ["not set", "export KUBECONFIG=/d/kubeconfig"], |facts| {
        facts.tools.kubeconfig_variable.clear();
    });
    let kubectl = |found: Kubectl| move |facts: &mut Facts| facts.tools.kubectl = found;
    expect("kubectl", Level::Warning, ["kubectl is v1.33.1", "v1.36"], kubectl(Kubectl::Version("v1.33.1".into())));
    expect("kubectl", Level::Warning, ["no JSON", "kubectl version"], kubectl(Kubectl::Failed("no JSON".into())));
    for near in ["v1.35.0", "v1.37.0", "v1.36.0-alpha"] {
        let near = result("kubectl", kubectl(Kubectl::Version(near.to_owned())));
        assert!(matches!(near, CheckResult::Passed(_)), "{near:?}");
    }
}

#[test]
fn unknown_facts_make_checks_inapplicable() {
    type Change = fn(&mut Facts);
    let changes: [(&str, Change); 9] = [
        ("http-port", |facts| facts.machine.http_port = None),
        ("memory-limit", |facts| facts.machine.memory_bytes = None),
        ("address-blocks", |facts| facts.machine.free_blocks = None),
        ("clock-sync", |facts| facts.clock.synchronized = None),
        ("disk", |facts| facts.folder.disk = None),
        ("permissions", |facts| facts.folder.modes = None),
        ("kubeconfig", |facts| facts.tools.kubeconfig = None),
        ("kubectl", |facts| facts.tools.kubectl = Kubectl::Absent),
        ("clock", |facts| {
            (facts.clock.built_at, facts.clock.server_time, facts.clock.authority_since) = (None, None, None);
        }),
    ];
    for (check, change) in changes {
        let found = result(check, change);
        assert!(matches!(found, CheckResult::NotApplicable(_)), "{check}: {found:?}");
    }
}

#[test]
fn errors_alone_are_unhealthy() {
    let mut facts = well();
    facts.tools.kubectl = Kubectl::Version("v1.20.0".to_owned());
    assert!(DoctorReport::of(&facts).healthy);
    facts.machine.api_port = PortState::Taken;
    let report = DoctorReport::of(&facts);
    assert!(!report.healthy && report.errors().count() == 1);
    let text = report.text();
    assert!(
        text.contains("error    api-port         the API server's address") && text.contains(" fix: stop"),
        "{text}"
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["checks"][1]["check"], "api-port");
    assert_eq!(json["checks"][1]["result"]["findings"][0]["level"], "error");
    assert_eq!(json["checks"][0]["result"]["passed"], "the limit is ample");
}
