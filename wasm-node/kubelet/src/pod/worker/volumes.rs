//! A pod's volumes. A task exists only while they are filled; in between, the worker keeps only the sources of
//! their contents.

use std::time::Duration;

use super::{PodWorker, Task};
use crate::pod::lifecycle::state::Event;
use crate::volume::manager::{Filled, fill};

/// The progress of a pod's volumes.
pub(super) enum PodVolumes {
    /// A fill is running, the first or a later one. `moved`: the pod has changed since it began.
    Filling { _task: Task, first: bool, moved: bool },
    /// The volumes are filled from these sources; `None` if they never change.
    Filled(Option<Box<Filled>>),
}

impl PodWorker {
    /// Fills the volumes in a task, which sends the result to this worker.
    pub(super) fn fill_volumes(&mut self, before: Option<Box<Filled>>) {
        let Some(ip) = self.sandbox.ip else { return };
        let dir = self.node.pod_dir(self.pod().metadata.uid.as_deref().unwrap_or_default());
        let first = before.is_none();
        let before = (before, self.kept.claims.clone());
        let filling = fill(self.node.volumes.clone(), self.input.clone(), (dir, ip), before, self.sender.clone());
        self.sandbox.volumes = Some(PodVolumes::Filling { _task: Task(tokio::spawn(filling)), first, moved: false });
    }

    /// Handles a finished fill.
    pub(super) fn handle_filled(&mut self, filled: Option<Box<Filled>>) {
        // The pod may have ended meanwhile.
        let Some(PodVolumes::Filling { first, moved, .. }) = self.sandbox.volumes else { return };
        self.sandbox.volumes = Some(PodVolumes::Filled(filled));
        if first {
            self.apply(Event::Mounted);
        }
        self.refresh_volumes(moved);
    }

    /// Refills the volumes if their contents have changed or expired. `moved`: the pod may have changed, so it is
    /// compared.
    pub(super) fn refresh_volumes(&mut self, moved: bool) {
        match &mut self.sandbox.volumes {
            Some(PodVolumes::Filling { moved: before, .. }) => *before |= moved,
            Some(PodVolumes::Filled(Some(filled))) => {
                let now = self.node.parts.env.now();
                if (filled.is_due(now) || moved && !filled.is_of(self.object.get()))
                    && let Some(PodVolumes::Filled(filled)) = self.sandbox.volumes.take()
                {
                    self.fill_volumes(filled);
                }
            }
            None | Some(PodVolumes::Filled(None)) => {}
        }
    }

    /// The time until the next refill, if it is known.
    pub(super) fn next_refill_in(&self) -> Option<Duration> {
        let Some(PodVolumes::Filled(Some(filled))) = &self.sandbox.volumes else { return None };
        let at = filled.refresh_at()?;
        Some(Duration::try_from(at.duration_since(self.now())).unwrap_or_default())
    }
}
