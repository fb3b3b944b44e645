//! The scheduler's role: the scheduler on the shared informer, with the plugins of this process; with leader election
//! if others share the store.

use scheduler::RunError;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::role::Component;
use crate::scheduler_plugins::Plugins;
use tools_command::environment::host_name;

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let scheduler = ground.config.scheduler.clone();
    let plugins = match &ground.engine {
        Some(engine) => Some(Plugins::on(engine.clone(), &ground.env)),
        None => Plugins::of(&scheduler.profiles, &ground.config.nodes.guests, &ground.env)?,
    };
    let config = scheduler::Config::of(scheduler, plugins, host_name());
    let config = match &ground.candidate {
        Some(candidate) => config.elected(candidate),
        None => config,
    };
    ground.with_metrics(|registry| config.metrics.register(registry));
    let client = ComponentIdentity::Scheduler.client(&ground.env, &ground.service);
    let (informer, env, stop) = (ground.informer.clone(), ground.env.clone(), ground.stop.components.clone());
    let run = async move {
        loop {
            let term = scheduler::run_on(&informer, client.clone(), env.clone(), config.clone(), stop.clone());
            match term.await {
                // The API server of this process goes on.
                Err(error @ RunError::Election(_)) => tracing::warn!(%error, "the scheduler waits"),
                ended => return Ok(ended?),
            }
        }
    };
    Ok(vec![Component::new("scheduler", run)])
}
