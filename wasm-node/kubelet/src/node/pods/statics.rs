//! Static pods of the node: started after the first list of mirrors from the API, and ended when their manifest is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::ObjectKey;
use tokio::sync::watch;

use super::{PodManager, uid_of};
use crate::pod::shared::NodeContext;
use crate::pod::worker::{EarlierRun, PodInput, StatusTarget};
use crate::static_pods::folder::{self, Folder};
use crate::static_pods::mirror::{self, Mirror, Mirrors};
use crate::static_pods::mirrored;

/// The pods of the current manifests, by uid.
pub(super) type Manifests = watch::Receiver<BTreeMap<String, Arc<Pod>>>;

/// The static pods and their mirrors.
pub(super) struct StaticPods {
    pub(super) wanted: BTreeMap<String, Arc<Pod>>,
    /// The static pods with a worker.
    started: BTreeMap<String, ObjectKey>,
    /// The mirrors in the API; `None` before the first list.
    mirrors: Option<BTreeMap<ObjectKey, Arc<Pod>>>,
    published: watch::Sender<Option<Mirrors>>,
    /// The pods run before the first list, as the API doesn't answer.
    alone: bool,
}

/// Whether a pod of the API is a mirror.
pub(super) fn is_mirror(pod: &Arc<Pod>) -> bool {
    mirrored(pod).is_some()
}

/// Reads the manifests, and watches them for changes.
pub(super) fn watch(node: &Arc<NodeContext>) -> Manifests {
    let Some(path) = node.identity.static_pods.clone() else { return watch::channel(BTreeMap::new()).1 };
    let mut folder = Folder::new(path, node.identity.name.clone());
    let (sender, manifests) = watch::channel(folder.read(&node.parts.env));
    tokio::spawn(folder::watch(folder, node.parts.env.clone(), sender, node.stop.clone()));
    manifests
}

impl StaticPods {
    pub(super) fn start(node: &Arc<NodeContext>, manifests: &Manifests) -> Self {
        let (published, mirrors) = watch::channel(None);
        let (client, name, stop) = (node.client.clone().into(), node.identity.name.clone(), node.stop.clone());
        let env = node.parts.env.clone();
        tokio::spawn(mirror::keep(client, env, name, manifests.clone(), mirrors, stop));
        Self { wanted: manifests.borrow().clone(), started: BTreeMap::new(), mirrors: None, published, alone: false }
    }

    /// Whether that uid belongs to a static pod with a worker.
    pub(super) fn runs(&self, uid: &str) -> bool {
        self.started.contains_key(uid)
    }

    fn mirror(&self, uid: &str, key: &ObjectKey) -> Option<&Arc<Pod>> {
        let mirror = self.mirrors.as_ref()?.get(key)?;
        let alive = mirror.metadata.deletion_timestamp.is_none();
        (alive && mirrored(mirror) == Some(uid)).then_some(mirror)
    }

    fn publish_mirrors(&self) {
        let mirrors = self.mirrors.as_ref().map(|mirrors| {
            mirrors.iter().filter_map(|(key, pod)| Some((key.clone(), Mirror::of(pod)?))).collect::<Mirrors>()
        });
        self.published.send_if_modified(|known| {
            let changed = *known != mirrors;
            *known = mirrors;
            changed
        });
    }
}

fn key_of(pod: &Pod) -> ObjectKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectKey::new(text(&pod.metadata.namespace), text(&pod.metadata.name))
}

/// A static pod for its worker: the own pod, with the status and version of its mirror.
fn with_mirror(pod: &Pod, mirror: Option<&Arc<Pod>>) -> Pod {
    let mut pod_with_mirror = pod.clone();
    if let Some(mirror) = mirror {
        pod_with_mirror.status = mirror.status.clone();
        pod_with_mirror.metadata.resource_version = mirror.metadata.resource_version.clone();
        pod_with_mirror.metadata.generation = mirror.metadata.generation;
    }
    pod_with_mirror
}

impl PodManager {
    /// Replaces all mirrors.
    pub(super) fn replace_mirrors(&mut self, mirrors: Vec<Arc<Pod>>) {
        self.statics.mirrors = Some(mirrors.into_iter().map(|pod| (key_of(&pod), pod)).collect());
        self.statics.publish_mirrors();
        self.sync_static_pods();
        self.statics.started.iter().for_each(|(uid, key)| self.update_mirror(uid, key));
    }

    pub(super) fn apply_mirror(&mut self, pod: Arc<Pod>) {
        let key = key_of(&pod);
        self.statics.mirrors.get_or_insert_default().insert(key.clone(), pod);
        self.mirror_changed(&key);
    }

    pub(super) fn remove_mirror(&mut self, pod: &Pod) {
        let key = key_of(pod);
        if let Some(mirrors) = &mut self.statics.mirrors
            && mirrors.get(&key).is_some_and(|known| known.metadata.uid == pod.metadata.uid)
        {
            mirrors.remove(&key);
        }
        self.mirror_changed(&key);
    }

    fn mirror_changed(&self, key: &ObjectKey) {
        self.statics.publish_mirrors();
        let of = self.statics.started.iter().filter(|(_, own)| *own == key);
        of.for_each(|(uid, key)| self.update_mirror(uid, key));
    }

    /// Passes its mirror to a worker.
    fn update_mirror(&self, uid: &str, key: &ObjectKey) {
        let Some(worker) = self.workers.get(uid) else { return };
        let mirror = self.statics.mirror(uid, key);
        worker.set(|input| {
            input.update(Arc::new(with_mirror(&input.pod.get(), mirror)));
            input.status_target = StatusTarget::Mirror(mirror.and_then(|mirror| mirror.metadata.uid.clone()));
        });
    }

    /// Starts the static pods without their mirrors.
    pub(super) fn start_static_pods_alone(&mut self) {
        self.statics.alone = true;
        self.sync_static_pods();
    }

    /// Ends pods without a manifest, and starts pods without a worker: one per name at a time.
    pub(super) fn sync_static_pods(&mut self) {
        if self.statics.mirrors.is_none() && !self.statics.alone {
            return;
        }
        let workers = &self.workers;
        self.statics.started.retain(|uid, _| workers.contains_key(uid));
        let now = self.node.parts.env.now();
        for uid in self.statics.started.keys().filter(|uid| !self.statics.wanted.contains_key(*uid)) {
            let Some(worker) = self.workers.get(uid) else { continue };
            worker.change(|input| {
                let known = input.pod.get();
                let ends = known.metadata.deletion_timestamp.is_none();
                if ends {
                    let mut pod = (*known).clone();
                    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
                    pod.metadata.deletion_timestamp = Some(Time(now));
                    pod.metadata.deletion_grace_period_seconds = grace;
                    input.update(Arc::new(pod));
                }
                ends
            });
        }
        let names: BTreeSet<&ObjectKey> = self.statics.started.values().collect();
        let fresh = |uid: &String, pod: &Pod| !self.statics.runs(uid) && !names.contains(&key_of(pod));
        let wanted = self.statics.wanted.iter().filter(|(uid, pod)| fresh(uid, pod));
        let new: Vec<Arc<Pod>> = wanted.map(|(_, pod)| pod.clone()).collect();
        for pod in new {
            let (uid, key) = (uid_of(&pod), key_of(&pod));
            let mirror = self.statics.mirror(&uid, &key).cloned();
            let pod = Arc::new(with_mirror(&pod, mirror.as_ref()));
            let (ip, rejected) = (self.reserve_address(&pod), self.admission_failure(&pod));
            let earlier = EarlierRun { ip, ..EarlierRun::default() };
            let status_target = StatusTarget::Mirror(mirror.and_then(|mirror| mirror.metadata.uid.clone()));
            self.statics.started.insert(uid, key);
            self.start_worker(PodInput::new(pod, status_target), earlier, rejected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_worker_sees_its_mirrors_status_and_its_own_spec() {
        let metadata = json!({"name": "a", "uid": "hash"});
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}})).unwrap();
        let mirror: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "m", "resourceVersion": "7", "generation": 1},
            "spec": {"containers": [], "nodeName": "other"}, "status": {"phase": "Running"},
        }))
        .unwrap();
        let pod_with_mirror = with_mirror(&pod, Some(&Arc::new(mirror)));
        let metadata = &pod_with_mirror.metadata;
        assert_eq!((metadata.uid.as_deref(), metadata.resource_version.as_deref()), (Some("hash"), Some("7")));
        assert_eq!(
            (pod_with_mirror.spec.clone(), pod_with_mirror.status.unwrap().phase.as_deref()),
            (pod.spec, Some("Running"))
        );
    }
}
