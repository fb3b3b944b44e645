//! Configuration of a cluster by component, as types, and the flags of every verb. clap alone reads flags and
//! environment variables: each flag can be set by `CORACLE_<FLAG>` too.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use apiserver_admission::AdmissionConfiguration;
use apiserver_storage::options::StoreConfig;
use images::ImageSettings;
use ipnet::Ipv4Net;
use keyvalue::SharedStoreConfig;
use kubelet::options::KubeletOptions;
use machinery_api::features::Features;
use scheduler::configuration::Configuration;
use wasm_runtime::options::guests::GuestOptions;

use crate::inventory::NodeInventory;
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
