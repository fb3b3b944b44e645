//! The tunnel between nodes: calls of pods and hosts reach pods of other nodes.
//!
//! Each node listens on one TCP port: mutual TLS 1.3 with the nodes' client certificates, ALPN `coracle/1`, HTTP/2
//! (docs/decisions/0107-tunnel.md). A peer's pods are a `Serve` of the pod network (`remote`), found by address
//! ([`peers`]); the listening side (`accept`) verifies each call's origin and serves it by its own pods only.
//!
//! h2 is used without hyper, for which a reset with CANCEL or NO_ERROR is the end of a body: here only END_STREAM is.

mod accept;
mod datagrams;
mod head;
mod identity;
mod io;
mod lazy;
mod link;
mod liveness;
mod metrics;
mod node_calls;
mod peer;
pub mod peers;
mod pieces;
mod protocols;
mod receive;
mod record;
mod remote;
mod send;
mod signed;
mod stored_peers;
#[cfg(test)]
mod tests;
mod transmit;
mod watch;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::log_limit::LogLimit;
use machinery_serve::net::{PodNetwork, Protocol, RemotePods, Serve};
use tokio_util::sync::CancellationToken;

pub use identity::{CertificateReceiver, IdentityError, NodeCertificate};
pub use metrics::TunnelMetrics;
pub use node_calls::NodeService;
pub use signed::{NodeSignature, SignatureError};
pub use watch::run as watch;

use accept::PeerConnections;
use identity::{PeerUser, TunnelTls};
use peer::Peer;
use peers::{PeerConfig, PeerTable};
use remote::RemotePod;

/// The protocol's name. The windows below are part of it: another window needs another version.
const ALPN: &[u8] = b"coracle/1";
/// Unread bytes of one stream: bounds what a rejected request has sent (`record`).
const STREAM_WINDOW_BYTES: u32 = 128 << 10;
/// Concurrent streams of a connection.
const STREAMS_MAX: u32 = 128;
/// Unread bytes of a connection: all streams' windows, so that slow readers never stop the others (16 MiB).
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_MAX;
/// Overhead of small frames that h2 has received and no task has taken yet (256 bytes a frame): some 130,000 frames. A
/// peer that exceeds it loses its connection. Senders join small pieces, and `receive` takes frames as they come, so that
/// only a hostile peer gets there.
const FRAME_OVERHEAD_MAX: usize = 32 << 20;
/// Size of a head's fields, above what listeners of the pod network accept (64 KiB without HTTP/2's surcharge per field).
const HEAD_BYTES_MAX: u32 = 128 << 10;
/// Time for running calls after a stop, or after the expiry of a certificate.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Configuration of a node's tunnel.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node's name.
    pub node: Arc<str>,
    /// This node's client certificate; new connections use the newest one.
    pub certificate: CertificateReceiver,
    /// The CA of client certificates, PEM.
    pub ca_pem: String,
    /// The cluster's ranges for pods: no Node can claim others.
    pub pod_cidrs: Vec<IpNet>,
}

/// The peers with their ranges.
#[derive(Default)]
struct Peers {
    table: PeerTable,
    /// By index of the table; `None` for this node, and for nodes without a tunnel.
    remotes: Vec<Option<Arc<RemotePod>>>,
}

/// A node's tunnel.
pub struct Tunnel {
    env: Env,
    node: Arc<str>,
    pod_cidrs: Vec<IpNet>,
    tls: TunnelTls,
    network: PodNetwork,
    peers: ArcSwap<Peers>,
    /// One change of the peers at a time.
    changing: Mutex<()>,
    connections: Arc<PeerConnections>,
    node_service: OnceLock<Arc<dyn NodeService>>,
    metrics: TunnelMetrics,
    /// For lines about refused calls, which any node can cause.
    refused_log: LogLimit<PeerUser>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// A tunnel without peers, for [`PodNetwork::set_remote`]. Incoming calls are served by `network`.
    ///
    /// # Errors
    /// If the CA is no PEM certificate.
    pub fn new(env: Env, config: Config, network: PodNetwork) -> Result<Arc<Self>, IdentityError> {
        let tls = TunnelTls::new(&env, &config.ca_pem, config.certificate)?;
        Ok(Arc::new(Self {
            env,
            node: config.node,
            pod_cidrs: config.pod_cidrs,
            tls,
            network,
            peers: ArcSwap::default(),
            changing: Mutex::default(),
            connections: Arc::default(),
            node_service: OnceLock::new(),
            metrics: TunnelMetrics::default(),
            refused_log: LogLimit::default(),
        }))
    }

    /// Metrics of this tunnel.
    #[must_use]
    pub fn metrics(&self) -> &TunnelMetrics {
        &self.metrics
    }

    /// Serves the tunnel's port until `stop`, then drains running calls for at most 30 s.
    pub async fn serve(self: Arc<Self>, listener: impl Into<Listener>, stop: &CancellationToken) {
        accept::serve(self, listener.into(), stop).await;
    }

    /// Replaces all nodes. Connections to a peer with the same name and address stay; those of others are cut.
    pub fn set_nodes(&self, nodes: Vec<PeerConfig>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.peers.load_full();
        let table = PeerTable::of(&self.node, &self.pod_cidrs, nodes);
        for (node, range) in &table.ignored {
            if !before.table.ignored.contains(&(node.clone(), *range)) {
                tracing::warn!(%node, %range, "the Node claims a range that isn't the cluster's, or another Node's: ignored");
            }
        }
        let remotes = table.nodes().iter().map(|node| self.remote(node, &before)).collect();
        self.peers.store(Arc::new(Peers { table, remotes }));
    }

    fn remote(&self, node: &PeerConfig, before: &Peers) -> Option<Arc<RemotePod>> {
        let address = node.address.filter(|_| node.name != self.node)?;
        let same = |remote: &&Arc<RemotePod>| remote.peer.name == node.name && remote.peer.address == address;
        if let Some(known) = before.remotes.iter().flatten().find(same) {
            return Some(known.clone());
        }
        match self.tls.client(&node.name) {
            Ok(tls) => {
                let peer = Peer::new(&self.env, (node.name.clone(), address), tls, &self.metrics);
                let (env, metrics) = (self.env.clone(), self.metrics.clone());
                Some(Arc::new(RemotePod { peer: Arc::new(peer), env, metrics, protocols: Arc::default() }))
            }
            Err(error) => {
                tracing::error!(node = %node.name, %error, "no connection to the node is possible");
                None
            }
        }
    }
}

impl RemotePods for Tunnel {
    fn find(&self, ip: IpAddr, _: Protocol, _: u16) -> Option<Arc<dyn Serve>> {
        let peers = self.peers.load();
        let remote = peers.remotes.get(peers.table.owner_index(ip)?)?.as_ref()?;
        Some(remote.clone())
    }
}
