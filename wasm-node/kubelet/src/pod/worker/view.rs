//! A pod as others see it: the kubelet API, the figures, eviction.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodStatus};
use machinery_api::packed::Packer;
use runtime_api::{Container, MemoryFiles, Stats};

use super::Message;
use crate::log::ContainerLog;
use crate::mailbox::Sender;
use crate::pod::state::Event;
use crate::spec::resting::Resting;

/// What is seen of one container that was started.
#[derive(Debug, Clone)]
pub(crate) struct SeenContainer {
    pub(crate) name: Arc<str>,
    /// The container that runs, with its start.
    pub(crate) running: Option<(Arc<dyn Container>, Timestamp)>,
    /// The log of its newest start.
    pub(crate) log: Arc<ContainerLog>,
    /// The newest start.
    pub(crate) attempt: u32,
    /// What it was started as.
    pub(crate) spec: Arc<Resting<ContainerSpec>>,
}

/// Which pod it is.
#[derive(Debug)]
pub(crate) struct PodId {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) created: Option<Timestamp>,
}

impl PodId {
    fn of(pod: &Pod) -> Self {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let of = &pod.metadata;
        let created = of.creation_timestamp.as_ref().map(|time| time.0);
        Self { namespace: text(&of.namespace), name: text(&of.name), uid: text(&of.uid), created }
    }
}

/// What the kubelet API shows of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) id: Arc<PodId>,
    pub(crate) pod: Arc<Resting<Pod>>,
    pub(crate) status: Arc<Resting<PodStatus>>,
    /// The containers that this run of the agent has started, in the order of their first starts.
    pub(crate) containers: Vec<SeenContainer>,
    /// CPU time of the runs of containers that have ended.
    pub(crate) cpu_before: Duration,
    /// The account of its volumes in memory.
    pub(crate) memory_files: Option<Arc<MemoryFiles>>,
}

impl Seen {
    /// A container that was started.
    pub(crate) fn container(&self, name: &str) -> Option<&SeenContainer> {
        self.containers.iter().find(|container| *container.name == *name)
    }

    /// Whether any container runs.
    pub(crate) fn runs(&self) -> bool {
        self.containers.iter().any(|container| container.running.is_some())
    }

    /// Bytes of memory that its guests hold, and its volumes in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let running = self.containers.iter().filter_map(|container| container.running.as_ref());
        let guests: u64 = running.map(|(container, _)| container.stats().memory_bytes).sum();
        guests.saturating_add(self.memory_files.as_ref().map_or(0, |files| files.used()))
    }
}

/// Packs what pods are made of, each kind of text for itself.
#[derive(Debug, Default)]
pub(crate) struct Packers {
    pods: Packer,
    statuses: Packer,
    containers: Packer,
}

/// A pod of this node, for whoever looks at it from outside of its worker.
#[derive(Debug)]
pub(crate) struct PodView {
    seen: RwLock<Seen>,
    worker: RwLock<Option<Sender<Message>>>,
}

impl PodView {
    pub(crate) fn new(pod: Arc<Resting<Pod>>) -> Self {
        let whole = pod.get();
        let (id, status) = (Arc::new(PodId::of(&whole)), Arc::new(whole.status.clone().unwrap_or_default().into()));
        let seen = Seen { id, pod, status, containers: Vec::new(), cpu_before: Duration::ZERO, memory_files: None };
        Self { seen: RwLock::new(seen), worker: RwLock::default() }
    }

    /// Tells the pod that it has to go, and why; false where its worker hears nothing now.
    pub(crate) fn evict(&self, message: String) -> bool {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner);
        worker.as_ref().is_some_and(|worker| worker.try_send(Event::Evicted(message).into()))
    }

    /// Tells the pod that it ends with its node, within that time.
    pub(crate) fn shut_down(&self, grace: Duration) {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(worker) = worker {
            tokio::spawn(async move { worker.send(Event::ShutDown(grace).into()).await });
        }
    }

    pub(crate) fn look(&self) -> Seen {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A round of packing what nobody looks at; how many texts were packed.
    pub(crate) fn sleep(&self, packers: &mut Packers) -> usize {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let containers = seen.containers.iter().filter(|container| container.spec.sleep(&mut packers.containers));
        usize::from(seen.pod.sleep(&mut packers.pods))
            + usize::from(seen.status.sleep(&mut packers.statuses))
            + containers.count()
    }

    /// Grows with everything that its containers write; another number where one has come or gone.
    pub(crate) fn writes(&self) -> u64 {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        let of = |container: &SeenContainer| {
            let volumes = container.running.as_ref().map_or(0, |(running, _)| running.stats().disk_changes);
            volumes.wrapping_add(container.log.written()).wrapping_add(u64::from(container.attempt))
        };
        seen.containers.iter().map(of).fold(0, u64::wrapping_add)
    }

    /// It has a worker from now on.
    pub(super) fn listen(&self, worker: Sender<Message>) {
        *self.worker.write().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    }

    pub(super) fn change(&self, act: impl FnOnce(&mut Seen)) {
        act(&mut self.seen.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A container was started.
    pub(super) fn started(&self, started: SeenContainer) {
        self.change(|seen| match seen.containers.iter_mut().find(|container| container.name == started.name) {
            Some(container) => *container = started,
            None => {
                seen.containers.reserve_exact(1);
                seen.containers.push(started);
            }
        });
    }

    /// A container has ended that had used that much.
    pub(super) fn ended(&self, name: &str, used: Stats) {
        self.change(|seen| {
            if let Some(container) = seen.containers.iter_mut().find(|container| *container.name == *name) {
                container.running = None;
            }
            seen.cpu_before += used.cpu;
        });
    }
}
