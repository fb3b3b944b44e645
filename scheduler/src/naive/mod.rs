//! Oracle for the indexed plugins: the same decisions by a full count.

mod interpod_affinity;
mod topology_spread;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use machinery_api::ObjectKey;
use machinery_env::Env;
use serde_json::{Value, json};

use crate::decide::{Decision, decide};
use crate::node::{NodeFacts, NodeInfo};
use crate::plugins::{Args, Cycle, PLUGINS, Plugin, PreFilterResult, Profile, ScoringStrategy};
use crate::pod::PodInfo;
use crate::snapshot::{Snapshot, SpecialNodes};
use crate::tests::{node, pod};

/// The default plugins, with the counting ones instead of those with an index.
pub(crate) fn profile() -> Profile {
    let mut profile = Profile::default();
    for (row, _) in &mut profile.plugins {
        match row.name {
            "PodTopologySpread" => *row = &topology_spread::PLUGIN,
            "InterPodAffinity" => *row = &interpod_affinity::PLUGIN,
            _ => {}
        }
    }
    profile
}

/// A change of the cluster.
#[derive(Clone)]
enum Change {
    Node(Box<NodeFacts>),
    NodeGone(String),
    Pod(Arc<PodInfo>, String),
    PodGone(ObjectKey),
    Namespace(String, BTreeMap<String, String>),
    Service(String, BTreeMap<String, String>),
}

fn apply(snapshot: &mut Snapshot, change: Change) {
    match change {
        Change::Node(facts) => drop(snapshot.set_node(*facts)),
        Change::NodeGone(name) => drop(snapshot.remove_node(&name)),
        Change::Pod(pod, node) => snapshot.put_pod(pod, &node, false),
        Change::PodGone(key) => drop(snapshot.take_pod(&key)),
        Change::Namespace(name, labels) => drop(snapshot.set_namespace(&name, Some(labels))),
        Change::Service(name, selector) => drop(snapshot.services.insert(ObjectKey::new("default", name), selector)),
    }
}

fn built(changes: &[Change]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    changes.iter().cloned().for_each(|change| apply(&mut snapshot, change));
    snapshot
}

/// Generates clusters and pods that exercise every plugin.
struct Random(Env);

impl Random {
    fn one<T: Clone>(&self, of: &[T]) -> T {
        of[usize::try_from(self.0.below(of.len() as u64)).unwrap()].clone()
    }

    fn node(&self, name: &str) -> NodeFacts {
        let mut labels = json!({"disk": self.one(&["ssd", "hdd"])});
        if self.0.below(5) > 0 {
            labels["topology.kubernetes.io/zone"] = json!(self.one(&["a", "b", "c"]));
        }
        if self.0.below(4) > 0 {
            labels["rack"] = json!(self.one(&["1", "2"]));
        }
        let taint = |effect: &str| json!([{"key": "t", "value": "5", "effect": effect}]);
        let taints = self.one(&[json!([]), json!([]), taint("NoSchedule"), taint("PreferNoSchedule")]);
        let offers =
            json!({"cpu": self.one(&["4", "8"]), "memory": self.one(&["4Gi", "16Gi"]), "pods": self.one(&["4", "9"])});
        let size = self.one(&[100 << 20, 900 << 20]);
        let images = self.one(&[json!([]), json!([]), json!([{"names": ["x:latest"], "sizeBytes": size}])]);
        let cordoned = self.0.below(9) == 0;
        node(
            name,
            json!({"metadata": {"labels": labels}, "spec": {"taints": taints, "unschedulable": cordoned},
                "status": {"allocatable": offers, "images": images}}),
        )
    }

    fn term(&self) -> Value {
        let mut term = json!({"topologyKey": self.one(&["kubernetes.io/hostname", "topology.kubernetes.io/zone", "rack"]),
            "labelSelector": {"matchLabels": {"app": self.one(&["x", "y"])}}});
        let one_of =
            |operator: &str| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": ["x", "y"]}]});
        match self.0.below(6) {
            0 => term["labelSelector"] = one_of("In"),
            1 => term["labelSelector"] = one_of("NotIn"),
            _ => {}
        }
        match self.0.below(4) {
            0 => term["namespaceSelector"] = json!({"matchLabels": {"team": self.one(&["red", "blue"])}}),
            1 => term["namespaces"] = json!(["default", "other"]),
            _ => {}
        }
        term
    }

    fn affinity(&self) -> Value {
        let mut affinity = json!({});
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for kind in ["podAffinity", "podAntiAffinity"] {
            if self.0.below(5) == 0 {
                affinity[kind][required] = (0..=self.0.below(2)).map(|_| self.term()).collect();
            }
            if self.0.below(4) == 0 {
                let weighted = |_| json!({"weight": self.0.below(100) + 1, "podAffinityTerm": self.term()});
                affinity[kind][preferred] = (0..=self.0.below(2)).map(weighted).collect();
            }
        }
        let ssd = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]});
        match self.0.below(8) {
            0 => affinity["nodeAffinity"][required] = json!({"nodeSelectorTerms": [ssd]}),
            1 => affinity["nodeAffinity"][preferred] = json!([{"weight": 7, "preference": ssd}]),
            _ => {}
        }
        affinity
    }

    fn pod(&self, name: &str) -> PodInfo {
        let spread = || {
            json!({"maxSkew": self.0.below(3) + 1, "topologyKey": self.one(&["kubernetes.io/hostname", "topology.kubernetes.io/zone", "rack"]),
                "whenUnsatisfiable": self.one(&["DoNotSchedule", "ScheduleAnyway"]),
                "nodeTaintsPolicy": self.one(&["Honor", "Ignore"]), "nodeAffinityPolicy": self.one(&["Honor", "Ignore"]),
                "labelSelector": {"matchLabels": {"app": self.one(&["x", "y"])}}})
        };
        let mut spreads: Vec<Value> = (0..self.0.below(6).saturating_sub(2)).map(|_| spread()).collect();
        spreads.dedup_by_key(|spread| (spread["topologyKey"].clone(), spread["whenUnsatisfiable"].clone()));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": self.one(&["r1", "r2"]), "controller": true}]);
        let port = self.one(&[json!([]), json!([]), json!([]), json!([{"containerPort": 1, "hostPort": 80}])]);
        let toleration = self.one(&[json!([]), json!([{"key": "t", "operator": "Gt", "value": "4"}])]);
        let mut made = json!({
            "metadata": {"namespace": self.one(&["default", "default", "other"]), "labels": {"app": self.one(&["x", "y", "z"])},
                "ownerReferences": self.one(&[json!([]), owner])},
            "spec": {"affinity": self.affinity(), "topologySpreadConstraints": spreads, "tolerations": toleration,
                "containers": [{"name": "c", "image": "x", "ports": port,
                    "resources": {"requests": {"cpu": self.one(&["100m", "1", "3"]), "memory": self.one(&["128Mi", "2Gi"])}}}]},
        });
        if self.0.below(9) == 0 {
            made["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if self.0.below(20) == 0 {
            made["spec"]["nodeName"] = json!("n1");
        }
        PodInfo { node: None, ..pod(name, made) }
    }

    fn change(&self) -> Change {
        let name = format!("n{}", self.0.below(8));
        match self.0.below(16) {
            0..4 => Change::Node(Box::new(self.node(&name))),
            4 => Change::NodeGone(name),
            5 => {
                let namespace = self.one(&["default", "other"]);
                Change::PodGone(ObjectKey::new(namespace, format!("p{}", self.0.below(24))))
            }
            6 => {
                let labels = BTreeMap::from([("team".to_owned(), self.one(&["red", "blue"]).to_owned())]);
                Change::Namespace(self.one(&["default", "other"]).to_owned(), labels)
            }
            7 => {
                let selector = BTreeMap::from([("app".to_owned(), self.one(&["x", "y", "none"]).to_owned())]);
                Change::Service(self.one(&["s1", "s2"]).to_owned(), selector)
            }
            _ => Change::Pod(Arc::new(self.pod(&format!("p{}", self.0.below(24)))), name),
        }
    }
}

fn random(seed: u64) -> Random {
    Random(Env::seeded(seed, jiff::Timestamp::UNIX_EPOCH).0)
}

/// After any changes, the updated indexes give the same decisions as a full count and as a new snapshot. Every plugin
/// of the table that filters or scores takes part.
#[test]
fn indexed_plugins_decide_as_a_full_count_does() {
    let (mut refused, mut preferred) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..60 {
        let random = random(seed);
        let profiles = [ScoringStrategy::LeastAllocated, ScoringStrategy::MostAllocated].map(|scoring_strategy| {
            (Profile::default().scored_by(scoring_strategy), profile().scored_by(scoring_strategy))
        });
        let (mut snapshot, mut changes) = (Snapshot::default(), Vec::new());
        for step in 0..40usize {
            for change in (0..3).map(|_| random.change()) {
                changes.push(change.clone());
                apply(&mut snapshot, change);
            }
            let mut new = random.pod("new");
            if random.0.below(20) == 0 {
                new.node = Some("n1".into());
            }
            let (indexed, naive) = &profiles[step % 2];
            let decision = decide(&snapshot, &new, indexed, step, seed);
            assert_eq!(decision, decide(&snapshot, &new, naive, step, seed), "seed {seed}, step {step}");
            assert_eq!(
                decision,
                decide(&built(&changes), &new, indexed, step, seed),
                "seed {seed}, step {step}, afresh"
            );
            if let Decision::Unschedulable { refused_by, .. } = decision {
                refused.extend(refused_by);
            }
            let nodes: Vec<&NodeInfo> = snapshot.nodes().collect();
            let mut special = SpecialNodes::default();
            nodes.iter().for_each(|node| special.count(&node.facts, true));
            assert_eq!(*snapshot.special_nodes(), special);
            let cycle = Cycle { pod: &new, snapshot: &snapshot, args: &indexed.args, seed };
            for row in PLUGINS {
                let Some(score) = row.pre_score.and_then(|pre_score| pre_score(cycle, &nodes)) else { continue };
                let scores: BTreeSet<i64> = nodes.iter().map(|node| score.score(node)).collect();
                if scores.len() > 1 {
                    preferred.insert(row.name);
                }
            }
        }
    }
    let having = |has: fn(&&Plugin) -> bool| PLUGINS.iter().filter(has).map(|row| row.name).collect();
    // Pods have no claims here; these plugins read no index.
    let of_volumes = ["NodeVolumeLimits", "VolumeBinding", "VolumeRestrictions", "VolumeZone"];
    let mut filtering: BTreeSet<&str> = having(|row| row.pre_filter.is_some());
    filtering.retain(|name| !of_volumes.contains(name));
    assert_eq!(refused, filtering);
    assert_eq!(preferred, having(|row| row.pre_score.is_some()));
}

/// After `add_pod` or `remove_pod`, a filter rejects the same nodes as a filter that `PreFilter` creates for the
/// changed cluster.
#[test]
fn filters_can_add_and_remove_a_pod() {
    for seed in 0..150 {
        let random = random(seed);
        let mut changes: Vec<Change> = (0..30).map(|_| random.change()).collect();
        let without = built(&changes);
        let Some(on) = without.nodes().nth(usize::try_from(seed).unwrap() % without.node_count().max(1)) else {
            continue;
        };
        let other = Arc::new(random.pod("other"));
        changes.push(Change::Pod(other.clone(), on.name().to_owned()));
        let with = built(&changes);
        let new = random.pod("new");
        let args = Args::default();
        let cycle = |snapshot| Cycle { pod: &new, snapshot, args: &args, seed };
        for row in PLUGINS {
            for (from, to, adds) in [(&without, &with, true), (&with, &without, false)] {
                let made =
                    |snapshot| row.pre_filter.map_or(PreFilterResult::Skip, |pre_filter| pre_filter(cycle(snapshot)));
                let (PreFilterResult::Filter(mut filter) | PreFilterResult::Idle(mut filter)) = made(from) else {
                    continue;
                };
                if adds {
                    filter.add_pod(&other, on);
                } else {
                    filter.remove_pod(&other, on);
                }
                let again = made(to);
                for node in to.nodes() {
                    let expected = match &again {
                        PreFilterResult::Filter(filter) => filter.check(node),
                        _ => Ok(()),
                    };
                    assert_eq!(filter.check(node), expected, "{} for {} with seed {seed}", row.name, node.name());
                }
            }
        }
    }
}
