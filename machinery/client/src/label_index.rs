//! Index of objects by label: a selector's candidates are found without a scan of the namespace.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use machinery_api::ObjectKey;

use crate::object::{Kind, Object, Typed, typed};
use crate::pod::Pod;
use crate::selector::Labels;

/// Keys by the hash of namespace, label and value. Hashes may collide: callers must test the object's labels.
#[derive(Debug, Default, Clone)]
pub(crate) struct LabelIndex {
    hasher: RandomState,
    keys: HashMap<u64, BTreeSet<Arc<ObjectKey>>>,
}

impl LabelIndex {
    pub(crate) fn insert(&mut self, key: &Arc<ObjectKey>, labels: Option<&Labels>) {
        for (name, value) in labels.into_iter().flatten() {
            let hash = self.hash(&key.namespace, name, value);
            self.keys.entry(hash).or_default().insert(key.clone());
        }
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey, labels: Option<&Labels>) {
        for (name, value) in labels.into_iter().flatten() {
            let hash = self.hash(&key.namespace, name, value);
            if let Some(keys) = self.keys.get_mut(&hash) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&hash);
                }
            }
        }
    }

    /// The objects with the rarest of the wanted labels, and few others; at least one label has to be wanted.
    pub(crate) fn candidates(&self, namespace: &str, wanted: &Labels) -> impl Iterator<Item = &Arc<ObjectKey>> {
        let sets = wanted.iter().map(|(name, value)| self.keys.get(&self.hash(namespace, name, value)));
        let rarest = sets.min_by_key(|keys| keys.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten()
    }

    fn hash(&self, namespace: &str, name: &str, value: &str) -> u64 {
        self.hasher.hash_one((namespace, name, value))
    }
}

/// Whether a kind has a label index: kinds with many objects a namespace and narrow selectors.
pub(crate) fn is_indexed<K: Typed>() -> bool {
    let kind = Kind::of::<K>();
    kind == Kind::of::<Pod>() || kind == Kind::of::<EndpointSlice>()
}

/// See [`is_indexed`].
pub(crate) fn has_index_of_labels(object: &dyn Object) -> bool {
    typed::<Pod>(object).is_some() || typed::<EndpointSlice>(object).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(of: &[(&str, &str)]) -> Labels {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_rarest_label_selects_the_candidates() {
        let mut index = LabelIndex::default();
        let key = |name: &str| Arc::new(ObjectKey::new("a", name));
        for name in ["x", "y", "z"] {
            let with = labels(&[("app", "web"), ("pod", name)]);
            index.insert(&key(name), Some(&with));
        }
        let found = |index: &LabelIndex, namespace: &str, wanted: &[(&str, &str)]| -> Vec<String> {
            index.candidates(namespace, &labels(wanted)).map(|key| key.name.to_string()).collect()
        };
        assert_eq!(found(&index, "a", &[("app", "web")]), ["x", "y", "z"]);
        assert_eq!(found(&index, "a", &[("app", "web"), ("pod", "y")]), ["y"]);
        assert!(found(&index, "a", &[("app", "web"), ("pod", "nobody")]).is_empty());
        assert!(found(&index, "b", &[("app", "web")]).is_empty());
        for name in ["x", "y", "z"] {
            index.remove(&key(name), Some(&labels(&[("app", "web"), ("pod", name)])));
        }
        assert!(index.keys.is_empty(), "what is gone leaves nothing behind");
    }
}
