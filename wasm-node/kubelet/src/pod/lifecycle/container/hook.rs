//! A container's `postStart` hook: until it has ended, the container doesn't count as running. Pure.

use super::{Action, Class, ContainerContext, ContainerMachine, ContainerRun, ContainerStage, ProbeKind, StopReason};

/// The pod's event, in upstream's words, if a hook fell back to HTTP.
pub(super) fn fell_back(host: &str) -> Action {
    let message = format!("request to HTTPS lifecycle hook {host} got HTTP response, retry with HTTP succeeded");
    Action::EventRecord { warning: true, reason: "LifecycleHTTPFallback", message, container: None }
}

impl ContainerMachine {
    /// Whether the `postStart` hook is running, or has failed and the container is being stopped.
    #[must_use]
    pub fn hook_pending(&self) -> bool {
        match &self.stage {
            ContainerStage::Running(running) | ContainerStage::Stopping { running, .. } => running.hook_pending,
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Waiting { .. }
            | ContainerStage::Starting
            | ContainerStage::Done => false,
        }
    }

    /// Ends the wait for the `postStart` hook. `well`: the container continues as one without a hook.
    pub(super) fn finish_hook(&mut self, well: bool) {
        let (ContainerStage::Running(running) | ContainerStage::Stopping { running, .. }) = &mut self.stage else {
            return;
        };
        if std::mem::take(&mut running.hook_pending) {
            running.ready &= well;
            running.started &= well;
            // Until then the status showed the previous run.
            if let Some(exit) = self.exit.take() {
                self.last = Some(exit);
            }
        }
    }

    /// The container counts as running from now on.
    pub(super) fn mark_running(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        self.finish_hook(true);
        let own = cx.own;
        self.passed |= self.class == Class::Sidecar && own.startup.is_none();
        if own.startup.is_some() {
            actions.push(Action::Probe(cx.index, ProbeKind::Startup));
        } else {
            cx.start_other_probes(actions);
        }
    }

    /// Handles the end of the `postStart` hook.
    pub(super) fn handle_hook(
        &mut self,
        cx: &ContainerContext<'_>,
        failure: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let ContainerStage::Running(ContainerRun { hook_pending: true, .. }) = &self.stage else { return };
        let Some(message) = failure else { return self.mark_running(cx, actions) };
        actions.push(cx.hook_failed());
        let grace = cx.rules.grace;
        self.stop_running(cx, ("FailedPostStartHook".into(), grace, StopReason::Hook { message }), actions);
    }
}
