//! The read side of a pod: for the kubelet API, the metrics and eviction.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodStatus};
use machinery_api::packed::Packer;
use runtime_api::{Container, MemoryFiles, Stats};

use super::Message;
use crate::log::ContainerLog;
use crate::mailbox::Sender;
use crate::pod::lifecycle::state::Event;
use crate::pod::runner;
use crate::responses::ResponseMeter;
use crate::spec::compressed::Compressed;

/// The last observed state of a started container.
#[derive(Debug, Clone)]
pub(crate) struct ContainerSnapshot {
    pub(crate) name: Arc<str>,
    /// The running container and its start time.
    pub(crate) running: Option<(Arc<dyn Container>, Timestamp)>,
    /// Measures the responses of the newest start, if it serves.
    pub(crate) responses: Option<Arc<ResponseMeter>>,
    /// The log of the newest start.
    pub(crate) log: Arc<ContainerLog>,
    /// The number of the newest start.
    pub(crate) attempt: u32,
    /// The spec at that start.
    pub(crate) spec: Arc<Compressed<ContainerSpec>>,
}

/// The identity of a pod.
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

/// A pod as the kubelet API serves it.
#[derive(Debug, Clone)]
pub(crate) struct PodSnapshot {
    pub(crate) id: Arc<PodId>,
    pub(crate) pod: Arc<Compressed<Pod>>,
    pub(crate) status: Arc<Compressed<PodStatus>>,
    /// The containers that this run of the agent has started, in the order of their first starts.
    pub(crate) containers: Vec<ContainerSnapshot>,
    /// The CPU time of ended container runs.
    pub(crate) cpu_before: Duration,
    /// The memory account of its in-memory volumes.
    pub(crate) memory_files: Option<Arc<MemoryFiles>>,
}

impl PodSnapshot {
    /// A started container, by name.
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerSnapshot> {
        self.containers.iter().find(|container| *container.name == *name)
    }

    /// Whether any container runs.
    pub(crate) fn runs(&self) -> bool {
        self.containers.iter().any(|container| container.running.is_some())
    }

    /// Whether its containers serve on at a takeover, when the node's agent has ended.
    fn outlives_agent(&self) -> bool {
        let running = self.containers.iter().filter_map(|container| container.running.as_ref());
        runner::outlives_agent(running.map(|(container, _)| container.kind()))
    }

    /// The memory of its guests and of its in-memory volumes, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let running = self.containers.iter().filter_map(|container| container.running.as_ref());
        let guests: u64 = running.map(|(container, _)| container.stats().memory_bytes).sum();
        guests.saturating_add(self.memory_files.as_ref().map_or(0, |files| files.used()))
    }
}

/// Packs pods' objects, with one packer for each kind of text.
#[derive(Debug, Default)]
pub(crate) struct Packers {
    pods: Packer,
    statuses: Packer,
    containers: Packer,
}

/// A pod of this node, for readers outside of its worker.
#[derive(Debug)]
pub(crate) struct PodView {
    snapshot: RwLock<PodSnapshot>,
    worker: RwLock<Option<Sender<Message>>>,
}

impl PodView {
    pub(crate) fn new(pod: Arc<Compressed<Pod>>) -> Self {
        let whole = pod.get();
        let (id, status) = (Arc::new(PodId::of(&whole)), Arc::new(whole.status.clone().unwrap_or_default().into()));
        let snapshot =
            PodSnapshot { id, pod, status, containers: Vec::new(), cpu_before: Duration::ZERO, memory_files: None };
        Self { snapshot: RwLock::new(snapshot), worker: RwLock::default() }
    }

    /// Sends an eviction with its message to the pod; false if its worker can't receive it now.
    pub(crate) fn evict(&self, message: String) -> bool {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner);
        worker.as_ref().is_some_and(|worker| worker.try_send(Event::Evicted(message).into()))
    }

    /// Ends the pod within that grace period, as its node shuts down.
    pub(crate) fn shut_down(&self, grace: Duration) {
        let worker = self.worker.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(worker) = worker {
            tokio::spawn(async move { worker.send(Event::ShutDown(grace).into()).await });
        }
    }

    pub(crate) fn snapshot(&self) -> PodSnapshot {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the running containers serve on at a takeover, when the node's agent has ended.
    pub(crate) fn outlives_agent(&self) -> bool {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).outlives_agent()
    }

    /// Whether the pod is of a namespace.
    pub(crate) fn is_in(&self, namespace: &str) -> bool {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).id.namespace == namespace
    }

    /// A packing round for unused objects. Returns the number of packed texts.
    pub(crate) fn pack(&self, packers: &mut Packers) -> usize {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        let containers = snapshot.containers.iter().filter(|container| container.spec.pack(&mut packers.containers));
        usize::from(snapshot.pod.pack(&mut packers.pods))
            + usize::from(snapshot.status.pack(&mut packers.statuses))
            + containers.count()
    }

    /// Grows with everything that the containers write, and changes when a container starts or ends.
    pub(crate) fn change_count(&self) -> u64 {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        let of = |container: &ContainerSnapshot| {
            let volumes = container.running.as_ref().map_or(0, |(running, _)| running.stats().disk_changes);
            volumes.wrapping_add(container.log.written()).wrapping_add(u64::from(container.attempt))
        };
        snapshot.containers.iter().map(of).fold(0, u64::wrapping_add)
    }

    /// Sets the pod's worker.
    pub(super) fn set_worker(&self, worker: Sender<Message>) {
        *self.worker.write().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    }

    pub(super) fn update(&self, act: impl FnOnce(&mut PodSnapshot)) {
        act(&mut self.snapshot.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Records a start.
    pub(super) fn container_started(&self, started: ContainerSnapshot) {
        self.update(|snapshot| match snapshot.containers.iter_mut().find(|container| container.name == started.name) {
            Some(container) => *container = started,
            None => {
                snapshot.containers.reserve_exact(1);
                snapshot.containers.push(started);
            }
        });
    }

    /// Records the end of a run, with its resource usage.
    pub(super) fn container_ended(&self, name: &str, used: Stats) {
        self.update(|snapshot| {
            if let Some(container) = snapshot.containers.iter_mut().find(|container| *container.name == *name) {
                container.running = None;
                container.responses = None;
            }
            snapshot.cpu_before += used.cpu;
        });
    }
}
