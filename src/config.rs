//! The only reader of flags and environment variables: every flag can be set by `CORACLE_<FLAG>` too.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use ipnet::Ipv4Net;

use crate::cmd::Verb;

/// Kubernetes for WebAssembly in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "Example: coracle demo"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// What to log: error, warn, info, debug, trace, or a filter such as warn,proxy=debug
    #[arg(long, global = true, env = "CORACLE_LOG_LEVEL", default_value = "warn", value_name = "LEVEL")]
    pub(crate) log_level: String,
    /// How log lines on stderr look
    #[arg(long, global = true, env = "CORACLE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Where the cluster lives [default: the platform's data folder for coracle]
    #[arg(long, global = true, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// Most node agents that one process runs: a /15 of pod addresses holds that many /20 (contract.md §3).
pub(crate) const NODES_MAX: u32 = 32;

/// Flags of `coracle up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    /// Address on which the API server, NodePorts and kubelets listen
    #[arg(long, env = "CORACLE_BIND", default_value = "127.0.0.1", value_name = "ADDR")]
    pub(crate) bind: IpAddr,
    /// Port of the API server; 0 picks a free one
    #[arg(long, env = "CORACLE_PORT", default_value_t = 6443, value_name = "PORT")]
    pub(crate) port: u16,
    /// Node agents to run; 0 runs a control plane only
    #[arg(long, env = "CORACLE_NODES", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(NODES_MAX)))]
    pub(crate) nodes: u32,
    /// Where objects are kept: sled:DIR [default: sled:DATA_DIR/store]
    #[arg(long, env = "CORACLE_STORE", value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Addresses of Services [default on Linux: the first /16 of a free block of 127.0.0.0/8, else 10.96.0.0/12]
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    pub(crate) service_cidr: Option<Ipv4Net>,
    /// Addresses of pods [default on Linux: the upper /15 of the same block, else 10.244.0.0/16]
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    pub(crate) cluster_cidr: Option<Ipv4Net>,
    /// Prefix length of each node's share of the pod addresses [default: 20 on Linux, else 24]
    #[arg(long, env = "CORACLE_NODE_CIDR_MASK_SIZE", value_name = "BITS", value_parser = clap::value_parser!(u8).range(8..=30))]
    pub(crate) node_cidr_mask_size: Option<u8>,
    /// Gives pod IPs listeners on the host, too
    #[arg(long, env = "CORACLE_HOST_POD_LISTENERS")]
    pub(crate) host_pod_listeners: bool,
    /// Folder from which images file:///… are taken; can be given several times
    #[arg(long, env = "CORACLE_ALLOW_FILE_IMAGES", value_name = "DIR", value_delimiter = ',')]
    pub(crate) allow_file_images: Vec<PathBuf>,
    /// How often the node lifecycle controller looks at the nodes, in seconds
    #[arg(long, env = "CORACLE_NODE_MONITOR_PERIOD", default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) node_monitor_period: u32,
    /// After how many seconds without a heartbeat a node is NotReady
    #[arg(long, env = "CORACLE_NODE_MONITOR_GRACE_PERIOD", default_value_t = 40, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) node_monitor_grace_period: u32,
    /// Seconds for which a pod that says nothing else tolerates a node that is not ready or unreachable
    #[arg(long, env = "CORACLE_DEFAULT_TOLERATION_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub(crate) default_toleration_seconds: u32,
    /// From this share of the disk on, in percent, unused images are removed; 100 = never
    #[arg(long, env = "CORACLE_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) image_gc_high_threshold: u8,
    /// Down to this share of the disk, in percent, unused images are removed
    #[arg(long, env = "CORACLE_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=99))]
    pub(crate) image_gc_low_threshold: u8,
    /// Seconds for which a new image stays in any case
    #[arg(long, env = "CORACLE_MINIMUM_IMAGE_TTL_DURATION", default_value_t = 120, value_name = "SECONDS")]
    pub(crate) minimum_image_ttl_duration: u32,
    /// Seconds after which an unused image is removed however empty the disk is; 0 = never
    #[arg(long, env = "CORACLE_IMAGE_MAXIMUM_GC_AGE", default_value_t = 0, value_name = "SECONDS")]
    pub(crate) image_maximum_gc_age: u32,
    /// How the scheduler fills nodes: LeastAllocated spreads, MostAllocated packs
    #[arg(long, env = "CORACLE_SCORING_STRATEGY", default_value = "LeastAllocated", value_name = "STRATEGY")]
    pub(crate) scoring_strategy: ScoringStrategy,
}

/// `NodeResourcesFit`'s scoring strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum ScoringStrategy {
    /// Prefers empty nodes.
    LeastAllocated,
    /// Prefers full nodes (bin packing).
    MostAllocated,
}

/// Flags of `coracle demo`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Demo {
    /// Leaves the cluster running and prints how to go on
    #[arg(long, env = "CORACLE_KEEP")]
    pub(crate) keep: bool,
}

/// Arguments of `coracle push`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Push {
    /// The module or component
    #[arg(value_name = "FILE.wasm")]
    pub(crate) file: PathBuf,
    /// Where to: registry.local/NAME:TAG means the built-in registry of the cluster in --data-dir
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
}

/// What the demo's cluster is started with: two nodes on ports that are free. Nothing of it comes from the environment,
/// as the demo leaves nothing behind and touches no other cluster's folder.
pub(crate) fn up_for_demo() -> Up {
    Up {
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        nodes: 2,
        store: None,
        service_cidr: None,
        cluster_cidr: None,
        node_cidr_mask_size: None,
        host_pod_listeners: false,
        allow_file_images: Vec::new(),
        node_monitor_period: 5,
        node_monitor_grace_period: 40,
        default_toleration_seconds: 300,
        image_gc_high_threshold: 85,
        image_gc_low_threshold: 80,
        minimum_image_ttl_duration: 120,
        image_maximum_gc_age: 0,
        scoring_strategy: ScoringStrategy::LeastAllocated,
    }
}
