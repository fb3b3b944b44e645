//! In-place resize of CPU and memory: at once for a running container, by a restart if its policy requires one, and
//! later while memory in use exceeds the new limit.

use k8s_openapi::api::core::v1::{PodCondition, ResourceRequirements};

use super::*;

/// The retry interval while too much memory is in use.
const ACTUATE_AGAIN: Duration = Duration::from_secs(1);

impl PodWorker {
    /// `had` is the pod with its previous amounts; `pending` is a request that can't be granted now.
    pub(super) fn handle_resize(&mut self, had: &Pod, pending: Option<resize::PendingResize>) {
        if let Some(request) = pending
            .as_ref()
            .filter(|request| self.pending_resize.as_ref().is_none_or(|was| was.requested != request.requested))
        {
            self.record_event(true, "ResizeDeferred", format!("Pod resize Deferred: {}", request.requested), None);
        }
        self.pending_resize = pending;
        if resize::same_pod(had, self.pod()) {
            return;
        }
        let message = format!("Pod resize started: {}", resize::summary(self.pod(), None));
        self.record_event(false, "ResizeStarted", message, None);
        self.resize_progress = Some(resize::ResizeProgress { generation: self.pod().metadata.generation, error: None });
        let pod = self.pod().clone();
        for (index, (_, container)) in containers::each(&containers::spec(&pod)).enumerate() {
            if let Some(slot) = self.slots.get_mut(index)
                && !resize::same(slot.container.get().resources.as_ref(), container.resources.as_ref())
            {
                let resources = container.resources.clone();
                slot.container = Arc::new(Container { resources, ..(*slot.container.get()).clone() }.into());
            }
        }
        self.actuate();
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
        let now = self.node.parts.env.elapsed();
        self.cpu.set(requests::pod_limit(self.pod(), "cpu"), now);
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
            self.wait_for_memory(error);
            return;
        }
        self.ledger.set_limit(Resource::Memory, memory);
        for index in waits {
            self.actuate_one(index);
        }
        let done = (0..self.slots.len()).all(|index| self.is_actuated(index));
        if done && let Some(progress) = self.resize_progress.take() {
            self.resize_retry = None;
            let mut resized = (**self.pod()).clone();
            resized.metadata.generation = progress.generation;
            let message = format!("Pod resize completed: {}", resize::summary(&resized, None));
            self.record_event(false, "ResizeCompleted", message, None);
        }
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

    fn wait_for_memory(&mut self, error: String) {
        let pod = self.pod().clone();
        let progress = self.resize_progress.get_or_insert_default();
        if progress.error.is_none() {
            progress.error = Some(error.clone());
            let mut resized = (*pod).clone();
            resized.metadata.generation = progress.generation;
            let message = format!("Pod resize error: {}", resize::summary(&resized, Some(&error)));
            self.record_event(true, "ResizeError", message, None);
        }
        let (sender, env) = (self.sender.clone(), self.node.parts.env.clone());
        self.resize_retry = Some(Task(tokio::spawn(async move {
            env.sleep(ACTUATE_AGAIN).await;
            let _ = sender.send(Message::Actuate).await;
        })));
    }

    /// Adds the resize to the status: containers show their actual resources, conditions the pending resize.
    pub(super) fn add_resize_status(&self, status: &mut PodStatus, known: &[PodCondition]) {
        let generation = self.pod().metadata.generation;
        let own = resize::conditions(
            self.pending_resize.as_ref(),
            self.resize_progress.as_ref(),
            generation,
            known,
            self.now(),
        );
        status.conditions.get_or_insert_default().extend(own);
        let has = |name: &str| -> Option<ResourceRequirements> {
            let slot = self.slots.iter().find(|slot| *slot.name == *name)?;
            slot.live.as_ref()?.created.resources.clone()
        };
        let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
        for container in lists.into_iter().flatten().flatten() {
            let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
            if let Some(has) = has(&container.name).filter(|_| runs) {
                container.resources = Some(ResourceRequirements { claims: None, ..has });
            }
        }
        if let Some(spec) = self.pod().spec.as_ref().filter(|spec| spec.resources.is_some()) {
            status.resources = spec.resources.clone();
            status.allocated_resources = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
        }
    }
}
