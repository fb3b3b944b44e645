//! `coracle scheduler`: the scheduler as a process of its own, against any Kubernetes API server.

use clap::Args;
use machinery_env::Env;
use machinery_options::election::ElectionFlags;
use machinery_options::feature_gates::FeatureFlags;
use machinery_options::rejected::{RejectedFlags, Table};
use wasm_runtime::options::guests::GuestOptions;

use super::standalone::{self, ComponentDeps, StandaloneFlags};
use crate::scheduler_plugins::{self, Plugins};
use tools_command::environment::host_name;
use tools_command::failure::Failure;
use tools_telemetry::metrics::register_features;

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
    scheduler: scheduler::SchedulerOptions,
    #[command(flatten)]
    plugins: GuestOptions,
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
    let scheduler = scheduler_plugins::configuration(&flags.scheduler)?;
    let election = standalone::election(&flags.election, UPSTREAM, &env)?;
    let plugins = Plugins::of(&scheduler.profiles, &flags.plugins, &env)?;
    let config = ::scheduler::Config { election, ..::scheduler::Config::of(scheduler, plugins, host_name()) };
    let (metrics, gates) = (config.metrics.clone(), flags.features.features());
    standalone::run(&flags.standalone, UPSTREAM, env, async move |ComponentDeps { client, env, stop, .. }, registry| {
        metrics.register(registry);
        register_features(registry, &gates);
        Ok(async move { Ok(::scheduler::run(client, env, config, stop).await?) })
    })
}
