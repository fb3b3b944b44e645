//! `coracle apiserver`: the API server as a process of its own, with its store and the built-in registry. Schedulers,
//! controllers and kubelets run elsewhere and act through the API. `coracle up` shares its flags, start, `ready` line
//! and stop.

use std::net::SocketAddr;

use apiserver::options::ApiServerOptions;
use clap::Args;
use machinery_api::features::Features;
use machinery_env::Env;
use machinery_options::feature_gates::FeatureFlags;

use crate::compose::preflight::check_cluster;
use crate::compose::{self, Cluster, MetricsEndpoint, PROGRAM, Part, ReadyProcess, prepare_engine};
use crate::config::{ApiServerConfig, ClusterConfig};
use crate::network::NetworkConfig;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_takeover::{ListenAddress, TakeoverFlags};

/// Flags of a process with an API server.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerFlags {
    #[command(flatten)]
    pub(super) api: ApiServerOptions,
    #[command(flatten)]
    pub(super) takeover: TakeoverFlags,
    #[command(flatten)]
    features: FeatureFlags,
}

impl ServerFlags {
    /// The state of every feature gate.
    pub(super) fn features(&self) -> Features {
        self.features.features()
    }

    /// The cluster's addresses.
    pub(super) fn network(&self, node_cidr_mask_size: Option<u8>) -> NetworkConfig {
        let ApiServerOptions { service_cidr, cluster_cidr, .. } = self.api;
        NetworkConfig { service_cidr, cluster_cidr, node_cidr_mask_size }
    }
}

/// Flags of `coracle apiserver`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApiServer {
    #[command(flatten)]
    server: ServerFlags,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the server can't start.
pub(crate) fn run(flags: &ApiServer, common: &Common) -> Result<(), Failure> {
    let (api, network) = (ApiServerConfig::of(&flags.server.api, false, false)?, flags.server.network(None));
    let config = ClusterConfig::for_servers(api, network, flags.server.features());
    until_stopped(config, Part::Servers, common, &flags.server.takeover, "")
}

/// Runs a cluster up to a part until SIGINT or SIGTERM; `also` is appended to the `ready` line.
///
/// # Errors
/// If the start fails, or a component ended by itself.
pub(super) fn until_stopped(
    config: ClusterConfig,
    up_to: Part,
    common: &Common,
    takeover: &TakeoverFlags,
    also: &str,
) -> Result<(), Failure> {
    let env = Env::real();
    let data = DataDir::of(common)?;
    compose::until_stopped(&env, Some(&data), async |progress| {
        let address = SocketAddr::new(config.api.options.bind, config.api.options.port);
        // The engine takes a third of a start's time, and needs nothing that the running process has.
        let mut engine = None;
        let check = async {
            check_cluster(&env, &config, &data).await?;
            engine = prepare_engine(&env, &config, &data)?;
            Ok(())
        };
        let wanted = [ListenAddress { flag: "--port", address }];
        let taken = takeover.take(&env, &data, progress, (&wanted, PROGRAM), check).await?;
        let Cluster { process, server, .. } = compose::start(&env, config, engine, up_to, &data, progress).await?;
        let report = format!("server={server} kubeconfig={}{also}", data.kubeconfig().display());
        Ok(ReadyProcess { process, taken, metrics: MetricsEndpoint::default(), report })
    })
}
