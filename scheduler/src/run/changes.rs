//! What of the cluster changed, taken over into the snapshot and the queue.

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

/// What of the cluster changed and was not looked at yet: coalesced, so never more than there are objects.
#[derive(Default)]
pub(super) struct PendingChanges {
    keys: Mutex<BTreeSet<(WatchedKind, Arc<ObjectKey>)>>,
    pub(super) changed: Notify,
}

// In this order: a pod is placed when its node is known.
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

/// A kind, and what has it watched.
type Watch = (fn() -> Kind, WatchedKind, fn(&Arc<Informer>));

/// What is watched, and how.
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
    pub(super) fn look<K: Typed, R>(&self, key: &ObjectKey, read: impl Fn(&K) -> R) -> Option<R> {
        let object = self.informer.read(|view| view.get_arc::<K>(key));
        object.as_deref().map(read)
    }

    pub(super) fn catch_up(&mut self) {
        for (what, key) in self.marks.take() {
            match what {
                WatchedKind::Namespace => {
                    let labels = self.look(&key, |n: &Namespace| n.metadata.labels.clone().unwrap_or_default());
                    if self.snapshot.set_namespace(&key.name, labels) {
                        self.happened(|_| Event::Namespace);
                    }
                }
                WatchedKind::Node => match self.look(&key, NodeFacts::of) {
                    Some(facts) => {
                        let name = facts.name.clone();
                        if let Some(change) = self.snapshot.set_node(facts) {
                            self.departures += 1;
                            self.happened(|snapshot| match snapshot.node(&name) {
                                Some(node) => Event::Node(node, change),
                                None => Event::NodeGone,
                            });
                        }
                    }
                    None => {
                        if self.snapshot.remove_node(&key.name) {
                            self.happened(|_| Event::NodeGone);
                        }
                    }
                },
                WatchedKind::Service => {
                    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
                    match self.look(&key, selector).flatten() {
                        Some(selector) => self.snapshot.services.insert((*key).clone(), selector),
                        None => self.snapshot.services.remove(&key),
                    };
                }
                WatchedKind::Budget => {
                    match self.look(&key, Budget::of).flatten() {
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

    /// A claim, or something of its volume.
    fn volumes_changed(&mut self, what: WatchedKind, key: &Arc<ObjectKey>) {
        let (informer, volumes) = (self.informer.clone(), &mut self.snapshot.volumes);
        let mut told = true;
        match what {
            WatchedKind::Claim => volumes.set_claim(key, informer.read(|view| view.get_arc(key))),
            WatchedKind::Volume => told = volumes.set_volume(&key.name, informer.read(|view| view.get_arc(key))),
            WatchedKind::Class => volumes.set_class(&key.name, informer.read(|view| view.get_arc(key))),
            _ => volumes.set_node(&key.name, informer.read(|view| view.get_arc(key))),
        }
        if told {
            self.departures += 1;
            let event = if what == WatchedKind::Claim { Event::Claim(key.clone()) } else { Event::Volume };
            self.happened(|_| event);
        }
    }

    /// Tells the queue, if anybody in it waits for help.
    fn happened(&mut self, event: impl for<'a> FnOnce(&'a Snapshot) -> Event<'a>) {
        if self.queue.depth().unschedulable > 0 {
            let (event, profiles) = (event(&self.snapshot), &self.config.profiles);
            self.queue.happened(self.env.elapsed(), |pod, refused_by| {
                let profile = profile_of(profiles, pod).map(|at| &profiles[at]);
                profile.is_some_and(|profile| profile.may_fit_after(&event, pod, refused_by))
            });
        }
    }

    fn pod_changed(&mut self, key: &Arc<ObjectKey>) {
        // Under the view's own key, which is there anyway.
        let Some(pod) = self.look(key, |pod| PodInfo { key: key.clone(), ..PodInfo::of(pod) }) else {
            self.queue.remove(key);
            self.leave(key);
            self.waits_no_more(key);
            return;
        };
        let placed = self.snapshot.placed(key).map(|(placed, assumed)| (placed.clone(), assumed));
        let same = placed.as_ref().is_some_and(|(placed, _)| placed.uid == pod.uid);
        if let Some(node) = pod.node.clone() {
            self.queue.remove(key);
            self.snapshot.nominated.clear(key);
            if pod.ended {
                self.leave(key);
                return;
            }
            match placed {
                Some((placed, false)) if *placed == pod => {}
                Some((placed, false)) if placed.waits_as(&pod) => self.snapshot.refresh_pod(Arc::new(pod)),
                Some((placed, _)) if same && placed.node == pod.node && placed.wants.requests == pod.wants.requests => {
                    let moved = placed.labels != pod.labels || placed.terminating != pod.terminating;
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    if moved {
                        self.happened(|_| Event::PodPlaced(pod));
                    }
                }
                _ => {
                    self.leave(key);
                    let pod = Arc::new(pod);
                    self.snapshot.put_pod(pod.clone(), &node, false);
                    self.happened(|_| Event::PodPlaced(pod));
                }
            }
            return;
        }
        let profile = profile_of(&self.config.profiles, &pod).map(|at| &self.config.profiles[at]);
        let ours = profile.is_some_and(|profile| profile.admits_to_queue(&pod)) && !pod.terminating && !pod.ended;
        if !ours {
            self.queue.remove(key);
            self.leave(key);
            self.waits_no_more(key);
            return;
        }
        match placed {
            // Assumed, and the view has not caught up with the binding.
            Some((_, true)) if same => {}
            placed => {
                if placed.is_some() {
                    self.leave(key);
                }
                let pod = Arc::new(pod);
                self.snapshot.nominated.update(&pod);
                self.queue.put(pod, self.env.elapsed());
            }
        }
    }

    /// A pod for which room was being made doesn't need it any more: others may have it.
    fn waits_no_more(&mut self, key: &ObjectKey) {
        if let Some((pod, node)) = self.snapshot.nominated.clear(key) {
            self.departures += 1;
            self.happened(|snapshot| Event::PodGone(pod, snapshot.node(&node)));
        }
    }

    /// A pod takes no room any more, if it did.
    pub(super) fn leave(&mut self, key: &ObjectKey) {
        if let Some((pod, node)) = self.snapshot.take_pod(key) {
            self.departures += 1;
            self.happened(|snapshot| Event::PodGone(pod, snapshot.node(&node)));
        }
    }
}
