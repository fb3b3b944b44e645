//! Configuration of a cluster by component, as types, and the flags of every verb. clap alone reads flags and
//! environment variables: each flag can be set by `CORACLE_<FLAG>` too.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use apiserver_admission::AdmissionConfiguration;
use apiserver_storage::options::StoreConfig;
use clap::{Args, ValueEnum};
use images::ImageSettings;
use ipnet::Ipv4Net;
use kubelet::options::KubeletOptions;
use machinery_api::features::Features;
use scheduler::configuration::Configuration;
use wasm_runtime::engine::SharedStoreConfig;
use wasm_runtime::options::guests::GuestOptions;

use crate::inventory::NodeInventory;
use crate::joining::accept::JoinConfig;

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Log level: error, warn, info, debug, trace, or a filter such as warn,proxy=debug
    #[arg(long, global = true, env = "CORACLE_LOG_LEVEL", default_value = "warn", value_name = "LEVEL")]
    pub(crate) log_level: String,
    /// Format of log lines on stderr
    #[arg(long, global = true, env = "CORACLE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// YAML file of this verb's flags: their names without dashes in front, and their values. Flags on the command line and
    /// variables take precedence
    #[arg(long, global = true, env = "CORACLE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of the cluster [default: the platform's data folder for coracle]
    #[arg(long, global = true, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Human-readable.
    Text,
    /// One JSON object a line.
    Json,
}

/// Maximum node agents of one process: a /15 of pod addresses holds that many /20 (docs/contract.md §3).
pub(crate) const NODES_MAX: u32 = 32;

/// A whole cluster in one process.
#[derive(Debug, Clone)]
pub(crate) struct ClusterConfig {
    pub(crate) features: Features,
    pub(crate) api: ApiServerConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) controllers: controllers::ControllerOptions,
    /// Of `--node-inventory`.
    pub(crate) inventory: Option<NodeInventory>,
    pub(crate) scheduler: Configuration,
    pub(crate) nodes: NodesConfig,
}

/// The API server and its store.
#[derive(Debug, Clone)]
pub(crate) struct ApiServerConfig {
    /// The listen address.
    pub(crate) bind: IpAddr,
    /// The listen port; 0 for a free one.
    pub(crate) port: u16,
    /// Further names and addresses in the serving certificate.
    pub(crate) tls_sans: Vec<String>,
    pub(crate) store: StoreConfig,
    /// Where to get the cluster's keys, if the data folder has none.
    pub(crate) join: Option<JoinConfig>,
    /// Default toleration of not-ready and unreachable nodes, in seconds.
    pub(crate) default_toleration_seconds: u32,
    /// Configuration of admission plugins.
    pub(crate) admission: Arc<AdmissionConfiguration>,
    /// Serves the dashboard.
    pub(crate) dashboard: bool,
}

/// The cluster's addresses; missing ones are chosen at the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkConfig {
    pub(crate) service_cidr: Option<Ipv4Net>,
    pub(crate) cluster_cidr: Option<Ipv4Net>,
    pub(crate) node_cidr_mask_size: Option<u8>,
}

/// This machine's name, for events and leases.
pub(crate) fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_| "coracle".to_owned())
}

/// The node agents and the data plane.
#[derive(Debug, Clone)]
pub(crate) struct NodesConfig {
    pub(crate) count: u32,
    /// Uses short Leases, so that a dead node is detected early.
    pub(crate) short_leases: bool,
    /// Listen address of kubelets and NodePorts.
    pub(crate) bind: IpAddr,
    pub(crate) kubelet: KubeletOptions,
    pub(crate) images: ImageSettings,
    /// Limits of all guests of the process, scheduler plugins included.
    pub(crate) guests: GuestOptions,
    /// Exchanges compiled modules with other nodes.
    pub(crate) share_compiled: bool,
    /// The store of `wasi:keyvalue`; `None`: files of this node.
    pub(crate) keyvalue: Option<SharedStoreConfig>,
}

impl ClusterConfig {
    /// Two nodes on free ports; everything else as `coracle up` without flags. The environment is ignored: the demo
    /// leaves nothing behind and touches no other cluster's folder.
    pub(crate) fn for_demo() -> Self {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            features: Features::default(),
            api: ApiServerConfig {
                bind: localhost,
                port: 0,
                tls_sans: Vec::new(),
                store: StoreConfig::DataFolder,
                join: None,
                default_toleration_seconds: 300,
                admission: Arc::default(),
                dashboard: true,
            },
            network: NetworkConfig::default(),
            controllers: controllers::ControllerOptions::default(),
            inventory: None,
            scheduler: Configuration::default(),
            nodes: NodesConfig {
                count: 2,
                short_leases: false,
                bind: localhost,
                kubelet: KubeletOptions::default(),
                images: ImageSettings::default(),
                guests: GuestOptions::default(),
                share_compiled: false,
                keyvalue: None,
            },
        }
    }

    /// A stand-alone API server.
    pub(crate) fn for_servers(api: ApiServerConfig, network: NetworkConfig, features: Features) -> Self {
        let demo = Self::for_demo();
        Self { features, api, network, nodes: NodesConfig { count: 0, ..demo.nodes }, ..demo }
    }
}

/// Proxy variables (curl's and Go's) that apply to registries.
const PROXY_VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The hosts of the proxies in the environment.
pub(crate) fn proxies() -> Vec<String> {
    let values = PROXY_VARIABLES.iter().filter_map(|name| variable(name));
    values.filter_map(|value| value.parse::<http::Uri>().ok()?.host().map(str::to_owned)).collect()
}

/// A variable that is set and not empty, as a path.
pub(crate) fn variable_path(name: &str) -> Option<PathBuf> {
    variable(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The paths in a variable such as PATH; empty if it isn't set.
pub(crate) fn paths_of(name: &str) -> Vec<PathBuf> {
    let paths = variable(name).map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
    paths.into_iter().filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The folder of `docker login` and similar tools, if it isn't the default one.
pub(crate) fn docker_config() -> Option<PathBuf> {
    variable_path("DOCKER_CONFIG")
}

/// The variables that name a cluster or an account in it: a build command gets none of them.
pub(crate) fn cluster_variables() -> Vec<std::ffi::OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| is_cluster_variable(&name.to_string_lossy())).collect()
}

fn is_cluster_variable(name: &str) -> bool {
    name == "KUBECONFIG" || name.starts_with("CORACLE_")
}

/// A variable of OpenTelemetry (`OTEL_…`), for `crate::telemetry`. Its SDK also reads some by itself.
pub(crate) fn otel_variable(name: &str) -> Option<String> {
    variable(name)
}

#[expect(clippy::disallowed_methods, reason = "the one reader of other programs' variables; clap reads ours")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_cluster() {
        let found = ["KUBECONFIG", "CORACLE_DATA_DIR", "PATH", "MY_CORACLE_X"].map(is_cluster_variable);
        assert_eq!(found, [true, true, false, false]);
    }
}
