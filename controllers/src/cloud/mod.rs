//! What is known of the machines behind nodes, by somebody else than the nodes: upstream's cloud provider, as far as nodes go
//! (`docs/decisions/0086-node-inventory.md`). Balancers are `service_lb`'s.
//!
//! [`Instances`] is the interface, [`Inventory`] the provider that needs no cloud: a file. Two controllers ask it: `node` has a node take what
//! is known of its machine, `lifecycle` removes nodes whose machine is gone. Without a provider they do nothing.

#[cfg(test)]
mod fuzz;
mod inventory;
pub(crate) mod lifecycle;
pub(crate) mod node;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use inventory::{INVENTORY_BYTES_MAX, Inventory, InventoryError, SharedInventory};
use k8s_openapi::api::core::v1::{Node, NodeAddress, Taint};
use machinery_api::ObjectKey;
use machinery_client::{Change, ObjectCache};

/// The machine is switched off.
const SHUTDOWN: &str = "node.cloudprovider.kubernetes.io/shutdown";

/// One machine, as a provider knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instance {
    /// Becomes `spec.providerID`, which never changes afterwards.
    pub provider_id: String,
    /// Become `status.addresses`, in this order; the node's own `Hostname` stays where there is none. Empty: the node's own stay.
    pub addresses: Vec<NodeAddress>,
    /// Becomes labels `node.kubernetes.io/instance-type` and its older name. Empty: none.
    pub instance_type: String,
    /// The same of `topology.kubernetes.io/zone`.
    pub zone: String,
    /// The same of `topology.kubernetes.io/region`.
    pub region: String,
    /// Labels beside these, which are given where the node has none of that name.
    pub labels: BTreeMap<String, String>,
    /// The machine is switched off, and may come back: its node stays, with a taint.
    pub shutdown: bool,
}

/// A provider of nodes: upstream's `InstancesV2` in one question.
///
/// It is asked while a decision is made, often and for all nodes, so it answers from what it has in memory: one that asks a cloud does so
/// beside, and keeps what it was told. It may be asked at any time and by several at once.
pub trait Instances: Send + Sync {
    /// The machine behind a node: by the id that the node has already, else by the node's name. None: there is no such machine, and a node that
    /// says so itself, by not being ready, is deleted.
    ///
    /// # Errors
    /// It isn't known whether there is one: nothing is done then. A provider that was not told yet, or doesn't trust what it was told, says this.
    fn instance(&self, node: &str, provider_id: Option<&str>) -> Result<Option<Arc<Instance>>, String>;
}

/// Asks for a node's machine.
fn instance_of(instances: &dyn Instances, node: &Node) -> Result<Option<Arc<Instance>>, String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_deref()).filter(|id| !id.is_empty());
    instances.instance(name, id)
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The key of the look at all nodes, which then comes again and again: a provider tells nobody that it knows something else now. It begins with
/// the first node.
fn all_of_new(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    if change.old.is_none() { vec![ObjectKey::cluster("")] } else { Vec::new() }
}
