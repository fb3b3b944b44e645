//! Rows of upstream's test tables (victims by node, chosen node), and properties of any preemption.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use machinery_api::ObjectKey;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Candidate, PreemptionArgs, PreemptionSearch, choose, find_candidates};
use crate::budget::Budget;
use crate::decide::{Decision, Nomination, decide};
use crate::diagnosis::Diagnosis;
use crate::plugins::{Args, Cycle, Filters, Profile};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::tests::{node, pod};

const NEGATIVE: i32 = -100;
const LOW: i32 = 0;
const MIDDLE: i32 = 100;
const HIGH: i32 = 1000;
const VERY_HIGH: i32 = 10_000;

fn priority(text: &str) -> i32 {
    match text {
        "neg" => NEGATIVE,
        "low" => LOW,
        "mid" => MIDDLE,
        "high" => HIGH,
        "very" => VERY_HIGH,
        other => panic!("{other}"),
    }
}

fn size(text: &str) -> &'static str {
    match text {
        "none" => "0",
        "small" => "100m",
        "medium" => "200m",
        "large" => "300m",
        "verylarge" => "500m",
        other => panic!("{other}"),
    }
}

/// Parses `NAME PRIORITY SIZE [START] [LABEL]…`, where a label is `KEY=VALUE`.
fn parsed(text: &str) -> PodInfo {
    let mut words = text.split(' ');
    let mut next = || words.next().unwrap();
    let (name, rank, size) = (next(), priority(next()), size(next()));
    let mut labels = json!({});
    let mut start = Value::Null;
    for word in words {
        match word.split_once('=') {
            Some((key, value)) => labels[key] = json!(value),
            None => start = json!(format!("2026-01-01T00:00:{word:0>2}Z")),
        }
    }
    pod(
        name,
        json!({"metadata": {"labels": labels}, "status": {"startTime": start},
            "spec": {"priority": rank, "containers": [{"name": "c", "resources": {"requests": {"cpu": size}}}]}}),
    )
}

/// Nodes of 500m, by name; pods as `NODE/POD, NODE/POD`.
fn cluster(nodes: &str, pods: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in nodes.split(' ').filter(|name| !name.is_empty()) {
        snapshot.set_node(node(name, json!({"status": {"allocatable": {"cpu": "500m"}}})));
    }
    for text in pods.split(", ").filter(|text| !text.is_empty()) {
        let (node, text) = text.split_once('/').unwrap();
        snapshot.put_pod(Arc::new(parsed(text)), node, false);
    }
    snapshot
}

fn budget(allowed: i32, disrupted: &[&str]) -> Budget {
    let going: serde_json::Map<String, Value> =
        disrupted.iter().map(|pod| ((*pod).to_owned(), json!("2026-01-01T00:00:00Z"))).collect();
    let budget: PodDisruptionBudget = serde_json::from_value(json!({
        "metadata": {"name": "b", "namespace": "default"}, "spec": {"selector": {"matchLabels": {"app": "foo"}}},
        "status": {"disruptionsAllowed": allowed, "disruptedPods": going, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    }))
    .unwrap();
    Budget::of(&budget).unwrap()
}

fn found(snapshot: &Snapshot, pod: &PodInfo, preemption: PreemptionArgs, seed: u64) -> PreemptionSearch {
    let profile = Profile { args: Arc::new(Args { preemption, ..Args::default() }), ..Profile::default() };
    let cycle = Cycle { pod, snapshot, args: &profile.args, seed };
    let mut filters = Filters::of(cycle, &profile).unwrap();
    let mut diagnosis = Diagnosis::default();
    for node in snapshot.nodes() {
        if let Err((plugin, refusal)) = filters.fits(node) {
            diagnosis.count(node.id, plugin, refusal);
        }
    }
    let found = find_candidates(cycle, &mut filters, &diagnosis);
    for node in snapshot.nodes() {
        assert_eq!(filters.fits(node).is_err(), diagnosis.resolvable.contains(&node.id), "all are back");
    }
    found
}

/// Formats candidates as `NODE: VICTIM VICTIM [violations]`.
fn reported(found: PreemptionSearch) -> Vec<String> {
    let PreemptionSearch::Candidates(candidates) = found else { return Vec::new() };
    let text = |candidate: Candidate| {
        let names: Vec<&str> = candidate.victims.iter().map(|pod| pod.key.name.as_str()).collect();
        format!("{}: {} [{}]", candidate.node, names.join(" "), candidate.violations)
    };
    let mut all: Vec<String> = candidates.into_iter().map(text).collect();
    all.sort();
    all
}

/// A pod, nodes, existing pods, a budget, and the expected victims.
type Row = (&'static str, &'static str, &'static str, Option<(i32, &'static [&'static str])>, &'static [&'static str]);

const FOO: &str = "n1/p1.1 mid medium app=foo, n1/p1.2 mid medium app=foo";
const FOO_THRICE: &str = "n1/p1.1 mid medium app=foo, n1/p1.2 mid medium app=foo, n1/p1.3 mid medium app=foo";
const FOO_AND_OTHER: &str = "n1/p1.1 mid medium app=foo, n1/p1.2 mid medium app=foo, n1/p1.3 mid small";
const MIXED: &str = "n1/p1.1 mid small, n1/p1.2 low small, n1/p1.3 mid medium, n1/p1.4 high small, n2/p2 high large";
const MIXED_STARTS: &str =
    "n1/p1.1 low small 5, n1/p1.2 low small 4, n1/p1.3 mid medium 3, n1/p1.4 high small 2, n2/p2 high large 1";

/// `TestDryRunPreemption`.
#[test]
fn victims_are_listed_by_node() {
    let rows: &[Row] = &[
        ("p high large", "n1 n2", "n1/p1 mid large, n2/p2 mid large", None, &["n1: p1 [0]", "n2: p2 [0]"]),
        ("p low large", "n1 n2", "n1/p1 mid large, n2/p2 mid large", None, &[]),
        (
            "p high large",
            "n1 n2",
            "n1/p1.1 low small, n1/p1.2 mid large, n2/p2 mid large",
            None,
            &["n1: p1.2 [0]", "n2: p2 [0]"],
        ),
        ("p high large", "n1 n2", MIXED, None, &["n1: p1.3 p1.2 [0]"]),
        ("p high large", "n1 n2", MIXED_STARTS, None, &["n1: p1.3 p1.1 [0]"]),
        ("p high verylarge", "n1", FOO, Some((1, &[])), &["n1: p1.1 p1.2 [1]"]),
        ("p high verylarge", "n1", FOO, Some((1, &["p2"])), &["n1: p1.1 p1.2 [1]"]),
        ("p high verylarge", "n1", FOO, Some((1, &["p1.2"])), &["n1: p1.1 p1.2 [0]"]),
        ("p high verylarge", "n1", FOO_THRICE, Some((1, &["p1.3"])), &["n1: p1.1 p1.2 p1.3 [1]"]),
        // The pod with a budget is reprieved first.
        ("p high large", "n1", FOO_AND_OTHER, Some((1, &[])), &["n1: p1.1 p1.3 [0]"]),
    ];
    for (preemptor, nodes, pods, held, expected) in rows {
        let mut snapshot = cluster(nodes, pods);
        if let Some((allowed, disrupted)) = held {
            snapshot.budgets.insert(ObjectKey::new("default", "b"), budget(*allowed, disrupted));
        }
        assert_eq!(reported(found(&snapshot, &parsed(preemptor), PreemptionArgs::default(), 0)), *expected, "{pods}");
    }
}

/// The same table's rows about the number of candidates, from an offset on.
#[test]
fn how_many_candidates_are_looked_for() {
    let args = |absolute| PreemptionArgs { min_candidate_nodes_percentage: 40, min_candidate_nodes_absolute: absolute };
    let preemptor = parsed("p high large");
    let of = |pods: &str, absolute, seed| {
        let mut snapshot = cluster("n1 n2 n3 n4 n5", pods);
        snapshot.budgets.insert(ObjectKey::new("default", "b"), budget(0, &[]));
        reported(found(&snapshot, &preemptor, args(absolute), seed))
    };
    let all = "n1/p1 mid large, n2/p2 mid large, n3/p3 mid large, n4/p4 mid large, n5/p5 mid large";
    assert_eq!(of(all, 1, 4), ["n1: p1 [0]", "n5: p5 [0]"]);
    assert_eq!(of(all, 1, 1), ["n2: p2 [0]", "n3: p3 [0]"]);
    assert_eq!(of(all, 1, 3), ["n4: p4 [0]", "n5: p5 [0]"]);
    let some = "n1/p1 mid large, n2/p2 very large, n3/p3 mid large, n4/p4 mid large, n5/p5 very large";
    assert_eq!(of(some, 1, 4), ["n1: p1 [0]", "n3: p3 [0]"]);
    // The search goes beyond the number until a candidate violates no budget.
    let held = "n1/p1 mid large app=foo, n2/p2 mid large app=foo, n3/p3 mid large, n4/p4 mid large, \
        n5/p5 mid large app=foo";
    assert_eq!(of(held, 2, 4), ["n1: p1 [1]", "n3: p3 [0]", "n5: p5 [1]"]);
}

/// `TestSelectBestCandidate`: a pod, existing pods, and the chosen node.
const CHOICES: &[(&str, &str, &str)] = &[
    (
        "p high verylarge",
        "n1/a mid medium 1, n1/b mid large 1, n2/c mid medium 1, n2/d low medium 1, n3/e low medium 1, n3/f low medium 1",
        "n3",
    ),
    (
        "p high verylarge",
        "n1/a mid medium 1, n1/b mid large 1, n2/c mid large 1, n2/d low medium 1, n3/e mid medium 1, n3/f mid medium 1",
        "n2",
    ),
    (
        "p high verylarge",
        "n1/a mid small 1, n1/b neg small 1, n1/c mid small 1, n1/d neg small 1, n2/e mid large 1, n2/f neg medium 1, \
            n3/g mid medium 1, n3/h neg small 1, n3/i low small 1",
        "n2",
    ),
    (
        "p high verylarge",
        "n1/a mid small 1, n1/b neg small 1, n1/c neg small 1, n2/e mid large 1, n2/f neg medium 1, \
            n3/g mid medium 1, n3/h neg small 1, n3/i low small 1",
        "n2",
    ),
    (
        "p very verylarge",
        "n1/a mid small 1, n1/b low small 1, n1/c low small 1, n2/d high large 1, n3/e mid medium 1, n3/f low small 1, \
            n3/g low small 1, n3/h low medium 1, n4/i mid medium 1, n4/j mid small 1, n4/k mid small 1, n4/l neg small 1",
        "n1",
    ),
    (
        "p high verylarge",
        "n1/a mid medium 2, n1/b mid medium 2, n2/c mid medium 3, n2/d mid medium 3, n3/e mid medium 1, n3/f mid medium 1",
        "n2",
    ),
    (
        "p high verylarge",
        "n1/a mid medium 4, n1/b mid medium 2, n2/c mid medium 5, n2/d mid medium 1, n3/e mid medium 3, n3/f mid medium 6",
        "n3",
    ),
    (
        "p high verylarge",
        "n1/a low medium 4, n1/b mid medium 2, n2/c mid medium 6, n2/d low medium 1, n3/e low medium 3, n3/f mid medium 5",
        "n2",
    ),
];

#[test]
fn which_node_is_chosen() {
    for (preemptor, pods, expected) in CHOICES {
        let names: BTreeSet<&str> = pods.split(", ").map(|text| text.split_once('/').unwrap().0).collect();
        let snapshot = cluster(&names.into_iter().collect::<Vec<_>>().join(" "), pods);
        for seed in 0..5 {
            let found = found(&snapshot, &parsed(preemptor), PreemptionArgs::default(), seed);
            let PreemptionSearch::Candidates(candidates) = found else { panic!("{pods}") };
            assert_eq!(choose(&candidates).unwrap().node, *expected, "{pods}");
        }
    }
}

fn decided(snapshot: &Snapshot, pod: &PodInfo) -> (String, Nomination, Vec<String>) {
    match decide(snapshot, pod, &Profile::default(), 0, 0) {
        Decision::Node { name, .. } => (format!("goes to {name}"), Nomination::Keep, Vec::new()),
        Decision::Unschedulable { message, nomination, victims, .. } => {
            (message, nomination, victims.iter().map(|pod| pod.key.name.clone()).collect())
        }
    }
}

/// `TestPostFilter`, through the whole decision.
#[test]
fn an_unschedulable_pod_preempts_others_or_gets_the_reason() {
    let rows: &[[&str; 5]] = &[
        ["p high large", "n1", "n1/p1 low large", "0/1 nodes are available: 1 Insufficient cpu.", "n1 p1"],
        [
            "p low large",
            "n1",
            "n1/p1 low large",
            "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
            "clear",
        ],
        [
            "p mid large",
            "n1 n2",
            "n1/p1 high large, n2/p2 low large",
            "0/2 nodes are available: 2 Insufficient cpu.",
            "n2 p2",
        ],
        [
            "p high verylarge",
            "n1 n2 n3",
            "n1/a high large, n2/b low small, n2/c high small, n3/d high small",
            "preemption: 0/3 nodes are available: 1 Insufficient cpu, 2 No preemption victims found for incoming pod.",
            "clear",
        ],
    ];
    for [preemptor, nodes, pods, says, what] in rows {
        let (message, nomination, victims) = decided(&cluster(nodes, pods), &parsed(preemptor));
        assert!(message.ends_with(says), "{message}");
        let got = match nomination {
            Nomination::Keep => "keep".to_owned(),
            Nomination::Clear => "clear".to_owned(),
            Nomination::Node(node) => format!("{node} {}", victims.join(" ")),
        };
        assert_eq!(got, *what, "{pods}");
    }
}

/// `TestPodEligibleToPreemptOthers`.
#[test]
fn a_pod_waits_for_those_that_are_going_for_it() {
    let going = |reason: &str| {
        let mut pod = parsed("p1 low large");
        (pod.terminating, pod.preempted) = (true, reason == "PreemptionByScheduler");
        pod
    };
    let case = |terminating: PodInfo, cordoned: bool, nominated: Option<&str>| {
        let mut snapshot = cluster("", "");
        let facts = json!({"status": {"allocatable": {"cpu": "500m"}}, "spec": {"unschedulable": cordoned}});
        snapshot.set_node(node("n1", facts));
        snapshot.set_node(node("n2", json!({"status": {"allocatable": {"cpu": "500m"}}})));
        snapshot.put_pod(Arc::new(terminating), "n1", false);
        snapshot.put_pod(Arc::new(parsed("p2 mid large")), "n2", false);
        let waiting = PodInfo { nominated: nominated.map(Arc::from), ..parsed("p high large") };
        decided(&snapshot, &waiting)
    };
    let (message, nomination, victims) = case(going("PreemptionByScheduler"), false, Some("n1"));
    assert!(message.ends_with("preemption: not eligible due to a terminating pod on the nominated node."), "{message}");
    assert_eq!((nomination, victims.len()), (Nomination::Keep, 0));
    // Terminating for another reason; no preemption for this pod; or preemption no longer helps on the node.
    assert_eq!(case(going("DeletionByTaintManager"), false, Some("n1")).2.len(), 1);
    assert_eq!(case(going("PreemptionByScheduler"), false, None).2.len(), 1);
    assert_eq!(case(going("PreemptionByScheduler"), true, Some("n1")).2, ["p2"]);
}

/// Only pods of higher priority take the place of a nominated pod; the pod itself is scheduled there.
#[test]
fn nominated_pods_count() {
    let mut snapshot = cluster("n1", "");
    let waiting = Arc::new(parsed("waiting mid large"));
    snapshot.nominated.set(waiting.clone(), "n1");
    assert!(decided(&snapshot, &parsed("p low large")).0.contains("1 Insufficient cpu"));
    assert!(decided(&snapshot, &parsed("p mid large")).0.contains("1 Insufficient cpu"));
    assert_eq!(decided(&snapshot, &parsed("p low medium")).0, "goes to n1");
    assert_eq!(decided(&snapshot, &parsed("p high large")).0, "goes to n1");
    assert_eq!(decided(&snapshot, &waiting).0, "goes to n1");
    // The nominated node comes first, though others are emptier.
    for name in ["n0", "n2"] {
        snapshot.set_node(node(name, json!({})));
    }
    assert_eq!(decided(&snapshot, &waiting).0, "goes to n1");
    // Resources for one nominated pod are not available to another: that one needs one more victim.
    let mut snapshot = cluster("n1", "n1/a low medium, n1/b low medium");
    snapshot.nominated.set(Arc::new(parsed("first mid medium")), "n1");
    assert_eq!(decided(&snapshot, &parsed("second mid medium")).2, ["a", "b"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Without the victims the pod fits the nominated node, and with any of them it doesn't. All victims have a lower
    /// priority. The same cluster gives the same victims.
    #[test]
    fn victims_are_enough_and_none_is_too_many(
        pods in proptest::collection::vec((0u8..4, 0i32..4, 1u8..5, 0u8..9, any::<bool>()), 0..24),
        rank in 0i32..5, cpu in 1u8..8, allowed in 0i32..3, seed in any::<u64>(),
    ) {
        let names = ["n0", "n1", "n2", "n3"];
        let mut snapshot = Snapshot::default();
        for name in names {
            snapshot.set_node(node(name, json!({"status": {"allocatable": {"cpu": "8"}}})));
        }
        let asking = |cpu: u8| json!([{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]);
        for (nth, (on, rank, cpu, start, held)) in pods.iter().enumerate() {
            let labels = if *held { json!({"app": "foo"}) } else { json!({}) };
            let made = json!({"metadata": {"labels": labels}, "spec": {"priority": rank, "containers": asking(*cpu)},
                "status": {"startTime": format!("2026-01-01T00:00:0{start}Z")}});
            let name = names[usize::from(*on)];
            if snapshot.node(name).unwrap().free().cpu_milli >= i64::from(*cpu) * 1000 {
                snapshot.put_pod(Arc::new(pod(&format!("p{nth}"), made)), name, false);
            }
        }
        snapshot.budgets.insert(ObjectKey::new("default", "b"), budget(allowed, &[]));
        let new = pod("new", json!({"spec": {"priority": rank, "containers": asking(cpu)}}));
        let decision = decide(&snapshot, &new, &Profile::default(), 0, seed);
        prop_assert_eq!(&decision, &decide(&snapshot, &new, &Profile::default(), 0, seed));
        let Decision::Unschedulable { nomination, victims, .. } = decision else { return Ok(()) };
        let Nomination::Node(node) = nomination else {
            // No node has enough pods of lower priority.
            for node in snapshot.nodes() {
                let lower = node.pods.values().filter(|pod| pod.priority < rank).map(|p| p.requirements.requests.cpu_milli);
                prop_assert!(node.free().cpu_milli + lower.sum::<i64>() < i64::from(cpu) * 1000);
            }
            return Ok(());
        };
        let free = snapshot.node(&node).unwrap().free().cpu_milli;
        let freed: i64 = victims.iter().map(|pod| pod.requirements.requests.cpu_milli).sum();
        prop_assert!(free + freed >= i64::from(cpu) * 1000);
        for victim in &victims {
            prop_assert!(victim.priority < rank);
            prop_assert!(free + freed - victim.requirements.requests.cpu_milli < i64::from(cpu) * 1000);
        }
    }
}
