//! The node agents' role: one engine, one blob store and one data plane serve all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use images::{Images, ImagesConfig, RegistryAccess};
use kubelet::node::{Capacity, NodeConfig, SharedNodeParts, Shutdown};
use kubelet::server::ServingTls;
use kubelet::volume::local::LocalVolumes;
use kubelet::volume::local_provisioner::{self, LocalVolumesByNode};
use machinery_env::Env;
use oci_registry::BlobStore;
use tokio::sync::oneshot;
use wasm_runtime::engine::{CompileProcess, Engine, EngineConfig, GuestThreads};

use super::ground::{Ground, reachable};
use super::identities::ComponentIdentity;
use super::role::Component;
use crate::config::{GuestsConfig, NodesConfig};
use crate::data_dir::DataDir;

/// The second shortest Lease: after three missed renewals its node counts as dead, within 2 s.
const SHORT_LEASE: Duration = Duration::from_secs(2);
/// Maximum unreported warnings of a node: they are rare, minutes apart.
const NODE_WARNINGS_MAX: usize = 16;
/// The tmpfs for all users on Linux; other systems have none.
const MEMORY_DIR: &str = "/dev/shm";

/// Timeout of a node's first Ready report.
const NODE_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Share of the machine's memory in percent for all guests; the rest is the control plane's and the system's.
const GUEST_MEMORY_PERCENT: u64 = 75;

/// Images and the registry's blobs.
pub(super) fn blob_store(data: &DataDir) -> anyhow::Result<Arc<BlobStore>> {
    let path = data.images();
    Ok(Arc::new(BlobStore::open(&path).with_context(|| format!("cannot open the images in {}", path.display()))?))
}

/// Memory limit of all guests of this process: the sum of the nodes' allocatable memory.
fn guest_memory_bytes() -> anyhow::Result<u64> {
    let mut system = sysinfo::System::new().context("cannot read this machine's memory")?;
    system.refresh_memory();
    Ok(system.total_memory() / 100 * GUEST_MEMORY_PERCENT)
}

/// This process's engine and its guest threads.
pub(super) fn engine(env: &Env, data: &DataDir, guests: GuestsConfig) -> anyhow::Result<Engine> {
    let config = EngineConfig {
        cache_dir: data.path().join("compiled"),
        memory_max_bytes: guest_memory_bytes()?,
        compile_process: Some(CompileProcess::current().context("cannot find this program's file")?),
        compile_bounds: guests.compile,
        guest_bounds: guests.instance,
        keyvalue_dir: data.path().join("keyvalue"),
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = GuestThreads::start(cores, env).context("cannot start the guests' threads")?;
    Ok(Engine::new(config, threads, env.clone())?)
}

/// The images of this process's nodes.
pub(super) fn images(
    env: &Env,
    config: &NodesConfig,
    engine: &Engine,
    (blobs, registry): (&Arc<BlobStore>, &RegistryAccess),
) -> anyhow::Result<Arc<Images>> {
    let images = ImagesConfig {
        built_in: Some(registry.clone()),
        registries: config.registries.clone().with_proxies(crate::config::proxies()),
        file_dirs: config.file_images.clone(),
        parallel_pulls: config.parallel_pulls,
        credential_providers: config.credential_providers.clone(),
        signature_policy: config.signature_policy.clone(),
    };
    Ok(Arc::new(Images::open(Arc::new(engine.clone()), env.clone(), blobs.clone(), images)?))
}

/// Names of `count` nodes of one process.
pub(super) fn node_names(count: u32) -> impl Iterator<Item = String> {
    (1..=count).map(|number| format!("coracle-{number}"))
}

/// `--nodes` agents, and the garbage collector of their images.
pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let (Some(engine), Some(images)) = (&ground.engine, &ground.images) else { return Ok(Vec::new()) };
    let parts = SharedNodeParts {
        runtime: Arc::new(engine.clone()),
        images: images.clone(),
        network: ground.pods.clone(),
        dial: Arc::new(ground.data_plane.clone()),
        env: ground.env.clone(),
        node_warnings: tokio::sync::broadcast::channel(NODE_WARNINGS_MAX).0,
    };
    let (all, policy) = (parts.clone(), ground.config.nodes.image_collection);
    let (folder, stop) = (ground.data.path().to_owned(), ground.stop.components.clone());
    let image_gc = Component::new("image garbage collection", async move {
        kubelet::node::run_image_gc(all, policy, folder, stop).await;
        Ok(())
    });
    let state = keyvalue_collector(ground, &parts);
    let toolbox = toolbox(ground, images);
    let registries = ground.config.nodes.registries_file.clone().map(|file| Ok(registries(ground, &parts, file)));
    let signatures = ground.config.nodes.signature_policy_file.clone().map(|file| Ok(signatures(ground, &parts, file)));
    let volumes: LocalVolumesByNode = node_names(ground.config.nodes.count)
        .map(|name| {
            let own = LocalVolumes::new(&ground.data.node(&name), ground.env.clone());
            (name, Arc::new(own))
        })
        .collect();
    let provisioner = volume_provisioner(ground, volumes.clone());
    let nodes = node_names(ground.config.nodes.count).zip(&ground.shutdowns);
    let nodes = nodes.map(|(name, end)| {
        let own = volumes.get(&name).cloned();
        node(ground, &parts, (name, own), end.clone())
    });
    [Ok(image_gc), Ok(state), Ok(toolbox), Ok(provisioner)]
        .into_iter()
        .chain(registries)
        .chain(signatures)
        .chain(nodes)
        .collect()
}

/// Pulls the sessions' toolbox image once the cluster is ready.
fn toolbox(ground: &Ground, images: &Arc<Images>) -> Component {
    let (images, ready, stop) = (images.clone(), ground.ready.clone(), ground.stop.components.clone());
    let prepare = async move {
        ready.cancelled().await;
        if let Err(error) = images.prepare_toolbox().await {
            tracing::warn!(%error, "the sessions' toolbox is not ready: the first session will retry");
        }
        std::future::pending::<()>().await;
    };
    Component::new("preparer of the toolbox", async move {
        stop.run_until_cancelled(prepare).await;
        Ok(())
    })
}

/// Reloads the registry configuration on changes of its file.
fn registries(ground: &Ground, parts: &SharedNodeParts, file: PathBuf) -> Component {
    let (parts, stop) = (parts.clone(), ground.stop.components.clone());
    Component::new("registries", async move {
        kubelet::node::reload_registries(parts, file, crate::config::proxies(), stop).await;
        Ok(())
    })
}

/// Reloads the signature policy on changes of its file.
fn signatures(ground: &Ground, parts: &SharedNodeParts, file: PathBuf) -> Component {
    let (parts, stop) = (parts.clone(), ground.stop.components.clone());
    Component::new("signature policy", async move {
        kubelet::node::reload_signature_policy(parts, file, stop).await;
        Ok(())
    })
}

/// Removes the key-value data of deleted namespaces, as the first node: every node may read namespaces.
fn keyvalue_collector(ground: &Ground, parts: &SharedNodeParts) -> Component {
    let client = ComponentIdentity::Node("coracle-1".into()).client(&ground.env, &ground.service);
    let (runtime, env, stop) = (parts.runtime.clone(), ground.env.clone(), ground.stop.components.clone());
    Component::new("collector of kept values", async move {
        kubelet::config::keyvalue::collect(runtime, client, env, stop).await;
        Ok(())
    })
}

/// Removes and expands the local volumes of these nodes, as the binder.
fn volume_provisioner(ground: &Ground, nodes: LocalVolumesByNode) -> Component {
    let client = ComponentIdentity::Controller("persistent-volume-binder").client(&ground.env, &ground.service);
    let (informer, env, stop) = (ground.informer.clone(), ground.env.clone(), ground.stop.components.clone());
    Component::new("local volume provisioner", async move {
        local_provisioner::run(informer, client.into(), nodes, env, stop).await;
        Ok(())
    })
}

fn node(
    ground: &Ground,
    parts: &SharedNodeParts,
    (name, volumes): (String, Option<Arc<LocalVolumes>>),
    shutdown: Shutdown,
) -> anyhow::Result<Component> {
    let config = &ground.config.nodes;
    let internal_ip = reachable(config.bind);
    let names = [name.clone(), internal_ip.to_string()];
    let identity = ground.pki.issue_serving(&format!("system:node:{name}"), "system:nodes", &names)?;
    let tls = ServingTls {
        certificate: identity.cert_pem.into_bytes(),
        key: identity.key_pem.into_bytes(),
        client_ca: ground.pki.ca_pem().into(),
    };
    let machine = Capacity::of_machine(config.count, ground.data.path(), guest_memory_bytes()?);
    let capacity = Capacity { pods: config.max_pods, ..machine };
    let mut node = NodeConfig::new(name.clone(), ground.data.node(&name), internal_ip, tls, capacity);
    node.bind = config.bind;
    node.host_pod_listeners = config.host_pod_listeners;
    node.external_provider = ground.config.controllers.inventory.is_some();
    node.streaming_idle = config.streaming_idle;
    node.host_paths = config.host_paths.clone();
    node.static_pods = config.static_pods.clone();
    node.eviction = config.eviction;
    node.shutdown = shutdown;
    if config.short_leases {
        (node.lease_interval, node.lease_duration) = (SHORT_LEASE / 4, SHORT_LEASE);
    }
    node.memory_dir = Some(MEMORY_DIR.into());
    node.volumes = volumes;
    let client = ComponentIdentity::Node(name).client(&ground.env, &ground.service);
    let (told, heard) = oneshot::channel();
    let (parts, stop) = (parts.clone(), ground.stop.components.clone());
    let run = async move { Ok(kubelet::node::run(node, parts, client, told, stop).await?) };
    let env = ground.env.clone();
    let ready = async move {
        env.timeout(NODE_READY_TIMEOUT, heard)
            .await
            .context("a node did not become Ready in time: see the log with --log-level info")?
            .context("a node ended before it was Ready: see the log with --log-level info")?;
        Ok(())
    };
    Ok(Component::new("node", run).ready("waiting for the nodes", ready))
}
