//! The node agents of this process: one engine, one blob store and one data plane serve all of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apiserver::auth::pki::Pki;
use apiserver::http::logs::Kubelets;
use kubelet::image::{CollectPolicy, Images, RegistryAccess};
use kubelet::node::{Capacity, NodeConfig, NodeParts};
use kubelet::server::ServingTls;
use machinery_env::Env;
use machinery_serve::net::{Dial, PodNetwork};
use oci_registry::BlobStore;
use tokio::sync::oneshot;
use wasm_runtime::engine::{CompileBounds, CompileProcess, Engine, EngineConfig};

use super::Components;
use super::identities::Role;
use crate::config::Up;
use crate::data_dir::DataDir;

/// No node takes longer to report itself Ready unless something is wrong.
const NODE_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Of the machine's memory, the share in percent that guests may hold together: the rest is the control plane's and the
/// system's.
const GUEST_MEMORY_PERCENT: u64 = 75;

/// How the API server reaches kubelets: nodes' certificates are of the cluster's CA, and so is its own identity.
pub(super) fn kubelets(pki: &Pki) -> anyhow::Result<Kubelets> {
    let identity = pki.issue_client("kube-apiserver-kubelet-client", "system:masters")?;
    Ok(Kubelets::new(pki.ca_pem(), &identity)?)
}

/// Images and the registry's blobs.
pub(super) fn blob_store(data: &DataDir) -> anyhow::Result<Arc<BlobStore>> {
    let path = data.images();
    Ok(Arc::new(BlobStore::open(&path).with_context(|| format!("cannot open the images in {}", path.display()))?))
}

/// What all guests of this process may hold together: the nodes' allocatable memory adds up to it.
fn guest_memory_bytes() -> anyhow::Result<u64> {
    let mut system = sysinfo::System::new().context("cannot read this machine's memory")?;
    system.refresh_memory();
    Ok(system.total_memory() / 100 * GUEST_MEMORY_PERCENT)
}

/// The engine of this process.
pub(super) fn engine(env: &Env, data: &DataDir) -> anyhow::Result<Engine> {
    let config = EngineConfig {
        cache_dir: data.path().join("compiled"),
        threads: std::thread::available_parallelism().map_or(2, usize::from),
        memory_max_bytes: guest_memory_bytes()?,
        compile_process: Some(CompileProcess::current().context("cannot find this program's file")?),
        compile_bounds: CompileBounds::default(),
    };
    Ok(Engine::new(config, env.clone())?)
}

/// What all node agents of this process share.
pub(super) struct Shared<'a> {
    pub(super) engine: Engine,
    pub(super) blobs: Arc<BlobStore>,
    pub(super) registry: RegistryAccess,
    pub(super) pods: PodNetwork,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) pki: &'a Pki,
    pub(super) data: &'a DataDir,
}

/// When unused images go.
fn collect_policy(up: &Up) -> CollectPolicy {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    CollectPolicy {
        age_min: seconds(up.minimum_image_ttl_duration),
        age_max: Some(seconds(up.image_maximum_gc_age)).filter(|age| !age.is_zero()),
        high_percent: up.image_gc_high_threshold,
        low_percent: up.image_gc_low_threshold,
    }
}

/// Starts `--nodes` agents and waits until each is Ready as reported by this run.
pub(super) async fn start(components: &Components<'_>, shared: &Shared<'_>) -> anyhow::Result<()> {
    let up = components.up;
    let images = Images::open(
        Arc::new(shared.engine.clone()),
        components.env.clone(),
        shared.blobs.clone(),
        Some(shared.registry.clone()),
        up.allow_file_images.clone(),
    )?;
    let parts = NodeParts {
        runtime: Arc::new(shared.engine.clone()),
        images: Arc::new(images),
        network: shared.pods.clone(),
        dial: shared.dial.clone(),
        env: components.env.clone(),
    };
    let (all, policy, folder) = (parts.clone(), collect_policy(up), shared.data.path().to_owned());
    let stop = components.stop.clone();
    components.spawn("collector of images", async move {
        kubelet::node::collect(all, policy, folder, stop).await;
        Ok(())
    });
    let internal_ip = super::reachable(up.bind);
    let mut ready = Vec::new();
    for number in 1..=up.nodes {
        let name = format!("coracle-{number}");
        let names = [name.clone(), internal_ip.to_string()];
        let identity = shared.pki.issue_serving(&format!("system:node:{name}"), "system:nodes", &names)?;
        let tls = ServingTls {
            certificate: identity.cert_pem.into_bytes(),
            key: identity.key_pem.into_bytes(),
            client_ca: shared.pki.ca_pem().into(),
        };
        let capacity = Capacity::of_machine(up.nodes, shared.data.path(), guest_memory_bytes()?);
        let mut config = NodeConfig::new(name.clone(), shared.data.node(&name), internal_ip, tls, capacity);
        config.bind = up.bind;
        config.host_pod_listeners = up.host_pod_listeners;
        let client = Role::Node(name).client(components.service);
        let (told, heard) = oneshot::channel();
        let (parts, stop) = (parts.clone(), components.stop.clone());
        components.spawn("node", async move { Ok(kubelet::node::run(config, parts, client, told, stop).await?) });
        ready.push(heard);
    }
    for heard in ready {
        tokio::time::timeout(NODE_READY_TIMEOUT, heard)
            .await
            .context("a node did not become Ready in time: see the log with --log-level info")?
            .context("a node ended before it was Ready: see the log with --log-level info")?;
    }
    Ok(())
}
