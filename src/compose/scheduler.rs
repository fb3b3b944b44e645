//! The scheduler's role: the scheduler on the shared informer, with the plugins of this process.

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::role::Component;
use crate::scheduler_plugins::Plugins;

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let scheduler = ground.config.scheduler.clone();
    let plugins = match &ground.engine {
        Some(engine) => Some(Plugins::on(engine.clone(), &ground.env)),
        None => Plugins::of(&scheduler.profiles, ground.config.nodes.guests, &ground.env)?,
    };
    let config = scheduler.config(plugins);
    ground.with_metrics(|registry| config.metrics.register(registry));
    let client = ComponentIdentity::Scheduler.client(&ground.env, &ground.service);
    let (informer, env, stop) = (ground.informer.clone(), ground.env.clone(), ground.stop.components.clone());
    let run = async move { Ok(scheduler::run_on(&informer, client, env, config, stop).await?) };
    Ok(vec![Component::new("scheduler", run)])
}
