//! Upstream's cloud provider for nodes: data about machines from a source other than the nodes
//! (`docs/decisions/0086-node-inventory.md`). Load balancers are in `service_lb`.
//!
//! [`Instances`] is the interface, and [`Inventory`] the provider that reads a file. Of the two controllers, `node`
//! applies a machine's data to its node, and `lifecycle` deletes nodes whose machine is gone. Without a provider they
//! do nothing.

#[cfg(test)]
mod fuzz;
mod inventory;
pub(crate) mod lifecycle;
pub(crate) mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
pub use inventory::{INVENTORY_BYTES_MAX, Inventory, InventoryError, SharedInventory};
use k8s_openapi::api::core::v1::{Node, NodeAddress, Taint};
use machinery_api::ObjectKey;
use machinery_client::{Change, ObjectCache};

/// The taint of a node whose machine is shut down.
const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";

/// The option of the cloud provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CloudOptions {
    /// Inventory of the machines behind nodes: addresses, zones, types, ids; reloaded on changes
    /// (docs/addresses.md, "Node inventory")
    #[arg(long, env = "CORACLE_NODE_INVENTORY", value_name = "FILE")]
    pub node_inventory: Option<PathBuf>,
}

/// The data of one machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instance {
    /// Becomes `spec.providerID`, which never changes afterwards.
    pub provider_id: String,
    /// Becomes `status.addresses`, in this order. Without a `Hostname` here the node's own is kept. Empty: the node's
    /// addresses are kept.
    pub addresses: Vec<NodeAddress>,
    /// Becomes the label `node.kubernetes.io/instance-type` and its beta name. Empty: no label.
    pub instance_type: String,
    /// Becomes `topology.kubernetes.io/zone` and its beta name.
    pub zone: String,
    /// Becomes `topology.kubernetes.io/region` and its beta name.
    pub region: String,
    /// Additional labels, set if the node has no label of that name.
    pub labels: BTreeMap<String, String>,
    /// Whether the machine is shut down: the node stays and gets a taint.
    pub shutdown: bool,
}

/// A cloud provider for nodes: upstream's `InstancesV2` as one method.
///
/// Decisions call it often and for all nodes, so it must answer from memory: a provider that queries a cloud does so in
/// the background and caches the answers. Calls may be concurrent.
pub trait Instances: Send + Sync {
    /// The machine of a node, by the node's `providerID` if set, else by its name. None: the machine doesn't exist, and
    /// the node is deleted once it isn't ready.
    ///
    /// # Errors
    /// It is unknown whether the machine exists, for instance before the first answer of the cloud; nothing is changed
    /// then.
    fn instance(&self, node: &str, provider_id: Option<&str>) -> Result<Option<Arc<Instance>>, String>;
}

/// Looks up a node's machine.
fn instance_of(instances: &dyn Instances, node: &Node) -> Result<Option<Arc<Instance>>, String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).filter(|id| !id.is_empty());
    instances.instance(name, id)
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The key of the pass over all nodes, which requeues itself periodically: a provider sends no change events. The first
/// node starts it.
fn all_of_new(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.old.is_none() { vec![ObjectKey::cluster("")] } else { Vec::new() }
}
