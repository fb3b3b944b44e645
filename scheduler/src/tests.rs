//! Decisions as data: nodes and pods as input, a node or upstream's message as output; and invariants of any decision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use machinery_api::ObjectKey;
use machinery_client::pod::{Pod, PodSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::decide::{Decision, Nomination, decide, num_feasible_nodes};
use crate::diagnosis::Diagnosis;
use crate::node::NodeFacts;
use crate::plugins::{Cycle, Filters, Plugin, PostFilterResult, Profile, ScoringStrategy, plugin};
use crate::pod::PodInfo;
use crate::resources::requests;
use crate::snapshot::Snapshot;

pub(crate) fn node(name: &str, merge: Value) -> NodeFacts {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "8", "memory": "16Gi", "ephemeral-storage": "100Gi", "pods": "110"}},
    });
    merge_into(&mut node, merge);
    NodeFacts::of(&serde_json::from_value::<core::Node>(node).unwrap())
}

pub(crate) fn pod(name: &str, merge: Value) -> PodInfo {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "x"}]},
    });
    merge_into(&mut pod, merge);
    PodInfo::of(&serde_json::from_value::<Pod>(pod).unwrap())
}

fn merge_into(base: &mut Value, merge: Value) {
    match (base, merge) {
        (Value::Object(base), Value::Object(merge)) => {
            for (key, value) in merge {
                merge_into(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, merge) => *base = merge,
    }
}

fn asking(resources: Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "image": "x", "resources": {"requests": resources}}]}})
}

fn cluster(nodes: Vec<NodeFacts>, placed: Vec<(PodInfo, &str)>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for facts in nodes {
        snapshot.set_node(facts);
    }
    for (pod, node) in placed {
        snapshot.put_pod(Arc::new(pod), node, false);
    }
    snapshot
}

fn place(snapshot: &mut Snapshot, pod: PodInfo, seed: u64) -> Option<String> {
    match decide(snapshot, &pod, &Profile::default(), 0, seed) {
        Decision::Node { name, .. } => {
            snapshot.put_pod(Arc::new(pod), &name, true);
            Some(name)
        }
        Decision::Unschedulable { .. } => None,
    }
}

fn message(snapshot: &Snapshot, pod: &PodInfo) -> String {
    match decide(snapshot, pod, &Profile::default(), 0, 0) {
        Decision::Node { name, .. } => format!("goes to {name}"),
        Decision::Unschedulable { message, .. } => message,
    }
}

/// Each message is kube-scheduler v1.36's for the same nodes and pods.
#[test]
fn the_messages_are_upstreams() {
    let two = || vec![node("n1", json!({})), node("n2", json!({}))];
    let tainted =
        |name: &str| node(name, json!({"spec": {"taints": [{"key": "t", "value": "v", "effect": "NoSchedule"}]}}));
    let busy = |name: &str| pod(name, asking(json!({"cpu": "5"})));
    let affinity = |values: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": values}]}]}}}}})
    };
    let port = || json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let apart = || {
        json!({"metadata": {"labels": {"an": "ti"}},
            "spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"an": "ti"}}}]}}}})
    };
    let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"no": "no"}}}]}}}});
    let spread = |extra: Value| {
        let mut constraint = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"s": "s"}}});
        merge_into(&mut constraint, extra);
        json!({"metadata": {"labels": {"s": "s"}}, "spec": {"topologySpreadConstraints": [constraint]}})
    };
    let zoned = || {
        let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        vec![zone("n1", "a"), zone("n2", "b")]
    };
    let mut in_a = spread(json!({"nodeAffinityPolicy": "Ignore"}));
    merge_into(&mut in_a, json!({"spec": {"nodeSelector": {"zone": "a"}}}));
    let selector = json!({"spec": {"nodeSelector": {"x": "y"}}});
    let mut never = selector.clone();
    merge_into(&mut never, json!({"spec": {"preemptionPolicy": "Never"}}));
    let cordoned = |name: &str| node(name, json!({"spec": {"unschedulable": true}}));
    let all_helpless =
        "no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    let none_helpless = "no new claims to deallocate, preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    let mixed = "no new claims to deallocate, preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.";
    let full = || vec![(busy("b1"), "n1"), (busy("b2"), "n2")];
    let cases: Vec<(Snapshot, Value, &str, &str)> = vec![
        (cluster(two(), vec![]), selector, "2 node(s) didn't match Pod's node affinity/selector.", all_helpless),
        (
            cluster(two(), vec![]),
            never,
            "2 node(s) didn't match Pod's node affinity/selector.",
            "no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.",
        ),
        (cluster(two(), vec![]), asking(json!({"cpu": "9999"})), "2 Insufficient cpu.", all_helpless),
        (
            cluster(two(), vec![]),
            asking(json!({"cpu": "9999", "memory": "9999Gi"})),
            "2 Insufficient cpu, 2 Insufficient memory.",
            all_helpless,
        ),
        (cluster(two(), vec![]), asking(json!({"example.com/g": "1"})), "2 Insufficient example.com/g.", all_helpless),
        (
            cluster(two(), vec![]),
            affinity(json!(["nope"])),
            "2 node(s) didn't satisfy plugin(s) [NodeAffinity].",
            all_helpless,
        ),
        (
            cluster(two(), vec![(pod("b", asking(json!({"cpu": "8"}))), "n1")]),
            affinity(json!(["n2"])),
            "",
            "goes to n2",
        ),
        (
            cluster(two(), vec![(pod("p1", port()), "n1"), (pod("p2", port()), "n2")]),
            port(),
            "2 node(s) didn't have free ports for the requested pod ports.",
            none_helpless,
        ),
        (cluster(two(), full()), asking(json!({"cpu": "5"})), "2 Insufficient cpu.", none_helpless),
        (
            cluster(vec![tainted("n1"), node("n2", json!({}))], full()),
            asking(json!({"cpu": "5"})),
            "1 Insufficient cpu, 1 node(s) had untolerated taint(s).",
            mixed,
        ),
        (
            cluster(vec![tainted("n1"), tainted("n2")], vec![]),
            json!({}),
            "2 node(s) had untolerated taint(s).",
            all_helpless,
        ),
        (
            cluster(vec![cordoned("n1"), cordoned("n2")], vec![]),
            json!({}),
            "2 node(s) were unschedulable.",
            all_helpless,
        ),
        (
            cluster(two(), vec![(pod("a1", apart()), "n1"), (pod("a2", apart()), "n2")]),
            apart(),
            "2 node(s) didn't match pod anti-affinity rules.",
            none_helpless,
        ),
        (
            cluster(two(), vec![(pod("a1", apart()), "n1"), (pod("a2", apart()), "n2")]),
            json!({"metadata": {"labels": {"an": "ti"}}}),
            "2 node(s) didn't satisfy existing pods anti-affinity rules.",
            none_helpless,
        ),
        (cluster(two(), vec![]), near, "2 node(s) didn't match pod affinity rules.", all_helpless),
        (
            cluster(two(), vec![]),
            spread(json!({})),
            "2 node(s) didn't match pod topology spread constraints (missing required label).",
            all_helpless,
        ),
        (
            cluster(zoned(), vec![(pod("s1", in_a.clone()), "n1")]),
            in_a,
            "1 node(s) didn't match Pod's node affinity/selector, 1 node(s) didn't match pod topology spread constraints.",
            mixed,
        ),
        (cluster(zoned(), vec![(pod("s1", spread(json!({}))), "n1")]), spread(json!({})), "", "goes to n2"),
        (cluster(vec![], vec![]), json!({}), "", "no nodes available to schedule pods"),
        (
            cluster(two(), vec![]),
            json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}),
            "persistentvolumeclaim \"c\" not found.",
            all_helpless,
        ),
    ];
    for (snapshot, given, why, then) in cases {
        let expected = if why.is_empty() { then.to_owned() } else { format!("0/2 nodes are available: {why} {then}") };
        assert_eq!(message(&snapshot, &pod("new", given.clone())), expected, "{given}");
    }
}

#[test]
fn requests_count_sidecars_init_containers_overhead_and_the_pods_own() {
    let of = |spec: Value| requests(&serde_json::from_value::<PodSpec>(spec).unwrap().shape);
    let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
    let cases = [
        (json!({"containers": [container("1"), container("500m")]}), 1500),
        (json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]}), 3000),
        (json!({"containers": [container("1")], "initContainers": [sidecar("2"), container("2")]}), 4000),
        (json!({"containers": [container("3")], "initContainers": [container("2"), sidecar("1")]}), 4000),
        (json!({"containers": [container("1")], "overhead": {"cpu": "250m"}}), 1250),
        (json!({"containers": [container("1")], "resources": {"requests": {"cpu": "3"}}}), 3000),
    ];
    for (spec, cpu_milli) in cases {
        assert_eq!(of(spec.clone()).0.cpu_milli, cpu_milli, "{spec}");
    }
    let (requested, scored) = of(json!({"containers": [{"name": "c"}, container("1")]}));
    assert_eq!((requested.cpu_milli, requested.memory_bytes), (1000, 0));
    assert_eq!((scored.cpu_milli, scored.memory_bytes), (1100, 400 << 20));
}

#[test]
fn pods_of_a_workload_or_service_are_spread_by_default() {
    let zones = ["a", "a", "b", "b", "b", "b"];
    let nodes = zones.iter().enumerate().map(|(n, zone)| {
        let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
        node(&format!("n{n}"), labels)
    });
    let mut snapshot = cluster(nodes.collect(), vec![]);
    let owned = |n: usize| {
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
        pod(&format!("p{n}"), json!({"metadata": {"ownerReferences": owner}}))
    };
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..12 {
        *per_node.entry(place(&mut snapshot, owned(n), n as u64).unwrap()).or_default() += 1;
    }
    let in_zone = |zone: &str| {
        per_node.iter().filter(|(name, _)| zones[name[1..].parse::<usize>().unwrap()] == zone).map(|(_, n)| n).sum()
    };
    let (a, b): (usize, usize) = (in_zone("a"), in_zone("b"));
    assert!(a.abs_diff(b) <= 2 && per_node.len() == 6, "{per_node:?}");
    snapshot.services.insert(ObjectKey::new("default", "s"), BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    let chosen: BTreeSet<_> = (0..6)
        .filter_map(|n| {
            let labelled = pod(&format!("w{n}"), json!({"metadata": {"labels": {"app": "web"}}}));
            place(&mut snapshot, labelled, n)
        })
        .collect();
    assert_eq!(chosen.len(), 6);
}

#[test]
fn packing_prefers_the_fullest_and_least_allocated_the_emptiest() {
    let busy = pod("b", asking(json!({"cpu": "4", "memory": "8Gi"})));
    let snapshot = cluster(vec![node("n1", json!({})), node("n2", json!({}))], vec![(busy, "n1")]);
    let new = pod("new", asking(json!({"cpu": "1", "memory": "2Gi"})));
    let chosen = |scoring_strategy| match decide(&snapshot, &new, &Profile::default().scored_by(scoring_strategy), 0, 0)
    {
        Decision::Node { name, .. } => name,
        Decision::Unschedulable { message, .. } => message,
    };
    assert_eq!(chosen(ScoringStrategy::LeastAllocated), "n2");
    assert_eq!(chosen(ScoringStrategy::MostAllocated), "n1");
}

#[test]
fn preferences_and_their_weights_decide() {
    let disk = json!({"metadata": {"labels": {"disk": "ssd"}}});
    let soft = json!({"spec": {"taints": [{"key": "t", "effect": "PreferNoSchedule"}]}});
    let term = json!([{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]);
    let requirements =
        json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": term}}}});
    let snapshot = cluster(vec![node("n1", disk), node("n2", json!({})), node("n3", soft.clone())], vec![]);
    for seed in 0..6 {
        let Decision::Node { name, .. } =
            decide(&snapshot, &pod("p", requirements.clone()), &Profile::default(), 0, seed)
        else {
            panic!("it fits everywhere")
        };
        assert_eq!(name, "n1");
    }
    let snapshot = cluster(vec![node("n1", soft.clone()), node("n2", json!({}))], vec![]);
    assert_eq!(message(&snapshot, &pod("p", json!({}))), "goes to n2");
}

/// Not a benchmark: the test checks that decisions end, filter a part of the nodes, and spread pods.
#[test]
fn five_thousand_nodes() {
    let nodes = (0..5000).map(|n| {
        node(&format!("n{n:04}"), json!({"metadata": {"labels": {"topology.kubernetes.io/zone": (n % 3).to_string()}}}))
    });
    let mut snapshot = cluster(nodes.collect(), vec![]);
    assert_eq!(num_feasible_nodes(5000, None), 500);
    let mut start = 0;
    let mut used = BTreeSet::new();
    for n in 0..200 {
        let new = pod(&format!("p{n}"), asking(json!({"cpu": "100m"})));
        let Decision::Node { name, tried } = decide(&snapshot, &new, &Profile::default(), start, n) else {
            panic!("there is room")
        };
        assert_eq!(tried, 500);
        start = (start + tried) % 5000;
        snapshot.put_pod(Arc::new(new), &name, true);
        used.insert(name);
    }
    assert!(used.len() > 190);
}

/// Any user who creates pods can set a node name and the maximum requests; the node rejects the pod, and it is deleted.
#[test]
fn running_pods_survive_pods_that_request_everything() {
    let all = asking(
        json!({"cpu": "9223372036854775807", "memory": "9223372036854775807", "example.com/g": "9223372036854775807"}),
    );
    let held = asking(json!({"cpu": "6", "memory": "12Gi", "example.com/g": "1"}));
    let offers = json!({"status": {"allocatable": {"example.com/g": "1"}}});
    let mut snapshot = cluster(vec![node("n", offers)], vec![(pod("held", held), "n")]);
    let before = snapshot.node("n").unwrap().requested.clone();
    for name in ["greedy", "greedier"] {
        snapshot.put_pod(Arc::new(pod(name, all.clone())), "n", false);
        assert!(message(&snapshot, &pod("p", asking(json!({"memory": "1"})))).contains("1 Insufficient memory"));
    }
    for name in ["greedy", "greedier"] {
        snapshot.take_pod(&ObjectKey::new("default", name));
    }
    assert_eq!(snapshot.node("n").unwrap().requested, before);
    assert!(message(&snapshot, &pod("p", asking(json!({"cpu": "3"})))).contains("1 Insufficient cpu"));
    assert!(
        message(&snapshot, &pod("p", asking(json!({"example.com/g": "1"})))).contains("1 Insufficient example.com/g")
    );
}

#[derive(Debug, Clone)]
enum ClusterChange {
    Node(u8, u8),
    NodeGone(u8),
    Pod(u8, u8, u8),
    PodGone(u8),
}

fn steps() -> impl Strategy<Value = Vec<ClusterChange>> {
    let step = prop_oneof![
        1 => (0u8..6, 0u8..8).prop_map(|(n, cpu)| ClusterChange::Node(n, cpu)),
        1 => (0u8..6).prop_map(ClusterChange::NodeGone),
        6 => (any::<u8>(), 0u8..5, 0u8..3).prop_map(|(p, cpu, port)| ClusterChange::Pod(p, cpu, port)),
        2 => any::<u8>().prop_map(ClusterChange::PodGone),
    ];
    proptest::collection::vec(step, 1..80)
}

fn sized(name: &str, cpu: u8) -> NodeFacts {
    node(name, json!({"status": {"allocatable": {"cpu": cpu.to_string(), "pods": "5"}}}))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// After any changes, decisions never overcommit a node or assign a port twice. The same steps with the same seed
    /// give the same decisions. The snapshot's sums equal a full count.
    #[test]
    fn never_overcommits_and_is_deterministic(steps in steps(), seed in any::<u64>()) {
        let run = || {
            let mut snapshot = Snapshot::default();
            let mut decisions = Vec::new();
            for step in &steps {
                match step {
                    ClusterChange::Node(n, cpu) => {
                        snapshot.set_node(sized(&format!("n{n}"), *cpu));
                    }
                    ClusterChange::NodeGone(n) => {
                        snapshot.remove_node(&format!("n{n}"));
                    }
                    ClusterChange::PodGone(p) => {
                        snapshot.take_pod(&ObjectKey::new("default", format!("p{p}")));
                    }
                    ClusterChange::Pod(p, cpu, port) => {
                        let ports = if *port == 0 { json!([]) } else { json!([{"containerPort": 1, "hostPort": port}]) };
                        let containers = json!([{"name": "c", "ports": ports,
                            "resources": {"requests": {"cpu": cpu.to_string()}}}]);
                        let new = pod(&format!("p{p}"), json!({"spec": {"containers": containers}}));
                        snapshot.take_pod(&new.key);
                        let decision = decide(&snapshot, &new, &Profile::default(), decisions.len(), seed);
                        if let Decision::Node { name, .. } = &decision {
                            let chosen = snapshot.node(name).expect("a node that exists");
                            let free = i128::from(chosen.facts.allocatable.cpu_milli) - chosen.requested.cpu_milli;
                            assert!(*cpu == 0 || i128::from(*cpu) * 1000 <= free, "overcommitted");
                            assert!(chosen.pods.len() < 5, "too many pods");
                            assert!(chosen.pods.values().all(|other| other.requirements.ports.is_disjoint(&new.requirements.ports)), "a port twice");
                            snapshot.put_pod(Arc::new(new), name, true);
                        }
                        decisions.push(decision);
                    }
                }
                for node in snapshot.nodes() {
                    let counted: i128 = node.pods.values().map(|pod| i128::from(pod.requirements.requests.cpu_milli)).sum();
                    assert_eq!(node.requested.cpu_milli, counted);
                }
            }
            decisions
        };
        prop_assert_eq!(run(), run());
    }
}

/// A minimal preemption: removes pods of lower priority, node by node.
static LETS_GO: Plugin = Plugin { post_filter: Some(let_go), ..plugin("LetsGo") };

fn let_go<'a>(cycle: Cycle<'a>, filters: &mut Filters<'a>, diagnosis: &Diagnosis) -> PostFilterResult {
    for id in &diagnosis.resolvable {
        let mut node = cycle.snapshot.node_by_id(*id).clone();
        let victims: Vec<_> = node.pods.values().filter(|pod| pod.priority < cycle.pod.priority).cloned().collect();
        for victim in &victims {
            node.take(&victim.key);
            filters.remove_pod(victim, &node);
        }
        let fits = filters.check(&node).is_ok();
        for victim in victims {
            filters.add_pod(&victim, &node);
            node.put(victim);
        }
        assert!(filters.check(&node).is_err(), "all are back");
        if fits {
            return PostFilterResult::Nominated {
                node: node.name().to_owned(),
                victims: Vec::new(),
                candidates: Vec::new(),
            };
        }
    }
    PostFilterResult::Unschedulable("nobody helps.".into())
}

/// A `PostFilter` may run the filters without certain pods; the first nomination ends the loop.
#[test]
fn post_filters_simulate_victims() {
    let apart = |name: &str, priority: i32, cpu: &str| {
        let mut pod = pod(
            name,
            json!({"metadata": {"labels": {"an": "ti"}}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"an": "ti"}}}]}}}}),
        );
        pod.priority = priority;
        pod
    };
    let tainted = node("n1", json!({"spec": {"taints": [{"key": "t", "value": "v", "effect": "NoSchedule"}]}}));
    let nodes = vec![tainted, node("n2", json!({})), node("n3", json!({}))];
    let placed = vec![(apart("l1", 0, "1"), "n1"), (apart("h2", 9, "1"), "n2"), (apart("l3", 0, "7"), "n3")];
    let snapshot = cluster(nodes, placed);
    let mut profile = Profile::default().without("DefaultPreemption").unwrap();
    profile.plugins.push((&LETS_GO, 0));
    let decision = |priority, cpu| match decide(&snapshot, &apart("new", priority, cpu), &profile, 0, 0) {
        Decision::Unschedulable { message, nomination, .. } => (nomination, message),
        Decision::Node { name, .. } => panic!("goes to {name}"),
    };
    let why =
        "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match pod anti-affinity rules.";
    assert_eq!(decision(5, "1"), (Nomination::Node("n3".into()), why.into()));
    assert_eq!(decision(0, "1"), (Nomination::Keep, format!("{why} no new claims to deallocate, nobody helps.")));
    // The same preemption frees enough cpu.
    assert_eq!(decision(5, "2").0, Nomination::Node("n3".into()));
    assert_eq!(decision(5, "9").0, Nomination::Keep);
}
