//! ImageLocality: prefers nodes that have the pod's images. Large images count more, and so do images that many nodes
//! have: otherwise a single node with an image would get all its pods.

use std::collections::HashMap;

use super::{Plugin, SCORE_MAX, Score, plugin};
use crate::node::{NodeId, NodeInfo};

const MIB: i64 = 1024 * 1024;
/// A total below this size scores 0 (upstream's).
const SUM_MIN: i64 = 23 * MIB;
/// A size above this per container scores no more.
const CONTAINER_MAX: i64 = 1000 * MIB;

pub(super) const PLUGIN: Plugin = Plugin {
    weight: 1,
    pre_score: Some(|cycle, _| {
        let (names, containers) = &cycle.pod.requirements.images;
        let nodes = cycle.snapshot.node_count() as f64;
        let known = names.iter().filter_map(|name| cycle.snapshot.image(name));
        let images: Vec<_> = known.map(|at| (at, at.len() as f64 / nodes)).collect();
        // If no node has any of the images, all nodes score the same.
        let containers = i64::try_from((*containers).max(1)).unwrap_or(i64::MAX);
        match images.is_empty() {
            true => None,
            false => Some(Box::new(Locality { images, sum_max: CONTAINER_MAX.saturating_mul(containers) })),
        }
    }),
    ..plugin("ImageLocality")
};

struct Locality<'a> {
    /// The sizes of each image by node, and the share of nodes that have it.
    images: Vec<(&'a HashMap<NodeId, i64>, f64)>,
    sum_max: i64,
}

impl Score for Locality<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let here =
            self.images.iter().filter_map(|(sizes, spread)| Some((*sizes.get(&node.id)? as f64 * spread) as i64));
        let sum = here.fold(0i64, i64::saturating_add).clamp(SUM_MIN, self.sum_max);
        (i128::from(SCORE_MAX) * i128::from(sum - SUM_MIN) / i128::from(self.sum_max - SUM_MIN)) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Cycle, Profile};
    use super::*;
    use crate::pod::PodInfo;
    use crate::snapshot::Snapshot;
    use crate::tests::{node, pod};

    fn scores(nodes: &[(&str, Value)], pod: &PodInfo) -> Option<Vec<i64>> {
        let mut snapshot = Snapshot::default();
        for (name, images) in nodes {
            snapshot
                .set_node(node(name, json!({"status": {"images": [{"names": ["gone:v1"], "sizeBytes": 1000 * MIB}]}})));
            snapshot.set_node(node(name, json!({"status": {"images": images}})));
        }
        let profile = Profile::default();
        let cycle = Cycle { pod, snapshot: &snapshot, args: &profile.args, seed: 0 };
        let all: Vec<&NodeInfo> = snapshot.nodes().collect();
        let score = PLUGIN.pre_score.unwrap()(cycle, &all)?;
        Some(all.into_iter().map(|node| score.score(node)).collect())
    }

    fn with(images: &[&str]) -> PodInfo {
        let containers: Vec<Value> = images.iter().map(|image| json!({"name": "c", "image": image})).collect();
        pod("p", json!({"spec": {"containers": containers}}))
    }

    /// As `image_locality_test.go`.
    #[test]
    fn scores_are_upstreams() {
        let image =
            |name: &str, mib: i64| json!({"names": [format!("x.io/{name}@sha256:0"), name], "sizeBytes": mib * MIB});
        let of_40 =
            json!([image("x.io/40:latest", 40), image("x.io/300:latest", 300), image("x.io/2000:latest", 2000)]);
        let of_250 = json!([image("x.io/250:latest", 250), image("x.io/10:v1", 10)]);
        let nodes = [("a", of_40.clone()), ("b", of_250.clone())];
        // 40 / 2 is below the minimum; (250 / 2 - 23) * 100 / (2000 - 23) = 5.
        assert_eq!(scores(&nodes, &with(&["x.io/40", "x.io/250"])).unwrap(), [0, 5]);
        // (40 / 2 + 300 / 2 - 23) * 100 / (2000 - 23) = 7.
        assert_eq!(scores(&nodes, &with(&["x.io/40", "x.io/300"])).unwrap(), [7, 0]);
        // 2000 / 2 is the maximum of one container.
        assert_eq!(scores(&nodes, &with(&["x.io/2000"])).unwrap(), [100, 0]);
        assert_eq!(scores(&nodes, &with(&["x.io/10:v1"])).unwrap(), [0, 0]);
        assert_eq!(scores(&nodes, &with(&["x.io/10", "gone:v1"])), None, "another tag, and one that is gone");
        // An image that all nodes have counts in full.
        let both = [("a", of_250.clone()), ("b", of_250)];
        assert_eq!(scores(&both, &with(&["x.io/250"])).unwrap(), [23, 23]);
        let mut volume = pod("p", json!({"spec": {"volumes": [{"name": "v", "image": {"reference": "x.io/2000"}}]}}));
        assert_eq!(scores(&nodes, &volume).unwrap(), [100, 0]);
        volume = with(&["x.io/2000", "x.io/2000"]);
        assert_eq!(scores(&nodes, &volume).unwrap(), [100, 0], "each container counts");
    }
}
