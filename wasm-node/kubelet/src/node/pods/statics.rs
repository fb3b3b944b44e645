//! Static pods among the node's: begun once the API has told which mirrors there are, ended when their manifest is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::ObjectKey;
use tokio::sync::watch;

use super::{Pods, uid_of};
use crate::pod::shared::Shared;
use crate::pod::worker::{Input, Shown};
use crate::static_pods::folder::{self, Folder};
use crate::static_pods::mirror::{self, Mirror, Mirrors};
use crate::static_pods::mirrored;

/// The pods of the manifests that there are, by uid.
pub(super) type Manifests = watch::Receiver<BTreeMap<String, Arc<Pod>>>;

/// What is known of static pods and their mirrors.
pub(super) struct Statics {
    pub(super) wanted: BTreeMap<String, Arc<Pod>>,
    /// Those that have a worker.
    begun: BTreeMap<String, ObjectKey>,
    /// The mirrors as the API has them; none before it has told.
    mirrors: Option<BTreeMap<ObjectKey, Arc<Pod>>>,
    told: watch::Sender<Option<Mirrors>>,
}

/// Whether a pod of the API mirrors a static one.
pub(super) fn is_mirror(pod: &Arc<Pod>) -> bool {
    mirrored(pod).is_some()
}

/// Reads the manifests, now and whenever they change.
pub(super) fn watch(node: &Arc<Shared>) -> Manifests {
    let Some(path) = node.identity.static_pods.clone() else { return watch::channel(BTreeMap::new()).1 };
    let mut folder = Folder::new(path, node.identity.name.clone());
    let (sender, manifests) = watch::channel(folder.read(&node.parts.env));
    tokio::spawn(folder::watch(folder, node.parts.env.clone(), sender, node.stop.clone()));
    manifests
}

impl Statics {
    pub(super) fn start(node: &Arc<Shared>, manifests: &Manifests) -> Self {
        let (told, mirrors) = watch::channel(None);
        let (client, name, stop) = (node.client.clone().into(), node.identity.name.clone(), node.stop.clone());
        tokio::spawn(mirror::keep(client, name, manifests.clone(), mirrors, stop));
        Self { wanted: manifests.borrow().clone(), begun: BTreeMap::new(), mirrors: None, told }
    }

    /// Whether that uid is a static pod's that has a worker.
    pub(super) fn runs(&self, uid: &str) -> bool {
        self.begun.contains_key(uid)
    }

    fn mirror(&self, uid: &str, key: &ObjectKey) -> Option<&Arc<Pod>> {
        let mirror = self.mirrors.as_ref()?.get(key)?;
        let alive = mirror.metadata.deletion_timestamp.is_none();
        (alive && mirrored(mirror) == Some(uid)).then_some(mirror)
    }

    fn tell(&self) {
        let mirrors = self.mirrors.as_ref().map(|mirrors| {
            mirrors.iter().filter_map(|(key, pod)| Some((key.clone(), Mirror::of(pod)?))).collect::<Mirrors>()
        });
        self.told.send_if_modified(|known| {
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

/// A static pod as its worker sees it: its own, with what the API holds of its mirror.
fn seen(pod: &Pod, mirror: Option<&Arc<Pod>>) -> Pod {
    let mut seen = pod.clone();
    if let Some(mirror) = mirror {
        seen.status = mirror.status.clone();
        seen.metadata.resource_version = mirror.metadata.resource_version.clone();
        seen.metadata.generation = mirror.metadata.generation;
    }
    seen
}

impl Pods {
    /// The mirrors that there are, as a whole.
    pub(super) fn replace_mirrors(&mut self, mirrors: Vec<Arc<Pod>>) {
        self.statics.mirrors = Some(mirrors.into_iter().map(|pod| (key_of(&pod), pod)).collect());
        self.statics.tell();
        self.begin_statics();
        self.statics.begun.iter().for_each(|(uid, key)| self.show(uid, key));
    }

    pub(super) fn put_mirror(&mut self, pod: Arc<Pod>) {
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
        self.statics.tell();
        let of = self.statics.begun.iter().filter(|(_, own)| *own == key);
        of.for_each(|(uid, key)| self.show(uid, key));
    }

    /// Tells a worker of its mirror.
    fn show(&self, uid: &str, key: &ObjectKey) {
        let Some(worker) = self.workers.get(uid) else { return };
        let mirror = self.statics.mirror(uid, key);
        worker.set(|input| {
            input.is_now(Arc::new(seen(&input.pod.get(), mirror)));
            input.shown = Shown::Mirror(mirror.and_then(|mirror| mirror.metadata.uid.clone()));
        });
    }

    /// Ends the pods whose manifest is gone, and begins those that have no worker: one of a name at a time.
    pub(super) fn begin_statics(&mut self) {
        if self.statics.mirrors.is_none() {
            return;
        }
        let workers = &self.workers;
        self.statics.begun.retain(|uid, _| workers.contains_key(uid));
        let now = self.node.parts.env.now();
        for uid in self.statics.begun.keys().filter(|uid| !self.statics.wanted.contains_key(*uid)) {
            let Some(worker) = self.workers.get(uid) else { continue };
            worker.change(|input| {
                let known = input.pod.get();
                let ends = known.metadata.deletion_timestamp.is_none();
                if ends {
                    let mut pod = (*known).clone();
                    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
                    pod.metadata.deletion_timestamp = Some(Time(now));
                    pod.metadata.deletion_grace_period_seconds = grace;
                    input.is_now(Arc::new(pod));
                }
                ends
            });
        }
        let names: BTreeSet<&ObjectKey> = self.statics.begun.values().collect();
        let fresh = |uid: &String, pod: &Pod| !self.statics.runs(uid) && !names.contains(&key_of(pod));
        let wanted = self.statics.wanted.iter().filter(|(uid, pod)| fresh(uid, pod));
        let new: Vec<Arc<Pod>> = wanted.map(|(_, pod)| pod.clone()).collect();
        for pod in new {
            let (uid, key) = (uid_of(&pod), key_of(&pod));
            let mirror = self.statics.mirror(&uid, &key).cloned();
            let pod = Arc::new(seen(&pod, mirror.as_ref()));
            let (ip, rejected) = (self.keep_address(&pod), self.reject(&pod));
            let shown = Shown::Mirror(mirror.and_then(|mirror| mirror.metadata.uid.clone()));
            self.statics.begun.insert(uid, key);
            self.take_up(Input::new(pod, shown), ip, rejected);
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
        let seen = seen(&pod, Some(&Arc::new(mirror)));
        let metadata = &seen.metadata;
        assert_eq!((metadata.uid.as_deref(), metadata.resource_version.as_deref()), (Some("hash"), Some("7")));
        assert_eq!((seen.spec.clone(), seen.status.unwrap().phase.as_deref()), (pod.spec, Some("Running")));
    }
}
