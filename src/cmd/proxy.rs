//! `coracle proxy`: the data plane as a process of its own, on a machine without a node.

use clap::Args;
use machinery_env::Env;
use machinery_options::feature_gates::FeatureFlags;
use proxy::options::ProxyOptions;

use crate::compose::kubeconfig_process::{self, KubeconfigFlags, KubeconfigParts};
use crate::compose::{self, DataPlaneParts};
use tools_command::environment::host_name;
use tools_command::failure::Failure;

/// Upstream's name of this program.
const UPSTREAM: &str = "kube-proxy";

/// Flags of `coracle proxy`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Proxy {
    #[command(flatten)]
    kubeconfig: KubeconfigFlags,
    #[command(flatten)]
    proxy: ProxyOptions,
    #[command(flatten)]
    features: FeatureFlags,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the kubeconfig can't be used, or the cluster's addresses can't be read.
pub(crate) fn run(flags: &Proxy) -> Result<(), Failure> {
    let node = flags.proxy.node_name.clone().unwrap_or_else(|| host_name().to_lowercase());
    let gates = flags.features.features();
    kubeconfig_process::run(&flags.kubeconfig, UPSTREAM, (&Env::real(), &gates), async |parts| {
        let KubeconfigParts { env, client, metrics, stops, .. } = parts;
        let plane = compose::lone_plane(&env, &client, &flags.proxy.addresses, (node, flags.proxy.bind())).await?;
        metrics.add(|registry| plane.metrics().register(registry));
        let data_plane = DataPlaneParts { plane, client, stop: stops.pods, threads: None, is_awaited: false };
        Ok(data_plane.into())
    })
}
