//! Benchmark of the pure core: `scheduler_core [NODES [PODS_PER_NODE [DECISIONS [KIND]]]]` prints decisions per second
//! for each kind of pods, or for one, a `key=value` a line, and the CPU time of each. Each decision is followed by its
//! assumption, as in the shell.
//!
//! `plain`: pods that request cpu and memory. `workload`: pods of 50 ReplicaSets, which upstream's default constraints
//! spread over nodes and zones. `constrained`: the same with a required spread over zones. `apart`: pods with a
//! required anti-affinity to their own kind on a node, among as many that have it; with more decisions than nodes, all
//! but the first fail. `large`: pods that fit no node.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::Pod;
use machinery_env::Env;
use scheduler::decide::{Decision, decide};
use scheduler::node::NodeFacts;
use scheduler::plugins::Profile;
use scheduler::pod::PodInfo;
use scheduler::snapshot::Snapshot;
use serde_json::{Value, json};

/// The number of workloads; pods are created round-robin over them.
const WORKLOADS: usize = 50;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).take(3).map(|argument| argument.parse::<usize>());
    let mut next = |default| arguments.next().unwrap_or(Ok(default));
    let (nodes, pods_per_node, decisions) = (next(5000)?, next(30)?, next(20_000)?);
    let only = std::env::args().nth(4);
    println!("nodes={nodes}\npods={}\ndecisions={decisions}", nodes * pods_per_node);
    for (name, more) in kinds().into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let mut snapshot = cluster(nodes, pods_per_node)?;
        let templates = (0..WORKLOADS).map(|nth| template(nth, &more)).collect::<Result<Vec<_>, _>>()?;
        let begun = cpu_seconds()?;
        println!("{name}_decisions_per_second={:.0}", measure(&mut snapshot, &templates, decisions));
        println!("{name}_cpu_us={:.1}", (cpu_seconds()? - begun) * 1e6 / decisions as f64);
    }
    Ok(())
}

/// The CPU time of this thread. On a busy machine it is more precise than the clock.
fn cpu_seconds() -> Result<f64, Box<dyn std::error::Error>> {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(figures.split_whitespace().next().ok_or("no figure")?.parse::<f64>()? / 1e9)
}

fn kinds() -> [(&'static str, Value); 5] {
    let owned = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let selector = json!({"matchLabels": {"kind": "new"}});
    let spread = json!([{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]);
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}]}});
    [
        ("plain", json!({})),
        ("workload", json!({"owners": owned.clone()})),
        ("constrained", json!({"owners": owned.clone(), "spread": spread})),
        ("apart", json!({"owners": owned.clone(), "affinity": apart})),
        ("large", json!({"owners": owned, "cpu": "65"})),
    ]
}

fn cluster(nodes: usize, pods_per_node: usize) -> Result<Snapshot, serde_json::Error> {
    let mut snapshot = Snapshot::default();
    for nth in 0..nodes {
        let name = format!("n{nth:05}");
        let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", nth % 3)});
        let offers = json!({"cpu": "64", "memory": "256Gi", "ephemeral-storage": "100Gi", "pods": "500"});
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": offers}});
        snapshot.set_node(NodeFacts::of(&serde_json::from_value::<Node>(node)?));
    }
    let old = template(WORKLOADS, &json!({}))?;
    for nth in 0..nodes * pods_per_node {
        let key = Arc::new(ObjectKey::new("default", format!("old-{nth}")));
        snapshot.put_pod(Arc::new(PodInfo { key, ..old.clone() }), &format!("n{:05}", nth % nodes), false);
    }
    Ok(snapshot)
}

fn template(workload: usize, more: &Value) -> Result<PodInfo, serde_json::Error> {
    let mut owners = more["owners"].clone();
    if let Some(uid) = owners.pointer_mut("/0/uid") {
        *uid = json!(format!("r{workload}"));
    }
    let requests = json!({"cpu": more["cpu"].as_str().unwrap_or("100m"), "memory": "64Mi"});
    let kind = if workload == WORKLOADS { "old" } else { "new" };
    let pod = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "p", "ownerReferences": owners,
            "labels": {"app": format!("w{workload}"), "kind": kind}},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "x", "resources": {"requests": requests}}],
            "affinity": more["affinity"], "topologySpreadConstraints": more["spread"]},
    });
    Ok(PodInfo::of(&serde_json::from_value::<Pod>(pod)?))
}

#[expect(clippy::disallowed_methods, reason = "a measurement of real time")]
fn measure(snapshot: &mut Snapshot, templates: &[PodInfo], decisions: usize) -> f64 {
    let (env, profile) = (Env::real(), Profile::default());
    let (mut start, mut placed) = (0, 0);
    let begun = Instant::now();
    for nth in 0..decisions {
        let key = Arc::new(ObjectKey::new("default", format!("new-{nth}")));
        let pod = PodInfo { key, ..templates[nth % templates.len()].clone() };
        // A pod that fits no node (with `apart`, once every node has one) is a decision, too.
        if let Decision::Node { name, tried } = decide(snapshot, &pod, &profile, start, env.random_u64()) {
            start = (start + tried) % snapshot.node_count();
            snapshot.put_pod(Arc::new(pod), &name, true);
            placed += 1;
        }
    }
    println!("placed={placed}");
    decisions as f64 / begun.elapsed().as_secs_f64()
}
