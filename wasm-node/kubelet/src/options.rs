//! The options of a node agent.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use machinery_options::OptionError;

use crate::node::{EvictionThresholds, MAX_PODS_DEFAULT, ShutdownGrace};
use crate::server::STREAMING_IDLE_DEFAULT;

/// The port of the kubelet API (upstream's).
const KUBELET_PORT: u16 = 10_250;

/// Options of a node agent.
#[derive(Debug, Clone, Args)]
pub struct KubeletOptions {
    /// Maximum pods of each node, within its share of the pod addresses
    #[arg(long, env = "CORACLE_MAX_PODS", default_value_t = MAX_PODS_DEFAULT, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_pods: u32,
    /// Also opens listeners for pod IPs on the host
    #[arg(long, env = "CORACLE_HOST_POD_LISTENERS")]
    pub host_pod_listeners: bool,
    /// Idle timeout of exec, attach and port-forward sessions, in seconds
    #[arg(long, env = "CORACLE_STREAMING_CONNECTION_IDLE_TIMEOUT", default_value_t = STREAMING_IDLE_DEFAULT.as_secs() as u32, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    streaming_connection_idle_timeout: u32,
    /// Folder below which pods may mount hostPath volumes; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_HOST_PATH", value_name = "DIR", value_delimiter = ',')]
    pub allow_host_path: Vec<PathBuf>,
    /// Folder of manifests of static pods (or one file); every node of this process runs them
    #[arg(long, env = "CORACLE_POD_MANIFEST_PATH", value_name = "PATH")]
    pub pod_manifest_path: Option<PathBuf>,
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
}

impl Default for KubeletOptions {
    fn default() -> Self {
        machinery_options::defaults()
    }
}

impl KubeletOptions {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// If they contradict each other.
    pub fn check(&self) -> Result<(), OptionError> {
        let (whole, critical) = (self.shutdown_grace_period, self.shutdown_grace_period_critical_pods);
        if critical > whole {
            return Err(OptionError::new(format!(
                "--shutdown-grace-period-critical-pods {critical}: must be no more than --shutdown-grace-period {whole}"
            )));
        }
        Ok(())
    }

    /// Idle timeout of streaming sessions.
    #[must_use]
    pub fn streaming_idle(&self) -> Duration {
        Duration::from_secs(self.streaming_connection_idle_timeout.into())
    }

    /// Eviction thresholds.
    #[must_use]
    pub fn eviction(&self) -> EvictionThresholds {
        self.eviction_hard.unwrap_or_default()
    }

    /// Termination time of pods at a node's shutdown.
    #[must_use]
    pub fn shutdown_grace(&self) -> ShutdownGrace {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        ShutdownGrace {
            whole: seconds(self.shutdown_grace_period),
            critical: seconds(self.shutdown_grace_period_critical_pods),
        }
    }
}

/// Options of a node in a process of its own.
#[derive(Debug, Clone, Args)]
pub struct NodeOptions {
    /// Name of the node [default: this machine's name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this machine for the others, on which kubelet, tunnel and NodePorts listen [default: the one that
    /// reaches the API server]
    #[arg(long, env = "CORACLE_NODE_IP", value_name = "ADDR")]
    pub node_ip: Option<IpAddr>,
    /// Port of the kubelet API; 0 picks a free one
    #[arg(long, env = "CORACLE_KUBELET_PORT", default_value_t = KUBELET_PORT, value_name = "PORT")]
    pub kubelet_port: u16,
}

/// Options of a node's Lease, where no control plane of its process says them.
#[derive(Debug, Clone, Args)]
pub struct LeaseOptions {
    /// Renews a short Lease, so that a control plane with --fast-failover detects a dead node early
    #[arg(long, env = "CORACLE_FAST_FAILOVER")]
    pub fast_failover: bool,
}
