//! The results of a container's probes and trial instantiations: readiness, startup, and restarts. Pure.

use super::{
    Action, Class, ContainerContext, ContainerMachine, ContainerPolicy, ContainerStage, ProbeKind, RestartPolicy,
    StopReason,
};
use crate::pod::lifecycle::event::ProbeResult;

impl ContainerMachine {
    /// Handles a trial instantiation.
    pub(super) fn handle_trial(
        &mut self,
        cx: &ContainerContext<'_>,
        broken: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let ContainerStage::Running(running) = &mut self.stage else { return };
        if let Some(broken) = &broken
            && running.instantiable
        {
            actions.push(cx.warning("Unhealthy", format!("The module cannot be instantiated: {broken}")));
        }
        running.instantiable = broken.is_none();
        if cx.own.startup.is_none() && cx.own.readiness.is_none() {
            running.first_probe_pending = false;
        }
    }

    /// Handles a probe's result: counts it, and acts once the threshold is reached.
    pub(super) fn handle_probe(
        &mut self,
        cx: &ContainerContext<'_>,
        kind: ProbeKind,
        result: ProbeResult,
        actions: &mut Vec<Action>,
    ) {
        let running = match &mut self.stage {
            ContainerStage::Running(running) => running,
            // As upstream, the readiness probe goes on while the pod ends; the others have ended with its beginning.
            ContainerStage::Stopping { running, why: StopReason::Pod }
                if kind == ProbeKind::Readiness && !running.stopped_listening =>
            {
                running
            }
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Waiting { .. }
            | ContainerStage::Starting
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => return,
        };
        let Some(thresholds) = cx.own.thresholds(kind) else { return };
        let word = kind.word();
        let failure = match result {
            ProbeResult::Passed => None,
            ProbeResult::Failed(why) => Some(why),
            ProbeResult::Warned(what) => {
                actions.push(cx.warning("ProbeWarning", format!("{word} probe warning: {what}")));
                None
            }
            ProbeResult::Errored(why) => {
                let message = format!("{word} probe errored and resulted in unknown state: {why}");
                actions.push(cx.warning("Unhealthy", message));
                return;
            }
        };
        let good = failure.is_none();
        let streak = &mut running.streaks[kind as usize];
        *streak = if streak.0 == good { (good, streak.1.saturating_add(1)) } else { (good, 1) };
        let (_, times) = *streak;
        if kind != ProbeKind::Liveness {
            running.first_probe_pending = false;
        }
        if let Some(failure) = failure {
            actions.push(cx.warning("Unhealthy", format!("{word} probe failed: {failure}")));
            if times < thresholds.failure {
                return;
            }
            if kind == ProbeKind::Readiness {
                running.ready = false;
                return;
            }
            let grace = thresholds.grace.unwrap_or(cx.rules.grace);
            self.stop_running(cx, (failed_probe(cx.own, kind), grace, StopReason::Probe), actions);
        } else if times >= thresholds.success {
            match kind {
                ProbeKind::Readiness => running.ready = true,
                ProbeKind::Startup if !running.started => {
                    running.started = true;
                    self.passed |= self.class == Class::Sidecar;
                    running.first_probe_pending = cx.own.readiness.is_some();
                    cx.start_other_probes(actions);
                }
                ProbeKind::Startup | ProbeKind::Liveness => {}
            }
        }
    }
}

/// Upstream's message, which depends on the container's class.
fn failed_probe(own: &ContainerPolicy, kind: ProbeKind) -> String {
    let (name, word) = (&own.name, kind.word().to_lowercase());
    match own.class {
        Class::Sidecar => format!("Init container {name} failed {word} probe"),
        _ if own.restart == RestartPolicy::Never => format!("Container {name} failed {word} probe"),
        _ => format!("Container {name} failed {word} probe, will be restarted"),
    }
}
