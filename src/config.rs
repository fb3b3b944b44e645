//! What a cluster is configured with, by component, as types; and the flags of every verb. Flags and environment variables
//! are read by clap alone: every flag can be set by `CORACLE_<FLAG>` too.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::admission::AdmissionConfiguration;
use clap::{Args, ValueEnum};
use controllers::{AutoscalerSettings, NodeLifecycle};
use ipnet::Ipv4Net;
use kubelet::image::{CollectPolicy, CredentialProviders, PARALLEL_PULLS_DEFAULT, Registries, SignaturePolicy};
use kubelet::node::{EvictionThresholds, MAX_PODS_DEFAULT, ShutdownGrace};
use kubelet::server::STREAMING_IDLE_DEFAULT;
use machinery_api::address_pool::AddressPool;
use machinery_api::features::Features;
use scheduler::extender::ExtenderConfig;
use scheduler::plugins::{Profile, ScoringStrategy};
use scheduler::queue::BackOff;
use scheduler::wasm::PluginHost;
use wasm_runtime::engine::{CompileBounds, GuestBounds};

use crate::inventory::NodeInventory;

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

/// A whole cluster in one process.
#[derive(Debug, Clone)]
pub(crate) struct ClusterConfig {
    pub(crate) features: Features,
    pub(crate) api: ApiServerConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) controllers: ControllersConfig,
    pub(crate) scheduler: SchedulerConfig,
    pub(crate) nodes: NodesConfig,
}

/// The API server and its store.
#[derive(Debug, Clone)]
pub(crate) struct ApiServerConfig {
    /// Where it listens.
    pub(crate) bind: IpAddr,
    /// 0: any that is free.
    pub(crate) port: u16,
    /// The store's folder; none: in the data folder.
    pub(crate) store: Option<PathBuf>,
    /// For which a pod that says nothing else tolerates a node that is not ready or unreachable.
    pub(crate) default_toleration_seconds: u32,
    /// What admission plugins are configured with.
    pub(crate) admission: Arc<AdmissionConfiguration>,
}

/// The cluster's addresses; what is none is chosen at the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkConfig {
    pub(crate) service_cidr: Option<Ipv4Net>,
    pub(crate) cluster_cidr: Option<Ipv4Net>,
    pub(crate) node_cidr_mask_size: Option<u8>,
}

/// The controllers.
#[derive(Debug, Clone)]
pub(crate) struct ControllersConfig {
    pub(crate) node_lifecycle: NodeLifecycle,
    pub(crate) terminated_pods_max: usize,
    /// Those that don't run.
    pub(crate) disabled: Vec<String>,
    /// How many keys a controller works on at once, where that was said.
    pub(crate) workers: BTreeMap<&'static str, usize>,
    pub(crate) autoscaler: AutoscalerSettings,
    /// Addresses of LoadBalancer Services.
    pub(crate) balancer_pool: AddressPool,
    /// What is known of the machines behind nodes.
    pub(crate) inventory: Option<NodeInventory>,
}

impl ControllersConfig {
    /// What the controllers of a process run with: what was asked for, beside what the process has for them.
    pub(crate) fn config(&self, given: controllers::Settings, instance: &str) -> controllers::Config {
        let settings = controllers::Settings {
            node_lifecycle: self.node_lifecycle.clone(),
            terminated_pods_max: self.terminated_pods_max,
            autoscaler: self.autoscaler.clone(),
            load_balancer_pool: self.balancer_pool.clone(),
            instances: self.inventory.as_ref().map(|inventory| inventory.now.clone() as _),
            ..given
        };
        let mut config = controllers::Config::new(settings, instance);
        config.disabled = self.disabled.clone();
        config.workers = self.workers.clone();
        config
    }
}

/// The scheduler.
#[derive(Debug, Clone)]
pub(crate) struct SchedulerConfig {
    pub(crate) profiles: Vec<Profile>,
    pub(crate) back_off: BackOff,
    pub(crate) extenders: Vec<ExtenderConfig>,
}

impl SchedulerConfig {
    /// Upstream's default profile, but for how resources are scored.
    pub(crate) fn scored_by(strategy: ScoringStrategy) -> Self {
        Self {
            profiles: vec![Profile::default().scored_by(strategy)],
            back_off: BackOff::default(),
            extenders: Vec::new(),
        }
    }

    /// What the scheduler of a process runs with: what was asked for, beside what the process has for it.
    pub(crate) fn config(self, plugins: Option<Arc<dyn PluginHost>>) -> scheduler::Config {
        let Self { profiles, back_off, extenders } = self;
        scheduler::Config { profiles, back_off, extenders, plugins, host: host_name(), ..scheduler::Config::default() }
    }
}

/// The name of this machine, as events and leases say who writes them.
pub(crate) fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "coracle".to_owned())
}

/// What each compilation of a module and each instance of a guest may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GuestsConfig {
    pub(crate) compile: CompileBounds,
    pub(crate) instance: GuestBounds,
}

/// The node agents and the data plane.
#[derive(Debug, Clone)]
pub(crate) struct NodesConfig {
    pub(crate) count: u32,
    /// Their Leases are short, so that whoever watches knows soon that they are dead.
    pub(crate) short_leases: bool,
    /// Pods of each.
    pub(crate) max_pods: u32,
    /// Where kubelets and NodePorts listen.
    pub(crate) bind: IpAddr,
    pub(crate) host_pod_listeners: bool,
    /// How long a session may stand still.
    pub(crate) streaming_idle: Duration,
    /// Folders from which images `file:///…` are taken.
    pub(crate) file_images: Vec<PathBuf>,
    /// Folders of which pods may mount what lies below.
    pub(crate) host_paths: Vec<PathBuf>,
    /// From when on a node is short of something, and evicts pods.
    pub(crate) eviction: EvictionThresholds,
    /// How long pods may take to end with their node.
    pub(crate) shutdown_grace: ShutdownGrace,
    /// Manifests of static pods.
    pub(crate) static_pods: Option<PathBuf>,
    /// When unused images go.
    pub(crate) image_collection: CollectPolicy,
    /// How registries are reached, and the file that says so.
    pub(crate) registries: Registries,
    pub(crate) registries_file: Option<PathBuf>,
    /// Which images have to be signed, and the file that says so.
    pub(crate) signature_policy: SignaturePolicy,
    pub(crate) signature_policy_file: Option<PathBuf>,
    /// Who is asked for credentials of the node.
    pub(crate) credential_providers: CredentialProviders,
    /// Pulls at once.
    pub(crate) parallel_pulls: usize,
    /// What guests of the process may take, the scheduler's plugins among them.
    pub(crate) guests: GuestsConfig,
}

impl ClusterConfig {
    /// Two nodes on ports that are free, and everything else as `coracle up` has it without flags. Nothing of it comes from
    /// the environment: the demo leaves nothing behind and touches no other cluster's folder.
    pub(crate) fn of_demo() -> Self {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            features: Features::default(),
            api: ApiServerConfig {
                bind: localhost,
                port: 0,
                store: None,
                default_toleration_seconds: 300,
                admission: Arc::default(),
            },
            network: NetworkConfig::default(),
            controllers: ControllersConfig {
                node_lifecycle: NodeLifecycle::default(),
                terminated_pods_max: controllers::Settings::default().terminated_pods_max,
                disabled: Vec::new(),
                workers: BTreeMap::new(),
                autoscaler: AutoscalerSettings::default(),
                balancer_pool: AddressPool::default(),
                inventory: None,
            },
            scheduler: SchedulerConfig::scored_by(ScoringStrategy::LeastAllocated),
            nodes: NodesConfig {
                count: 2,
                short_leases: false,
                max_pods: MAX_PODS_DEFAULT,
                bind: localhost,
                host_pod_listeners: false,
                streaming_idle: STREAMING_IDLE_DEFAULT,
                file_images: Vec::new(),
                host_paths: Vec::new(),
                eviction: EvictionThresholds::default(),
                shutdown_grace: ShutdownGrace::default(),
                static_pods: None,
                image_collection: CollectPolicy::default(),
                registries: Registries::default(),
                registries_file: None,
                signature_policy: SignaturePolicy::default(),
                signature_policy_file: None,
                credential_providers: CredentialProviders::default(),
                parallel_pulls: PARALLEL_PULLS_DEFAULT,
                guests: GuestsConfig::default(),
            },
        }
    }

    /// Of an API server that runs alone.
    pub(crate) fn of_servers(api: ApiServerConfig, network: NetworkConfig, features: Features) -> Self {
        let demo = Self::of_demo();
        Self { features, api, network, nodes: NodesConfig { count: 0, ..demo.nodes }, ..demo }
    }
}

/// Variables that name a proxy (curl's and Go's), which registries are called through.
const PROXY_VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The hosts of the proxies that the environment names.
pub(crate) fn proxies() -> Vec<String> {
    let values = PROXY_VARIABLES.iter().filter_map(|name| variable(name));
    values.filter_map(|value| value.parse::<http::Uri>().ok()?.host().map(str::to_owned)).collect()
}

/// Where `docker login` and the like write accounts, if not at home.
pub(crate) fn docker_config() -> Option<PathBuf> {
    variable("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

#[expect(clippy::disallowed_methods, reason = "the one reader of other programs' variables; clap reads ours")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
