//! `coracle up`: the whole cluster in one process, in the foreground.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use images::{CollectPolicy, CredentialProviders, PARALLEL_PULLS_DEFAULT};
use kubelet::node::{EvictionThresholds, MAX_PODS_DEFAULT, ShutdownGrace};
use kubelet::server::STREAMING_IDLE_DEFAULT;

use super::apiserver::{FAST_TOLERATION, ServerFlags, USUAL_TOLERATION, until_stopped};
use super::flags::controllers::ControllerFlags;
use super::flags::guests::GuestFlags;
use super::flags::scheduler::SchedulerFlags;
use super::{Failure, pull};
use crate::compose::Part;
use crate::config::{ClusterConfig, Common, NODES_MAX, NetworkConfig, NodesConfig};
use crate::output::print_stderr;

/// Flags of `coracle up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) server: ServerFlags,
    /// Node agents to run; 0 runs a control plane only
    #[arg(long, env = "CORACLE_NODES", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(NODES_MAX)))]
    pub(crate) nodes: u32,
    /// Maximum pods of each node, within its share of the pod addresses
    #[arg(long, env = "CORACLE_MAX_PODS", default_value_t = MAX_PODS_DEFAULT, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_pods: u32,
    /// Prefix length of each node's share of the pod addresses [default: 20 on Linux, else 24]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    pub(crate) node_cidr_mask_size: Option<u8>,
    /// Also opens listeners for pod IPs on the host
    #[arg(long, env = "CORACLE_HOST_POD_LISTENERS")]
    pub(crate) host_pod_listeners: bool,
    /// Idle timeout of exec, attach and port-forward sessions, in seconds
    #[arg(long, env = "CORACLE_STREAMING_CONNECTION_IDLE_TIMEOUT", default_value_t = STREAMING_IDLE_DEFAULT.as_secs() as u32, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) streaming_connection_idle_timeout: u32,
    /// Folder of allowed file:///… images; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_FILE_IMAGES", value_name = "DIR", value_delimiter = ',')]
    pub(crate) allow_file_images: Vec<PathBuf>,
    /// Folder below which pods may mount hostPath volumes; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_HOST_PATH", value_name = "DIR", value_delimiter = ',')]
    pub(crate) allow_host_path: Vec<PathBuf>,
    /// Folder of manifests of static pods (or one file); every node of this process runs them
    #[arg(long, env = "CORACLE_POD_MANIFEST_PATH", value_name = "PATH")]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    /// Eviction thresholds of a node, as upstream's flag; signals that it doesn't name have no threshold [default:
    /// memory.available<100Mi, nodefs.available below 1Gi and 10%, nodefs.inodesFree<5%, pid.available<5%]
    #[arg(long, env = "CORACLE_EVICTION_HARD", value_name = "THRESHOLDS")]
    pub(crate) eviction_hard: Option<EvictionThresholds>,
    /// Seconds in which pods may terminate, by priority and with their hooks, when the cluster is stopped; 0 = they
    /// don't, and the next start adopts them
    #[arg(long, env = "CORACLE_SHUTDOWN_GRACE_PERIOD", default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub(crate) shutdown_grace_period: u32,
    /// The last part of --shutdown-grace-period, in seconds, for critical pods
    #[arg(long, env = "CORACLE_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS", default_value_t = 0, value_name = "SECONDS")]
    pub(crate) shutdown_grace_period_critical_pods: u32,
    #[command(flatten)]
    controllers: ControllerFlags,
    /// Disk usage in percent from which on unused images are removed; 100 = never
    #[arg(long, env = "CORACLE_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) image_gc_high_threshold: u8,
    /// Disk usage in percent down to which unused images are removed
    #[arg(long, env = "CORACLE_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    pub(crate) image_gc_low_threshold: u8,
    /// Seconds for which a new image is never removed
    #[arg(long, env = "CORACLE_MINIMUM_IMAGE_TTL_DURATION", default_value_t = 120, value_name = "SECONDS")]
    pub(crate) minimum_image_ttl_duration: u32,
    /// Seconds after which an unused image is removed at any disk usage; 0 = never
    #[arg(long, env = "CORACLE_IMAGE_MAXIMUM_GC_AGE", default_value_t = 0, value_name = "SECONDS")]
    pub(crate) image_maximum_gc_age: u32,
    /// Registry configuration: mirrors, private CAs, plain HTTP, the node's accounts (docs/operations.md,
    /// "Registries")
    #[arg(long, env = "CORACLE_REGISTRIES", value_name = "FILE")]
    pub(crate) registries: Option<PathBuf>,
    /// Signature policy in the format of containers-policy.json(5): images that must be signed, and their keys
    /// (docs/operations.md, "Signatures")
    #[arg(long, env = "CORACLE_SIGNATURE_POLICY", value_name = "FILE")]
    pub(crate) signature_policy: Option<PathBuf>,
    /// CredentialProviderConfig, a file or a folder of them: programs that provide credentials for images
    /// (docs/operations.md, "Credential providers")
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        value_name = "FILE",
        requires = "image_credential_provider_bin_dir"
    )]
    pub(crate) image_credential_provider_config: Option<PathBuf>,
    /// Folder of the programs in the CredentialProviderConfig
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        value_name = "DIR",
        requires = "image_credential_provider_config"
    )]
    pub(crate) image_credential_provider_bin_dir: Option<PathBuf>,
    /// Maximum parallel image pulls; one namespace may use all but one
    #[arg(long, env = "CORACLE_MAX_PARALLEL_IMAGE_PULLS", default_value_t = PARALLEL_PULLS_DEFAULT as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) max_parallel_image_pulls: u32,
    #[command(flatten)]
    guests: GuestFlags,
    #[command(flatten)]
    pub(crate) scheduler: SchedulerFlags,
}

impl Up {
    /// The cluster's configuration.
    ///
    /// # Errors
    /// On errors that clap can't detect: contradicting flags, and values that aren't built yet.
    fn config(&self) -> Result<ClusterConfig, Failure> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let (high, low) = (self.image_gc_high_threshold, self.image_gc_low_threshold);
        if low >= high {
            return Err(Failure::Usage(format!(
                "--image-gc-low-threshold {low}: must be below --image-gc-high-threshold {high}"
            )));
        }
        let (whole, critical) = (self.shutdown_grace_period, self.shutdown_grace_period_critical_pods);
        if critical > whole {
            return Err(Failure::Usage(format!(
                "--shutdown-grace-period-critical-pods {critical}: must be no more than --shutdown-grace-period {whole}"
            )));
        }
        let allowed = [("--allow-file-images", &self.allow_file_images), ("--allow-host-path", &self.allow_host_path)];
        for (flag, folder) in allowed.into_iter().flat_map(|(flag, all)| all.iter().map(move |one| (flag, one))) {
            if !folder.is_dir() {
                print_stderr!("coracle: {flag} {}: there is no such folder, so it allows nothing", folder.display());
            }
        }
        Ok(ClusterConfig {
            features: self.server.features(),
            api: self.server.config(if self.controllers.fast_failover { FAST_TOLERATION } else { USUAL_TOLERATION })?,
            network: NetworkConfig { node_cidr_mask_size: self.node_cidr_mask_size, ..self.server.network() },
            controllers: self.controllers.config()?,
            scheduler: self.scheduler.config()?,
            nodes: NodesConfig {
                count: self.nodes,
                short_leases: self.controllers.fast_failover,
                max_pods: self.max_pods,
                bind: self.server.bind,
                host_pod_listeners: self.host_pod_listeners,
                streaming_idle: seconds(self.streaming_connection_idle_timeout),
                file_images: self.allow_file_images.clone(),
                host_paths: self.allow_host_path.clone(),
                eviction: self.eviction_hard.unwrap_or_default(),
                shutdown_grace: ShutdownGrace { whole: seconds(whole), critical: seconds(critical) },
                static_pods: self.pod_manifest_path.clone(),
                image_collection: CollectPolicy {
                    age_min: seconds(self.minimum_image_ttl_duration),
                    age_max: Some(seconds(self.image_maximum_gc_age)).filter(|age| !age.is_zero()),
                    high_percent: high,
                    low_percent: low,
                },
                registries: pull::registries(self.registries.as_deref())?,
                registries_file: self.registries.clone(),
                signature_policy: pull::signature_policy(self.signature_policy.as_deref())?,
                signature_policy_file: self.signature_policy.clone(),
                credential_providers: self.credential_providers()?,
                parallel_pulls: self.max_parallel_image_pulls as usize,
                guests: self.guests.config(),
            },
        })
    }

    /// The credential providers of the flags.
    fn credential_providers(&self) -> Result<CredentialProviders, Failure> {
        match (&self.image_credential_provider_config, &self.image_credential_provider_bin_dir) {
            (Some(config), Some(programs)) => {
                let read = CredentialProviders::read(config, programs);
                Ok(read.context("--image-credential-provider-config")?)
            }
            _ => Ok(CredentialProviders::default()),
        }
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the cluster can't start.
pub(crate) fn run(flags: &Up, common: &Common) -> Result<(), Failure> {
    until_stopped(flags.config()?, Part::Nodes, common, &format!(" nodes={}", flags.nodes))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(flags: &[&str]) -> Result<ClusterConfig, Failure> {
        let cli = super::super::Cli::try_parse_from(["coracle", "up"].iter().chain(flags)).unwrap();
        match cli.verb {
            super::super::Verb::Up(up) => up.config(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_demo_runs_what_up_runs_without_flags() {
        let without = config(&["--port", "0", "--nodes", "2"]).unwrap();
        assert_eq!(format!("{without:?}"), format!("{:?}", ClusterConfig::for_demo()));
    }

    #[test]
    fn thresholds_of_eviction_are_read() {
        let of = |flags: &[&str]| config(flags).unwrap().nodes.eviction;
        assert_eq!(of(&[]), EvictionThresholds::default());
        let given = "memory.available<100Mi,nodefs.available<10%";
        assert_eq!(of(&["--eviction-hard", given]), given.parse().unwrap());
        let wrong = super::super::Cli::try_parse_from(["coracle", "up", "--eviction-hard", "imagefs.available<15%"]);
        let said = wrong.unwrap_err().to_string();
        assert!(said.contains("--eviction-hard") && said.contains("memory.available, nodefs.available"), "{said}");
    }

    #[test]
    fn flags_that_cannot_be_are_wrong_usage() {
        for flags in [
            ["--store", "etcd:http://e"],
            ["--store", "sled:"],
            ["--store", "x"],
            ["--image-gc-low-threshold", "85"],
            ["--shutdown-grace-period-critical-pods", "1"],
        ] {
            assert!(matches!(config(&flags), Err(Failure::Usage(_))), "{flags:?}");
        }
        assert!(config(&["--image-maximum-gc-age", "0"]).unwrap().nodes.image_collection.age_max.is_none());
    }
}
