//! The pods of a cluster's process: their network, the data plane, and their end.

use kubelet::node::{Handover, Shutdown};
use machinery_env::Env;
use machinery_serve::net::PodNetwork;
use proxy::DataPlane;
use tokio::runtime::Handle;

use super::Ground;
use super::addresses::Addresses;
use super::keys::Keys;
use crate::compose::proxy as role;
use crate::config::ClusterConfig;

/// The pods' network and data plane.
pub(in crate::compose) struct Pods {
    pub(in crate::compose) network: PodNetwork,
    pub(in crate::compose) plane: DataPlane,
    /// The takeover of the nodes.
    pub(in crate::compose) handover: Handover,
    /// The nodes' graceful shutdowns, one each.
    pub(in crate::compose) shutdowns: Vec<Shutdown>,
}

impl Pods {
    pub(super) fn new(env: &Env, config: &ClusterConfig, addresses: &Addresses, keys: &Keys) -> anyhow::Result<Self> {
        let network = PodNetwork::default();
        let plane = role::config(config, &addresses.network, &keys.pki, addresses.api);
        let nodes = &config.nodes;
        Ok(Self {
            plane: DataPlane::new(env.clone(), plane, network.clone())?,
            network,
            handover: Handover::default(),
            shutdowns: (0..nodes.count).map(|_| Shutdown::new(nodes.kubelet.shutdown_grace())).collect(),
        })
    }
}

impl Ground {
    /// The threads of the data plane: the guests', if there are any.
    pub(in crate::compose) fn plane_threads(&self) -> Option<Handle> {
        self.modules.engine.as_ref().map(|engine| engine.guest_runtime().clone())
    }
}
