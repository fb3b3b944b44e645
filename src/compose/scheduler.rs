//! The scheduler's role, in the process of the API server or in one of its own.

use std::sync::Arc;

use kube::Client;
use machinery_client::Informer;
use machinery_env::Env;
use machinery_roles::Component;
use scheduler::RunError;
use tokio_util::sync::CancellationToken;
use tools_command::environment::host_name;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use tools_scheduler_plugins::Plugins;

/// The scheduler, which isn't started.
pub(crate) struct SchedulerParts {
    pub(crate) env: Env,
    /// With an election if another scheduler may run.
    pub(crate) config: scheduler::Config,
    pub(crate) client: Client,
    pub(crate) informer: Arc<Informer>,
    /// Waits for another term after a lost one: the API server of this process goes on.
    pub(crate) is_reelected: bool,
    pub(crate) stop: CancellationToken,
}

impl SchedulerParts {
    /// That of a cluster, on the shared informer, with the plugins of this process; with leader election if others share the
    /// store.
    ///
    /// # Errors
    /// If plugins can't run.
    pub(super) fn of(ground: &Ground) -> anyhow::Result<Self> {
        let scheduler = ground.config.scheduler.clone();
        let plugins = match &ground.modules.engine {
            Some(engine) => Some(Plugins::on(engine.clone(), &ground.env)),
            None => Plugins::of(&scheduler.profiles, &ground.config.nodes.guests, &ground.env)?,
        };
        let config = scheduler::Config::of(scheduler, plugins, host_name());
        let config = match &ground.store.candidate {
            Some(candidate) => config.elected(candidate),
            None => config,
        };
        ground.metrics.add(|registry| config.metrics.register(registry));
        Ok(Self {
            env: ground.env.clone(),
            config,
            client: ground.client(ComponentIdentity::Scheduler),
            informer: ground.api.informer.clone(),
            is_reelected: true,
            stop: ground.stops.components.clone(),
        })
    }

    /// The scheduler.
    pub(super) fn build(self) -> Vec<Component> {
        let Self { env, config, client, informer, is_reelected, stop } = self;
        let run = async move {
            loop {
                let term = scheduler::run_on(&informer, client.clone(), env.clone(), config.clone(), stop.clone());
                match term.await {
                    Err(error @ RunError::Election(_)) if is_reelected => {
                        tracing::warn!(%error, "the scheduler waits");
                    }
                    ended => return ended,
                }
            }
        };
        vec![Component::new("scheduler", run)]
    }
}
