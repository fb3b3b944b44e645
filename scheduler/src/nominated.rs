//! Nominated pods: each waits for the victims on one node, and pods of lower priority don't get their resources.
//!
//! A decision's nomination counts at once. As soon as the API shows it (`status.nominatedNodeName`), the API is
//! authoritative.

use std::collections::HashMap;
use std::sync::Arc;

use machinery_api::ObjectKey;

use crate::pod::PodInfo;

/// The nominated pods.
#[derive(Debug, Default)]
pub struct Nominated {
    by_pod: HashMap<Arc<ObjectKey>, (Arc<PodInfo>, Arc<str>)>,
    /// In the order of nomination.
    by_node: HashMap<Arc<str>, Vec<Arc<ObjectKey>>>,
}

impl Nominated {
    /// Whether no pod is nominated, the usual case.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_pod.is_empty()
    }

    /// Nominates a pod for a node, in place of another nomination.
    pub fn set(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.clear(&pod.key);
        let (key, node): (_, Arc<str>) = (pod.key.clone(), node.into());
        self.by_node.entry(node.clone()).or_default().push(key.clone());
        self.by_pod.insert(key, (pod, node));
    }

    /// Removes a nomination, and returns the pod and the node.
    pub fn clear(&mut self, key: &ObjectKey) -> Option<(Arc<PodInfo>, Arc<str>)> {
        let (pod, node) = self.by_pod.remove(key)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|known| **known != *key);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some((pod, node))
    }

    /// Updates an unscheduled pod. Its status is authoritative, unless it doesn't show the last decision yet.
    pub fn update(&mut self, pod: &Arc<PodInfo>) {
        let known = self.by_pod.get(&pod.key).filter(|(known, _)| known.uid == pod.uid);
        let node = match (known, &pod.nominated) {
            (Some((known, node)), None) if known.nominated.is_none() => Some(node.clone()),
            (_, stored) => stored.clone(),
        };
        match node {
            Some(node) => self.set(pod.clone(), &node),
            None => drop(self.clear(&pod.key)),
        }
    }

    /// The nominated node of a pod.
    #[must_use]
    pub fn node_of(&self, key: &ObjectKey) -> Option<&str> {
        self.by_pod.get(key).map(|(_, node)| &**node)
    }

    /// The pods nominated for a node.
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        let keys = self.by_node.get(node).into_iter().flatten();
        keys.filter_map(|key| self.by_pod.get(key)).map(|(pod, _)| pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, nominated: Option<&str>) -> Arc<PodInfo> {
        let key = ObjectKey::new("a", name).into();
        Arc::new(PodInfo { key, uid: uid.into(), nominated: nominated.map(Arc::from), ..PodInfo::default() })
    }

    #[test]
    fn nominations_count_until_the_api_reports() {
        let mut nominated = Nominated::default();
        let key = ObjectKey::new("a", "p");
        nominated.set(pod("p", "1", None), "n1");
        nominated.update(&pod("p", "1", None));
        assert_eq!(nominated.node_of(&key), Some("n1"), "an event from before the patch");
        nominated.update(&pod("p", "1", Some("n2")));
        assert_eq!(nominated.node_of(&key), Some("n2"));
        assert_eq!(nominated.on("n1").count(), 0);
        assert_eq!(nominated.on("n2").count(), 1);
        nominated.update(&pod("p", "1", None));
        assert!(nominated.is_empty(), "somebody cleared it");
        nominated.set(pod("p", "1", None), "n1");
        nominated.update(&pod("p", "2", None));
        assert!(nominated.is_empty(), "another pod of that name");
    }
}
