//! Which node has a pod's address. Pure.
//!
//! Input: the Nodes of the API; output: a table of disjoint ranges. A Node may claim any range: until a controller has
//! assigned one, its kubelet can write `spec.podCIDRs`. So a claim counts only inside the cluster's ranges for pods, this
//! node's own ranges come first, then those of older Nodes; a claim that overlaps an earlier one is ignored. Claims of one
//! second are all ignored: a name, which a node chooses, decides nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use machinery_api::names::{COMPILED_MODULES, TUNNEL_ADDRESS};

/// What a Node says about its tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The node's name.
    pub name: Arc<str>,
    /// When its Node was created, in seconds since 1970.
    pub created_at: i64,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// The address of its tunnel, if it has one.
    pub address: Option<SocketAddr>,
    /// The key of the compiled modules that it exchanges with other nodes.
    pub compiled: Option<Arc<str>>,
}

/// What a Node says about its tunnel; `None` while it has no name or no valid range for pods.
#[must_use]
pub fn peer_config(node: &Node) -> Option<PeerConfig> {
    let name = node.metadata.name.as_deref().filter(|name| !name.is_empty())?;
    let spec = node.spec.as_ref()?;
    let mut texts: Vec<&str> = spec.pod_cidrs.iter().flatten().map(String::as_str).collect();
    if texts.is_empty() {
        texts.extend(spec.pod_cidr.as_deref());
    }
    let pod_cidrs: Vec<IpNet> = texts.iter().filter_map(|text| Some(text.parse::<IpNet>().ok()?.trunc())).collect();
    if pod_cidrs.is_empty() {
        return None;
    }
    let annotation = |key| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
    let address = annotation(TUNNEL_ADDRESS).and_then(|text| text.parse::<SocketAddr>().ok());
    let address = address.filter(|address| address.port() != 0 && !address.ip().is_unspecified());
    let created_at = node.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second());
    let compiled = annotation(COMPILED_MODULES).map(|key| key.as_str().into());
    Some(PeerConfig { name: name.into(), created_at, pod_cidrs, address, compiled })
}

/// Disjoint ranges of pods' addresses with their nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTable {
    nodes: Vec<PeerConfig>,
    /// By first address; the index of the node.
    ranges: Vec<(IpNet, usize)>,
    names: HashMap<Arc<str>, usize>,
    /// The claims that don't count, as node and range.
    pub ignored: Vec<(Arc<str>, IpNet)>,
}

impl PeerTable {
    /// The table of the node `own`. Only ranges inside `cluster` count.
    #[must_use]
    pub fn of(own: &str, cluster: &[IpNet], mut nodes: Vec<PeerConfig>) -> Self {
        nodes.sort_by_key(|node| (&*node.name != own, node.created_at, node.name.clone()));
        nodes.dedup_by(|a, b| a.name == b.name);
        let mut table = Self::default();
        for (index, node) in nodes.iter().enumerate() {
            for range in &node.pod_cidrs {
                let overlaps = |other: &IpNet| other.contains(range) || range.contains(other);
                let inside = cluster.iter().any(|outer| outer.contains(range));
                let taken = table.ranges.iter().any(|(other, owner)| *owner != index && overlaps(other));
                let tied = nodes.iter().enumerate().any(|(other, peer)| {
                    other != index
                        && peer.created_at == node.created_at
                        && [node, peer].iter().all(|one| &*one.name != own)
                        && peer.pod_cidrs.iter().any(overlaps)
                });
                let again = table.ranges.iter().any(|(other, _)| overlaps(other));
                match inside && !taken && !tied {
                    true if again => {}
                    true => table.ranges.push((*range, index)),
                    false => table.ignored.push((node.name.clone(), *range)),
                }
            }
            table.names.insert(node.name.clone(), index);
        }
        table.ranges.sort_by_key(|(range, _)| range.network());
        table.nodes = nodes;
        table
    }

    /// The node with a pod's address.
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<&PeerConfig> {
        self.owner_index(ip).map(|index| &self.nodes[index])
    }

    pub(super) fn owner_index(&self, ip: IpAddr) -> Option<usize> {
        let ip = ip.to_canonical();
        let after = self.ranges.partition_point(|(range, _)| range.network() <= ip);
        let (range, index) = self.ranges.get(after.checked_sub(1)?)?;
        range.contains(&ip).then_some(*index)
    }

    /// Whether `node` has the range of a pod's address.
    #[must_use]
    pub fn owns(&self, node: &str, ip: IpAddr) -> bool {
        self.owner(ip).is_some_and(|owner| &*owner.name == node)
    }

    /// Whether the API has this Node.
    #[must_use]
    pub fn knows(&self, node: &str) -> bool {
        self.names.contains_key(node)
    }

    pub(super) fn nodes(&self) -> &[PeerConfig] {
        &self.nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, created_at: i64, cidrs: &[&str]) -> PeerConfig {
        let pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        PeerConfig { name: name.into(), created_at, pod_cidrs, address: None, compiled: None }
    }

    #[test]
    fn addresses_lead_to_one_node() {
        let cluster = ["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()];
        let nodes = vec![
            node("c", 3, &["10.244.2.0/24", "fd00:0:0:2::/64"]),
            node("own", 9, &["10.244.0.0/24"]),
            node("b", 2, &["10.244.1.0/24"]),
            // Claims of others' ranges, of all, of none of the cluster's, and of its own twice.
            node("thief", 4, &["10.244.1.0/25", "10.244.0.0/16", "10.96.0.0/12", "0.0.0.0/0", "10.244.9.0/24"]),
            node("twice", 5, &["10.244.7.0/24", "10.244.7.0/24"]),
        ];
        let table = PeerTable::of("own", &cluster, nodes.clone());
        for (ip, expected) in [
            ("10.244.0.1", Some("own")),
            ("10.244.1.1", Some("b")),
            ("10.244.1.255", Some("b")),
            ("::ffff:10.244.1.1", Some("b")),
            ("10.244.2.0", Some("c")),
            ("10.244.3.1", None),
            ("10.244.7.9", Some("twice")),
            ("10.244.9.9", Some("thief")),
            ("10.243.255.255", None),
            ("10.96.0.1", None),
            ("192.0.2.1", None),
            ("fd00:0:0:2::9", Some("c")),
            ("fd00:0:0:3::9", None),
        ] {
            let owner = table.owner(ip.parse().unwrap()).map(|owner| &*owner.name);
            assert_eq!(owner, expected, "{ip}");
        }
        assert_eq!(table.ignored.len(), 4);
        assert!(table.owns("b", "10.244.1.1".parse().unwrap()) && !table.owns("thief", "10.244.1.1".parse().unwrap()));
        let mut shuffled = nodes;
        shuffled.reverse();
        assert_eq!(PeerTable::of("own", &cluster, shuffled), table, "the order of the Nodes is irrelevant");
    }

    #[test]
    fn a_name_wins_no_range() {
        let cluster = ["10.244.0.0/16".parse().unwrap()];
        let nodes = vec![
            node("aa-evil", 5, &["10.244.2.0/24"]),
            node("m2", 5, &["10.244.2.0/24"]),
            node("m3", 5, &["10.244.3.0/24"]),
        ];
        let table = PeerTable::of("m1", &cluster, nodes.clone());
        let owner = |table: &PeerTable, ip: &str| table.owner(ip.parse().unwrap()).map(|owner| owner.name.to_string());
        assert_eq!((owner(&table, "10.244.2.7"), owner(&table, "10.244.3.7").as_deref()), (None, Some("m3")));
        assert_eq!(table.ignored.len(), 2);
        assert_eq!(owner(&PeerTable::of("m2", &cluster, nodes), "10.244.2.7").as_deref(), Some("m2"), "its own");
    }

    #[test]
    fn nodes_describe_their_tunnel() {
        let of = |json| peer_config(&serde_json::from_value(json).unwrap());
        let full = of(json!({
            "metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:07Z",
                "annotations": {"coracle.dev/tunnel": "192.0.2.1:7443", "coracle.dev/compiled-modules": "1/ff"}},
            "spec": {"podCIDRs": ["10.244.1.7/24", "nonsense"]},
        }));
        let mut expected = node("a", 7, &["10.244.1.0/24"]);
        expected.compiled = Some("1/ff".into());
        expected.address = Some("192.0.2.1:7443".parse().unwrap());
        assert_eq!(full, Some(expected));
        let one = of(json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.1.0/24"}})).unwrap();
        assert_eq!((one.address, one.pod_cidrs.len()), (None, 1));
        for bad in ["0.0.0.0:7443", "192.0.2.1:0", "192.0.2.1", "host:7443", ""] {
            let node = of(json!({"metadata": {"name": "a", "annotations": {"coracle.dev/tunnel": bad}},
                "spec": {"podCIDR": "10.244.1.0/24"}}));
            assert_eq!(node.unwrap().address, None, "{bad}");
        }
        assert_eq!(of(json!({"metadata": {"name": "a"}, "spec": {}})), None);
        assert_eq!(of(json!({"metadata": {}, "spec": {"podCIDR": "10.244.1.0/24"}})), None);
    }
}
