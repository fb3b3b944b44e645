//! Flags of the controllers, shared by `up` and `controllers`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use controllers::{NodeLifecycle, names};
use machinery_rules::address_pool::AddressPool;

use super::autoscaler::AutoscalerFlags;
use super::duration::some_time;
use crate::cmd::Failure;
use crate::config::ControllersConfig;
use crate::inventory::NodeInventory;

/// Upstream's flags for the number of workers of a controller, with their variables.
const SYNCS: &[(&str, &str, &str)] = &[
    ("concurrent-cron-job-syncs", "CORACLE_CONCURRENT_CRON_JOB_SYNCS", "cronjob-controller"),
    ("concurrent-daemonset-syncs", "CORACLE_CONCURRENT_DAEMONSET_SYNCS", "daemonset-controller"),
    ("concurrent-deployment-syncs", "CORACLE_CONCURRENT_DEPLOYMENT_SYNCS", "deployment-controller"),
    ("concurrent-endpoint-syncs", "CORACLE_CONCURRENT_ENDPOINT_SYNCS", "endpoints-controller"),
    ("concurrent-ephemeralvolume-syncs", "CORACLE_CONCURRENT_EPHEMERALVOLUME_SYNCS", "ephemeral-volume-controller"),
    ("concurrent-gc-syncs", "CORACLE_CONCURRENT_GC_SYNCS", "garbage-collector-controller"),
    (
        "concurrent-horizontal-pod-autoscaler-syncs",
        "CORACLE_CONCURRENT_HORIZONTAL_POD_AUTOSCALER_SYNCS",
        "horizontal-pod-autoscaler-controller",
    ),
    ("concurrent-job-syncs", "CORACLE_CONCURRENT_JOB_SYNCS", "job-controller"),
    ("concurrent-namespace-syncs", "CORACLE_CONCURRENT_NAMESPACE_SYNCS", "namespace-controller"),
    ("concurrent-rc-syncs", "CORACLE_CONCURRENT_RC_SYNCS", "replicationcontroller-controller"),
    ("concurrent-replicaset-syncs", "CORACLE_CONCURRENT_REPLICASET_SYNCS", "replicaset-controller"),
    ("concurrent-resource-quota-syncs", "CORACLE_CONCURRENT_RESOURCE_QUOTA_SYNCS", "resourcequota-controller"),
    ("concurrent-service-syncs", "CORACLE_CONCURRENT_SERVICE_SYNCS", "service-lb-controller"),
    ("concurrent-service-endpoint-syncs", "CORACLE_CONCURRENT_SERVICE_ENDPOINT_SYNCS", "endpointslice-controller"),
    (
        "concurrent-serviceaccount-token-syncs",
        "CORACLE_CONCURRENT_SERVICEACCOUNT_TOKEN_SYNCS",
        "serviceaccount-token-controller",
    ),
    ("concurrent-statefulset-syncs", "CORACLE_CONCURRENT_STATEFULSET_SYNCS", "statefulset-controller"),
    (
        "concurrent-ttl-after-finished-syncs",
        "CORACLE_CONCURRENT_TTL_AFTER_FINISHED_SYNCS",
        "ttl-after-finished-controller",
    ),
    (
        "concurrent-validating-admission-policy-status-syncs",
        "CORACLE_CONCURRENT_VALIDATING_ADMISSION_POLICY_STATUS_SYNCS",
        "validatingadmissionpolicy-status-controller",
    ),
    (
        "mirroring-concurrent-service-endpoint-syncs",
        "CORACLE_MIRRORING_CONCURRENT_SERVICE_ENDPOINT_SYNCS",
        "endpointslice-mirroring-controller",
    ),
];
/// Maximum workers: more would only wait for each other.
const SYNCS_MAX: i64 = 1000;

/// Upstream's flags for which this program has a controller.
fn syncs() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    SYNCS
        .iter()
        .copied()
        .filter(|(_, _, controller)| controllers::CONTROLLERS.iter().any(|row| row.name == *controller))
}

/// Explicitly set numbers of workers.
#[derive(Debug, Clone, Default)]
struct Syncs(BTreeMap<&'static str, usize>);

impl FromArgMatches for Syncs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = syncs().filter_map(|(flag, _, controller)| {
            let workers = usize::try_from(*matches.get_one::<i64>(flag)?).ok()?;
            Some((controller, workers))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Syncs {
    fn augment_args(command: Command) -> Command {
        syncs().fold(command, |command, (flag, variable, controller)| {
            let row = controllers::CONTROLLERS.iter().find(|row| row.name == controller);
            let workers = row.map_or(1, |row| row.workers);
            let help = format!("Keys that the {controller} works on at once [default: {workers}]");
            let number = clap::value_parser!(i64).range(1..=SYNCS_MAX);
            command.arg(Arg::new(flag).long(flag).env(variable).value_name("N").value_parser(number).help(help))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Flags of the controllers.
#[derive(Debug, Clone, Args)]
pub(in crate::cmd) struct ControllerFlags {
    #[arg(long, env = "CORACLE_CONTROLLERS", default_value = "*", value_name = "LIST", value_delimiter = ',', allow_hyphen_values = true, help = list_help())]
    controllers: Vec<String>,
    /// Interval of the node lifecycle controller; a plain number is seconds
    #[arg(long, env = "CORACLE_NODE_MONITOR_PERIOD", default_value = "5s", value_name = "DURATION", value_parser = some_time)]
    node_monitor_period: Duration,
    /// Time without a heartbeat after which a node is NotReady
    #[arg(long, env = "CORACLE_NODE_MONITOR_GRACE_PERIOD", default_value = "50s", value_name = "DURATION", value_parser = some_time)]
    node_monitor_grace_period: Duration,
    /// Time that a new node may take for its first heartbeat
    #[arg(long, env = "CORACLE_NODE_STARTUP_GRACE_PERIOD", default_value = "1m0s", value_name = "DURATION", value_parser = some_time)]
    node_startup_grace_period: Duration,
    /// Failed nodes per second whose pods are evicted, in a healthy zone
    #[arg(long, env = "CORACLE_NODE_EVICTION_RATE", default_value_t = 0.1, value_name = "RATE", value_parser = rate)]
    node_eviction_rate: f32,
    /// Failed nodes per second whose pods are evicted, in a large, partially disrupted zone
    #[arg(long, env = "CORACLE_SECONDARY_NODE_EVICTION_RATE", default_value_t = 0.01, value_name = "RATE", value_parser = rate)]
    secondary_node_eviction_rate: f32,
    /// Share of failed nodes (three at least) from which on a zone is partially disrupted
    #[arg(long, env = "CORACLE_UNHEALTHY_ZONE_THRESHOLD", default_value_t = 0.55, value_name = "SHARE", value_parser = rate)]
    unhealthy_zone_threshold: f32,
    /// Maximum nodes of a small zone: while one is partially disrupted, nothing is evicted there
    #[arg(long, env = "CORACLE_LARGE_CLUSTER_SIZE_THRESHOLD", default_value_t = 50, value_name = "N")]
    large_cluster_size_threshold: u32,
    /// Nodes with short Leases count as dead when their Leases expire, in about 1.5 s (docs/flags.md, "Nodes that
    /// die")
    #[arg(long, env = "CORACLE_FAST_FAILOVER")]
    pub(in crate::cmd) fast_failover: bool,
    /// Number of terminated pods that are kept; 0 keeps all
    #[arg(long, env = "CORACLE_TERMINATED_POD_GC_THRESHOLD", default_value_t = 12_500, value_name = "N")]
    terminated_pod_gc_threshold: u32,
    /// Addresses for Services of type LoadBalancer: blocks, ranges and addresses, as in
    /// 10.0.0.0/28,10.0.1.5-10.0.1.9 (docs/addresses.md, "LoadBalancer Services")
    #[arg(long, env = "CORACLE_LOAD_BALANCER_POOL", value_name = "POOL")]
    load_balancer_pool: Option<AddressPool>,
    /// Inventory of the machines behind nodes: addresses, zones, types, ids; reloaded on changes
    /// (docs/addresses.md, "Node inventory")
    #[arg(long, env = "CORACLE_NODE_INVENTORY", value_name = "FILE")]
    node_inventory: Option<PathBuf>,
    #[command(flatten)]
    autoscaler: AutoscalerFlags,
    #[command(flatten)]
    syncs: Syncs,
}

fn list_help() -> String {
    let names = names::all().join(", ");
    format!(
        "Which controllers run: * for all, NAME, -NAME; the first match wins. All controllers are enabled by default: {names}"
    )
}

fn rate(text: &str) -> Result<f32, String> {
    let rate = text.parse::<f32>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "must be a number >= 0".to_owned())
}

impl ControllerFlags {
    /// The controllers' configuration.
    ///
    /// # Errors
    /// If `--controllers` has an unknown name.
    pub(in crate::cmd) fn config(&self) -> Result<ControllersConfig, Failure> {
        let disabled = names::disabled(&self.controllers)
            .map_err(|error| Failure::Usage(format!("--controllers: {error}; see --help for the names")))?;
        let inventory = self.node_inventory.as_deref().map(NodeInventory::open).transpose()?;
        Ok(ControllersConfig {
            node_lifecycle: NodeLifecycle {
                monitor_period: self.node_monitor_period,
                monitor_grace: self.node_monitor_grace_period,
                startup_grace: self.node_startup_grace_period,
                eviction_rate: self.node_eviction_rate,
                secondary_eviction_rate: self.secondary_node_eviction_rate,
                unhealthy_zone_threshold: self.unhealthy_zone_threshold,
                large_cluster_size_threshold: self.large_cluster_size_threshold as usize,
                fast_failover: self.fast_failover,
            },
            terminated_pods_max: self.terminated_pod_gc_threshold as usize,
            disabled,
            workers: self.syncs.0.clone(),
            autoscaler: self.autoscaler.settings(),
            balancer_pool: self.load_balancer_pool.clone().unwrap_or_default(),
            inventory,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        flags: ControllerFlags,
    }

    fn config(flags: &[&str]) -> Result<ControllersConfig, String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(flags)).map_err(|error| error.to_string())?;
        parsed.flags.config().map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn without_flags_all_is_as_upstream_has_it() {
        let config = config(&[]).unwrap();
        assert_eq!(config.node_lifecycle, NodeLifecycle::default());
        assert_eq!((config.terminated_pods_max, config.disabled.len(), config.workers.len()), (12_500, 0, 0));
    }

    #[test]
    fn lists_and_numbers_are_taken_as_upstream_writes_them() {
        let taken =
            config(&["--controllers=-job,*", "--concurrent-deployment-syncs=7", "--node-monitor-period", "2"]).unwrap();
        assert_eq!(taken.disabled, ["job-controller"]);
        assert_eq!(taken.workers["deployment-controller"], 7);
        assert_eq!(taken.node_lifecycle.monitor_period, Duration::from_secs(2));
        assert!(config(&["--controllers", "-job-controller,*"]).is_ok());
        assert!(
            config(&["--controllers=jobs"])
                .unwrap_err()
                .contains("\\\"jobs\\\" is not in the list of known controllers")
        );
        for wrong in ["--concurrent-job-syncs=0", "--node-eviction-rate=-1", "--node-monitor-grace-period=0s"] {
            assert!(config(&[wrong]).is_err(), "{wrong}");
        }
    }
}
