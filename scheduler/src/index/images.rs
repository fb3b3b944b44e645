//! Index from image name to the nodes that have the image.

use std::collections::{BTreeMap, HashMap};

use crate::node::NodeId;

/// Image sizes in bytes by image name and node.
#[derive(Debug, Default)]
pub struct ImageIndex(HashMap<String, HashMap<NodeId, i64>>);

impl ImageIndex {
    /// Replaces a node's images, given by name and size.
    pub fn change(&mut self, node: NodeId, before: &BTreeMap<String, i64>, now: &BTreeMap<String, i64>) {
        for name in before.keys().filter(|name| !now.contains_key(*name)) {
            if let Some(nodes) = self.0.get_mut(name) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.0.remove(name);
                }
            }
        }
        for (name, size) in now {
            match self.0.get_mut(name) {
                Some(nodes) => nodes.insert(node, *size),
                None => self.0.entry(name.clone()).or_default().insert(node, *size),
            };
        }
    }

    /// The nodes that have an image, with its size.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&HashMap<NodeId, i64>> {
        self.0.get(name)
    }
}
