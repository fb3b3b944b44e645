//! `coracle scheduler`: the scheduler as a process of its own, against any Kubernetes API server.

use clap::Args;
use machinery_client::Informer;
use machinery_env::Env;
use machinery_options::election::ElectionFlags;
use machinery_options::feature_gates::FeatureFlags;
use machinery_options::rejected::RejectedFlags;
use wasm_runtime::options::guests::GuestOptions;

use crate::compose::SchedulerParts;
use crate::compose::kubeconfig_process::{self, KubeconfigFlags, KubeconfigParts, election};
use tools_command::environment::host_name;
use tools_command::failure::Failure;
use tools_scheduler_plugins::{self as scheduler_plugins, Plugins};

/// Upstream's name of this program.
const UPSTREAM: &str = "kube-scheduler";

/// Flags of `coracle scheduler`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Scheduler {
    #[command(flatten)]
    kubeconfig: KubeconfigFlags,
    #[command(flatten)]
    election: ElectionFlags,
    #[command(flatten)]
    scheduler: scheduler::SchedulerOptions,
    #[command(flatten)]
    plugins: GuestOptions,
    #[command(flatten)]
    features: FeatureFlags,
    #[command(flatten)]
    rejected: RejectedFlags<::scheduler::UnsupportedFlags>,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the leadership was lost.
pub(crate) fn run(flags: &Scheduler) -> Result<(), Failure> {
    flags.rejected.check()?;
    let env = Env::real();
    let scheduler = scheduler_plugins::configuration(&flags.scheduler)?;
    let election = election(&flags.election, UPSTREAM, &env)?;
    let plugins = Plugins::of(&scheduler.profiles, &flags.plugins, &env)?;
    let config = ::scheduler::Config { election, ..::scheduler::Config::of(scheduler, plugins, host_name()) };
    kubeconfig_process::run(&flags.kubeconfig, UPSTREAM, (&env, &flags.features.features()), async |parts| {
        let KubeconfigParts { env, client, metrics, stops, .. } = parts;
        metrics.add(|registry| config.metrics.register(registry));
        let stop = stops.components;
        let informer = Informer::new(client.clone(), env.clone(), &stop);
        let scheduler = SchedulerParts { env, config, client, informer, is_reelected: false, stop };
        Ok(scheduler.into())
    })
}
