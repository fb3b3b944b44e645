//! The hook after a container's start: until it has ended, the container is as one that is still to come. Pure.

use super::{Action, Cell, CellContext, CellStage, Class, ProbeKind, Running, StopReason};

/// What is said of the pod, in upstream's words, where a hook made do with HTTP.
pub(super) fn fell_back(host: &str) -> Action {
    let message = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
    Action::EventRecord { warning: true, reason: "LifecycleHTTPFallback", message, container: None }
}

impl Cell {
    /// Whether the hook after its start goes on, or has failed and the container is being stopped for that.
    #[must_use]
    pub fn hooking(&self) -> bool {
        match &self.stage {
            CellStage::Running(running) | CellStage::Stopping { running, .. } => running.hooking,
            _ => false,
        }
    }

    /// The hook after its start is no more what it waits for. `well`: it is as good as one that has none.
    pub(super) fn hook_over(&mut self, well: bool) {
        let (CellStage::Running(running) | CellStage::Stopping { running, .. }) = &mut self.stage else { return };
        if std::mem::take(&mut running.hooking) {
            running.ready &= well;
            running.started &= well;
            // Until then its status was that of a container that is still to come.
            if let Some(exit) = self.exit.take() {
                self.last = Some(exit);
            }
        }
    }

    /// It counts as running from now on.
    pub(super) fn counts(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        self.hook_over(true);
        let own = around.own;
        self.passed |= self.class == Class::Sidecar && own.startup.is_none();
        if own.startup.is_some() {
            actions.push(Action::Probe(around.index, ProbeKind::Startup));
        } else {
            around.probe_the_rest(actions);
        }
    }

    /// The hook after its start has ended.
    pub(super) fn hooked(&mut self, around: &CellContext<'_>, failure: Option<String>, actions: &mut Vec<Action>) {
        let CellStage::Running(Running { hooking: true, .. }) = &self.stage else { return };
        let Some(message) = failure else { return self.counts(around, actions) };
        actions.push(around.hook_failed());
        let grace = around.rules.grace;
        self.stop_running(around, ("FailedPostStartHook".into(), grace, StopReason::Hook { message }), actions);
    }
}
