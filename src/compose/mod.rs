//! Builds a cluster out of its rooms: configuration, then everything built, then started, then drained.
//!
//! The only place that knows all rooms. Control plane and data plane have threads of their own, so that a busy guest
//! never starves the API (docs/architecture.md).

mod identities;
mod moved;
mod nodes;
mod ready;
mod registry;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::auth::pki::{self, Pki};
use apiserver::auth::tls::Acceptor;
use apiserver::server::{self, Apiserver, read_plain};
use apiserver_resources::objects::Objects as _;
use apiserver_storage::store::Store as _;
use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use kube::Client;
use machinery_client::Informer;
use machinery_env::Env;
use machinery_serve::net::PodNetwork;
use prometheus_client::registry::Registry;
use scheduler::plugins::{Packing, Profile};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::identities::Role;
use crate::config::{ScoringStrategy, Up};
use crate::data_dir::{DataDir, Lock, write_atomically};
use crate::network::Network;
use crate::progress::Progress;

pub(crate) use registry::USER as REGISTRY_USER;

/// Threads of the control plane: it mostly waits, and two cores are the smallest machine that it is made for.
const CONTROL_PLANE_THREADS: usize = 2;

/// How long components may take to end (contract.md §2: a stop takes 5 s at most, the store's last write included).
const DRAIN: Duration = Duration::from_millis(2500);
/// Then requests to the server have this long.
const LAST_ANSWERS: Duration = Duration::from_millis(700);
/// And the store, to bring its checkpoint up to its log. What was acknowledged is in the log already.
const LAST_CHECKPOINT: Duration = Duration::from_millis(700);

/// The runtime of the control plane.
///
/// # Errors
/// Threads can't be started.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_PLANE_THREADS)
        .thread_name("control-plane")
        .enable_all()
        .build()
        .context("cannot start threads")
}

/// Waits for SIGINT or SIGTERM. The handlers are in place as soon as this is called.
pub(crate) fn stop_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    #[cfg(unix)]
    let interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    async move {
        #[cfg(unix)]
        if let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// A cluster that is ready.
pub(crate) struct Cluster {
    /// `https://ADDR:PORT`
    pub(crate) server: String,
    /// A client of `system:masters`.
    pub(crate) admin: Client,
    /// How long after the start the API answered.
    pub(crate) api_ready_after: Duration,
    registry: kubelet::image::RegistryAccess,
    failures: Mutex<tokio::sync::mpsc::Receiver<anyhow::Error>>,
    apiserver: Apiserver,
    store: Arc<EmbeddedStore>,
    components: TaskTracker,
    stop_components: CancellationToken,
    stop_server: CancellationToken,
    serving: JoinSet<()>,
    _engine: Option<wasm_runtime::engine::Engine>,
    _network: Network,
    _lock: Lock,
}

/// Starts a cluster and waits until it is ready.
///
/// # Errors
/// Something that it needs can't be had: the folder, an address, the store; or it did not become ready in time.
pub(crate) async fn start(env: &Env, up: &Up, data: &DataDir, progress: Progress) -> anyhow::Result<Cluster> {
    let started = env.elapsed();
    if let Some(shortage) = machinery_serve::descriptors::Descriptors::process().shortage() {
        tracing::warn!("{shortage}");
    }
    let lock = data.lock()?;
    let network = Network::choose(up, &data.network())?;
    let listener = listen(up.bind, up.port).await?;
    let port = listener.local_addr()?.port();
    let advertise = reachable(up.bind);
    let server = format!("https://{}", SocketAddr::new(advertise, port));
    let service_ip = network.services.hosts().next().context("--service-cidr has no address")?;
    let pki = Pki::open_or_create(&data.pki(), env, &names(advertise, service_ip))?;

    progress.doing("opening the store");
    let store_path = store_path(up, data)?;
    data.expect_store(&store_path, !store_path.join("format").exists())?;
    let path = store_path.clone();
    let store = {
        let env = env.clone();
        tokio::task::spawn_blocking(move || {
            EmbeddedStore::open(&store_path, env, Options { read_plain: Box::new(read_plain), ..Options::default() })
        })
        .await??
    };
    data.expect_store(&path, store.revision() == 0)?;
    let metrics = Arc::new(Mutex::new(Registry::default()));
    let apiserver = Apiserver::open(
        env,
        store.clone(),
        server::Config {
            address: SocketAddr::new(advertise, port).to_string(),
            signing_key: pki.service_account().clone(),
            services: network.of_services(),
            toleration_seconds: up.default_toleration_seconds.into(),
            kubelets: nodes::kubelets(&pki)?,
            registry: metrics.clone(),
        },
    )
    .await?;
    let cluster = apiserver::bootstrap::Cluster {
        service_ip: service_ip.into(),
        advertise,
        port,
        ca_pem: pki.ca_pem().to_owned(),
    };
    let moves = network.moves(kubernetes_address(&apiserver));
    apiserver.follow(&moves).await?;
    apiserver.bootstrap(&cluster).await?;
    let mending = {
        let (apiserver, cluster) = (apiserver.clone(), cluster.clone());
        move |stop| async move { apiserver.mend(&cluster, stop).await }
    };
    let kubeconfig = pki::kubeconfig(&server, pki.ca_pem(), "coracle", pki.admin());
    write_atomically(&data.kubeconfig(), kubeconfig.as_bytes())?;

    let (stop_server, stop_components) = (CancellationToken::new(), CancellationToken::new());
    let mut serving = JoinSet::new();
    let acceptor = Acceptor::new(env, pki.serving(), pki.ca_pem())?;
    serving.spawn({
        let (apiserver, stop) = (apiserver.clone(), stop_server.clone());
        async move { apiserver.serve(listener, acceptor, stop).await }
    });
    serving.spawn(mending(stop_server.clone()));
    let api_ready_after = env.elapsed().saturating_sub(started);

    let service = apiserver.service();
    let admin = Role::Admin.client(&service);
    let images = nodes::blob_store(data)?;
    let registry_listener = registry::bind(data).await?;
    let registry_address = registry_listener.local_addr()?;
    let password = registry::password(data, env)?;
    let access = registry::access(registry_address, &password);
    serving.spawn(registry::serve(registry_listener, images.clone(), password, env.clone(), stop_server.clone()));
    registry::advertise(&admin, registry_address).await?;
    moved::announce(&admin, env, &moves).await?;

    let (failed, failures) = tokio::sync::mpsc::channel(1);
    let components = Components {
        env,
        up,
        service: &service,
        tracker: TaskTracker::new(),
        stop: stop_components.clone(),
        failed,
        metrics: &metrics,
    };
    // One view of the cluster for both: each object is held and read once.
    let informer = Informer::new(Role::ControllerManager.client(&service), env.clone(), &stop_components);
    components.controllers(&network, &pki, &informer);
    components.scheduler(&informer);
    let pods = PodNetwork::default();
    let engine = match up.nodes {
        0 => None,
        _ => Some(nodes::engine(env, data)?),
    };
    let api_server = SocketAddr::new(advertise, port);
    let (data_plane, routes_known) = components.proxy(&network, &pki, &pods, engine.as_ref(), api_server)?;
    if let Some(engine) = &engine {
        let parts = nodes::Shared {
            engine: engine.clone(),
            blobs: images,
            registry: access.clone(),
            pods,
            dial: Arc::new(data_plane),
            pki: &pki,
            data,
        };
        progress.doing("waiting for the nodes");
        nodes::start(&components, &parts).await?;
    }
    progress.doing("waiting for the data plane");
    routes_known.await.context("the data plane ended before it knew the Services; see --log-level info")?;
    progress.doing("waiting for the controllers");
    ready::default_namespace(&admin).await?;
    components.tracker.close();
    Ok(Cluster {
        server,
        admin,
        api_ready_after,
        registry: access,
        failures: Mutex::new(failures),
        apiserver,
        store,
        components: components.tracker,
        stop_components,
        stop_server,
        serving,
        _engine: engine,
        _network: network,
        _lock: lock,
    })
}

impl Cluster {
    /// Pushes a module into the built-in registry.
    ///
    /// # Errors
    /// As the registry says.
    pub(crate) async fn push(&self, module: &[u8], reference: &str) -> anyhow::Result<()> {
        kubelet::image::push(module.to_vec(), wasm_runtime::engine::inspect, reference, &self.registry).await?;
        Ok(())
    }

    /// Waits for a component that ended though nobody asked it to.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        std::future::poll_fn(|context| {
            let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match failures.poll_recv(context) {
                std::task::Poll::Ready(Some(error)) => std::task::Poll::Ready(error),
                _ => std::task::Poll::Pending,
            }
        })
        .await
    }

    /// Drains and ends everything, the store last.
    pub(crate) async fn stop(mut self) {
        self.stop_components.cancel();
        if tokio::time::timeout(DRAIN, self.components.wait()).await.is_err() {
            tracing::warn!("components did not end in time and are dropped");
        }
        self.apiserver.stop();
        self.stop_server.cancel();
        let _ = tokio::time::timeout(LAST_ANSWERS, async { while self.serving.join_next().await.is_some() {} }).await;
        self.serving.shutdown().await;
        let store = self.store.clone();
        let closed = tokio::task::spawn_blocking(move || store.close());
        if tokio::time::timeout(LAST_CHECKPOINT, closed).await.is_err() {
            tracing::warn!("the store's checkpoint is behind its log; the next start reads more of the log");
        }
    }
}

/// What starting a component takes.
struct Components<'a> {
    env: &'a Env,
    up: &'a Up,
    service: &'a server::ApiService,
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: tokio::sync::mpsc::Sender<anyhow::Error>,
    metrics: &'a Arc<Mutex<Registry>>,
}

impl Components<'_> {
    /// Runs a component until it ends; its end before the cluster's is a failure of the whole.
    fn spawn(&self, name: &'static str, component: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        self.tracker.spawn(async move {
            let ended = component.await;
            if !stop.is_cancelled() {
                let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended"));
                let _ = failed.try_send(
                    error.context(format!("the {name} ended; start again, with --log-level info to see why")),
                );
            }
        });
    }

    fn with_metrics(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.metrics.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn controllers(&self, network: &Network, pki: &Pki, informer: &Arc<Informer>) {
        let signing_key = pki.service_account().clone();
        let settings = controllers::Settings {
            node_monitor_period: Duration::from_secs(self.up.node_monitor_period.into()),
            node_monitor_grace: Duration::from_secs(self.up.node_monitor_grace_period.into()),
            root_ca_pem: pki.ca_pem().to_owned(),
            cluster_cidrs: vec![(network.pods.into(), network.node_mask)],
            sign_token: Some(Arc::new(move |claims| signing_key.sign(claims).ok())),
            ..controllers::Settings::default()
        };
        let mut config = controllers::Config::new(settings, "coracle");
        // One process has the data folder, so there is nobody to elect against; a start need not wait for an old lease.
        config.election = None;
        config.informer = Some(informer.clone());
        self.with_metrics(|registry| config.metrics.register(registry));
        let service = self.service.clone();
        let clients: controllers::Clients = Arc::new(move |account| Role::Controller(account).client(&service));
        let client = Role::ControllerManager.client(self.service);
        let (env, stop) = (self.env.clone(), self.stop.clone());
        self.spawn("controllers", async move { Ok(controllers::run(client, clients, env, config, stop).await?) });
    }

    fn scheduler(&self, informer: &Arc<Informer>) {
        let packing = match self.up.scoring_strategy {
            ScoringStrategy::LeastAllocated => Packing::LeastAllocated,
            ScoringStrategy::MostAllocated => Packing::MostAllocated,
        };
        let profiles = vec![Profile { packing, ..Profile::default() }];
        let config = scheduler::Config { profiles, ..scheduler::Config::default() };
        self.with_metrics(|registry| config.metrics.register(registry));
        let client = Role::Scheduler.client(self.service);
        let (informer, env, stop) = (informer.clone(), self.env.clone(), self.stop.clone());
        self.spawn("scheduler", async move { Ok(scheduler::run_on(&informer, client, env, config, stop).await?) });
    }

    /// The data plane runs where guests run: a request is handed over without changing threads.
    fn proxy(
        &self,
        network: &Network,
        pki: &Pki,
        pods: &PodNetwork,
        engine: Option<&wasm_runtime::engine::Engine>,
        api_server: SocketAddr,
    ) -> anyhow::Result<(proxy::DataPlane, tokio::sync::oneshot::Receiver<()>)> {
        let config = proxy::Config {
            bind: self.up.bind,
            cluster_ip_listeners: network.services.network().is_loopback(),
            cluster_cidrs: vec![network.services.into(), network.pods.into()],
            cluster_ca_pem: Some(pki.ca_pem().to_owned()),
            api_server: Some(api_server),
            node: "coracle".into(),
        };
        let plane = proxy::DataPlane::new(self.env.clone(), config, pods.clone())?;
        self.with_metrics(|registry| plane.metrics().register(registry));
        let client = Role::Proxy.client(self.service);
        let (synced, routes_known) = tokio::sync::oneshot::channel();
        let synced = move || {
            // Where nobody waits any more, the cluster is ending.
            let _ = synced.send(());
        };
        let running = proxy::run(plane.clone(), client, self.stop.clone(), synced);
        let handle = engine.map_or_else(tokio::runtime::Handle::current, |engine| engine.guest_runtime().clone());
        let running = handle.spawn(running);
        self.spawn("data plane", async move { Ok(running.await?) });
        Ok((plane, routes_known))
    }
}

/// The address that the Service `kubernetes` had in the last run.
fn kubernetes_address(apiserver: &Apiserver) -> Option<Ipv4Addr> {
    let service = apiserver.objects().get("", "services", "default", "kubernetes")?;
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

/// The first address of the machine where `bind` is a wildcard (contract.md §2).
fn reachable(bind: IpAddr) -> IpAddr {
    if !bind.is_unspecified() {
        return bind;
    }
    // Connecting a UDP socket sends nothing; it only asks the system which address it would use.
    let any: IpAddr = if bind.is_ipv4() {
        Ipv4Addr::new(192, 0, 2, 1).into()
    } else {
        std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    };
    let ours = std::net::UdpSocket::bind(SocketAddr::new(bind, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(any, 9))?;
        socket.local_addr()
    });
    ours.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

async fn listen(bind: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((bind, port)).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!("port {port} of {bind} is taken: stop what listens there, or choose another with --port (0 picks a free one)"),
        _ => anyhow::anyhow!("cannot listen on {bind}:{port}: {error}; choose another address with --bind or --port"),
    })
}

/// The names and addresses that the serving certificate is for.
fn names(advertise: IpAddr, service_ip: Ipv4Addr) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .into();
    names.extend([service_ip.to_string(), advertise.to_string()]);
    names.dedup();
    names
}

fn store_path(up: &Up, data: &DataDir) -> anyhow::Result<std::path::PathBuf> {
    match up.store.as_deref().and_then(|url| url.strip_prefix("sled:")) {
        Some(path) => std::path::absolute(path).with_context(|| format!("--store sled:{path}")),
        None => Ok(data.store()),
    }
}
