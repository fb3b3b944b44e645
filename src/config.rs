//! Configuration of a cluster: the options of its components, and what they and their files say. No option has its default
//! here.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::options::ApiServerOptions;
use apiserver_admission::AdmissionConfiguration;
use apiserver_storage::options::StoreConfig;
use clap::Args;
use images::{ImageOptions, ImageSettings};
use keyvalue::SharedStoreConfig;
use keyvalue::options::KeyvalueOptions;
use kubelet::options::KubeletOptions;
use machinery_api::features::Features;
use scheduler::configuration::Configuration;
use wasm_runtime::options::guests::GuestOptions;

use crate::inventory::NodeInventory;
use crate::network::NetworkConfig;
use tools_command::failure::Failure;
use tools_command::machine_address::machine_address;
use tools_command::output::print_stderr;
use tools_compiled_modules::ExchangeOptions;
use tools_joining::accept::JoinConfig;

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

/// The API server: its options, and what they and their files say.
#[derive(Debug, Clone)]
pub(crate) struct ApiServerConfig {
    pub(crate) options: ApiServerOptions,
    pub(crate) store: StoreConfig,
    /// Where to get the cluster's keys, if the data folder has none.
    pub(crate) join: Option<JoinConfig>,
    /// Default toleration of not-ready and unreachable nodes, in seconds.
    pub(crate) toleration_seconds: u32,
    /// Configuration of admission plugins.
    pub(crate) admission: Arc<AdmissionConfiguration>,
    /// Serves the dashboard.
    pub(crate) dashboard: bool,
}

impl ApiServerConfig {
    /// The configuration of a process in which the dashboard is served or not without its flag.
    ///
    /// # Errors
    /// If an option of the store or of admission is invalid, or no machine reaches the address.
    pub(crate) fn of(options: &ApiServerOptions, fast_failover: bool, dashboard: bool) -> Result<Self, Failure> {
        if machine_address(options.bind).is_none() {
            return Err(Failure::Usage(format!(
                "--bind {}: this machine has no address that others reach; give the address to announce, such as --bind \
                 127.0.0.1",
                options.bind
            )));
        }
        Ok(Self {
            store: options.store.config()?,
            join: None,
            toleration_seconds: options.toleration_seconds(fast_failover),
            admission: options.admission()?,
            dashboard: options.dashboard.unwrap_or(dashboard),
            options: options.clone(),
        })
    }
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

/// Flags of a node's pods, images and limits.
#[derive(Debug, Clone, Args)]
pub(crate) struct NodeFlags {
    #[command(flatten)]
    kubelet: KubeletOptions,
    #[command(flatten)]
    images: ImageOptions,
    #[command(flatten)]
    guests: GuestOptions,
    #[command(flatten)]
    exchange: ExchangeOptions,
    #[command(flatten)]
    keyvalue: KeyvalueOptions,
}

impl NodeFlags {
    /// The configuration of `count` agents that listen on `bind`.
    ///
    /// # Errors
    /// On contradicting flags, and on files that can't be read.
    pub(crate) fn config(&self, count: u32, bind: IpAddr, short_leases: bool) -> Result<NodesConfig, Failure> {
        self.kubelet.check()?;
        report_missing("--allow-file-images", &self.images.allow_file_images);
        report_missing("--allow-host-path", &self.kubelet.allow_host_path);
        Ok(NodesConfig {
            count,
            short_leases,
            bind,
            kubelet: self.kubelet.clone(),
            images: self.images.settings()?,
            guests: self.guests.clone(),
            share_compiled: self.exchange.share_compiled_modules,
            keyvalue: self.keyvalue.config()?,
        })
    }
}

/// Reports folders that don't exist.
fn report_missing(flag: &str, folders: &[PathBuf]) {
    for folder in folders.iter().filter(|folder| !folder.is_dir()) {
        print_stderr!("coracle: {flag} {}: there is no such folder, so it allows nothing", folder.display());
    }
}

impl ClusterConfig {
    /// Two nodes on free ports; everything else as `coracle up` without flags. The environment is ignored: the demo
    /// leaves nothing behind and touches no other cluster's folder.
    pub(crate) fn for_demo() -> Self {
        let mut options = ApiServerOptions::default();
        options.port = 0;
        let bind = options.bind;
        Self {
            features: Features::default(),
            api: ApiServerConfig {
                store: StoreConfig::DataFolder,
                join: None,
                toleration_seconds: options.toleration_seconds(false),
                admission: Arc::default(),
                dashboard: true,
                options,
            },
            network: NetworkConfig::default(),
            controllers: controllers::ControllerOptions::default(),
            inventory: None,
            scheduler: Configuration::default(),
            nodes: NodesConfig {
                count: 2,
                short_leases: false,
                bind,
                kubelet: KubeletOptions::default(),
                images: ImageSettings::default(),
                guests: GuestOptions::default(),
                share_compiled: ExchangeOptions::default().share_compiled_modules,
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
