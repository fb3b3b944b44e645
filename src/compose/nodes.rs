//! The node agents' role in the process of the API server: their engine and images, identities and clients.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use images::{Images, ImagesConfig, RegistryAccess};
use kubelet::server::ServingTls;
use machinery_api::names;
use machinery_client::TlsIdentity;
use machinery_env::Env;
use machinery_serve::sockets::SocketTable;
use oci_registry::BlobStore;
use tokio::sync::watch;
use wasm_runtime::engine::{CompileProcess, Engine, EngineConfig, GuestThreads};

use super::ground::{Ground, reachable};
use super::identities::ComponentIdentity;
use super::node_host::{Agent, NodeHost};
use super::role::Component;
use super::tunnel::{self, BoundTunnel, TunnelParts};
use crate::compiled;
use crate::config::{ClusterConfig, NodesConfig};
use tools_command::data_dir::DataDir;
use tools_command::output::print_stderr;

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
        keyvalue_dir: data.path().join("keyvalue"),
        keyvalue_shared: nodes.keyvalue.clone(),
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = GuestThreads::start(cores, env).context("cannot start the guests' threads")?;
    let engine = Engine::new(config, threads, env.clone())?;
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

/// `--nodes` agents with their shared parts.
pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let (Some(engine), Some(images)) = (&ground.engine, &ground.images) else { return Ok(Vec::new()) };
    let client = |identity: ComponentIdentity| identity.client(&ground.env, &ground.service);
    let tunnel = tunnel(ground)?;
    let annotations = annotations(ground, engine, tunnel.as_ref());
    let names = node_names(ground.config.nodes.count).zip(&ground.shutdowns);
    let agents = names.map(|(name, shutdown)| {
        Ok(Agent {
            client: client(ComponentIdentity::Node(name.clone())),
            tls: serving_tls(ground, &name)?,
            internal_ip: reachable(ground.config.nodes.bind),
            shutdown: shutdown.clone(),
            external_provider: ground.config.inventory.is_some(),
            kubelet_port: 0,
            taints: Vec::new(),
            annotations: annotations.clone(),
            is_autonomous: false,
            name,
        })
    });
    let agents = agents.collect::<anyhow::Result<Vec<_>>>()?;
    if agents.is_empty() {
        return Ok(Vec::new());
    }
    let host = NodeHost {
        env: ground.env.clone(),
        data: ground.data.clone(),
        config: ground.config.nodes.clone(),
        engine: engine.clone(),
        images: images.clone(),
        pods: ground.pods.clone(),
        data_plane: ground.data_plane.clone(),
        // One collector serves all nodes of the process, and a node reads only its pods' namespaces.
        namespaces: client(ComponentIdentity::Controller("namespace-controller")),
        agents,
        // As the binder, whose cache has the volumes of all nodes.
        volumes: (ground.informer.clone(), client(ComponentIdentity::Controller("persistent-volume-binder")).into()),
        stop: ground.stop.components.clone(),
        handover: ground.handover.clone(),
        ready: ground.ready.clone(),
    };
    let mut components = host.components()?;
    components.extend(tunnel.into_iter().flat_map(|tunnel| tunnel.components));
    Ok(components)
}

/// The Nodes' annotations. Starts the exchange of compiled modules, where it is wanted.
fn annotations(ground: &Ground, engine: &Engine, tunnel: Option<&BoundTunnel>) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let Some(tunnel) = tunnel else { return annotations };
    annotations.insert(names::TUNNEL_ADDRESS.to_owned(), tunnel.address.to_string());
    if ground.config.nodes.share_compiled {
        let metrics = compiled::start(&ground.env, engine, &tunnel.tunnel);
        ground.with_metrics(|registry| metrics.register(registry));
        annotations.insert(names::COMPILED_MODULES.to_owned(), compiled::key(engine));
    }
    annotations
}

/// The tunnel to nodes of other machines, where they reach this one.
fn tunnel(ground: &Ground) -> anyhow::Result<Option<BoundTunnel>> {
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
    let identity = ground.pki.issue_client(&format!("system:node:{node}"), "system:nodes")?;
    let identity = TlsIdentity { cert_pem: identity.cert_pem, key_pem: identity.key_pem };
    let parts = TunnelParts {
        env: ground.env.clone(),
        client: ComponentIdentity::Proxy.client(&ground.env, &ground.service),
        node,
        certificate: watch::channel(Arc::new(identity)).1,
        ca_pem: ground.pki.ca_pem().to_owned(),
        pod_cidrs: vec![ground.network.pods.into()],
        pods: ground.pods.clone(),
        peers: None,
        stop: ground.stop.pods.clone(),
        threads: ground.engine.as_ref().map(|engine| engine.guest_runtime().clone()),
    };
    let tunnel = tunnel::bind(reachable(nodes.bind), 0, parts)?;
    ground.with_metrics(|registry| tunnel.tunnel.metrics().register(registry));
    Ok(Some(tunnel))
}

/// A serving certificate by the cluster's own authority.
fn serving_tls(ground: &Ground, name: &str) -> anyhow::Result<ServingTls> {
    let names = [name.to_owned(), reachable(ground.config.nodes.bind).to_string()];
    let identity = ground.pki.issue_serving(&format!("system:node:{name}"), "system:nodes", &names)?;
    let identity = TlsIdentity { cert_pem: identity.cert_pem, key_pem: identity.key_pem };
    Ok(ServingTls::fixed(identity, ground.pki.ca_pem().into()))
}
