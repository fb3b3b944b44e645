//! Which ranges of pod addresses a node may claim when it creates its own Node. Pure.
//!
//! A node claims a range only to keep the addresses of its running pods after its Node was deleted. The attacker holds a
//! bootstrap token or another node's certificate, so a name proves nothing. Trusted are the other Nodes, the pods that are
//! bound to deleted Nodes, and the published size of a node's range.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use apiserver_resources::rules::cidr_block;
use serde_json::Value;

/// The ConfigMap of the nodes' configuration, as namespace and name.
pub(super) const CONFIGURATION: (&str, &str) = ("kube-public", "coracle-node");

/// The state that a claim is compared with.
pub(super) struct Claims<'a> {
    /// The `data` of the nodes' configuration; absent without a data plane of Coracle.
    pub(super) configuration: Option<&'a Value>,
    pub(super) nodes: &'a [Arc<Value>],
    pub(super) pods: &'a [Arc<Value>],
}

/// The ranges that a Node claims.
pub(super) fn claimed(node: &Value) -> Vec<&str> {
    let several = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
    let mut ranges: Vec<&str> = several.chain([&node["spec"]["podCIDR"]]).filter_map(Value::as_str).collect();
    ranges.retain(|range| !range.is_empty());
    ranges.dedup();
    ranges
}

impl Claims<'_> {
    /// Why the node `name` may not claim a range; validation rejects text that is no range.
    pub(super) fn refusal(&self, name: &str, range: &str) -> Option<String> {
        let block = cidr_block(range)?;
        let published = |field: &str| self.configuration.and_then(|data| data[field].as_str());
        if let Some(cluster) = published("clusterCIDR").and_then(cidr_block)
            && !cluster.contains(&block)
        {
            return Some(format!("the range {range} is not in the cluster's range for pods"));
        }
        if let Some(size) = published("nodeCIDRMaskSize").and_then(|size| size.parse::<u8>().ok())
            && block.prefix_len() != size
        {
            return Some(format!("the range {range} has not the size of a node's range (/{size})"));
        }
        let of = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let nodes: BTreeMap<String, &Arc<Value>> = self.nodes.iter().map(|node| (of(node), node)).collect();
        for (other, node) in nodes.iter().filter(|(other, _)| *other != name) {
            let mut taken = claimed(node).into_iter().filter_map(cidr_block);
            if taken.any(|taken| taken.contains(&block) || block.contains(&taken)) {
                return Some(format!("the range {range} is in use by node {other:?}"));
            }
        }
        let holds = |pod: &Value| {
            let status = &pod["status"];
            let several = status["podIPs"].as_array().into_iter().flatten().map(|ip| &ip["ip"]);
            let mut addresses = several.chain([&status["podIP"]]).filter_map(Value::as_str);
            !matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
                && addresses.any(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| block.contains(&ip)))
        };
        // A pod of a Node that exists counts by that Node's range alone: its node may write any address.
        let orphans = self.pods.iter().filter_map(|pod| Some((pod["spec"]["nodeName"].as_str()?, pod)));
        let mut orphans = orphans.filter(|(node, _)| !node.is_empty() && *node != name && !nodes.contains_key(*node));
        let (other, _) = orphans.find(|(_, pod)| holds(pod))?;
        Some(format!("the range {range} has pods of node {other:?}, which was deleted"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_claims_only_its_former_range() {
        let configuration = json!({"clusterCIDR": "10.244.0.0/16", "nodeCIDRMaskSize": "24"});
        let node = |name: &str, range: &str| {
            Arc::new(json!({"metadata": {"name": name}, "spec": {"podCIDR": range, "podCIDRs": [range]}}))
        };
        let pod = |node: &str, ip: &str, phase: &str| {
            Arc::new(
                json!({"spec": {"nodeName": node}, "status": {"podIP": ip, "podIPs": [{"ip": ip}], "phase": phase}}),
            )
        };
        let nodes = [node("m1", "10.244.1.0/24")];
        let pods = [
            pod("m2", "10.244.2.7", "Running"),
            pod("m3", "10.244.3.7", "Succeeded"),
            // Of a live node: its address is what that node says.
            pod("m1", "10.244.4.7", "Running"),
            Arc::new(json!({"spec": {}})),
        ];
        let claims = Claims { configuration: Some(&configuration), nodes: &nodes, pods: &pods };
        let refused = |name: &str, range: &str| claims.refusal(name, range).unwrap_or_default();
        assert_eq!(refused("m2", "10.244.2.0/24"), "", "its own pods have it");
        for free in ["10.244.3.0/24", "10.244.4.0/24", "10.244.9.0/24"] {
            assert_eq!(refused("m2", free), "", "{free}");
        }
        assert_eq!(refused("m1", "10.244.1.0/24"), "");
        assert!(refused("evil", "10.244.2.0/24").ends_with("has pods of node \"m2\", which was deleted"));
        assert!(refused("evil", "10.244.1.0/24").ends_with("is in use by node \"m1\""));
        assert!(refused("evil", "10.244.128.0/17").contains("not the size of a node's range (/24)"));
        assert!(refused("evil", "10.244.9.128/25").contains("not the size"));
        assert!(refused("evil", "10.96.0.0/24").contains("not in the cluster's range"));
        assert!(refused("evil", "0.0.0.0/0").contains("not in the cluster's range"));
        let elsewhere = Claims { configuration: None, ..claims };
        assert_eq!(elsewhere.refusal("evil", "192.0.2.0/25"), None);
        assert!(elsewhere.refusal("evil", "10.244.0.0/16").is_some_and(|why| why.contains("node \"m1\"")));
        assert_eq!(claimed(&json!({"spec": {"podCIDR": "a", "podCIDRs": ["a", "b"]}})), ["a", "b", "a"]);
        assert!(claimed(&json!({"spec": {"podCIDR": ""}})).is_empty());
    }
}
