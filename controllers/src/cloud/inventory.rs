//! The cloud provider that reads a file: nodes with the data of their machines.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::NodeAddress;
use machinery_api::selector::{label_key_problems, label_value_problems, subdomain_problems};
use serde::Deserialize;

use super::{Instance, Instances};

/// The maximum size of a file in bytes.
pub const INVENTORY_BYTES_MAX: usize = 16 << 20;
const ADDRESSES_MAX: usize = 64;
const LABELS_MAX: usize = 64;
const TYPES: [&str; 5] = ["Hostname", "InternalIP", "ExternalIP", "InternalDNS", "ExternalDNS"];

/// A parsed inventory file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    by_name: HashMap<String, Arc<Instance>>,
    by_id: HashMap<String, Arc<Instance>>,
}

/// An invalid inventory file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// The text is not YAML or JSON of this schema.
    #[error("{0}")]
    Syntax(String),
    /// A node's entry is invalid.
    #[error("node {node:?}: {why}")]
    Node {
        node: String,
        /// The reason.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    name: String,
    #[serde(default, rename = "providerID")]
    provider_id: Option<String>,
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    instance_type: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    shutdown: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Inventory {
    /// Parses an inventory in YAML or JSON.
    ///
    /// # Errors
    /// The schema doesn't match, or an entry is invalid.
    pub fn parse(text: &str) -> Result<Self, InventoryError> {
        if text.len() > INVENTORY_BYTES_MAX {
            return Err(InventoryError::Syntax(format!("it has more than {} MiB", INVENTORY_BYTES_MAX >> 20)));
        }
        let file: File = machinery_api::yaml::read(text).map_err(InventoryError::Syntax)?;
        let mut inventory = Self::default();
        for entry in file.nodes {
            let node = entry.name.clone();
            inventory.add_entry(entry).map_err(|why| InventoryError::Node { node, why })?;
        }
        Ok(inventory)
    }

    fn add_entry(&mut self, entry: Entry) -> Result<(), String> {
        let name = entry.name.clone();
        let instance = Arc::new(checked(entry)?);
        if self.by_id.insert(instance.provider_id.clone(), instance.clone()).is_some() {
            return Err(format!("another one has providerID {:?}, too", instance.provider_id));
        }
        if self.by_name.insert(name, instance).is_some() {
            return Err("it is there twice".to_owned());
        }
        Ok(())
    }

    /// The number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether it has no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

fn checked(entry: Entry) -> Result<Instance, String> {
    let first = |problems: Vec<String>| problems.into_iter().next();
    if let Some(why) = first(subdomain_problems(&entry.name)) {
        return Err(format!("name: {why}"));
    }
    let provider_id = entry.provider_id.unwrap_or_else(|| format!("inventory://{}", entry.name));
    if provider_id.is_empty() || provider_id.len() > 1024 || provider_id.chars().any(char::is_control) {
        return Err("providerID: it has 1 to 1024 bytes, none of them a control character".to_owned());
    }
    for (what, value) in [("instanceType", &entry.instance_type), ("zone", &entry.zone), ("region", &entry.region)] {
        if let Some(why) = first(label_value_problems(value)) {
            return Err(format!("{what}: {why}"));
        }
    }
    if entry.addresses.len() > ADDRESSES_MAX || entry.labels.len() > LABELS_MAX {
        return Err(format!("it has more than {ADDRESSES_MAX} addresses or {LABELS_MAX} labels"));
    }
    for (key, value) in &entry.labels {
        if let Some(why) = first(label_key_problems(key)).or_else(|| first(label_value_problems(value))) {
            return Err(format!("label {key:?}: {why}"));
        }
        // Upstream drops such a label and logs it.
        let of = |domain: &str| key.starts_with(&format!("{domain}/")) || key.contains(&format!(".{domain}/"));
        if of("kubernetes.io") || of("k8s.io") {
            return Err(format!("label {key:?}: names of Kubernetes itself are not a provider's to give"));
        }
    }
    let addresses = entry.addresses.into_iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let Entry { instance_type, zone, region, labels, shutdown, .. } = entry;
    Ok(Instance { provider_id, addresses, instance_type, zone, region, labels, shutdown })
}

fn address(Address { kind, address }: Address) -> Result<NodeAddress, String> {
    if !TYPES.contains(&&*kind) {
        return Err(format!("address type {kind:?} is none of {}", TYPES.join(", ")));
    }
    let fits = match kind.ends_with("IP") {
        true => address.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified() && !ip.is_multicast()),
        false => subdomain_problems(&address.to_lowercase()).is_empty(),
    };
    if fits {
        Ok(NodeAddress { type_: kind, address })
    } else {
        Err(format!("{address:?} is no address of type {kind}"))
    }
}

/// An inventory that can be replaced while it is in use.
#[derive(Debug, Default)]
pub struct SharedInventory(RwLock<Arc<Inventory>>);

impl SharedInventory {
    #[must_use]
    pub fn new(inventory: Inventory) -> Self {
        Self(RwLock::new(Arc::new(inventory)))
    }

    /// Replaces the inventory. Returns whether the new one differs.
    pub fn replace(&self, inventory: Inventory) -> bool {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let other = **now != inventory;
        if other {
            *now = Arc::new(inventory);
        }
        other
    }
}

impl Instances for SharedInventory {
    fn instance(&self, node: &str, provider_id: Option<&str>) -> Result<Option<Arc<Instance>>, String> {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(match provider_id {
            Some(id) => now.by_id.get(id).cloned(),
            None => now.by_name.get(node).cloned(),
        })
    }
}
