//! The options of the controllers: those of each controller, declared in its own file, which ones run, with how many
//! workers, and those of a process of their own.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use machinery_options::OptionError;
use machinery_options::rejected::{SERVING, Table};

use crate::certificates::signing;
use crate::{CONTROLLERS, cloud, names, node_ipam, node_lifecycle, pod_garbage_collector, podautoscaler};
use crate::{root_ca, service_lb, serviceaccount_token};

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
    SYNCS.iter().copied().filter(|(_, _, controller)| CONTROLLERS.iter().any(|row| row.name == *controller))
}

/// Explicitly set numbers of workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
            let row = CONTROLLERS.iter().find(|row| row.name == controller);
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

/// Options of the controllers, with upstream's names.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct ControllerOptions {
    #[arg(long, env = "CORACLE_CONTROLLERS", default_value = "*", value_name = "LIST", value_delimiter = ',', allow_hyphen_values = true, help = list_help())]
    controllers: Vec<String>,
    /// Of node lifecycle.
    #[command(flatten)]
    pub node_lifecycle: node_lifecycle::NodeLifecycle,
    /// Of the garbage collector of pods.
    #[command(flatten)]
    pub pods: pod_garbage_collector::PodLimit,
    /// Of load balancers.
    #[command(flatten)]
    pub balancers: service_lb::BalancerOptions,
    /// Of the cloud provider.
    #[command(flatten)]
    pub cloud: cloud::CloudOptions,
    /// Of HorizontalPodAutoscalers.
    #[command(flatten)]
    pub autoscaler: podautoscaler::AutoscalerOptions,
    #[command(flatten)]
    syncs: Syncs,
}

impl Default for ControllerOptions {
    /// Upstream's defaults, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
}

fn list_help() -> String {
    let names = names::all().join(", ");
    format!(
        "Which controllers run: * for all, NAME, -NAME; what comes first decides. All: {names}. None is off by default"
    )
}

impl ControllerOptions {
    /// The names of disabled controllers.
    ///
    /// # Errors
    /// If `--controllers` has an unknown name.
    pub fn disabled(&self) -> Result<Vec<String>, OptionError> {
        names::disabled(&self.controllers)
            .map_err(|error| OptionError::new(format!("--controllers: {error}; see --help for the names")))
    }

    /// The numbers of workers that differ from the controllers' own.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<&'static str, usize> {
        &self.syncs.0
    }
}

/// Options of controllers in a process of their own, which has not the keys and addresses of an API server.
#[derive(Debug, Clone, Args)]
pub struct ProcessOptions {
    /// Of the nodes' networks.
    #[command(flatten)]
    pub networks: node_ipam::NetworkOptions,
    /// Of the publisher of the certificate authority.
    #[command(flatten)]
    pub root_ca: root_ca::RootCaOptions,
    /// Of tokens in Secrets.
    #[command(flatten)]
    pub tokens: serviceaccount_token::TokenOptions,
    /// Each controller acts as its own service account in kube-system, with tokens that the kubeconfig's user requests;
    /// otherwise all act as that user
    #[arg(long, env = "CORACLE_USE_SERVICE_ACCOUNT_CREDENTIALS", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub use_service_account_credentials: bool,
    /// Of the signer of certificates.
    #[command(flatten)]
    pub signing: signing::SigningOptions,
}

/// Upstream's flags that are rejected here.
#[derive(Debug, Clone)]
pub struct UnsupportedFlags;

const CLOUD: &str = "there is no cloud provider beside --node-inventory and --load-balancer-pool; leave it out";
const CLOCK: &str = "nothing is done by the clock alone: what changes is acted on when it does; leave it out";
const ATTACH: &str = "nothing is attached to nodes, and no volume is recycled or probed for; leave it out";

impl Table for UnsupportedFlags {
    const OWN: &'static [(&'static str, &'static str)] = &[
        ("allow-metric-labels", SERVING),
        ("attach-detach-reconcile-sync-period", ATTACH),
        ("cloud-config", CLOUD),
        ("cloud-provider", CLOUD),
        ("cluster-name", CLOUD),
        ("configure-cloud-routes", CLOUD),
        ("controller-start-interval", "controllers start at once; leave it out"),
        ("disable-attach-detach-reconcile-sync", ATTACH),
        ("enable-dynamic-provisioning", "switch the controller off by --controllers"),
        ("enable-garbage-collector", "switch it off by --controllers=*,-garbage-collector-controller"),
        ("enable-hostpath-provisioner", ATTACH),
        ("endpoint-updates-batch-period", CLOCK),
        ("endpointslice-updates-batch-period", CLOCK),
        ("external-cloud-volume-plugin", CLOUD),
        ("flex-volume-plugin-dir", ATTACH),
        ("min-resync-period", CLOCK),
        ("mirroring-endpointslice-updates-batch-period", CLOCK),
        ("namespace-sync-period", CLOCK),
        ("node-sync-period", CLOUD),
        ("pvclaimbinder-sync-period", CLOCK),
        ("resource-quota-sync-period", CLOCK),
        ("route-reconciliation-period", CLOUD),
        ("service-cluster-ip-range", "Services' addresses are the API server's to give; leave it out"),
    ];
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        options: ControllerOptions,
    }

    fn options(flags: &[&str]) -> Result<(ControllerOptions, Vec<String>), String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(flags)).map_err(|error| error.to_string())?;
        let disabled = parsed.options.disabled().map_err(|error| format!("{error:?}"))?;
        Ok((parsed.options, disabled))
    }

    #[test]
    fn without_flags_all_is_as_upstream_has_it() {
        let (options, disabled) = options(&[]).unwrap();
        assert_eq!(options, ControllerOptions::default());
        assert_eq!(options.node_lifecycle, node_lifecycle::NodeLifecycle::default());
        assert_eq!((options.pods.terminated_max, disabled.len(), options.workers().len()), (12_500, 0, 0));
        let lifecycle = options.node_lifecycle;
        assert_eq!(
            [lifecycle.monitor_period, lifecycle.monitor_grace, lifecycle.startup_grace].map(|time| time.as_secs()),
            [5, 50, 60]
        );
    }

    #[test]
    fn lists_and_numbers_are_taken_as_upstream_writes_them() {
        let (taken, disabled) =
            options(&["--controllers=-job,*", "--concurrent-deployment-syncs=7", "--node-monitor-period", "2"])
                .unwrap();
        assert_eq!(disabled, ["job-controller"]);
        assert_eq!(taken.workers()["deployment-controller"], 7);
        assert_eq!(taken.node_lifecycle.monitor_period, Duration::from_secs(2));
        assert!(options(&["--controllers", "-job-controller,*"]).is_ok());
        assert!(
            options(&["--controllers=jobs"])
                .unwrap_err()
                .contains("\\\"jobs\\\" is not in the list of known controllers")
        );
        for wrong in ["--concurrent-job-syncs=0", "--node-eviction-rate=-1", "--node-monitor-grace-period=0s"] {
            assert!(options(&[wrong]).is_err(), "{wrong}");
        }
    }
}
