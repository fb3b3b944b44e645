//! What a worker holds of one container.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Task;
use crate::pod::runner::Runner;
use crate::pod::start::{Made, Pulls};
use crate::pod::state::Class;
use crate::spec::containers;
use crate::spec::resting::Resting;

/// A container that runs.
pub(super) struct Live {
    pub(super) made: Made,
    pub(super) runner: Box<dyn Runner>,
    /// The stop under way, with its end.
    pub(super) stopping: Option<(Task, watch::Sender<Instant>)>,
}

/// One container.
pub(super) struct Slot {
    /// What it is to the pod.
    pub(super) class: Class,
    pub(super) name: Arc<str>,
    image: Option<String>,
    /// As the pod has it.
    pub(super) container: Arc<Resting<Container>>,
    /// Its name in the pod, as events say it: `spec.containers{NAME}`.
    pub(super) field_path: Arc<str>,
    /// Its images.
    pub(super) pulls: Option<Pulls>,
    pub(super) live: Option<Live>,
    /// Has its image, or makes it.
    pub(super) preparing: Option<Task>,
    /// Its probes, and the hook after its start.
    pub(super) probes: Vec<Task>,
    /// Tells of changes of what its environment is made of.
    pub(super) sources: Option<Task>,
}

impl Slot {
    /// The slots of a pod's containers.
    pub(super) fn all(pod: &Pod) -> Vec<Self> {
        let mut slots = Vec::new();
        Self::update(&mut slots, pod);
        slots
    }

    /// Takes in those that were added, and the images that were changed: of which containers.
    pub(super) fn update(slots: &mut Vec<Self>, pod: &Pod) -> Vec<usize> {
        let mut changed = Vec::new();
        // Most pods have one for their life, and a vector that grows has room for four.
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
                    sources: None,
                }),
            }
        }
        changed
    }
}
