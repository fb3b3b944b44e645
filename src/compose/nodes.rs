//! The node agents' role: their engine and images, and in the process of the API server their identities and clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use images::{Images, ImagesConfig, RegistryAccess};
use keyvalue::NodeStores;
use kubelet::server::ServingTls;
use machinery_api::names;
use machinery_client::TlsIdentity;
use machinery_env::Env;
use machinery_roles::Component;
use machinery_serve::sockets::SocketTable;
use oci_registry::BlobStore;
use tokio::sync::watch;
use wasm_runtime::engine::{CompileProcess, Engine, EngineConfig, GuestThreads};

use super::ground::Ground;
use super::ground::addresses::reachable;
use super::identities::ComponentIdentity;
use super::metrics::Metrics;
use super::node_host::{Agent, NodeHost};
use super::tunnel::{self, TunnelParts};
use crate::config::{ClusterConfig, NodesConfig};
use tools_command::data_dir::DataDir;
use tools_command::output::print_stderr;
use tools_compiled_modules as compiled;

/// Share of the machine's memory in percent for all guests; the rest is the control plane's and the system's.
const GUEST_MEMORY_PERCENT: u64 = 75;

/// Images and the registry's blobs.
pub(super) fn blob_store(data: &DataDir) -> anyhow::Result<Arc<BlobStore>> {
    let path = data.images();
    Ok(Arc::new(BlobStore::open(&path).with_context(|| format!("cannot open the images in {}", path.display()))?))
}

/// Memory limit of all guests of this process: the sum of the nodes' allocatable memory.
pub(super) fn guest_memory_bytes() -> anyhow::Result<u64> {
    let mut system = sysinfo::System::new().context("cannot read this machine's memory")?;
    system.refresh_memory();
    Ok(system.total_memory() / 100 * GUEST_MEMORY_PERCENT)
}

/// The engine of a process with nodes.
pub(crate) fn prepare_engine(env: &Env, config: &ClusterConfig, data: &DataDir) -> anyhow::Result<Option<Engine>> {
    (config.nodes.count > 0).then(|| engine(env, data, &config.nodes)).transpose()
}

/// This process's engine and its guest threads. Changes nothing that another process with the same folder uses.
pub(super) fn engine(env: &Env, data: &DataDir, nodes: &NodesConfig) -> anyhow::Result<Engine> {
    let config = EngineConfig {
        cache_dir: data.path().join("compiled"),
        memory_max_bytes: guest_memory_bytes()?,
        compile_process: Some(CompileProcess::current().context("cannot find this program's file")?),
        compile_bounds: nodes.guests.compile(),
        guest_bounds: nodes.guests.instance(),
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = GuestThreads::start(cores, env).context("cannot start the guests' threads")?;
    let engine = Engine::new(config, threads, env.clone())?;
    let (folder, shared) = (data.path().join("keyvalue"), nodes.keyvalue.clone());
    engine.set_keyvalue(Arc::new(NodeStores::new(folder, shared, engine.ledger(), env, engine.guest_runtime())));
    share_keyvalue_files(&engine);
    Ok(engine)
}

/// After a takeover the process before serves on by its pods for a while.
pub(super) fn share_keyvalue_files(engine: &Engine) {
    engine.share_keyvalue_files(!SocketTable::process().is_admitting());
}

/// The images of this process's nodes.
pub(super) fn images(
    env: &Env,
    config: &NodesConfig,
    engine: &Engine,
    (blobs, built_in): (&Arc<BlobStore>, Vec<RegistryAccess>),
) -> anyhow::Result<Arc<Images>> {
    let given = config.images.clone();
    let images = ImagesConfig {
        built_in,
        registries: given.registries.with_proxies(tools_command::environment::proxies()),
        file_dirs: given.file_dirs,
        parallel_pulls: given.parallel_pulls,
        credential_providers: given.credential_providers,
        signature_policy: given.signature_policy,
    };
    Ok(Arc::new(Images::open(Arc::new(engine.clone()), env.clone(), blobs.clone(), images)?))
}

/// Names of `count` nodes of one process.
pub(super) fn node_names(count: u32) -> impl Iterator<Item = String> {
    (1..=count).map(|number| format!("coracle-{number}"))
}

/// The node agents of a process, and what they share with other machines.
pub(super) struct NodesParts {
    pub(super) host: NodeHost,
    /// The tunnel to nodes of other machines, where they reach this one.
    pub(super) tunnel: Option<TunnelParts>,
    pub(super) metrics: Metrics,
}

impl NodesParts {
    /// The nodes of `--nodes`; `None` if there are none.
    ///
    /// # Errors
    /// If certificates can't be made.
    pub(super) fn of(ground: &Ground) -> anyhow::Result<Option<Self>> {
        let config = &ground.config.nodes;
        let (Some(engine), Some(images)) = (&ground.modules.engine, &ground.modules.images) else { return Ok(None) };
        let names = node_names(config.count).zip(&ground.pods.shutdowns);
        let agents = names.map(|(name, shutdown)| {
            Ok(Agent {
                client: ground.client(ComponentIdentity::Node(name.clone())),
                tls: serving_tls(ground, &name)?,
                internal_ip: reachable(config.bind),
                shutdown: shutdown.clone(),
                external_provider: ground.config.inventory.is_some(),
                kubelet_port: 0,
                taints: Vec::new(),
                is_autonomous: false,
                name,
            })
        });
        let binder = ground.client(ComponentIdentity::Controller("persistent-volume-binder"));
        let host = NodeHost {
            env: ground.env.clone(),
            data: ground.data.clone(),
            config: config.clone(),
            engine: engine.clone(),
            images: images.clone(),
            pods: ground.pods.network.clone(),
            data_plane: ground.pods.plane.clone(),
            // One collector serves all nodes of the process, and a node reads only its pods' namespaces.
            namespaces: ground.client(ComponentIdentity::Controller("namespace-controller")),
            agents: agents.collect::<anyhow::Result<Vec<_>>>()?,
            // As the binder, whose cache has the volumes of all nodes.
            volumes: (ground.api.informer.clone(), binder.into()),
            stop: ground.stops.components.clone(),
            handover: ground.pods.handover.clone(),
            ready: ground.ready.clone(),
        };
        Ok(Some(Self { host, tunnel: tunnel(ground)?, metrics: ground.metrics.clone() }))
    }

    /// The agents with their shared parts. Starts the exchange of compiled modules, where it is wanted.
    ///
    /// # Errors
    /// If the tunnel's port is taken, or the machine's resources can't be read.
    pub(super) fn build(self) -> anyhow::Result<Vec<Component>> {
        let Self { host, tunnel, metrics } = self;
        let mut annotations = BTreeMap::new();
        let Some(tunnel) = tunnel.map(tunnel::bind).transpose()? else { return host.components(&annotations) };
        metrics.add(|registry| tunnel.tunnel.metrics().register(registry));
        annotations.insert(names::TUNNEL_ADDRESS.to_owned(), tunnel.address.to_string());
        if host.config.share_compiled {
            let exchange = compiled::start(&host.env, &host.engine, &tunnel.tunnel);
            metrics.add(|registry| exchange.register(registry));
            annotations.insert(names::COMPILED_MODULES.to_owned(), compiled::key(&host.engine));
        }
        let mut components = host.components(&annotations)?;
        components.extend(tunnel.components);
        Ok(components)
    }
}

/// The tunnel to nodes of other machines, where they reach this one.
fn tunnel(ground: &Ground) -> anyhow::Result<Option<TunnelParts>> {
    let nodes = &ground.config.nodes;
    if nodes.bind.is_loopback() {
        return Ok(None);
    }
    if nodes.count > 1 {
        // A tunnel has the identity of one node.
        print_stderr!("coracle: nodes of other machines don't reach the pods of this one: that needs --nodes 1");
        return Ok(None);
    }
    let Some(node) = node_names(nodes.count).next() else { return Ok(None) };
    let identity = ground.keys.pki.issue_client(&format!("system:node:{node}"), "system:nodes")?;
    let identity = TlsIdentity { cert_pem: identity.cert_pem, key_pem: identity.key_pem };
    Ok(Some(TunnelParts {
        bind: SocketAddr::new(reachable(nodes.bind), 0),
        env: ground.env.clone(),
        client: ground.client(ComponentIdentity::Proxy),
        node,
        certificate: watch::channel(Arc::new(identity)).1,
        ca_pem: ground.keys.pki.ca_pem().to_owned(),
        pod_cidrs: vec![ground.addresses.network.pods.into()],
        pods: ground.pods.network.clone(),
        peers: None,
        stop: ground.stops.pods.clone(),
        threads: ground.plane_threads(),
    }))
}

/// A serving certificate by the cluster's own authority.
fn serving_tls(ground: &Ground, name: &str) -> anyhow::Result<ServingTls> {
    let names = [name.to_owned(), reachable(ground.config.nodes.bind).to_string()];
    let identity = ground.keys.pki.issue_serving(&format!("system:node:{name}"), "system:nodes", &names)?;
    let identity = TlsIdentity { cert_pem: identity.cert_pem, key_pem: identity.key_pem };
    Ok(ServingTls::fixed(identity, ground.keys.pki.ca_pem().into()))
}
