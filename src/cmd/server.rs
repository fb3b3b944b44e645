//! `coracle server`: API server, scheduler and controllers in one process, a machine of the control plane. Several share an
//! etcd cluster and elect who schedules and controls; nodes run elsewhere.

use clap::Args;

use super::Failure;
use super::apiserver::{FAST_TOLERATION, ServerFlags, USUAL_TOLERATION, until_stopped};
use super::flags::controllers::ControllerFlags;
use super::flags::guests::GuestFlags;
use super::flags::scheduler::SchedulerFlags;
use crate::compose::Part;
use crate::config::{ClusterConfig, Common, NetworkConfig, NodesConfig};

/// Flags of `coracle server`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    server: ServerFlags,
    /// Prefix length of each node's share of the pod addresses [default: 24]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    node_cidr_mask_size: Option<u8>,
    #[command(flatten)]
    controllers: ControllerFlags,
    #[command(flatten)]
    scheduler: SchedulerFlags,
    #[command(flatten)]
    plugins: GuestFlags,
}

impl Server {
    fn config(&self) -> Result<ClusterConfig, Failure> {
        let toleration = if self.controllers.fast_failover { FAST_TOLERATION } else { USUAL_TOLERATION };
        let network = NetworkConfig { node_cidr_mask_size: self.node_cidr_mask_size, ..self.server.network() };
        let servers = ClusterConfig::for_servers(self.server.config(toleration)?, network, self.server.features());
        Ok(ClusterConfig {
            controllers: self.controllers.config()?,
            scheduler: self.scheduler.config()?,
            nodes: NodesConfig { guests: self.plugins.config(), bind: self.server.bind, ..servers.nodes },
            ..servers
        })
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or a part can't start.
pub(crate) fn run(flags: &Server, common: &Common) -> Result<(), Failure> {
    until_stopped(flags.config()?, Part::Control, common, "")
}
