//! A cluster in this process, or the parts of one that a verb wants.

use std::time::Duration;

use kube::Client;
use machinery_env::Env;
use machinery_roles::StartCondition;
use tools_command::data_dir::DataDir;
use tools_command::progress::Progress;
use wasm_runtime::engine::Engine;

use super::apiserver::ApiServerParts;
use super::controllers::ControllersParts;
use super::dns::DnsParts;
use super::ground::{Ground, Listeners};
use super::identities::ComponentIdentity;
use super::nodes::NodesParts;
use super::process::{DRAIN, Lifecycle, PodLayer, Process, ServerEnd};
use super::proxy::DataPlaneParts;
use super::registry::RegistryParts;
use super::scheduler::SchedulerParts;
use super::{Part, ProcessRoles, ready};
use crate::config::ClusterConfig;

/// A cluster that is ready.
pub(crate) struct Cluster {
    pub(crate) process: Process,
    /// `https://ADDR:PORT`
    pub(crate) server: String,
    /// A client of `system:masters`.
    pub(crate) admin: Client,
    /// Time from the start to the first response of the API.
    pub(crate) api_ready_after: Duration,
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
    let (ground, listeners) = Ground::prepare(env, (config, prepared), up_to, data).await?;
    let roles = roles(&ground, listeners, up_to)?;
    let server = ground.addresses.server_url();
    let admin = ground.client(ComponentIdentity::Admin);
    let process = Process::start(lifecycle(ground, up_to)?, roles, progress).await?;
    let api_ready_after = process.started_at.saturating_sub(began);
    Ok(Cluster { process, server, admin, api_ready_after })
}

/// The roles up to a part.
fn roles(ground: &Ground, listeners: Listeners, up_to: Part) -> anyhow::Result<ProcessRoles> {
    let mut roles = ProcessRoles {
        api_server: Some(ApiServerParts::of(ground, listeners.api)?),
        registry: Some(RegistryParts::of(ground, listeners.registry)?),
        ..ProcessRoles::default()
    };
    if up_to >= Part::Control {
        roles.controllers = Some(ControllersParts::of(ground)?);
        roles.scheduler = Some(SchedulerParts::of(ground)?);
    }
    if up_to >= Part::Nodes {
        roles.data_plane = Some(DataPlaneParts::of(ground));
        roles.dns = Some(DnsParts::of(ground));
        roles.nodes = NodesParts::of(ground)?;
    }
    Ok(roles)
}

fn lifecycle(ground: Ground, up_to: Part) -> anyhow::Result<Lifecycle> {
    let mut conditions = Vec::new();
    if up_to >= Part::Control {
        let (admin, env) = (ground.client(ComponentIdentity::Admin), ground.env.clone());
        let (disabled, nodes) = (ground.config.controllers.disabled()?, ground.config.nodes.count);
        conditions.push(StartCondition::new("waiting for the controllers", async move {
            ready::default_namespace(&admin, &env, &disabled).await?;
            ready::nodes_take_pods(&admin, &env, nodes, &disabled).await
        }));
    }
    let pods = PodLayer {
        plane: ground.pods.plane.clone(),
        engine: ground.modules.engine.clone(),
        handover: ground.pods.handover.clone(),
        shutdowns: ground.pods.shutdowns.clone(),
        nodes: super::nodes::node_names(ground.config.nodes.count).collect(),
        client: ground.client(ComponentIdentity::Admin),
    };
    let Ground { env, stops, ready, store, addresses, api, lock, .. } = ground;
    Ok(Lifecycle {
        env,
        stops,
        ready,
        drain_max: DRAIN,
        conditions,
        pods: Some(pods),
        server: Some(ServerEnd { apiserver: api.apiserver, store: store.embedded }),
        // The folder, and the block of addresses.
        held: vec![Box::new(lock), Box::new(addresses)],
        only: None,
    })
}
