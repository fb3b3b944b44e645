//! A pod's volumes, as its worker keeps them in step with the API: a task while they are filled, and nothing but what they are
//! filled with in between.

use std::time::Duration;

use super::{Task, Worker};
use crate::pod::state::Event;
use crate::volume::manager::{Filled, fill};

/// A pod's volumes.
pub(super) enum Volumes {
    /// They are being filled, for the first time or again; the pod may have become another one meanwhile.
    Filling { _task: Task, first: bool, moved: bool },
    /// They are filled with that; none where they stay so.
    Filled(Option<Box<Filled>>),
}

impl Worker {
    /// Fills the volumes, and says so to the worker itself.
    pub(super) fn fill(&mut self, before: Option<Box<Filled>>) {
        let Some(ip) = self.ip else { return };
        let dir = self.node.pod_dir(self.pod().metadata.uid.as_deref().unwrap_or_default());
        let first = before.is_none();
        let filling = fill(self.node.volumes.clone(), self.input.clone(), (dir, ip), before, self.sender.clone());
        self.volumes = Some(Volumes::Filling { _task: Task(tokio::spawn(filling)), first, moved: false });
    }

    /// They are filled.
    pub(super) fn filled(&mut self, filled: Option<Box<Filled>>) {
        // The pod may have ended meanwhile.
        let Some(Volumes::Filling { first, moved, .. }) = self.volumes else { return };
        self.volumes = Some(Volumes::Filled(filled));
        if first {
            self.apply(Event::Mounted);
        }
        self.mind_volumes(moved);
    }

    /// Fills them again where what they were filled with is another one now, or has aged; the pod is looked at where it may have
    /// `moved`.
    pub(super) fn mind_volumes(&mut self, moved: bool) {
        match &mut self.volumes {
            Some(Volumes::Filling { moved: before, .. }) => *before |= moved,
            Some(Volumes::Filled(Some(filled))) => {
                let now = self.node.parts.env.now();
                if (filled.is_due(now) || moved && !filled.is_of(self.turn.of(&self.pod)))
                    && let Some(Volumes::Filled(filled)) = self.volumes.take()
                {
                    self.fill(filled);
                }
            }
            None | Some(Volumes::Filled(None)) => {}
        }
    }

    /// How long until they are to be filled again, where that is known.
    pub(super) fn refills_in(&self) -> Option<Duration> {
        let Some(Volumes::Filled(Some(filled))) = &self.volumes else { return None };
        let at = filled.refresh_at()?;
        Some(Duration::try_from(at.duration_since(self.now())).unwrap_or_default())
    }
}
