//! Using other amounts of CPU and memory: at once where a container goes on, by a new start where its policy says so, and later where
//! memory that is in use stands in the way.

use k8s_openapi::api::core::v1::{PodCondition, ResourceRequirements};

use super::*;

/// How often memory is looked at that was not low enough.
const ACTUATE_AGAIN: Duration = Duration::from_secs(1);

impl Worker {
    /// The pod had these amounts before; `pending` is a wish for others that can't be granted now.
    pub(super) fn take_resize(&mut self, had: &Pod, pending: Option<resize::Pending>) {
        if let Some(wish) =
            pending.as_ref().filter(|wish| self.pending.as_ref().is_none_or(|was| was.wished != wish.wished))
        {
            self.note(true, "ResizeDeferred", format!("Pod resize Deferred: {}", wish.wished), None);
        }
        self.pending = pending;
        if resize::same_pod(had, self.pod()) {
            return;
        }
        let message = format!("Pod resize started: {}", resize::summary(self.pod(), None));
        self.note(false, "ResizeStarted", message, None);
        self.progress = Some(resize::Progress { generation: self.pod().metadata.generation, error: None });
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

    /// Whether a container that runs has what it was given.
    pub(super) fn is_actuated(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else { return true };
        let same = |live: &Live| resize::same(live.made.resources.as_ref(), slot.container.get().resources.as_ref());
        slot.live.as_ref().is_none_or(same)
    }

    /// Has all containers use what they were given, as far as that is possible now.
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
            let lowers = live.made.settings.limits.memory_bytes.unwrap_or(u64::MAX);
            let (used, wanted) = (live.made.container.stats().memory_bytes, limits.memory_bytes.unwrap_or(u64::MAX));
            if wanted < lowers && used >= wanted && !self.restarts(*index) {
                below.push((Some(&*self.slots[*index].name), wanted, used));
            }
        }
        // As upstream: where one limit can't be lowered, none changes.
        if let Some(error) = resize::lowered(&below) {
            self.wait_for_memory(error);
            return;
        }
        self.ledger.set_limit(Resource::Memory, memory);
        for index in waits {
            self.actuate_one(index);
        }
        let done = (0..self.slots.len()).all(|index| self.is_actuated(index));
        if done && let Some(progress) = self.progress.take() {
            self.resizing = None;
            let mut told = (**self.pod()).clone();
            told.metadata.generation = progress.generation;
            let message = format!("Pod resize completed: {}", resize::summary(&told, None));
            self.note(false, "ResizeCompleted", message, None);
        }
    }

    /// A container that runs and goes on, and the limits that it is to have.
    fn wanted_limits(&self, index: usize) -> Option<(&Live, runtime_api::Limits)> {
        let slot = self.slots.get(index)?;
        let optional = self.node.parts.runtime.optional_interfaces();
        let wanted = settings::settings(self.pod(), &slot.container.get(), &optional).ok()?;
        slot.live.as_ref().map(|live| (live, wanted.limits))
    }

    fn restarts(&self, index: usize) -> bool {
        let Some(slot) = self.slots.get(index) else { return false };
        let before = slot.live.as_ref().and_then(|live| live.made.resources.as_ref());
        slot.live.is_some() && resize::restarts(&slot.container.get(), before)
    }

    fn actuate_one(&mut self, index: usize) {
        if self.restarts(index) {
            if self.cell(index).is_some_and(|cell| matches!(cell.stage, CellStage::Running(_))) {
                self.apply(Event::Container(index, CellEvent::Resized));
            }
            return;
        }
        let Some((_, limits)) = self.wanted_limits(index) else { return };
        if let Some(slot) = self.slots.get_mut(index)
            && let Some(live) = &mut slot.live
        {
            live.made.container.resize(&limits);
            live.made.settings.limits = limits;
            live.made.resources = slot.container.get().resources.clone();
        }
    }

    fn wait_for_memory(&mut self, error: String) {
        let pod = self.pod().clone();
        let progress = self.progress.get_or_insert_default();
        if progress.error.is_none() {
            progress.error = Some(error.clone());
            let mut told = (*pod).clone();
            told.metadata.generation = progress.generation;
            let message = format!("Pod resize error: {}", resize::summary(&told, Some(&error)));
            self.note(true, "ResizeError", message, None);
        }
        let sender = self.sender.clone();
        self.resizing = Some(Task(tokio::spawn(async move {
            tokio::time::sleep(ACTUATE_AGAIN).await;
            let _ = sender.send(Message::Actuate).await;
        })));
    }

    /// What the status says of it: containers show what they have, conditions what is to come.
    pub(super) fn show_resize(&self, status: &mut PodStatus, known: &[PodCondition]) {
        let generation = self.pod().metadata.generation;
        let own = resize::conditions(self.pending.as_ref(), self.progress.as_ref(), generation, known, self.now());
        status.conditions.get_or_insert_default().extend(own);
        let has = |name: &str| -> Option<ResourceRequirements> {
            let slot = self.slots.iter().find(|slot| *slot.name == *name)?;
            slot.live.as_ref()?.made.resources.clone()
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
