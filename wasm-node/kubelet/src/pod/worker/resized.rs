//! In-place resize of CPU and memory: at once for a running container, by a restart if its policy requires one, and
//! later while memory in use exceeds the new limit ([`ResizeTracker`]).

use super::*;

impl PodWorker {
    /// `before` is the pod with its previous amounts; `pending` is a request that can't be granted now.
    pub(super) fn handle_resize(&mut self, before: &Pod, pending: Option<PendingResize>) {
        self.step_resize(ResizeEvent::Deferred(pending));
        if resize::same_pod(before, self.pod()) {
            return;
        }
        let pod = self.pod().clone();
        for (index, (_, container)) in containers::each(&containers::spec(&pod)).enumerate() {
            if let Some(slot) = self.slots.get_mut(index)
                && !resize::same(slot.container.get().resources.as_ref(), container.resources.as_ref())
            {
                let resources = container.resources.clone();
                slot.container = Arc::new(Container { resources, ..(*slot.container.get()).clone() }.into());
            }
        }
        self.step_resize(ResizeEvent::Granted(pod.metadata.generation));
    }

    /// Passes an event to the resize, and performs the returned actions.
    pub(super) fn step_resize(&mut self, event: ResizeEvent) {
        let retries = event == ResizeEvent::Elapsed;
        for action in self.resize.step(event, self.elapsed()) {
            match action {
                ResizeAction::RecordDeferred { requested } => {
                    self.record_event(true, "ResizeDeferred", format!("Pod resize Deferred: {requested}"), None);
                }
                ResizeAction::RecordStarted => {
                    let message = format!("Pod resize started: {}", resize::summary(self.pod(), None));
                    self.record_event(false, "ResizeStarted", message, None);
                }
                ResizeAction::RecordError { generation, error } => {
                    let message = format!("Pod resize error: {}", self.resize_summary(generation, Some(&error)));
                    self.record_event(true, "ResizeError", message, None);
                }
                ResizeAction::RecordCompleted { generation } => {
                    let message = format!("Pod resize completed: {}", self.resize_summary(generation, None));
                    self.record_event(false, "ResizeCompleted", message, None);
                }
                ResizeAction::Apply => {
                    self.actuate();
                    if retries {
                        self.project();
                    }
                }
            }
        }
    }

    /// The resize to a generation, in an event.
    fn resize_summary(&self, generation: Option<i64>, error: Option<&str>) -> String {
        let mut resized = (**self.pod()).clone();
        resized.metadata.generation = generation;
        resize::summary(&resized, error)
    }

    /// Whether a running container has its allocated resources.
    pub(super) fn is_actuated(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else { return true };
        let same = |live: &LiveContainer| {
            resize::same(live.created.resources.as_ref(), slot.container.get().resources.as_ref())
        };
        slot.live.as_ref().is_none_or(same)
    }

    /// Applies the allocated resources to all containers, as far as possible now.
    pub(super) fn actuate(&mut self) {
        self.cpu.set(requests::pod_limit(self.pod(), "cpu"), self.elapsed());
        let memory = requests::memory_bound(self.pod()).unwrap_or(u64::MAX);
        let used = self.ledger.used(Resource::Memory);
        let mut below = Vec::new();
        if memory < self.ledger.limit(Resource::Memory) && used >= memory {
            below.push((None, memory, used));
        }
        let waits: Vec<usize> = (0..self.slots.len()).filter(|index| !self.is_actuated(*index)).collect();
        for index in &waits {
            let Some((live, limits)) = self.wanted_limits(*index) else { continue };
            let lowers = live.created.settings.limits.memory_bytes.unwrap_or(u64::MAX);
            let (used, wanted) = (live.created.container.stats().memory_bytes, limits.memory_bytes.unwrap_or(u64::MAX));
            if wanted < lowers && used >= wanted && !self.restarts(*index) {
                below.push((Some(&*self.slots[*index].name), wanted, used));
            }
        }
        // As upstream: if one limit can't be lowered, none is changed.
        if let Some(error) = resize::lower_error(&below) {
            self.step_resize(ResizeEvent::Blocked(error));
            return;
        }
        self.ledger.set_limit(Resource::Memory, memory);
        for index in waits {
            self.actuate_one(index);
        }
        let complete = (0..self.slots.len()).all(|index| self.is_actuated(index));
        self.step_resize(ResizeEvent::Applied { complete });
    }

    /// A container that runs, and the limits that it should have.
    fn wanted_limits(&self, index: usize) -> Option<(&LiveContainer, runtime_api::Limits)> {
        let slot = self.slots.get(index)?;
        let optional = self.node.parts.runtime.optional_interfaces();
        let wanted = settings::settings(self.pod(), &slot.container.get(), &optional).ok()?;
        slot.live.as_ref().map(|live| (live, wanted.limits))
    }

    fn restarts(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else { return false };
        let before = slot.live.as_ref().and_then(|live| live.created.resources.as_ref());
        slot.live.is_some() && resize::restarts(&slot.container.get(), before)
    }

    fn actuate_one(&mut self, index: usize) {
        if self.restarts(index) {
            if self.machine(index).is_some_and(|machine| matches!(machine.stage, ContainerStage::Running(_))) {
                self.apply(Event::Container(index, ContainerEvent::Resized));
            }
            return;
        }
        let Some((_, limits)) = self.wanted_limits(index) else { return };
        if let Some(slot) = self.slots.get_mut(index)
            && let Some(live) = &mut slot.live
        {
            live.created.container.resize(&limits);
            live.created.settings.limits = limits;
            live.created.resources = slot.container.get().resources.clone();
        }
    }
}
