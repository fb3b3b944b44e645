//! `coracle scheduler`: the scheduler as a process of its own, against any Kubernetes API server.

use clap::Args;
use machinery_env::Env;

use super::Failure;
use super::flags::election::ElectionFlags;
use super::flags::features::FeatureFlags;
use super::flags::guests::GuestFlags;
use super::flags::rejected::{RejectedFlags, Table};
use super::flags::scheduler::SchedulerFlags;
use super::standalone::{self, ComponentDeps, StandaloneFlags};
use crate::features;
use crate::scheduler_plugins::Plugins;

/// Upstream's name of this program.
const UPSTREAM: &str = "kube-scheduler";

/// Flags of `coracle scheduler`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Scheduler {
    #[command(flatten)]
    standalone: StandaloneFlags,
    #[command(flatten)]
    election: ElectionFlags,
    #[command(flatten)]
    scheduler: SchedulerFlags,
    #[command(flatten)]
    plugins: GuestFlags,
    #[command(flatten)]
    features: FeatureFlags,
    #[command(flatten)]
    rejected: RejectedFlags<UnsupportedUpstreamFlags>,
}

/// Upstream's flags that are rejected here.
#[derive(Debug, Clone)]
struct UnsupportedUpstreamFlags;

impl Table for UnsupportedUpstreamFlags {
    const OWN: &'static [(&'static str, &'static str)] = &[(
        "pod-max-in-unschedulable-pods-duration",
        "a pod waits until something changes that may help it; leave it out",
    )];
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the leadership was lost.
pub(crate) fn run(flags: &Scheduler) -> Result<(), Failure> {
    flags.rejected.check()?;
    let env = Env::real();
    let scheduler = flags.scheduler.config()?;
    let election = flags.election.election(UPSTREAM, &env)?;
    let plugins = Plugins::of(&scheduler.profiles, flags.plugins.config(), &env)?;
    let config = ::scheduler::Config { election, ..scheduler.config(plugins) };
    let (metrics, gates) = (config.metrics.clone(), flags.features.features());
    standalone::run(&flags.standalone, UPSTREAM, env, async move |ComponentDeps { client, env, stop, .. }, registry| {
        metrics.register(registry);
        features::register(registry, &gates);
        Ok(async move { Ok(::scheduler::run(client, env, config, stop).await?) })
    })
}
