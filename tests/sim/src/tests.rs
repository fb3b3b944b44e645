//! The simulation's test cases.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cluster::Pace;
use crate::crowd::{Crowd, GROUP, crowd};
use crate::failover::{Failover, failover};
use crate::leaving::{JOBS, leaving};
use crate::rollouts::rollout;
use crate::run::run;
use crate::sabotage::Sabotage;

/// Seeds of every `cargo test`; four runs of `.ci/run` take 200.
const SEEDS: u64 = 50;
/// Log lines shown for a failure.
const TAIL: usize = 60;

#[expect(clippy::disallowed_methods, reason = "a test's own parameters, and no part of the program")]
fn parameter(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = parameter("SIM_SEED").and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    range("SIM_SEEDS").unwrap_or(0..SEEDS)
}

/// A parameter of the form `from..to`.
fn range(name: &str) -> Option<std::ops::Range<u64>> {
    let range = parameter(name)?;
    let (from, to) = range.split_once("..")?;
    Some(from.parse().ok()?..to.parse().ok()?)
}

/// Formats the violations of a seed, with the command to reproduce them.
fn describe(seed: u64, violations: &[String], log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    format!("seed {seed}: {}\n{tail}\nrun it again: SIM_SEED={seed} cargo test -p sim seeds", violations.join("\n"))
}

/// Runs seeds in all threads, and returns the failures.
fn run_all(seeds: std::ops::Range<u64>, run_seed: impl Fn(u64) -> Option<String> + Sync) -> Vec<String> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    // Each run has its own thread.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    if let Some(problem) = run_seed(seed) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn all_seeds_come_to_rest_and_break_no_rule() {
    let seeds = seeds();
    let shown = parameter("SIM_LOG");
    let failed = run_all(seeds.clone(), |seed| {
        let report = run(seed, Sabotage::None);
        if let Some(path) = &shown {
            std::fs::write(path, &report.log).expect("the log's file");
        }
        let first = report.violations.first()?;
        eprintln!("seed {seed}: {first}");
        Some(describe(seed, &report.violations, &report.log))
    });
    assert!(failed.is_empty(), "{} of {seeds:?} failed\n{}", failed.len(), failed.join("\n\n"));
}

/// docs/decisions/0082-fast-failover.md, without other faults: endpoints are gone within 2 s, and all replicas are
/// ready again within 5 s.
#[test]
fn a_dead_nodes_pods_are_elsewhere_in_five_seconds() {
    let mut worst = (Duration::ZERO, Duration::ZERO);
    for seed in 0..4 {
        let Failover { endpoints_gone, pods_back } = failover(seed, Pace::Fast);
        worst = (worst.0.max(endpoints_gone), worst.1.max(pods_back));
        assert!(endpoints_gone <= Duration::from_secs(2), "seed {seed}: endpoints are gone after {endpoints_gone:?}");
        assert!(pods_back <= Duration::from_secs(5), "seed {seed}: pods are ready after {pods_back:?}");
    }
    eprintln!("the slowest of four: endpoints are gone after {:?}, pods are ready after {:?}", worst.0, worst.1);
    let Failover { endpoints_gone, pods_back } = failover(0, Pace::Usual);
    assert!(endpoints_gone > Duration::from_secs(10) && pods_back > Duration::from_secs(20), "not by itself");
}

/// Orphaned dependents stay, whichever watch lags, and no finalizer of a deleted Job holds them.
#[test]
fn orphans_survive_slow_watches() {
    for seed in 0..3 {
        let (violations, stayed) = leaving(seed, Sabotage::None);
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        assert_eq!(stayed as u64, JOBS, "seed {seed}");
    }
    let stayed: u64 = (0..3).map(|seed| leaving(seed, Sabotage::CollectorIgnoresVersions).1 as u64).sum();
    assert!(stayed < 3 * JOBS, "orphans are lost to a collector that decides on an old view");
}

/// Seeds of rollouts of every `cargo test`; four runs of `.ci/run` take 200. `SIM_ROLLOUTS=39..40 SIM_LOG=file` for one and its log.
const ROLLOUTS: u64 = 50;

#[test]
fn rollouts_keep_to_their_strategies_while_controllers_die() {
    let seeds = range("SIM_ROLLOUTS").unwrap_or(0..ROLLOUTS);
    let failed = run_all(seeds.clone(), |seed| {
        let (problems, log) = rollout(seed, Sabotage::None);
        if let Some(path) = parameter("SIM_LOG") {
            std::fs::write(path, log).expect("the log's file");
        }
        (!problems.is_empty()).then(|| format!("rollout {seed}: {problems:#?}"))
    });
    assert!(failed.is_empty(), "{} of {seeds:?} failed\n{}", failed.len(), failed.join("\n"));
    let problems = run_all(0..8, |seed| Some(rollout(seed, Sabotage::UserMeddles).0.join("\n")));
    for rule in [
        "of the Deployment serve",
        "are asked for",
        "of the StatefulSet serve",
        "by the DaemonSet",
        "on each may be",
        " of the set's ",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(rule)), "nobody finds {rule:?}: {problems:#?}");
    }
}

/// Maximum requests per pod for creating a crowd with its dependents while components die, and for deleting it: 9 and 14 were
/// observed. The same for ten times as many pods: detects superlinear growth.
const REQUESTS_TO_COME: u64 = 20;
const REQUESTS_TO_GO: u64 = 20;
/// Requests independent of the crowd's size: heartbeats of nodes, and the first lists of each life of a component.
const REQUESTS_ALWAYS: u64 = 1000;

/// Pods of the crowd of every `cargo test`.
const PODS: u64 = 100;

/// `SIM_PODS=500` is 1,700 objects with their dependents. Its log is not reproducible byte for byte.
#[test]
fn a_crowd_comes_to_rest_and_goes() {
    let pods = parameter("SIM_PODS").and_then(|pods| pods.parse().ok()).unwrap_or(PODS);
    assert!(pods >= GROUP, "a crowd has one group of {GROUP} pods at least");
    let seed = parameter("SIM_SEED").and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let Crowd { violations, log, objects, requests, made, requests_gone, gone } = crowd(seed, pods / GROUP);
    if let Some(path) = parameter("SIM_LOG") {
        std::fs::write(path, &log).expect("the log's file");
    }
    eprintln!(
        "{pods} pods, {objects} objects: {requests} requests in {made:?}; half of it is gone: {requests_gone} in {gone:?}"
    );
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(requests <= REQUESTS_ALWAYS + REQUESTS_TO_COME * pods, "{requests} requests for {pods} pods");
    assert!(
        requests_gone <= REQUESTS_ALWAYS + REQUESTS_TO_GO * pods / 2,
        "{requests_gone} requests until {} pods are gone",
        pods / 2
    );
}

/// A sabotage, the first seed to try by the themes of seeds (all, volumes, loads, terms and grants, every other one each), and a
/// part of the finding.
const SABOTAGES: &[(u64, Sabotage, &str)] = &[
    (3, Sabotage::CacheMissesChange, "watch #"),
    (3, Sabotage::WatchDropsEvent, "this watch never said so"),
    (3, Sabotage::WatchDoublesEvent, "the client knows"),
    (75, Sabotage::SchedulerSeesNoRequests, "and room for"),
    (3, Sabotage::StoreForgets, "which was not committed"),
    (3, Sabotage::Without("deployment"), "is not observed"),
    (3, Sabotage::Without("garbage-collector"), "has lost all its owners"),
    (3, Sabotage::JobsCountTwice, "more have failed"),
    (3, Sabotage::JobsNameNone, "it is let go and not counted"),
    (15, Sabotage::QuotasForget, "pods, and there are"),
    (15, Sabotage::BudgetsForget, "pods are evicted, of"),
    (31, Sabotage::UserForces, "while it runs on"),
    (1, Sabotage::BinderTakesTaken, ", which is that of"),
    (1, Sabotage::VolumesGo, "it goes, and"),
    (1, Sabotage::SchedulerSeesNoPlaces, " is on node-"),
    (2, Sabotage::AutoscalerOversteps, "is to have 11 pods, of"),
    (26, Sabotage::AutoscalerIsHasty, "ms ago there was a load of"),
    (0, Sabotage::PoolForgets, "its address 192.0.2.240 is that of"),
    (0, Sabotage::Without("ttl-after-finished"), "has had its time"),
    (0, Sabotage::Without("token-cleaner"), "has had its time"),
    (11, Sabotage::Without("taint-eviction"), "still waits for the end of its toleration"),
    (11, Sabotage::OrphansForget, "was to be left behind"),
    (0, Sabotage::Without("ephemeral-volume"), "has no claim of its own"),
    (4, Sabotage::EverybodyIsSigned, "and nobody approved"),
    (4, Sabotage::Without("certificatesigningrequest-signing"), "is approved and has no certificate"),
    (4, Sabotage::Without("clusterrole-aggregation"), "is not the sum of its parts"),
    (60, Sabotage::Without("serviceaccount-token"), "has no token"),
    (12, Sabotage::Without("validatingadmissionpolicy-status"), "is not looked over"),
    (4, Sabotage::Without("service-cidr"), "/range-"),
    (4, Sabotage::Without("volumeattributesclass-protection"), "is not gone, and nobody uses it"),
];

/// Each sabotage does harm under some seed: a checker without a finding here checks nothing.
#[test]
fn broken_components_are_found() {
    let only = parameter("SIM_SABOTAGE");
    let missed = run_all(0..SABOTAGES.len() as u64, |row| {
        let (first, sabotage, found) = SABOTAGES[usize::try_from(row).expect("a row")];
        if only.as_ref().is_some_and(|only| !format!("{sabotage:?}").contains(only)) {
            return None;
        }
        let caught = (first..400)
            .step_by(4)
            .position(|seed| run(seed, sabotage).violations.iter().any(|what| what.contains(found)));
        eprintln!("{sabotage:?}: found by run {caught:?}");
        caught.is_none().then(|| format!("no seed shows {sabotage:?}"))
    });
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_log() {
    for seed in [3, 7] {
        let (first, second) = (run(seed, Sabotage::None).log, run(seed, Sabotage::None).log);
        if first != second {
            let differ = first.lines().zip(second.lines()).position(|(a, b)| a != b).unwrap_or(0);
            let around = |log: &str| log.lines().skip(differ.saturating_sub(5)).take(8).collect::<Vec<_>>().join("\n");
            panic!("seed {seed} differs at line {differ}:\n{}\n---\n{}", around(&first), around(&second));
        }
    }
}
