//! Feeds the tunnel's peers from the API's Nodes.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::{Reflector, ReflectorEvent};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::peers::{PeerConfig, peer_config};
use super::{Tunnel, stored_peers};
use crate::watch::{KnownKeys, warn_of_interruption};

/// Keeps the peers in step with the Nodes until `stop`. Known peers stay while the API server is unreachable; `file` has
/// those of the last run.
pub async fn run(tunnel: Arc<Tunnel>, client: Client, file: Option<PathBuf>, stop: CancellationToken) {
    let nodes = Reflector::of::<Node>(client, tunnel.env.clone());
    let mut feed = NodeFeed::default();
    let (newest, written) = watch::channel(Vec::new());
    if let Some(file) = file.clone() {
        tunnel.set_nodes(stored_peers::load(file).await);
    }
    let write = async {
        if let Some(file) = &file {
            stored_peers::write(&tunnel.env, file, written).await;
        }
        std::future::pending::<()>().await;
    };
    let each = |event: ReflectorEvent| {
        warn_of_interruption("Nodes", &event);
        if feed.apply(event) {
            let peers: Vec<_> = feed.nodes.values().cloned().collect();
            tunnel.set_nodes(peers.clone());
            newest.send_replace(peers);
        }
        ControlFlow::Continue(())
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = nodes.run(each) => {}
        () = write => {}
    }
}

/// The Nodes with ranges for pods.
#[derive(Default)]
struct NodeFeed {
    known: KnownKeys,
    nodes: HashMap<ObjectKey, PeerConfig>,
}

impl NodeFeed {
    /// Applies an event; whether a peer has changed. Most events of Nodes are heartbeats.
    fn apply(&mut self, event: ReflectorEvent) -> bool {
        let mut changed = false;
        for (key, node) in self.known.changes::<Node>(event) {
            changed |= match node.as_ref().and_then(peer_config) {
                Some(config) => self.nodes.insert(key, config.clone()) != Some(config),
                None => self.nodes.remove(&key).is_some(),
            };
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machinery_client::Object;
    use serde_json::json;

    #[test]
    fn only_changes_of_ranges_and_addresses_count() {
        let node = |cidr: &str, ready: &str| -> Arc<dyn Object> {
            let node = json!({
                "metadata": {"name": "a", "resourceVersion": "1", "annotations": {"coracle.dev/tunnel": "192.0.2.1:7443"}},
                "spec": {"podCIDR": cidr}, "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            Arc::new(serde_json::from_value::<Node>(node).unwrap())
        };
        let mut feed = NodeFeed::default();
        assert!(feed.apply(ReflectorEvent::Replaced(vec![node("10.244.1.0/24", "True")], 1)));
        assert!(!feed.apply(ReflectorEvent::Applied(node("10.244.1.0/24", "False"))));
        assert!(feed.apply(ReflectorEvent::Applied(node("10.244.2.0/24", "True"))), "the Node was made again");
        assert!(!feed.apply(ReflectorEvent::Interrupted("why".into())));
        assert_eq!(feed.nodes.len(), 1);
        assert!(feed.apply(ReflectorEvent::Deleted(node("10.244.2.0/24", "True"))));
        assert!(feed.nodes.is_empty());
    }
}
