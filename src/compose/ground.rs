//! Shared resources of a cluster's components: the locked folder, claimed addresses, keys, and the store with the API
//! server. Nothing here runs by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ::proxy::DataPlane;
use anyhow::Context as _;
use apiserver::bootstrap::cidr_migration::CidrMigration;
use apiserver::server::{self, ApiService, Apiserver, read_first_format};
use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::{self, Pki};
use apiserver_resources::objects::ObjectReader as _;
use apiserver_storage::options::StoreConfig;
use apiserver_storage::store::Store;
use apiserver_storage::store::embedded::{EmbeddedStore, Options};
use apiserver_storage::store::etcd::EtcdStore;
use images::{Images, RegistryAccess};
use kubelet::node::{Handover, Shutdown};
use machinery_client::Informer;
use machinery_env::Env;
use machinery_serve::accept::Listener;
use machinery_serve::net::PodNetwork;
use oci_registry::BlobStore;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use wasm_runtime::engine::Engine;

use super::identities::ComponentIdentity;
use super::image_metadata::chain_extensions;
use super::preflight::embedded_path;
use super::{
    Part, address_change, apiserver as api, node_configuration, nodes, proxy, registry, shared_store, storage,
};
use crate::config::ClusterConfig;
use crate::network::{Network, machine_address};
use tools_joining::accept::fetch_missing;
use tools_telemetry::metrics::{feature_registry, register_dropped};

use tools_command::data_dir::{DataDir, Lock, write_atomically};
use tools_command::environment::host_name;

/// Stop tokens, one a stage.
#[derive(Default)]
pub(super) struct Stops {
    pub(super) servers: CancellationToken,
    pub(super) components: CancellationToken,
    /// The layer of pods: data plane, DNS, tunnel.
    pub(super) pods: CancellationToken,
}

/// Shared resources of the roles.
pub(super) struct Ground {
    pub(super) env: Env,
    pub(super) config: ClusterConfig,
    pub(super) data: DataDir,
    pub(super) network: Network,
    pub(super) pki: Arc<Pki>,
    /// The serving certificate and the revoked ones.
    pub(super) certificates: Arc<Certificates>,
    /// `None` over etcd.
    pub(super) embedded_store: Option<Arc<EmbeddedStore>>,
    /// This process's name among those that share the store. `None` with the embedded store: the data folder's lock
    /// excludes others, so there is no election, and a start needn't wait for an old lease.
    pub(super) candidate: Option<String>,
    pub(super) apiserver: Apiserver,
    /// The in-process API server.
    pub(super) service: ApiService,
    /// The API server's persistent bootstrap state.
    pub(super) bootstrap: apiserver::bootstrap::Cluster,
    /// The address of the API server as seen by clients.
    pub(super) api_address: SocketAddr,
    pub(super) metrics: Arc<Mutex<Registry>>,
    /// One cache for controllers and scheduler: each object is stored and decoded once.
    pub(super) informer: Arc<Informer>,
    pub(super) pods: PodNetwork,
    pub(super) data_plane: DataPlane,
    /// `None` without nodes.
    pub(super) engine: Option<Engine>,
    pub(super) blobs: Arc<BlobStore>,
    /// `None` without nodes.
    pub(super) images: Option<Arc<Images>>,
    pub(super) registry: RegistryAccess,
    pub(super) registry_password: String,
    pub(super) stop: Stops,
    /// Cancelled when the cluster is ready: starts tasks that no start waits for.
    pub(super) ready: CancellationToken,
    /// The nodes' graceful shutdowns, one each.
    pub(super) shutdowns: Vec<Shutdown>,
    /// The takeover of the nodes.
    pub(super) handover: Handover,
    listeners: Mutex<Listeners>,
    _lock: Lock,
}

/// Bound sockets, until their servers take them.
#[derive(Default)]
struct Listeners {
    api: Option<Listener>,
    registry: Option<Listener>,
}

/// What a start holds before its API server opens.
struct Claims {
    store: Arc<dyn Store>,
    embedded_store: Option<Arc<EmbeddedStore>>,
    network: Network,
    api_listener: Listener,
    pki: Arc<Pki>,
    candidate: Option<String>,
}

impl Claims {
    async fn make(env: &Env, config: &ClusterConfig, up_to: Part, data: &DataDir) -> anyhow::Result<Self> {
        let (store, embedded_store) = open_store(env, &config.api.store, data).await?;
        if let Some(join) = &config.api.join {
            fetch_missing(env, join, &data.pki()).await?;
        }
        let network = match &embedded_store {
            Some(_) if up_to != Part::Control => Network::choose(&config.network, &data.network())?,
            _ => shared_store::network(&*store, &config.network, data, up_to).await?,
        };
        let network = network.check(config.controllers.balancers.pool())?;
        let api_listener = listen(config.api.bind, config.api.port)?;
        let service_ip = network.services.hosts().next().context("--service-cidr has no address")?;
        let pki = Arc::new(Pki::open_or_create(
            &data.pki(),
            env,
            &names(reachable(config.api.bind), service_ip, &config.api.tls_sans),
        )?);
        let mut candidate = None;
        if embedded_store.is_none() {
            shared_store::check_keys(&*store, &pki, data).await?;
            // The same at the next start of this folder, so that a process which was killed leads again at once.
            candidate = Some(format!("{}_{}", host_name(), data.candidate(env)?));
        }
        Ok(Self { store, embedded_store, network, api_listener, pki, candidate })
    }
}

/// The built-in registry and, with nodes, the engine and its images.
struct Modules {
    registry_listener: Listener,
    registry_password: String,
    engine: Option<Engine>,
    blobs: Arc<BlobStore>,
    registry: RegistryAccess,
    images: Option<Arc<Images>>,
}

impl Modules {
    async fn open(
        env: &Env,
        (config, prepared): (&ClusterConfig, Option<Engine>),
        data: &DataDir,
        pki: &Pki,
    ) -> anyhow::Result<Self> {
        let (registry_listener, registry_address) = registry::bind(data, config.api.bind)?;
        let registry_password = registry::password(data, env)?;
        let engine = prepared.map_or_else(|| nodes::prepare_engine(env, config, data), |engine| Ok(Some(engine)))?;
        if let Some(engine) = &engine {
            // It may have been made before the takeover.
            nodes::share_keyvalue_files(engine);
        }
        let (blobs, registry) = (nodes::blob_store(data)?, registry::access(registry_address, &registry_password, pki));
        let own = vec![registry.clone()];
        let images = engine.as_ref().map(|engine| nodes::images(env, &config.nodes, engine, (&blobs, own)));
        Ok(Self { registry_listener, registry_password, engine, blobs, registry, images: images.transpose()? })
    }
}

/// The configuration of a cluster, and its engine if it was made before.
type Given = (ClusterConfig, Option<Engine>);

impl Ground {
    /// Claims folder and addresses, opens the store, and writes the bootstrap objects.
    ///
    /// # Errors
    /// If one of them is unavailable.
    pub(super) async fn prepare(env: &Env, given: Given, up_to: Part, data: &DataDir) -> anyhow::Result<Self> {
        let (lock, (config, prepared)) = (data.lock()?, given);
        let claims = Claims::make(env, &config, up_to, data).await?;
        let Claims { store, embedded_store, network, api_listener, pki, candidate } = claims;
        let api_address = SocketAddr::new(reachable(config.api.bind), api_listener.local_addr()?.port());
        let service_ip = network.services.hosts().next().context("--service-cidr has no address")?;
        let mut metrics = feature_registry(&config.features);
        register_dropped(&mut metrics);
        let metrics = Arc::new(Mutex::new(metrics));
        let certificates = Arc::new(Certificates::new(&pki.with_authority(pki.serving()))?);
        let stop = Stops::default();
        let modules = Modules::open(env, (&config, prepared), data, &pki).await?;
        let Modules { registry_listener, registry_password, engine, blobs, registry, images } = modules;
        let apiserver = Apiserver::open_with(
            env,
            store,
            server::Config {
                address: api_address.to_string(),
                signing_key: pki.service_account().clone(),
                services: network.of_services(),
                toleration_seconds: config.api.default_toleration_seconds.into(),
                features: config.features,
                kubelets: api::kubelets(env, &pki)?,
                registry: metrics.clone(),
            },
            chain_extensions(env, &config.nodes, &config.api, images.as_ref(), (&blobs, &registry)),
        )
        .await?;
        let service = apiserver.service();
        let shutdowns = (0..config.nodes.count).map(|_| Shutdown::new(config.nodes.kubelet.shutdown_grace())).collect();
        let manager = ComponentIdentity::ControllerManager.client(env, &service);
        let pods = PodNetwork::default();
        let ground = Self {
            env: env.clone(),
            data: data.clone(),
            bootstrap: apiserver::bootstrap::Cluster {
                service_ip: service_ip.into(),
                services: network.services,
                address: api_address,
                ca_pem: pki.ca_pem().to_owned(),
                alternative_names: config.api.tls_sans.clone(),
            },
            data_plane: DataPlane::new(env.clone(), proxy::config(&config, &network, &pki, api_address), pods.clone())?,
            informer: Informer::new(manager, env.clone(), &stop.components),
            engine,
            blobs,
            images,
            registry,
            listeners: Mutex::new(Listeners { api: Some(api_listener), registry: Some(registry_listener) }),
            config,
            network,
            pki,
            certificates,
            embedded_store,
            candidate,
            apiserver,
            service,
            api_address,
            metrics,
            pods,
            registry_password,
            stop,
            ready: CancellationToken::new(),
            shutdowns,
            handover: Handover::default(),
            _lock: lock,
        };
        ground.bootstrap().await?;
        Ok(ground)
    }

    /// Writes the bootstrap objects and the kubeconfig.
    async fn bootstrap(&self) -> anyhow::Result<()> {
        let migrations: Vec<CidrMigration> = self.network.migrations(kubernetes_address(&self.apiserver));
        if let Some(other) = self.apiserver.other_servers(self.api_address).first().filter(|_| !migrations.is_empty()) {
            anyhow::bail!(
                "the cluster's addresses ({}) are in use on this machine, and can't move while the API server at \
                 {other} runs: stop one of the two, or what uses the addresses",
                migrations[0].from
            );
        }
        self.apiserver.migrate_cidrs(&migrations).await?;
        self.apiserver.bootstrap(&self.bootstrap).await?;
        let kubeconfig = pki::kubeconfig(&self.server_url(), self.pki.ca_pem(), "coracle", self.pki.admin());
        write_atomically(&self.data.kubeconfig(), kubeconfig.as_bytes())?;
        let admin = ComponentIdentity::Admin.client(&self.env, &self.service);
        registry::advertise(&admin, &self.registry.address).await?;
        let instance = self.data.instance(&self.env)?;
        let pool = self.config.controllers.balancers.pool();
        node_configuration::publish(&admin, &self.network, pool, (&instance, &self.registry.address)).await?;
        if self.config.nodes.count > 0 {
            storage::create_default_class(&admin).await?;
        }
        address_change::announce(&admin, &self.env, &migrations).await
    }

    /// This process's name among those that share the store; `None` with a store of its own.
    pub(super) fn instance(&self) -> anyhow::Result<Option<String>> {
        if self.candidate.is_none() {
            return Ok(None);
        }
        Ok(Some(format!("{}_{}", host_name(), self.data.instance(&self.env)?)))
    }

    /// `https://ADDR:PORT`
    pub(super) fn server_url(&self) -> String {
        format!("https://{}", self.api_address)
    }

    pub(super) fn with_metrics(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.metrics.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the API server's socket, once.
    pub(super) fn take_api_listener(&self) -> anyhow::Result<Listener> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.api.take().context("the API server's address is taken by its server already")
    }

    /// Takes the registry's socket, once.
    pub(super) fn take_registry_listener(&self) -> anyhow::Result<Listener> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.registry.take().context("the registry's address is taken by its server already")
    }
}

/// Opens the store; the embedded one is returned twice.
async fn open_store(
    env: &Env,
    config: &StoreConfig,
    data: &DataDir,
) -> anyhow::Result<(Arc<dyn Store>, Option<Arc<EmbeddedStore>>)> {
    if let StoreConfig::Etcd(etcd) = config {
        let store = EtcdStore::open(etcd, env.clone()).await;
        return Ok((Arc::new(store.with_context(|| format!("--store etcd:{}", etcd.endpoints.join(",")))?), None));
    }
    let store = open_embedded(env, embedded_path(config, data)?, data).await?;
    Ok((store.clone(), Some(store)))
}

/// Opens an embedded store, and rejects one that has lost its cluster.
async fn open_embedded(env: &Env, path: PathBuf, data: &DataDir) -> anyhow::Result<Arc<EmbeddedStore>> {
    data.check_store_not_lost(&path, !path.join("format").exists())?;
    let store = {
        let (env, path) = (env.clone(), path.clone());
        tokio::task::spawn_blocking(move || {
            EmbeddedStore::open(
                &path,
                env,
                Options { read_first_format: Box::new(read_first_format), ..Options::default() },
            )
        })
        .await??
    };
    data.check_store_not_lost(&path, store.revision() == 0)?;
    store.start()?;
    Ok(store)
}

/// The address of the Service `kubernetes` in the last run.
fn kubernetes_address(apiserver: &Apiserver) -> Option<Ipv4Addr> {
    let service = apiserver.objects().get("", "services", "default", "kubernetes")?;
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

/// The first address of the machine where `bind` is a wildcard (docs/contract.md §2). The flags are rejected without one.
pub(super) fn reachable(bind: IpAddr) -> IpAddr {
    machine_address(bind).unwrap_or(bind)
}

fn listen(bind: IpAddr, port: u16) -> anyhow::Result<Listener> {
    Listener::bind_own("API server", SocketAddr::new(bind, port)).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!("port {port} of {bind} is taken: stop what listens there, or choose another with --port (0 picks a free one)"),
        _ => anyhow::anyhow!("cannot listen on {bind}:{port}: {error}; choose another address with --bind or --port"),
    })
}

/// The names and addresses in the serving certificate.
fn names(advertise: IpAddr, service_ip: Ipv4Addr, further: &[String]) -> Vec<String> {
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
    names.extend_from_slice(further);
    names.dedup();
    names
}
