//! Shared state of the data plane: configuration, routes, counters, activation queues, and the ways to pods and to
//! external destinations. Listeners and connections hold it; it holds none of them.

pub(crate) mod activation;
mod dns_metrics;
pub(crate) mod flow_target;
pub(crate) mod flows;
pub mod metrics;
pub(crate) mod read_ahead;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use ipnet::IpNet;
use machinery_env::Env;
use machinery_rules::address_pool::AddressPool;
use machinery_rules::reserved_address::is_reserved;
use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::net::PodNetwork;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::egress::{BadCertificate, Egress};
use crate::routing::snapshot::RouteSnapshot;
use crate::routing::table::{Change, PortRoute};
use crate::state::activation::ActivationQueues;
use crate::state::flow_target::Flows;
use crate::state::flows::FLOWS_MAX;
use crate::state::metrics::Metrics;
use crate::state::read_ahead::ReadAheadBudget;

/// Configuration of a data plane.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address of NodePort listeners.
    pub bind: IpAddr,
    /// Whether the host's own addresses can carry ClusterIPs (docs/contract.md §3: blocks of 127.0.0.0/8 on Linux).
    pub cluster_ip_listeners: bool,
    /// The cluster's own CIDRs: Services' and pods'.
    pub cluster_cidrs: Vec<IpNet>,
    /// The addresses of LoadBalancer Services.
    pub load_balancer_pool: AddressPool,
    /// Whether an address of that pool can be of another machine, so that its absence on this one is no failure.
    pub is_pool_shared: bool,
    /// The address of cluster DNS, as in pods' settings.
    pub cluster_dns: Option<IpAddr>,
    /// The cluster's CA as PEM: verifies guests' HTTPS calls to cluster names.
    pub cluster_ca_pem: Option<String>,
    /// The API server of this process: the only address of the host's loopback that is dialled, and only for Service
    /// `default/kubernetes`.
    pub api_server: Option<SocketAddr>,
    /// This node's name, for events.
    pub node: String,
    /// The nodes of this machine.
    pub nodes: BTreeSet<String>,
    /// The file of the last known routes, which are used while the API server is unreachable at a start. `None`: there
    /// are no routes before the first list.
    pub checkpoint: Option<PathBuf>,
}

/// The end of all changes of the routes at a takeover, when the next process follows the API. Each request is a round: its
/// number is that of the last one begun, and the last one completed.
#[derive(Debug, Default)]
pub(crate) struct Freeze(watch::Sender<(u32, u32)>);

impl Freeze {
    /// Requests a round, and waits until it is complete.
    pub(crate) async fn request(&self) {
        let mut round = 0;
        self.0.send_modify(|(begun, _)| {
            *begun += 1;
            round = *begun;
        });
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|(_, completed)| *completed >= round).await;
    }

    /// Resolves when a round was requested.
    pub(crate) async fn requested(&self) {
        let _ = self.0.subscribe().wait_for(|(begun, _)| *begun > 0).await;
    }

    /// The newest round, once it is a later one than `seen`.
    pub(crate) async fn next(&self, seen: u32) -> u32 {
        let mut rounds = self.0.subscribe();
        let begun = rounds.wait_for(|(begun, _)| *begun > seen).await;
        begun.map_or(seen, |round| round.0)
    }

    /// Completes a round and all before it, whose requests have expired: a round begins when the one before has no more time.
    pub(crate) fn done(&self, round: u32) {
        self.0.send_modify(|(_, completed)| *completed = round.max(*completed));
    }

    /// Begins each requested round by `close`, which returns the tasks that it ends. No round waits for another one.
    pub(crate) async fn run(&self, mut close: impl FnMut() -> Vec<JoinHandle<()>>) {
        let (mut seen, mut closing) = (0, FuturesUnordered::new());
        loop {
            tokio::select! {
                round = self.next(seen) => {
                    seen = round;
                    let closed = futures::future::join_all(close());
                    closing.push(async move {
                        closed.await;
                        round
                    });
                }
                Some(round) = closing.next() => self.done(round),
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct ProxyState {
    pub(crate) env: Env,
    pub(crate) config: Config,
    pub(crate) network: PodNetwork,
    pub(crate) routes: RouteSnapshot,
    pub(crate) metrics: Metrics,
    pub(crate) egress: Egress,
    /// Queued requests to Services whose workloads are scaled to zero.
    pub(crate) activation: ActivationQueues,
    /// Buffers of responses to pods.
    pub(crate) read_ahead: ReadAheadBudget,
    /// UDP flows of all listeners. Locked for one datagram, never across a wait.
    pub(crate) flows: Mutex<Flows>,
    /// Whether the routes are complete: set once, after the first state of the API.
    synced: AtomicBool,
    /// The end of all changes of the routes.
    pub(crate) freeze: Freeze,
}

impl ProxyState {
    /// A state without routes.
    pub(crate) fn new(env: Env, config: Config, network: PodNetwork) -> Result<Self, BadCertificate> {
        let egress = Egress::new(&env, config.cluster_ca_pem.as_deref(), config.cluster_cidrs.clone())?;
        // Connections to endpoints have the other half of the class.
        let flows = FLOWS_MAX.min(Descriptors::process().max(Class::Backends) / 2);
        Ok(Self {
            env,
            config,
            network,
            routes: RouteSnapshot::default(),
            metrics: Metrics::default(),
            egress,
            activation: ActivationQueues::default(),
            read_ahead: ReadAheadBudget::default(),
            flows: Mutex::new(Flows::new(flows)),
            synced: AtomicBool::new(false),
            freeze: Freeze::default(),
        })
    }

    /// Marks the routes as complete.
    pub(crate) fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether the routes are complete.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Installs a change of the table and wakes the requests queued for its Service.
    pub(crate) fn install(&self, change: &Change) {
        self.routes.install(change);
        if let Some(service) = &change.service {
            self.activation.notify_service_changed(service);
        }
    }

    /// Whether an address belongs to the cluster; such an address is never dialled on the host or outside.
    pub(crate) fn is_cluster(&self, ip: IpAddr) -> bool {
        self.config.cluster_cidrs.iter().any(|cidr| cidr.contains(&ip))
    }

    /// Whether the data plane may open a socket to an endpoint. An address of the cluster is reached through its pod
    /// only. Of the host's loopback, Service `default/kubernetes` reaches the API server alone, whatever else its
    /// EndpointSlice contains.
    pub(crate) fn may_dial(&self, route: &PortRoute, at: SocketAddr) -> bool {
        if self.is_cluster(at.ip()) {
            return false;
        }
        let kubernetes = || {
            let via = route.via.as_ref();
            via.is_some_and(|via| via.service.namespace == "default" && via.service.name == "kubernetes")
        };
        !is_reserved(at.ip()) || (self.config.api_server == Some(at) && kubernetes())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_freeze_waits_for_its_own_round() {
        let freeze = Freeze::default();
        let requests = async {
            freeze.request().await;
            freeze.request().await;
        };
        tokio::select! {
            () = freeze.run(Vec::new) => {}
            () = requests => {}
        }
        assert_eq!(*freeze.0.borrow(), (2, 2));
    }

    #[tokio::test]
    async fn a_round_begins_while_connections_of_an_earlier_one_are_open() {
        let freeze = Freeze::default();
        let idle = CancellationToken::new();
        let rounds = AtomicU32::new(0);
        let close = || {
            let idle = idle.clone();
            if rounds.fetch_add(1, Ordering::Relaxed) == 0 {
                vec![tokio::spawn(async move { idle.cancelled().await })]
            } else {
                Vec::new()
            }
        };
        let requests = async {
            // The time of the first request ends while a client is idle.
            let mut first = Box::pin(freeze.request());
            assert!(futures::poll!(&mut first).is_pending());
            while rounds.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            freeze.request().await;
            assert_eq!(*freeze.0.borrow(), (2, 2));
            idle.cancel();
            freeze.request().await;
        };
        tokio::select! {
            () = freeze.run(close) => {}
            () = requests => {}
        }
        assert_eq!(*freeze.0.borrow(), (3, 3), "an earlier round that ends late takes nothing back");
    }
}
