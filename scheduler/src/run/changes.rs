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

/// Changed objects that are not processed yet: coalesced, so there are never more than objects.
#[derive(Default)]
pub(super) struct PendingChanges {
    keys: Mutex<BTreeSet<(WatchedKind, Arc<ObjectKey>)>>,
    pub(super) changed: Notify,
}

// The order of processing: nodes before their pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WatchedKind {
    Namespace,
    Node,
    Service,
    Budget,
    Class,
    Driver,
    Volume,
    Claim,
    Pod,
}

/// A kind, and the function that watches it.
type Watch = (fn() -> Kind, WatchedKind, fn(&Arc<Informer>));

/// The watched kinds.
pub(super) const WATCHED: [Watch; 9] = [
    (Kind::of::<Namespace>, WatchedKind::Namespace, Informer::watch::<Namespace>),
    (Kind::of::<Node>, WatchedKind::Node, Informer::watch::<Node>),
    (Kind::of::<Service>, WatchedKind::Service, Informer::watch::<Service>),
    (Kind::of::<PodDisruptionBudget>, WatchedKind::Budget, Informer::watch::<PodDisruptionBudget>),
    (Kind::of::<StorageClass>, WatchedKind::Class, Informer::watch::<StorageClass>),
    (Kind::of::<CSINode>, WatchedKind::Driver, Informer::watch::<CSINode>),
    (Kind::of::<PersistentVolume>, WatchedKind::Volume, Informer::watch::<PersistentVolume>),
    (Kind::of::<PersistentVolumeClaim>, WatchedKind::Claim, Informer::watch::<PersistentVolumeClaim>),
    (Kind::of::<Pod>, WatchedKind::Pod, Informer::watch::<Pod>),
];

impl PendingChanges {
    pub(super) fn add(&self, kind: &Kind, key: &Arc<ObjectKey>) {
        let Some((_, what, _)) = WATCHED.into_iter().find(|(known, ..)| known() == *kind) else { return };
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert((what, key.clone()));
        self.changed.notify_one();
    }

    fn take(&self) -> BTreeSet<(WatchedKind, Arc<ObjectKey>)> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Scheduler {
    pub(super) fn read_object<K: Typed, R>(&self, key: &ObjectKey, read: impl Fn(&K) -> R) -> Option<R> {
        let object = self.informer.read(|view| view.get_arc::<K>(key));
        object.as_deref().map(read)
    }

    pub(super) fn apply_changes(&mut self) {
        for (what, key) in self.pending_changes.take() {
            match what {
                WatchedKind::Namespace => {
                    let labels = self.read_object(&key, |n: &Namespace| n.metadata.labels.clone().unwrap_or_default());
                    if self.snapshot.set_namespace(&key.name, labels) {
                        self.requeue_helped(|_| Event::Namespace);
                    }
                }
                WatchedKind::Node => match self.read_object(&key, NodeFacts::of) {
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
                },
                WatchedKind::Service => {
                    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
                    match self.read_object(&key, selector).flatten() {
                        Some(selector) => self.snapshot.services.insert((*key).clone(), selector),
                        None => self.snapshot.services.remove(&key),
                    };
                }
                WatchedKind::Budget => {
                    match self.read_object(&key, Budget::of).flatten() {
                        Some(budget) => self.snapshot.budgets.insert((*key).clone(), budget),
                        None => self.snapshot.budgets.remove(&key),
                    };
                }
                WatchedKind::Class | WatchedKind::Driver | WatchedKind::Volume | WatchedKind::Claim => {
                    self.volumes_changed(what, &key);
                }
                WatchedKind::Pod => self.pod_changed(&key),
            }
        }
    }

    /// A claim changed, or an object that affects its volume.
    fn volumes_changed(&mut self, what: WatchedKind, key: &Arc<ObjectKey>) {
        let (informer, volumes) = (self.informer.clone(), &mut self.snapshot.volumes);
        let mut relevant = true;
        match what {
            WatchedKind::Claim => volumes.set_claim(key, informer.read(|view| view.get_arc(key))),
            WatchedKind::Volume => relevant = volumes.set_volume(&key.name, informer.read(|view| view.get_arc(key))),
            WatchedKind::Class => volumes.set_class(&key.name, informer.read(|view| view.get_arc(key))),
            _ => volumes.set_node(&key.name, informer.read(|view| view.get_arc(key))),
        }
        if relevant {
            self.departures += 1;
            let event = if what == WatchedKind::Claim { Event::Claim(key.clone()) } else { Event::Volume };
            self.requeue_helped(|_| event);
        }
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
