//! `coracle server`: API server, scheduler and controllers in one process, a machine of the control plane. Several share an
//! etcd cluster and elect who schedules and controls; nodes run elsewhere.

use std::path::PathBuf;

use apiserver_storage::options::StoreConfig;
use clap::Args;
use http::Uri;
use wasm_runtime::options::guests::GuestOptions;

use super::apiserver::{ServerFlags, until_stopped};
use crate::compose::Part;
use crate::config::{ApiServerConfig, ClusterConfig, NodesConfig};
use crate::inventory::NodeInventory;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_joining::accept::JoinConfig;
use tools_joining::authority;
use tools_joining::token::{self, ControlPlaneToken};
use tools_scheduler_plugins as scheduler_plugins;

/// Flags of `coracle server`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    join: JoinFlags,
    /// Prefix length of each node's share of the pod addresses [default: 24]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    node_cidr_mask_size: Option<u8>,
    #[command(flatten)]
    controllers: controllers::ControllerOptions,
    #[command(flatten)]
    scheduler: scheduler::SchedulerOptions,
    #[command(flatten)]
    plugins: GuestOptions,
}

/// Flags of a server that joins a cluster.
#[derive(Debug, Clone, Args)]
struct JoinFlags {
    /// API server from which a new one gets the cluster's keys: https://HOST:PORT
    #[arg(long = "server", env = "CORACLE_SERVER", value_name = "URL", requires = "ca_hash")]
    url: Option<Uri>,
    /// Token of `coracle token create --control-plane`
    #[arg(long, env = "CORACLE_TOKEN", value_name = "TOKEN", requires = "url", hide_env_values = true)]
    token: Option<ControlPlaneToken>,
    /// File with the token: unlike arguments, other users of the machine can't read it
    #[arg(long, env = "CORACLE_TOKEN_FILE", value_name = "FILE", requires = "url", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Hash of the cluster's authority: sha256:…
    #[arg(long, env = "CORACLE_CA_HASH", value_name = "HASH", requires = "url")]
    ca_hash: Option<String>,
}

impl JoinFlags {
    fn config(&self, store: &StoreConfig) -> Result<Option<JoinConfig>, Failure> {
        let (Some(url), Some(ca_hash)) = (&self.url, &self.ca_hash) else { return Ok(None) };
        let token = match (&self.token_file, &self.token) {
            (Some(file), _) => match token::read_file(file).map_err(Failure::Usage)? {
                // Removed once the server has the keys.
                None => return Ok(None),
                found => found,
            },
            (None, token) => token.clone(),
        };
        let Some(token) = token else {
            return Err(Failure::Usage("--server needs --token or --token-file".into()));
        };
        authority::check_server(url).map_err(|form| Failure::Usage(format!("--server {url}: {form}")))?;
        authority::check_hash(ca_hash).map_err(|form| Failure::Usage(format!("--ca-hash {ca_hash}: {form}")))?;
        if !matches!(store, StoreConfig::Etcd(_)) {
            return Err(Failure::Usage("--server needs the store of that cluster: --store etcd:…".into()));
        }
        Ok(Some(JoinConfig { server: url.clone(), token, ca_hash: ca_hash.clone() }))
    }
}

impl Server {
    fn config(&self) -> Result<ClusterConfig, Failure> {
        let api = ApiServerConfig::of(&self.server.api, self.controllers.node_lifecycle.fast_failover, false)?;
        let api = ApiServerConfig { join: self.join.config(&api.store)?, ..api };
        let network = self.server.network(self.node_cidr_mask_size);
        let servers = ClusterConfig::for_servers(api, network, self.server.features());
        Ok(ClusterConfig {
            controllers: self.controllers.clone(),
            inventory: NodeInventory::of(&self.controllers)?,
            scheduler: scheduler_plugins::configuration(&self.scheduler)?,
            nodes: NodesConfig { guests: self.plugins.clone(), bind: self.server.api.bind, ..servers.nodes },
            ..servers
        })
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or a part can't start.
pub(crate) fn run(flags: &Server, common: &Common) -> Result<(), Failure> {
    until_stopped(flags.config()?, Part::Control, common, &flags.server.takeover, "")
}
