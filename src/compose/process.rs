//! A process of roles: its one start, its one stop, and its end for a process that takes over.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use apiserver::server::Apiserver;
use apiserver_storage::store::embedded::EmbeddedStore;
use kube::Client;
use kubelet::node::{Handover, Shutdown};
use machinery_env::Env;
use machinery_roles::{RoleError, RunningStage, RunningStages, Stage, StartCondition, Stops};
use machinery_serve::sockets::{Layer, SocketTable};
use proxy::DataPlane;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tools_command::progress::Progress;
use wasm_runtime::engine::Engine;

use super::resumption::{self, Resumption};
use super::{ProcessRoles, ROLES};
use tools_takeover::{CONTROL_REQUESTS_MAX, CUT_MAX, HandedOver, NEXT_READY_MAX, REQUESTS_MAX};

/// Drain timeout of components (docs/contract.md §2: a stop takes 5 s at most, the store's last write included).
pub(super) const DRAIN: Duration = Duration::from_millis(2500);
/// After it, the timeout of requests to the server.
const LAST_ANSWERS: Duration = Duration::from_millis(700);
/// After it, the timeout of the store's checkpoint. Acknowledged writes are in the log already.
const LAST_CHECKPOINT: Duration = Duration::from_millis(700);

/// What the start and the end of a process need beside its components.
pub(super) struct Lifecycle {
    pub(super) env: Env,
    pub(super) stops: Stops,
    /// Cancelled when the process is ready: starts tasks that no start waits for.
    pub(super) ready: CancellationToken,
    /// Drain timeout of components.
    pub(super) drain_max: Duration,
    /// Conditions of the start beside those of its components.
    pub(super) conditions: Vec<StartCondition>,
    /// `None` in a process without pods and without a takeover.
    pub(super) pods: Option<PodLayer>,
    /// The API server of this process, which ends after the components.
    pub(super) server: Option<ServerEnd>,
    /// Locks, until the end.
    pub(super) held: Vec<Box<dyn Any + Send + Sync>>,
    /// Upstream's name of a process with one component: that component's error is the process's own.
    pub(super) only: Option<&'static str>,
}

/// What a takeover and the stop do with the pods of a process.
#[derive(Clone)]
pub(super) struct PodLayer {
    pub(super) plane: DataPlane,
    /// `None` without nodes.
    pub(super) engine: Option<Engine>,
    /// The takeover of the nodes.
    pub(super) handover: Handover,
    /// The nodes' graceful shutdowns, one each.
    pub(super) shutdowns: Vec<Shutdown>,
    /// The names of the nodes.
    pub(super) nodes: Vec<String>,
    /// A client that may read their pods.
    pub(super) client: Client,
}

impl PodLayer {
    /// The threads of the data plane: the guests', if there are any.
    pub(super) fn threads(&self) -> Option<Handle> {
        self.engine.as_ref().map(|engine| engine.guest_runtime().clone())
    }
}

/// The end of an API server with its store.
pub(super) struct ServerEnd {
    pub(super) apiserver: Apiserver,
    /// `None` over etcd.
    pub(super) store: Option<Arc<EmbeddedStore>>,
}

/// A process that is ready.
pub(crate) struct Process {
    /// When all components were started, on the scale of [`Env::elapsed`].
    pub(super) started_at: Duration,
    running: RunningStages,
    lifecycle: Lifecycle,
}

impl Process {
    /// Builds the roles in the order of the table, starts them, and waits until the process is ready.
    ///
    /// # Errors
    /// If a role can't be built, a component fails, or the process isn't ready in time.
    pub(super) async fn start(
        mut lifecycle: Lifecycle,
        mut roles: ProcessRoles,
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let env = lifecycle.env.clone();
        let built = machinery_roles::build(ROLES, &mut roles)?;
        let mut running = RunningStages::new(&lifecycle.stops);
        let (servers, others): (Vec<_>, Vec<_>) = built.into_iter().partition(|(stage, _)| *stage == Stage::Servers);
        // At a takeover their clients wait. The pods are read before any agent starts them again.
        servers.into_iter().for_each(|(stage, component)| running.start(stage, component));
        let resumption = match &lifecycle.pods {
            Some(pods) => Resumption::begin(&env, &pods.client, pods.nodes.iter().cloned(), &pods.plane).await,
            None => None,
        };
        others.into_iter().for_each(|(stage, component)| running.start(stage, component));
        let started_at = env.elapsed();
        lifecycle.conditions.drain(..).for_each(|condition| running.wait_for(condition));
        running.ready(&env, |what| progress.doing(what)).await?;
        if let Some(resumption) = resumption {
            progress.doing("waiting for the pods");
            resumption.finish(&env).await;
            resumption::close_unclaimed_later(&env);
        }
        lifecycle.ready.cancel();
        Ok(Self { started_at, running, lifecycle })
    }

    /// The engine of this process's guests; `None` without nodes.
    pub(crate) fn engine(&self) -> Option<Engine> {
        self.lifecycle.pods.as_ref()?.engine.clone()
    }

    /// Waits for a component that ended before the stop.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        match (self.running.failed().await, self.lifecycle.only) {
            (RoleError::Failed { source, .. }, Some(_)) => anyhow::Error::from_boxed(source),
            (RoleError::Ended { .. }, Some(name)) => {
                anyhow::anyhow!("the {name} ended; start again, with --log-level info to see why")
            }
            (error, _) => error.into(),
        }
    }

    /// Drains and stops everything, the store last.
    pub(crate) async fn stop(self) {
        let Self { running, lifecycle, .. } = self;
        let Lifecycle { env, drain_max, pods: layer, server, held, .. } = lifecycle;
        // First: pods terminate while the API can record their status.
        let shutdowns = layer.into_iter().flat_map(|layer| layer.shutdowns).map(|shutdown| {
            let env = env.clone();
            async move { shutdown.run(&env).await }
        });
        shutdowns.collect::<JoinSet<()>>().join_all().await;
        let (servers, mut components, mut pods) = running.into_stages();
        if let (false, _) | (_, false) = tokio::join!(components.drain(&env, drain_max), pods.drain(&env, drain_max)) {
            tracing::warn!("components did not end in time and are aborted");
        }
        if let Some(ServerEnd { apiserver, store }) = server {
            apiserver.stop();
            end_servers(&env, servers, LAST_ANSWERS).await;
            if let Some(store) = store {
                let closed = tokio::task::spawn_blocking(move || store.close());
                if env.timeout(LAST_CHECKPOINT, closed).await.is_err() {
                    tracing::warn!("the store's checkpoint is behind its log; the next start reads more of the log");
                }
            }
        }
        drop(held);
    }

    /// Ends for a process that has this one's listening sockets, and releases store and data folder to it. Pods aren't
    /// terminated: the other process starts them again, and their servers serve on here meanwhile.
    pub(crate) async fn hand_over(self, given: HandedOver) -> Leaving {
        let Self { running, lifecycle, .. } = self;
        let Lifecycle { env, pods: layer, server, held, .. } = lifecycle;
        let (servers, components, pods) = running.into_stages();
        let handover = layer.as_ref().map(|layer| layer.handover.clone()).unwrap_or_default();
        let plane = layer.as_ref().map(|layer| &layer.plane).filter(|_| !pods.is_empty());
        retire_control(&env, plane, &handover, components).await;
        if let Some(engine) = layer.as_ref().and_then(|layer| layer.engine.clone()) {
            // Both processes serve pods now: a file belongs to one of them for an operation.
            let _ = tokio::task::spawn_blocking(move || engine.share_keyvalue_files(true)).await;
        }
        if let Some(ServerEnd { apiserver, store }) = server {
            apiserver.stop();
            end_servers(&env, servers, CUT_MAX).await;
            tracing::debug!("the servers of the control plane have ended");
            if let Some(store) = store {
                // Without a limit: the other process can't open it before.
                let _ = tokio::task::spawn_blocking(move || store.close()).await;
            }
        }
        // The lock of the folder.
        drop((held, layer));
        tracing::debug!("the data folder is released");
        given.released(&env).await;
        Leaving { env, given, pods, handover }
    }
}

async fn end_servers(env: &Env, mut servers: RunningStage, time_max: Duration) {
    servers.drain(env, time_max).await;
    servers.abort().await;
}

/// Leaves new connections of the control layer to the process that takes over, completes the requests of those that this one
/// has accepted, and ends the components. `plane` is the running data plane.
async fn retire_control(env: &Env, plane: Option<&DataPlane>, handover: &Handover, mut components: RunningStage) {
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

/// A process that has released everything but its pods' servers, which serve until the next process is ready.
pub(crate) struct Leaving {
    env: Env,
    given: HandedOver,
    pods: RunningStage,
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
