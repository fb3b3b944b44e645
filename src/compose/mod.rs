//! Composes a cluster: prepares shared resources, builds all components, starts them, and drains them.
//!
//! The only module that knows all components. Each is a row of [`ROLES`] with a file of its own: it is built from the
//! [`Ground`], and started when all are built. Control plane and data plane have separate threads, so that a busy guest
//! never starves the API (docs/architecture.md).

mod address_change;
mod apiserver;
mod controllers;
mod dns;
mod ground;
mod identities;
pub(crate) mod image_metadata;
#[cfg(test)]
mod joining_tests;
pub(crate) mod memory;
mod node_configuration;
mod node_host;
pub(crate) mod node_process;
mod nodes;
pub(crate) mod preflight;
mod proxy;
mod ready;
mod registry;
mod role;
mod scheduler;
mod shared_store;
mod storage;
mod tunnel;

use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use ::proxy::DataPlane;
use anyhow::Context as _;
use kube::Client;
use kubelet::node::{Handover, Shutdown};
use machinery_env::Env;
use machinery_serve::sockets::{Layer, SocketTable};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wasm_runtime::engine::Engine;

use self::ground::Ground;
use self::identities::ComponentIdentity;
use self::role::{Component, Role, RunningComponents};
use crate::config::ClusterConfig;
use crate::takeover::resumption::{self, Resumption};
use crate::takeover::{CONTROL_REQUESTS_MAX, CUT_MAX, HandedOver, NEXT_READY_MAX, REQUESTS_MAX};
use tools_command::data_dir::DataDir;
use tools_command::notify;
use tools_command::progress::Progress;

pub(crate) use controllers::warning;
pub(crate) use node_configuration::GivenAddresses;
pub(crate) use nodes::prepare_engine;
pub(crate) use proxy::lone_plane;
pub(crate) use registry::{USER as REGISTRY_USER, serves_tls};

/// The components of a cluster, in the order in which they start.
const ROLES: &[Role] = &[
    Role { name: "API server", part: Part::Servers, build: apiserver::build },
    Role { name: "registry", part: Part::Servers, build: registry::build },
    Role { name: "controllers", part: Part::Control, build: controllers::build },
    Role { name: "scheduler", part: Part::Control, build: scheduler::build },
    Role { name: "data plane", part: Part::Nodes, build: proxy::build },
    Role { name: "cluster DNS", part: Part::Nodes, build: dns::build },
    Role { name: "nodes", part: Part::Nodes, build: nodes::build },
];

/// The parts of a cluster that run in this process: each value includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The API server with its store, and the registry.
    Servers,
    /// Controllers and scheduler.
    Control,
    /// The data plane and the nodes.
    Nodes,
}

/// Threads of the control plane: it mostly waits, and two cores are the smallest supported machine.
const CONTROL_PLANE_THREADS: usize = 2;

/// Drain timeout of components (docs/contract.md §2: a stop takes 5 s at most, the store's last write included).
const DRAIN: Duration = Duration::from_millis(2500);
/// After it, the timeout of requests to the server.
const LAST_ANSWERS: Duration = Duration::from_millis(700);
/// After it, the timeout of the store's checkpoint. Acknowledged writes are in the log already.
const LAST_CHECKPOINT: Duration = Duration::from_millis(700);

/// The runtime of the control plane.
///
/// # Errors
/// If threads can't be started.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_PLANE_THREADS)
        .thread_name("control-plane")
        .enable_all()
        .build()
        .context("cannot start threads")
}

/// Waits for SIGINT or SIGTERM, and notifies the supervisor of the stop. The call itself installs the handlers.
pub(crate) fn stop_signal() -> impl Future<Output = ()> {
    let mut signals = StopSignals::new();
    async move { signals.next().await }
}

/// SIGINT and SIGTERM, one after the other.
pub(crate) struct StopSignals {
    #[cfg(unix)]
    handlers: Option<[tokio::signal::unix::Signal; 2]>,
}

impl StopSignals {
    /// Installs the handlers; needs the runtime.
    pub(crate) fn new() -> Self {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let handlers = signal(SignalKind::terminate()).ok().zip(signal(SignalKind::interrupt()).ok());
            Self { handlers: handlers.map(|(terminate, interrupt)| [terminate, interrupt]) }
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if let Some([terminate, interrupt]) = &mut self.handlers {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify::stopping();
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
        notify::stopping();
    }
}

/// A cluster that is ready.
pub(crate) struct Cluster {
    /// `https://ADDR:PORT`
    pub(crate) server: String,
    /// A client of `system:masters`.
    pub(crate) admin: Client,
    /// Time from the start to the first response of the API.
    pub(crate) api_ready_after: Duration,
    failures: Mutex<mpsc::Receiver<anyhow::Error>>,
    servers: RunningComponents,
    components: RunningComponents,
    pods: RunningComponents,
    ground: Ground,
}

/// Starts a cluster, or parts of one, and waits until it is ready. `prepared` is its engine, if it was made before.
///
/// # Errors
/// If a resource (folder, address, store) is unavailable, or the cluster isn't ready in time.
pub(crate) async fn start(
    env: &Env,
    config: ClusterConfig,
    prepared: Option<Engine>,
    up_to: Part,
    data: &DataDir,
    progress: Progress,
) -> anyhow::Result<Cluster> {
    let began = env.elapsed();
    if let Some(shortage) = machinery_serve::descriptors::Descriptors::process().shortage() {
        tracing::warn!("{shortage}");
    }
    progress.doing("opening the store");
    let ground = Ground::prepare(env, (config, prepared), up_to, data).await?;
    let mut built = Vec::new();
    for role in ROLES.iter().filter(|role| role.part <= up_to) {
        let components = (role.build)(&ground).with_context(|| format!("the {} cannot be built", role.name))?;
        built.extend(components.into_iter().map(|component| (role, component)));
    }
    let nodes = if up_to >= Part::Nodes { ground.config.nodes.count } else { 0 };
    let admin = ComponentIdentity::Admin.client(&ground.env, &ground.service);
    let (failed, mut failures) = mpsc::channel(1);
    let mut servers = RunningComponents::new(ground.stop.servers.clone(), failed.clone());
    let mut components = RunningComponents::new(ground.stop.components.clone(), failed.clone());
    let mut pods = RunningComponents::new(ground.stop.pods.clone(), failed);
    let mut waits = Vec::new();
    let is_server = |(role, component): &(&Role, Component)| {
        role.part == Part::Servers && matches!(component.layer, Layer::Control)
    };
    let (first, built): (Vec<_>, Vec<_>) = built.into_iter().partition(is_server);
    // At a takeover their clients wait. The pods are read before any agent starts them again.
    waits.extend(first.into_iter().filter_map(|(_, component)| servers.start(component)));
    let resumption = Resumption::begin(env, &admin, nodes::node_names(nodes), &ground.data_plane).await;
    for (_, component) in built {
        let running = match component.layer {
            Layer::Pods => &mut pods,
            Layer::Control => &mut components,
        };
        waits.extend(running.start(component));
    }
    let api_ready_after = env.elapsed().saturating_sub(began);
    for wait in waits {
        progress.doing(wait.what);
        wait.met(env, &mut failures).await?;
    }
    if up_to >= Part::Control {
        progress.doing("waiting for the controllers");
        let disabled = &ground.config.controllers.disabled()?;
        ready::default_namespace(&admin, &ground.env, disabled).await?;
        ready::nodes_take_pods(&admin, &ground.env, ground.config.nodes.count, disabled).await?;
    }
    if let Some(resumption) = resumption {
        progress.doing("waiting for the pods");
        resumption.finish(env).await;
        resumption::close_unclaimed_later(env);
    }
    ground.ready.cancel();
    let server = ground.server_url();
    Ok(Cluster { server, admin, api_ready_after, failures: Mutex::new(failures), servers, components, pods, ground })
}

impl Cluster {
    /// Pushes a module into the built-in registry.
    ///
    /// # Errors
    /// On errors of the registry.
    pub(crate) async fn push(&self, module: &[u8], reference: &str) -> anyhow::Result<()> {
        let ground = &self.ground;
        images::push(&ground.env, module.to_vec(), image_metadata::MODULE_INSPECTOR, reference, &ground.registry)
            .await?;
        Ok(())
    }

    /// The engine of this process's guests; `None` without nodes.
    pub(crate) fn engine(&self) -> Option<Engine> {
        self.ground.engine.clone()
    }

    /// Waits for a component that ended before the stop.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        std::future::poll_fn(|context| {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            match failures.poll_recv(context) {
                Poll::Ready(Some(error)) => Poll::Ready(error),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Drains and stops everything, the store last.
    pub(crate) async fn stop(self) {
        // First: pods terminate while the API can record their status.
        let env = self.ground.env.clone();
        let ends = self.ground.shutdowns.iter().map(|end: &Shutdown| {
            let (end, env) = (end.clone(), env.clone());
            async move { end.run(&env).await }
        });
        ends.collect::<JoinSet<()>>().join_all().await;
        self.end().await;
    }

    /// Ends for a process that has this one's listening sockets, and releases store and data folder to it. Pods aren't
    /// terminated: the other process starts them again, and their servers serve on here meanwhile.
    pub(crate) async fn hand_over(self, given: HandedOver) -> Leaving {
        let Self { servers, components, pods, ground, .. } = self;
        let (env, plane) = (ground.env.clone(), ground.data_plane.clone());
        let leaving = Leaving { env: env.clone(), given, pods, handover: ground.handover.clone() };
        retire_control(&env, (!leaving.pods.is_empty()).then_some(&plane), &ground.handover, components).await;
        if let Some(engine) = ground.engine.clone() {
            share_keyvalue_files(engine).await;
        }
        ground.apiserver.stop();
        let store = ground.embedded_store.clone();
        end_servers(&env, servers, CUT_MAX).await;
        tracing::debug!("the servers of the control plane have ended");
        if let Some(store) = store {
            // Without a limit: the other process can't open it before.
            let _ = tokio::task::spawn_blocking(move || store.close()).await;
        }
        // The lock of the folder.
        drop(ground);
        tracing::debug!("the data folder is released");
        leaving.given.released(&env).await;
        leaving
    }

    /// Stops the components, then the servers, the store last.
    async fn end(self) {
        let Self { mut components, mut pods, servers, ground, .. } = self;
        let env = ground.env.clone();
        let (components, pods) = tokio::join!(components.drain(&env, DRAIN), pods.drain(&env, DRAIN));
        if !(components && pods) {
            tracing::warn!("components did not end in time and are aborted");
        }
        ground.apiserver.stop();
        end_servers(&env, servers, LAST_ANSWERS).await;
        let Some(store) = ground.embedded_store.clone() else { return };
        let closed = tokio::task::spawn_blocking(move || store.close());
        if env.timeout(LAST_CHECKPOINT, closed).await.is_err() {
            tracing::warn!("the store's checkpoint is behind its log; the next start reads more of the log");
        }
    }
}

async fn end_servers(env: &Env, mut servers: RunningComponents, time_max: Duration) {
    servers.drain(env, time_max).await;
    servers.abort().await;
}

/// Leaves new connections of the control layer to the process that takes over, completes the requests of those that this one
/// has accepted, and ends the components. `plane` is the running data plane.
async fn retire_control(env: &Env, plane: Option<&DataPlane>, handover: &Handover, mut components: RunningComponents) {
    let table = SocketTable::process();
    table.retire(Layer::Control);
    // Programs of pods end with the agents: their requests are waited for as well.
    let freeze = async |time_max| {
        if let Some(plane) = plane {
            plane.freeze(time_max).await;
        }
    };
    let requests = env.timeout(CONTROL_REQUESTS_MAX, table.drained(Layer::Control));
    let (requests, ()) = tokio::join!(requests, freeze(CONTROL_REQUESTS_MAX));
    if requests.is_err() {
        tracing::info!("requests that last for more than {} ms are cut", CONTROL_REQUESTS_MAX.as_millis());
    }
    tracing::debug!("requests to the control plane have ended");
    handover.begin();
    if !components.drain(env, DRAIN).await {
        tracing::warn!("components did not end in time and are aborted");
    }
    components.abort().await;
    tracing::debug!("controllers and agents have ended");
    // Pods that have changed since the first freeze may have ended as well. Nothing waits for their clients.
    freeze(Duration::ZERO).await;
}

/// Both processes serve pods now: a file belongs to one of them for an operation.
async fn share_keyvalue_files(engine: Engine) {
    let _ = tokio::task::spawn_blocking(move || engine.share_keyvalue_files(true)).await;
}

/// A process that has released everything but its pods' servers, which serve until the next process is ready.
pub(crate) struct Leaving {
    env: Env,
    given: HandedOver,
    pods: RunningComponents,
    handover: Handover,
}

impl Leaving {
    /// Serves until the next process does, or has gone; then completes the requests.
    pub(crate) async fn complete(mut self) {
        let env = &self.env;
        if !self.given.taken(env, NEXT_READY_MAX).await {
            tracing::warn!("the process that takes over does not serve; this one ends all the same");
        }
        let table = SocketTable::process();
        table.retire(Layer::Pods);
        if env.timeout(REQUESTS_MAX, table.drained(Layer::Pods)).await.is_err() {
            tracing::info!("requests that have lasted for more than {} s are cut", REQUESTS_MAX.as_secs());
        }
        self.handover.end();
        self.pods.drain(env, LAST_ANSWERS).await;
        self.pods.abort().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_start_before_their_clients() {
        assert!(ROLES.is_sorted_by_key(|role| role.part));
        let names: std::collections::BTreeSet<&str> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
    }
}
