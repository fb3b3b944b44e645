//! Flags of the node agents, for every verb that runs pods.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use images::{CollectPolicy, CredentialProviders, PARALLEL_PULLS_DEFAULT};
use kubelet::node::{EvictionThresholds, MAX_PODS_DEFAULT, ShutdownGrace};
use kubelet::server::STREAMING_IDLE_DEFAULT;

use super::guests::GuestFlags;
use super::sharing::SharingFlags;
use crate::cmd::{Failure, pull};
use crate::config::NodesConfig;
use crate::output::print_stderr;

/// Flags of a node's pods, images and limits.
#[derive(Debug, Clone, Args)]
pub(in crate::cmd) struct NodeFlags {
    /// Maximum pods of each node, within its share of the pod addresses
    #[arg(long, env = "CORACLE_MAX_PODS", default_value_t = MAX_PODS_DEFAULT, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_pods: u32,
    /// Also opens listeners for pod IPs on the host
    #[arg(long, env = "CORACLE_HOST_POD_LISTENERS")]
    host_pod_listeners: bool,
    /// Idle timeout of exec, attach and port-forward sessions, in seconds
    #[arg(long, env = "CORACLE_STREAMING_CONNECTION_IDLE_TIMEOUT", default_value_t = STREAMING_IDLE_DEFAULT.as_secs() as u32, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    streaming_connection_idle_timeout: u32,
    /// Folder of allowed file:///… images; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_FILE_IMAGES", value_name = "DIR", value_delimiter = ',')]
    allow_file_images: Vec<PathBuf>,
    /// Folder below which pods may mount hostPath volumes; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_HOST_PATH", value_name = "DIR", value_delimiter = ',')]
    allow_host_path: Vec<PathBuf>,
    /// Folder of manifests of static pods (or one file); every node of this process runs them
    #[arg(long, env = "CORACLE_POD_MANIFEST_PATH", value_name = "PATH")]
    pod_manifest_path: Option<PathBuf>,
    /// Eviction thresholds of a node, as upstream's flag; signals that it doesn't name have no threshold [default:
    /// memory.available<100Mi, nodefs.available below 1Gi and 10%, nodefs.inodesFree<5%, pid.available<5%]
    #[arg(long, env = "CORACLE_EVICTION_HARD", value_name = "THRESHOLDS")]
    eviction_hard: Option<EvictionThresholds>,
    /// Seconds in which pods may terminate, by priority and with their hooks, when the cluster is stopped; 0 = they
    /// don't, and the next start adopts them
    #[arg(long, env = "CORACLE_SHUTDOWN_GRACE_PERIOD", default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    shutdown_grace_period: u32,
    /// The last part of --shutdown-grace-period, in seconds, for critical pods
    #[arg(long, env = "CORACLE_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS", default_value_t = 0, value_name = "SECONDS")]
    shutdown_grace_period_critical_pods: u32,
    /// Disk usage in percent from which on unused images are removed; 100 = never
    #[arg(long, env = "CORACLE_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    image_gc_high_threshold: u8,
    /// Disk usage in percent down to which unused images are removed
    #[arg(long, env = "CORACLE_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    image_gc_low_threshold: u8,
    /// Seconds for which a new image is never removed
    #[arg(long, env = "CORACLE_MINIMUM_IMAGE_TTL_DURATION", default_value_t = 120, value_name = "SECONDS")]
    minimum_image_ttl_duration: u32,
    /// Seconds after which an unused image is removed at any disk usage; 0 = never
    #[arg(long, env = "CORACLE_IMAGE_MAXIMUM_GC_AGE", default_value_t = 0, value_name = "SECONDS")]
    image_maximum_gc_age: u32,
    /// Registry configuration: mirrors, private CAs, plain HTTP, the node's accounts (docs/registries.md,
    /// "Registries")
    #[arg(long, env = "CORACLE_REGISTRIES", value_name = "FILE")]
    registries: Option<PathBuf>,
    /// Signature policy in the format of containers-policy.json(5): images that must be signed, and their keys
    /// (docs/registries.md, "Signatures")
    #[arg(long, env = "CORACLE_SIGNATURE_POLICY", value_name = "FILE")]
    signature_policy: Option<PathBuf>,
    /// CredentialProviderConfig, a file or a folder of them: programs that provide credentials for images
    /// (docs/registries.md, "Credential providers")
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        value_name = "FILE",
        requires = "image_credential_provider_bin_dir"
    )]
    image_credential_provider_config: Option<PathBuf>,
    /// Folder of the programs in the CredentialProviderConfig
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        value_name = "DIR",
        requires = "image_credential_provider_config"
    )]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Maximum parallel image pulls; one namespace may use all but one
    #[arg(long, env = "CORACLE_MAX_PARALLEL_IMAGE_PULLS", default_value_t = PARALLEL_PULLS_DEFAULT as u32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    max_parallel_image_pulls: u32,
    #[command(flatten)]
    guests: GuestFlags,
    #[command(flatten)]
    sharing: SharingFlags,
}

impl NodeFlags {
    /// The configuration of `count` agents that listen on `bind`.
    ///
    /// # Errors
    /// On contradicting flags, and on files that can't be read.
    pub(in crate::cmd) fn config(&self, count: u32, bind: IpAddr, short_leases: bool) -> Result<NodesConfig, Failure> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        self.check()?;
        let (whole, critical) = (self.shutdown_grace_period, self.shutdown_grace_period_critical_pods);
        Ok(NodesConfig {
            count,
            short_leases,
            max_pods: self.max_pods,
            bind,
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
                high_percent: self.image_gc_high_threshold,
                low_percent: self.image_gc_low_threshold,
            },
            registries: pull::registries(self.registries.as_deref())?,
            registries_file: self.registries.clone(),
            signature_policy: pull::signature_policy(self.signature_policy.as_deref())?,
            signature_policy_file: self.signature_policy.clone(),
            credential_providers: self.credential_providers()?,
            parallel_pulls: self.max_parallel_image_pulls as usize,
            guests: self.guests.config(),
            sharing: self.sharing.config()?,
        })
    }

    /// Rejects flags that contradict each other, and reports folders that don't exist.
    fn check(&self) -> Result<(), Failure> {
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
        Ok(())
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
