//! The cluster: the real API server over the simulated store, the real controllers and scheduler, and nodes. A
//! component lives until it is killed, and restarts with nothing but the stored state.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use apiserver::bootstrap;
use apiserver::http::kubelets::Kubelets;
use apiserver::server::{Apiserver, Config};
use apiserver_auth::UserInfo;
use apiserver_auth::jwt::SigningKey;
use apiserver_resources::RESOURCES;
use apiserver_resources::allocate::ServiceNetwork;
use ipnet::Ipv4Net;
use machinery_api::features::{Feature, Features};
use machinery_client::{Informer, Kind};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::checkers::convergence;
use crate::clock;
use crate::freeze::Freezable;
use crate::log::log;
use crate::network::{Link, Network};
use crate::node::{Node, NodeCapacity};
use crate::random::Random;
use crate::sabotage::Sabotage;
use crate::store::SimStore;
use crate::workload::{POOL, certificate};
use crate::world::World;

/// Names of killable components beside the nodes.
pub(crate) const CONTROLLERS: &str = "controllers";
pub(crate) const SCHEDULER: &str = "scheduler";
/// Seconds after which pods leave a silent node.
const TOLERATION_SECONDS: i64 = 15;

/// Without the gate, a `Parallel` StatefulSet may lose one more pod with each template, like upstream's.
fn features() -> Features {
    Features::default().with(Feature::MaxUnavailableStatefulSet, true)
}

/// Time until a silent node's pods are evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Like upstream's flags, only shorter.
    Usual,
    /// With `--fast-failover`.
    Fast,
    /// No node is declared unreachable during outages of the API server.
    Lenient,
}

impl Pace {
    fn toleration_seconds(self) -> i64 {
        match self {
            Self::Usual | Self::Lenient => TOLERATION_SECONDS,
            Self::Fast => 1,
        }
    }

    /// Time without a sign of life until a node is declared unreachable.
    fn monitor_grace(self) -> Duration {
        match self {
            Self::Usual | Self::Fast => Duration::from_secs(14),
            Self::Lenient => Duration::from_secs(120),
        }
    }
}

/// One life of a component.
struct Life {
    link: Arc<Link>,
    informer: Option<Arc<Informer>>,
}

#[derive(Default)]
struct ClusterState {
    lives: BTreeMap<String, Life>,
    /// Ends a component permanently, when a node is removed.
    ends: BTreeMap<String, CancellationToken>,
}

/// The simulated cluster.
pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) network: Arc<Network>,
    pub(crate) store: Arc<SimStore>,
    random: Random,
    seed: u64,
    pace: Pace,
    capacity: NodeCapacity,
    state: Mutex<ClusterState>,
}

/// One key for all runs: generating one takes longer than a run's start, and the log contains none of it.
fn signing_key() -> Arc<SigningKey> {
    static KEY: OnceLock<Arc<SigningKey>> = OnceLock::new();
    let make = || {
        let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        Arc::new(SigningKey::from_pem(&pem).expect("a key on P-256"))
    };
    KEY.get_or_init(make).clone()
}

fn block(text: &str) -> Ipv4Net {
    text.parse().expect("a block of addresses")
}

impl Cluster {
    pub(crate) fn new(seed: u64, world: Arc<World>, pace: Pace) -> Arc<Self> {
        Self::with_capacity(seed, world, pace, NodeCapacity::SMALL)
    }

    /// A cluster whose nodes have this capacity each.
    pub(crate) fn with_capacity(seed: u64, world: Arc<World>, pace: Pace, capacity: NodeCapacity) -> Arc<Self> {
        let network = Network::new(world.clone());
        let store = Arc::new(SimStore::new(world.clone()));
        let random = Random::new(seed, "lives");
        Arc::new(Self { world, network, store, random, seed, pace, capacity, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, ClusterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts everything, with this number of nodes.
    pub(crate) async fn start(self: &Arc<Self>, nodes: u64) {
        let (serving, cluster) = (tokio::sync::oneshot::channel(), self.clone());
        tokio::spawn(cluster.serve_for_ever(serving.0));
        // The server starts eventually, or the run's own time limit ends it.
        let _ = serving.1.await;
        self.keep_alive(CONTROLLERS, Self::controllers);
        self.keep_alive(SCHEDULER, Self::scheduler);
        for number in 1..=nodes {
            self.add_node(&format!("node-{number}"));
        }
    }

    // --- the API server ----------------------------------------------------------------------------------------------

    async fn serve_for_ever(self: Arc<Self>, first: tokio::sync::oneshot::Sender<()>) {
        let mut first = Some(first);
        loop {
            match self.open_server().await {
                Ok((server, dead)) => {
                    log!(self.world, "apiserver: serves");
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                    let cluster = own_cluster();
                    tokio::select! {
                        biased;
                        () = dead.cancelled() => {}
                        () = server.reconcile_bootstrap_objects(&cluster, dead.clone()) => {}
                    }
                    server.stop();
                    log!(self.world, "apiserver: is dead");
                }
                Err(error) => log!(self.world, "apiserver: cannot start: {error}"),
            }
            clock::sleep(self.random.millis(100, 6000)).await;
        }
    }

    async fn open_server(&self) -> Result<(Apiserver, CancellationToken), String> {
        let config = Config {
            address: "127.0.0.1:6443".into(),
            signing_key: signing_key(),
            services: ServiceNetwork { cidr: block("10.96.0.0/24"), node_ports: 30000..=32767, loopback: Vec::new() },
            toleration_seconds: self.pace.toleration_seconds(),
            features: features(),
            kubelets: Kubelets::disabled(&self.world.env),
            registry: Arc::new(Mutex::new(Registry::default())),
        };
        let server = Apiserver::open(&self.world.env, self.store.clone(), config).await.map_err(|e| e.to_string())?;
        server.bootstrap(&own_cluster()).await.map_err(|error| error.to_string())?;
        let dead = self.network.serve(server.service());
        Ok((server, dead))
    }

    // --- components --------------------------------------------------------------------------------------------------

    /// Keeps a component alive: restarts it a while after its end or death.
    fn keep_alive<F>(
        self: &Arc<Self>,
        name: &str,
        run: impl Fn(&Arc<Self>, &Arc<Link>, CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let (cluster, name) = (self.clone(), name.to_owned());
        let end = CancellationToken::new();
        self.state().ends.insert(name.clone(), end.clone());
        tokio::spawn(async move {
            while !end.is_cancelled() {
                let link = Link::new(&name);
                let stop = CancellationToken::new();
                cluster.state().lives.insert(name.clone(), Life { link: link.clone(), informer: None });
                log!(cluster.world, "{name}: begins to live");
                let life = Box::pin(run(&cluster, &link, stop.clone()));
                let mut life = tokio::spawn(Freezable { link: link.clone(), life });
                tokio::select! {
                    biased;
                    () = link.dead.cancelled() => log!(cluster.world, "{name}: is dead"),
                    () = end.cancelled() => log!(cluster.world, "{name}: is taken away"),
                    _ = &mut life => log!(cluster.world, "{name}: ended"),
                }
                // No message of this life passes any more, whatever is left of its tasks.
                link.dead.cancel();
                cluster.network.pump.break_all(|stream| Arc::ptr_eq(&stream.link, &link));
                stop.cancel();
                life.abort();
                clock::sleep(cluster.random.millis(50, 4000)).await;
            }
            cluster.state().lives.remove(&name);
        });
    }

    fn controllers(self: &Arc<Self>, link: &Arc<Link>, stop: CancellationToken) -> impl Future<Output = ()> + use<> {
        let manager = self.network.client(link, UserInfo::component("system:kube-controller-manager", None));
        let informer = self.informer(link, manager.clone(), &stop);
        let (network, link, env) = (self.network.clone(), link.clone(), self.world.env.clone());
        let clients: controllers::Clients =
            Arc::new(move |account| network.client(&link, UserInfo::service_account("kube-system", account)));
        let mut options = controllers::ControllerOptions::default();
        options.node_lifecycle = controllers::NodeLifecycle {
            monitor_period: Duration::from_secs(2),
            monitor_grace: self.pace.monitor_grace(),
            fast_failover: self.pace == Pace::Fast,
            ..options.node_lifecycle
        };
        options.balancers.set_pool(POOL.parse().expect("a pool of addresses"));
        let settings = controllers::Settings {
            options,
            root_ca_pem: "simulated".into(),
            cluster_cidrs: vec![(block("10.244.0.0/16").into(), 24)],
            authority: Arc::new(Keys),
            features: features(),
            ..controllers::Settings::default()
        };
        let mut config = controllers::Config::new(settings, "sim").expect("the defaults are valid");
        config.election = None;
        config.informer = Some(informer);
        if let Sabotage::Without(controller) = self.world.sabotage {
            config.disabled.push(format!("{controller}-controller"));
        }
        async move { drop(controllers::run(manager, clients, env, config, stop).await) }
    }

    fn scheduler(self: &Arc<Self>, link: &Arc<Link>, stop: CancellationToken) -> impl Future<Output = ()> + use<> {
        let client = self.network.client(link, UserInfo::component("system:kube-scheduler", None));
        let informer = self.informer(link, client.clone(), &stop);
        let env = self.world.env.clone();
        let config = scheduler::Config::default();
        async move { drop(scheduler::run_on(&informer, client, env, config, stop).await) }
    }

    fn informer(&self, link: &Arc<Link>, client: kube::Client, stop: &CancellationToken) -> Arc<Informer> {
        let informer = Informer::new(client, self.world.env.clone(), stop);
        if let Some(life) = self.state().lives.get_mut(&link.name) {
            life.informer = Some(informer.clone());
        }
        informer
    }

    // --- nodes -------------------------------------------------------------------------------------------------------

    pub(crate) fn add_node(self: &Arc<Self>, name: &str) {
        let (node, random) = (name.to_owned(), Random::new(self.seed, name));
        self.keep_alive(name, move |cluster, link, stop| {
            let user = UserInfo::component(format!("system:node:{node}"), Some("system:nodes"));
            let client = cluster.network.client(link, user);
            let program = cluster.network.client(link, UserInfo::component("system:apiserver", Some("system:masters")));
            Node::new(&node, (client, program), &cluster.world, (cluster.pace, cluster.capacity), random.clone())
                .run(stop)
        });
    }

    /// Removes the machine permanently.
    pub(crate) fn remove_node(&self, name: &str) {
        if let Some(end) = self.state().ends.remove(name) {
            end.cancel();
        }
    }

    pub(crate) fn nodes(&self) -> Vec<String> {
        self.names().into_iter().filter(|name| name.starts_with("node-")).collect()
    }

    // --- for faults and checkers -------------------------------------------------------------------------------------

    /// All killable components except the server.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state().ends.keys().cloned().collect()
    }

    /// A component's link in its present life.
    pub(crate) fn link(&self, name: &str) -> Option<Arc<Link>> {
        self.state().lives.get(name).map(|life| life.link.clone())
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.state().lives.values().map(|life| life.link.clone()).collect()
    }

    /// Differences between the components' caches and the store.
    pub(crate) fn stale(&self, settled: u64) -> Vec<String> {
        let informers: Vec<(String, Arc<Informer>)> = {
            let state = self.state();
            let with = state.lives.iter().filter_map(|(name, life)| Some((name.clone(), life.informer.clone()?)));
            with.collect()
        };
        let history = &self.world.history;
        informers
            .iter()
            .flat_map(|(name, informer)| convergence::stale(history, name, informer, settled, prefix))
            .collect()
    }
}

/// Key prefix of a kind's objects.
fn prefix(kind: &Kind) -> Option<String> {
    let row = RESOURCES.iter().find(|row| row.group == kind.group && row.plural == kind.plural)?;
    row.storage.prefix().map(|prefix| format!("/registry/{prefix}/"))
}

fn own_cluster() -> bootstrap::Cluster {
    bootstrap::Cluster {
        service_ip: Ipv4Addr::new(10, 96, 0, 1).into(),
        services: "10.96.0.0/16".parse().expect("a block"),
        address: (Ipv4Addr::new(192, 0, 2, 1), 6443).into(),
        ca_pem: "simulated".into(),
        alternative_names: Vec::new(),
    }
}

/// The control plane's keys.
struct Keys;

impl controllers::Authority for Keys {
    fn signs_tokens(&self) -> bool {
        true
    }

    fn sign_token(&self, _: &Value) -> Option<String> {
        Some("simulated".to_owned())
    }

    fn signs_certificates(&self) -> bool {
        true
    }

    fn sign_certificate(&self, _: &controllers::CertificateTemplate<'_>) -> Option<Result<String, String>> {
        Some(Ok(certificate()))
    }

    fn check_policy(&self, _: &Value) -> Option<Vec<controllers::ExpressionWarning>> {
        Some(Vec::new())
    }
}
