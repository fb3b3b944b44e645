//! `coracle up`: the whole cluster in one process, in the foreground.

use clap::Args;

use super::apiserver::{ServerFlags, until_stopped};
use crate::compose::Part;
use crate::config::{ApiServerConfig, ClusterConfig, NODES_MAX, NodeFlags};
use crate::inventory::NodeInventory;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_scheduler_plugins as scheduler_plugins;

/// Flags of `coracle up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) server: ServerFlags,
    /// Node agents to run; 0 runs a control plane only
    #[arg(long, env = "CORACLE_NODES", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(NODES_MAX)))]
    pub(crate) nodes: u32,
    /// Prefix length of each node's share of the pod addresses [default: 20 on Linux, else 24]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    pub(crate) node_cidr_mask_size: Option<u8>,
    #[command(flatten)]
    agents: NodeFlags,
    #[command(flatten)]
    controllers: controllers::ControllerOptions,
    #[command(flatten)]
    pub(crate) scheduler: scheduler::SchedulerOptions,
}

impl Up {
    /// The cluster's configuration.
    ///
    /// # Errors
    /// On errors that clap can't detect: contradicting flags, and values that aren't built yet.
    fn config(&self) -> Result<ClusterConfig, Failure> {
        let fast_failover = self.controllers.node_lifecycle.fast_failover;
        let nodes = self.agents.config(self.nodes, self.server.api.bind, fast_failover)?;
        if nodes.share_compiled && (nodes.count != 1 || nodes.bind.is_loopback()) {
            return Err(Failure::Usage(
                "--share-compiled-modules needs other machines: --nodes 1, and --bind with an address that they reach"
                    .into(),
            ));
        }
        Ok(ClusterConfig {
            features: self.server.features(),
            api: ApiServerConfig::of(&self.server.api, fast_failover, true)?,
            network: self.server.network(self.node_cidr_mask_size),
            controllers: self.controllers.clone(),
            inventory: NodeInventory::of(&self.controllers)?,
            scheduler: scheduler_plugins::configuration(&self.scheduler)?,
            nodes,
        })
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the cluster can't start.
pub(crate) fn run(flags: &Up, common: &Common) -> Result<(), Failure> {
    until_stopped(flags.config()?, Part::Nodes, common, &flags.server.takeover, &format!(" nodes={}", flags.nodes))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use kubelet::node::EvictionThresholds;

    use super::*;

    fn config(flags: &[&str]) -> Result<ClusterConfig, Failure> {
        let cli = super::super::Cli::try_parse_from(["coracle", "up"].iter().chain(flags)).unwrap();
        match cli.verb {
            super::super::Verb::Up(up) => up.config(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_demo_has_the_defaults_of_up() {
        let without = config(&["--port", "0", "--nodes", "2"]).unwrap();
        assert_eq!(format!("{without:?}"), format!("{:?}", ClusterConfig::for_demo()));
    }

    #[test]
    fn the_dashboard_is_on_by_default() {
        let of = |flags: &[&str]| config(flags).unwrap().api.dashboard;
        assert_eq!(
            [of(&[]), of(&["--dashboard"]), of(&["--dashboard=true"]), of(&["--dashboard=false"])],
            [true, true, true, false]
        );
        let apart = super::super::Cli::try_parse_from(["coracle", "up", "--dashboard", "false"]);
        assert!(apart.is_err(), "the value follows an equals sign");
    }

    #[test]
    fn thresholds_of_eviction_are_read() {
        let of = |flags: &[&str]| config(flags).unwrap().nodes.kubelet.eviction();
        assert_eq!(of(&[]), EvictionThresholds::default());
        let given = "memory.available<100Mi,nodefs.available<10%";
        assert_eq!(of(&["--eviction-hard", given]), given.parse().unwrap());
        let wrong = super::super::Cli::try_parse_from(["coracle", "up", "--eviction-hard", "imagefs.available<15%"]);
        let message = wrong.unwrap_err().to_string();
        assert!(
            message.contains("--eviction-hard") && message.contains("memory.available, nodefs.available"),
            "{message}"
        );
    }

    #[test]
    fn flags_that_cannot_be_are_wrong_usage() {
        for flags in [
            ["--share-compiled-modules", "--bind=127.0.0.1"],
            ["--store", "etcd:http://e"],
            ["--store", "sled:"],
            ["--store", "x"],
            ["--image-gc-low-threshold", "85"],
            ["--shutdown-grace-period-critical-pods", "1"],
        ] {
            assert!(matches!(config(&flags), Err(Failure::Usage(_))), "{flags:?}");
        }
        assert!(config(&["--image-maximum-gc-age", "0"]).unwrap().nodes.images.collection.age_max.is_none());
    }
}
