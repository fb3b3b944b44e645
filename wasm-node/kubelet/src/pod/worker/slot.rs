//! A worker's data of one container beside its state machine: its runner, tasks and handles.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use machinery_env::Deadline;
use tokio::sync::watch;

use super::Task;
use crate::pod::lifecycle::state::{Class, ProbeKind};
use crate::pod::runner::Runner;
use crate::pod::start::{CreatedContainer, PulledImages};
use crate::spec::compressed::Compressed;
use crate::spec::containers;

/// A running container.
pub(super) struct LiveContainer {
    pub(super) created: CreatedContainer,
    pub(super) runner: Box<dyn Runner>,
    /// The stop in progress, with its deadline.
    pub(super) stopping: Option<(Task, watch::Sender<Deadline>)>,
}

/// One container of the pod.
pub(super) struct ContainerSlot {
    /// The container's class.
    pub(super) class: Class,
    pub(super) name: Arc<str>,
    image: Option<String>,
    /// The container's spec.
    pub(super) container: Arc<Compressed<Container>>,
    /// The container's field path in events: `spec.containers{NAME}`.
    pub(super) field_path: Arc<str>,
    /// The pulled images.
    pub(super) pulls: Option<PulledImages>,
    pub(super) live: Option<LiveContainer>,
    /// Pulls the image, or creates the container.
    pub(super) preparing: Option<Task>,
    /// The probes.
    pub(super) probes: Vec<(ProbeKind, Task)>,
    /// The `postStart` hook.
    pub(super) hook: Option<Task>,
    /// Reports changes of the environment's sources.
    pub(super) sources: Option<Task>,
}

impl ContainerSlot {
    /// The slots of a pod's containers.
    pub(super) fn all(pod: &Pod) -> Vec<Self> {
        let mut slots = Vec::new();
        Self::update(&mut slots, pod);
        slots
    }

    /// Adds new containers and updates changed images. Returns the indices of the latter.
    pub(super) fn update(slots: &mut Vec<Self>, pod: &Pod) -> Vec<usize> {
        let mut changed = Vec::new();
        // Most pods have one container for life, and a growing vector allocates room for four.
        slots.reserve_exact(containers::names(&containers::spec(pod)).count().saturating_sub(slots.len()));
        for (index, (class, container)) in containers::each(&containers::spec(pod)).enumerate() {
            match slots.get_mut(index) {
                Some(slot) if slot.image == container.image => {}
                Some(slot) => {
                    slot.image.clone_from(&container.image);
                    slot.container = Arc::new(container.into_owned().into());
                    changed.push(index);
                }
                None => slots.push(Self {
                    class,
                    field_path: format!("{}{{{}}}", containers::field(class), container.name).into(),
                    name: container.name.as_str().into(),
                    image: container.image.clone(),
                    container: Arc::new(container.into_owned().into()),
                    pulls: None,
                    live: None,
                    preparing: None,
                    probes: Vec::new(),
                    hook: None,
                    sources: None,
                }),
            }
        }
        changed
    }
}
