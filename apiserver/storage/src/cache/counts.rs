//! The number of objects of a resource, in all and by namespace, so that `remainingItemCount` needs no iteration.

use std::collections::HashMap;

use super::object::Resource;

#[derive(Debug, Default)]
pub(super) struct Counts {
    all: u64,
    namespaces: HashMap<Box<str>, u64>,
}

/// The namespace of a key; `None` for a cluster-wide resource.
fn namespace<'a>(resource: &Resource, key: &'a str) -> Option<&'a str> {
    Some(resource.prefix.name_of(key)?.namespace).filter(|namespace| !namespace.is_empty())
}

impl Counts {
    pub(super) fn add(&mut self, resource: &Resource, key: &str) {
        self.all += 1;
        let Some(namespace) = namespace(resource, key) else { return };
        if let Some(count) = self.namespaces.get_mut(namespace) {
            *count += 1;
        } else {
            self.namespaces.insert(namespace.into(), 1);
        }
    }

    pub(super) fn remove(&mut self, resource: &Resource, key: &str) {
        self.all = self.all.saturating_sub(1);
        let Some(namespace) = namespace(resource, key) else { return };
        if let Some(count) = self.namespaces.get_mut(namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(namespace);
            }
        }
    }

    /// The number of objects below the resource's prefix, or below a namespace's; `None` for another prefix.
    pub(super) fn below(&self, resource: &Resource, prefix: &str) -> Option<u64> {
        match resource.prefix.namespace_of(prefix)? {
            "" => Some(self.all),
            namespace => Some(self.namespaces.get(namespace).copied().unwrap_or(0)),
        }
    }
}
