//! Applies cluster changes to the snapshot, and requeues the unschedulable pods that a change may make schedulable.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use machinery_api::ObjectKey;
use machinery_client::{Informer, Kind, Pod, Typed};
use tokio::sync::Notify;

use super::{Scheduler, profile_of};
use crate::budget::Budget;
use crate::node::NodeFacts;
use crate::plugins::Event;
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;

/// Changed objects that are not processed yet: coalesced, so there are never more than objects. Each is named by its
/// row in [`WATCHED`] and its key.
#[derive(Default)]
pub(super) struct PendingChanges {
    keys: Mutex<BTreeSet<(usize, Arc<ObjectKey>)>>,
    pub(super) changed: Notify,
}

/// A watched kind.
pub(super) struct WatchedKind {
    pub(super) kind: fn() -> Kind,
    pub(super) watch: fn(&Arc<Informer>),
    /// Applies the change of one object.
    apply: fn(&mut Scheduler, &Arc<ObjectKey>),
}

impl WatchedKind {
    const fn new<K: Typed>(apply: fn(&mut Scheduler, &Arc<ObjectKey>)) -> Self {
        Self { kind: Kind::of::<K>, watch: Informer::watch::<K>, apply }
    }
}

/// The watched kinds, in the order of processing: nodes before their pods.
pub(super) const WATCHED: [WatchedKind; 9] = [
    WatchedKind::new::<Namespace>(Scheduler::namespace_changed),
    WatchedKind::new::<Node>(Scheduler::node_changed),
    WatchedKind::new::<Service>(Scheduler::service_changed),
    WatchedKind::new::<PodDisruptionBudget>(Scheduler::budget_changed),
    WatchedKind::new::<StorageClass>(Scheduler::class_changed),
    WatchedKind::new::<CSINode>(Scheduler::csi_node_changed),
    WatchedKind::new::<PersistentVolume>(Scheduler::volume_changed),
    WatchedKind::new::<PersistentVolumeClaim>(Scheduler::claim_changed),
    WatchedKind::new::<Pod>(Scheduler::pod_changed),
];

impl PendingChanges {
    pub(super) fn add(&self, kind: &Kind, key: &Arc<ObjectKey>) {
        let Some(row) = WATCHED.iter().position(|row| (row.kind)() == *kind) else { return };
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert((row, key.clone()));
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeSet<(usize, Arc<ObjectKey>)> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Scheduler {
    pub(super) fn read_object<K: Typed, R>(&self, key: &ObjectKey, read: impl Fn(&K) -> R) -> Option<R> {
        let object = self.informer.read(|view| view.get_arc::<K>(key));
        object.as_deref().map(read)
    }

    pub(super) fn apply_changes(&mut self) {
        for (row, key) in self.pending_changes.take() {
            (WATCHED[row].apply)(self, &key);
        }
    }

    fn namespace_changed(&mut self, key: &Arc<ObjectKey>) {
        let labels = |namespace: &Namespace| namespace.metadata.labels.clone().unwrap_or_default();
        if self.snapshot.set_namespace(&key.name, self.read_object(key, labels)) {
            self.requeue_helped(|_| Event::Namespace);
        }
    }

    fn node_changed(&mut self, key: &Arc<ObjectKey>) {
        match self.read_object(key, NodeFacts::of) {
            Some(facts) => {
                let name = facts.name.clone();
                if let Some(change) = self.snapshot.set_node(facts) {
                    self.departures += 1;
                    self.requeue_helped(|snapshot| match snapshot.node(&name) {
                        Some(node) => Event::Node(node, change),
                        None => Event::NodeGone,
                    });
                }
            }
            None => {
                if self.snapshot.remove_node(&key.name) {
                    self.requeue_helped(|_| Event::NodeGone);
                }
            }
        }
    }

    fn service_changed(&mut self, key: &Arc<ObjectKey>) {
        let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
        match self.read_object(key, selector).flatten() {
            Some(selector) => self.snapshot.services.insert((**key).clone(), selector),
            None => self.snapshot.services.remove(&**key),
        };
    }

    fn budget_changed(&mut self, key: &Arc<ObjectKey>) {
        match self.read_object(key, Budget::of).flatten() {
            Some(budget) => self.snapshot.budgets.insert((**key).clone(), budget),
            None => self.snapshot.budgets.remove(&**key),
        };
    }

    fn class_changed(&mut self, key: &Arc<ObjectKey>) {
        self.snapshot.volumes.set_class(&key.name, self.informer.read(|view| view.get_arc(key)));
        self.volumes_changed(Event::Volume);
    }

    fn csi_node_changed(&mut self, key: &Arc<ObjectKey>) {
        self.snapshot.volumes.set_node(&key.name, self.informer.read(|view| view.get_arc(key)));
        self.volumes_changed(Event::Volume);
    }

    fn volume_changed(&mut self, key: &Arc<ObjectKey>) {
        if self.snapshot.volumes.set_volume(&key.name, self.informer.read(|view| view.get_arc(key))) {
            self.volumes_changed(Event::Volume);
        }
    }

    fn claim_changed(&mut self, key: &Arc<ObjectKey>) {
        self.snapshot.volumes.set_claim(key, self.informer.read(|view| view.get_arc(key)));
        self.volumes_changed(Event::Claim(key.clone()));
    }

    /// A claim changed, or an object that affects its volume.
    fn volumes_changed(&mut self, event: Event<'static>) {
        self.departures += 1;
        self.requeue_helped(|_| event);
    }

    /// Passes an event to the queue, if there are unschedulable pods.
    fn requeue_helped(&mut self, event: impl for<'a> FnOnce(&'a Snapshot) -> Event<'a>) {
        if self.queue.depth().unschedulable > 0 {
            let (event, profiles) = (event(&self.snapshot), &self.config.profiles);
            self.queue.requeue_helped(self.env.elapsed(), |pod, refused_by| {
                let profile = profile_of(profiles, pod).map(|at| &profiles[at]);
                profile.is_some_and(|profile| profile.may_fit_after(&event, pod, refused_by))
            });
        }
    }

    fn pod_changed(&mut self, key: &Arc<ObjectKey>) {
        // With the view's own key, which exists anyway.
        let Some(pod) = self.read_object(key, |pod| PodInfo { key: key.clone(), ..PodInfo::of(pod) }) else {
            self.queue.remove(key);
            self.remove_placed(key);
            self.clear_nomination(key);
            return;
        };
        let placed = self.snapshot.placed(key).map(|(placed, assumed)| (placed.clone(), assumed));
        let same = placed.as_ref().is_some_and(|(placed, _)| placed.uid == pod.uid);
        if let Some(node) = pod.node.clone() {
            self.queue.remove(key);
            self.snapshot.nominated.clear(key);
            if pod.ended {
                self.remove_placed(key);
                return;
            }
            match placed {
                Some((placed, false)) if *placed == pod => {}
                Some((placed, false)) if placed.is_equivalent(&pod) => self.snapshot.refresh_pod(Arc::new(pod)),
                Some((placed, _))
                    if same && placed.node == pod.node && placed.requirements.requests == pod.requirements.requests =>
                {
                    let moved = placed.labels != pod.labels || placed.terminating != pod.terminating;
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    if moved {
                        self.requeue_helped(|_| Event::PodPlaced(pod));
                    }
                }
                _ => {
                    self.remove_placed(key);
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    self.requeue_helped(|_| Event::PodPlaced(pod));
                }
            }
            return;
        }
        let profile = profile_of(&self.config.profiles, &pod).map(|at| &self.config.profiles[at]);
        let ours = profile.is_some_and(|profile| profile.admits_to_queue(&pod)) && !pod.terminating && !pod.ended;
        if !ours {
            self.queue.remove(key);
            self.remove_placed(key);
            self.clear_nomination(key);
            return;
        }
        match placed {
            // Assumed, and the view doesn't show the binding yet.
            Some((_, true)) if same => {}
            placed => {
                if placed.is_some() {
                    self.remove_placed(key);
                }
                let pod = Arc::new(pod);
                self.snapshot.nominated.update(&pod);
                self.queue.put(pod, self.env.elapsed());
            }
        }
    }

    /// Drops the nomination of a pod that no longer needs it, so that others may fit.
    fn clear_nomination(&mut self, key: &ObjectKey) {
        if let Some((pod, node)) = self.snapshot.nominated.clear(key) {
            self.departures += 1;
            self.requeue_helped(|snapshot| Event::PodGone(pod, snapshot.node(&node)));
        }
    }

    /// Removes a pod from its node, if it was placed.
    pub(super) fn remove_placed(&mut self, key: &ObjectKey) {
        if let Some((pod, node)) = self.snapshot.take_pod(key) {
            self.departures += 1;
            self.requeue_helped(|snapshot| Event::PodGone(pod, snapshot.node(&node)));
        }
    }
}
