//! The read side of a pod's state, for the worker and for the projection of the status. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{Class, ContainerMachine, PodState, Stage, TerminalReason};

impl PodState {
    /// The stage.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The containers, in the order of [`crate::spec::containers`].
    #[must_use]
    pub fn machines(&self) -> &[ContainerMachine] {
        &self.machines
    }

    /// `status.startTime`.
    #[must_use]
    pub fn began(&self) -> Timestamp {
        self.began
    }

    /// Whether the volumes are filled and the pod has an address.
    #[must_use]
    pub fn has_sandbox(&self) -> bool {
        self.sandbox
    }

    /// Set if the pod fails regardless of its containers.
    #[must_use]
    pub fn terminal_reason(&self) -> Option<&TerminalReason> {
        self.terminal_reason.as_ref()
    }

    /// The final phase: `true` is Succeeded.
    #[must_use]
    pub fn succeeded(&self) -> Option<bool> {
        self.succeeded
    }

    /// The grace period, if the pod is being deleted.
    #[must_use]
    pub fn deleted(&self) -> Option<Duration> {
        self.deleted
    }

    /// Whether the object was removed from the API.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Whether the pod was resumed after a restart of the agent, and no container runs yet.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether all containers are being stopped, to restart together.
    #[must_use]
    pub fn is_restarting_all(&self) -> bool {
        self.restarting_all
    }

    /// Whether the pod counts as ready, as far as its containers decide.
    #[must_use]
    pub fn ready(&self) -> bool {
        let mut count =
            self.machines.iter().filter(|machine| matches!(machine.class, Class::Main | Class::Sidecar)).peekable();
        count.peek().is_some() && count.all(|machine| machine.ready(self.deleted.is_some()))
    }

    /// Whether the pod's end is decided.
    #[must_use]
    pub fn ending(&self) -> bool {
        self.deleted.is_some() || self.removed || self.terminal_reason.is_some()
    }

    /// Whether any container was ever started.
    #[must_use]
    pub fn ran(&self) -> bool {
        self.machines.iter().any(|machine| machine.exit.is_some() || machine.attempt.is_some())
    }

    /// Whether the stage of the pod or of a container differs.
    #[must_use]
    pub fn stage_differs_from(&self, before: &Self) -> bool {
        self.stage != before.stage
            || self.machines.iter().zip(&before.machines).any(|(now, was)| now.stage != was.stage)
    }
}
