//! The state machine of one container of a pod. Pure: takes events, returns actions. The pod's state ([`super::state`])
//! decides when its containers start and end.

use std::time::Duration;

use jiff::Timestamp;

use super::backoff::BackOff;
use super::event::{
    Action, Class, ContainerEvent, ContainerPolicy, ImageOwner, LifecyclePolicy, PostStart, ProbeKind, RestartPolicy,
};
pub use super::stage::{ContainerRun, ContainerStage, Exit, StopReason, WaitReason};

mod hook;
mod probe;

/// How long the error of a failed pull is shown before the back-off, so that clients can observe both reasons.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// The same for a failed hook.
const HOOK_ERROR_SHOWN: Duration = PULL_ERROR_SHOWN;
/// The retry interval after a configuration error (upstream's), besides a retry whenever a referenced object changes.
const RETRY: Duration = Duration::from_secs(10);

/// The state of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerMachine {
    /// The container's class.
    pub class: Class,
    /// The current stage.
    pub stage: ContainerStage,
    /// The number of the newest start, from 0; `None` before the first.
    pub attempt: Option<u32>,
    /// The number of the newest pull or start. A result carries its number, so that older results are dropped.
    pub preparation: u32,
    /// The exit of the newest run; `None` while it runs and before.
    pub exit: Option<Exit>,
    /// The exit of the previous run.
    pub last: Option<Exit>,
    /// The image's digest.
    pub image_id: String,
    /// The containers after it may start: an init container has succeeded, or a sidecar has started.
    pub passed: bool,
    crash: BackOff,
    pull: BackOff,
}

/// The part of the pod that a container's step depends on.
pub(in crate::pod) struct ContainerContext<'a> {
    pub(in crate::pod) rules: &'a LifecyclePolicy,
    pub(in crate::pod) own: &'a ContainerPolicy,
    pub(in crate::pod) index: usize,
    pub(in crate::pod) now: Timestamp,
    /// No container of the pod starts any more.
    pub(in crate::pod) closing: bool,
    /// The volumes are filled.
    pub(in crate::pod) sandbox: bool,
}

impl ContainerContext<'_> {
    fn event(&self, warning: bool, reason: &'static str, message: impl Into<String>) -> Action {
        Action::EventRecord { warning, reason, message: message.into(), container: Some(self.index) }
    }

    fn normal(&self, reason: &'static str, message: impl Into<String>) -> Action {
        self.event(false, reason, message)
    }

    fn warning(&self, reason: &'static str, message: impl Into<String>) -> Action {
        self.event(true, reason, message)
    }

    /// An image's reference in the pod's spec.
    fn image<'a>(&'a self, of: &'a ImageOwner) -> &'a str {
        match of {
            ImageOwner::Container => &self.own.image,
            ImageOwner::Volume(reference) => reference,
        }
    }

    /// Several containers may mount a volume's image, so its events are the pod's.
    fn image_event(&self, of: &ImageOwner, warn: bool, reason: &'static str, text: impl Fn(&str) -> String) -> Action {
        let container = (*of == ImageOwner::Container).then_some(self.index);
        Action::EventRecord { warning: warn, reason, message: text(self.image(of)), container }
    }

    /// Upstream's message, which doesn't contain the hook's response.
    fn hook_failed(&self) -> Action {
        self.warning("FailedPostStartHook", "PostStartHook failed")
    }

    fn start_other_probes(&self, actions: &mut Vec<Action>) {
        for kind in [ProbeKind::Readiness, ProbeKind::Liveness] {
            if self.own.thresholds(kind).is_some() {
                actions.push(Action::Probe(self.index, kind));
            }
        }
    }
}

pub(in crate::pod) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Whether a failed pull with this reason backs off, as it has reached the registry.
fn backs_off(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
}

impl ContainerMachine {
    /// A container that was never started.
    #[must_use]
    pub fn new(class: Class) -> Self {
        Self {
            class,
            stage: ContainerStage::Idle,
            attempt: None,
            preparation: 0,
            exit: None,
            last: None,
            image_id: String::new(),
            passed: false,
            crash: BackOff::default(),
            pull: BackOff::default(),
        }
    }

    /// A container that an earlier run of the agent had started, and that ended with `exit`.
    pub(in crate::pod) fn resume(class: Class, attempt: u32, exit: Exit, image_id: String) -> Self {
        Self { attempt: Some(attempt), exit: Some(exit), image_id, ..Self::new(class) }
    }

    /// Whether the container counts as ready. `deleted`: the pod is being deleted.
    #[must_use]
    pub fn ready(&self, deleted: bool) -> bool {
        match &self.stage {
            ContainerStage::Running(running) => running.serves(),
            // A deletion alone marks its endpoints not ready; if a Service has no others, they still receive traffic.
            ContainerStage::Stopping { running, why: StopReason::Pod } => deleted && running.serves(),
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Waiting { .. }
            | ContainerStage::Starting
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => false,
        }
    }

    /// Whether the container runs, or is being stopped.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.stage, ContainerStage::Running(_) | ContainerStage::Stopping { .. })
    }

    /// The number of the current or last start.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.attempt.unwrap_or(0)
    }

    /// The number of the next or current start, while the container doesn't run.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        match (self.attempt, &self.exit) {
            (None, _) => 0,
            (Some(attempt), Some(_)) => attempt.saturating_add(1),
            (Some(attempt), None) => attempt,
        }
    }

    /// Whether the pull or start of that number is in progress.
    #[must_use]
    pub fn awaits(&self, preparation: u32) -> bool {
        matches!(self.stage, ContainerStage::Pulling | ContainerStage::Starting) && self.preparation == preparation
    }

    /// Starts the container, as its turn has come.
    pub(in crate::pod) fn begin(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        if self.stage == ContainerStage::Idle {
            match self.exit.as_ref().map(|exit| exit.finished) {
                Some(finished) => self.restart(cx, finished, actions),
                None => self.prepare(cx, actions),
            }
        }
    }

    /// Decides whether a container from an earlier run of the agent starts again.
    pub(in crate::pod) fn resume_or_finish(&mut self, cx: &ContainerContext<'_>) {
        let Some(exit) = &self.exit else { return };
        // An init container of a pod that always restarts runs again, as upstream's does without its sandbox.
        let reruns = self.class == Class::Init && cx.rules.restart == RestartPolicy::Always;
        if cx.closing || !reruns && !cx.own.restarts(exit.code) {
            self.passed = exit.code == 0;
            self.stage = ContainerStage::Done;
        }
    }

    /// The whole pod restarts: the container starts again in its turn.
    pub(in crate::pod) fn reset(&mut self) {
        self.passed = false;
        self.stage = ContainerStage::Idle;
    }

    /// Handles an event.
    pub(in crate::pod) fn handle_event(
        &mut self,
        cx: &ContainerContext<'_>,
        event: ContainerEvent,
        actions: &mut Vec<Action>,
    ) {
        match event {
            ContainerEvent::PullBegan { of } => {
                actions.push(cx.image_event(&of, false, "Pulling", |image| format!("Pulling image {image:?}")));
            }
            ContainerEvent::VolumePulled { message } => {
                actions.push(Action::EventRecord { warning: false, reason: "Pulled", message, container: None });
            }
            ContainerEvent::Pulled { preparation, image_id, message } if self.is_pulling(preparation) => {
                self.image_id = image_id;
                self.pull = BackOff::default();
                actions.push(cx.normal("Pulled", message));
                self.create(cx, actions);
            }
            ContainerEvent::PullFailed { preparation, of, reason, message } if self.is_pulling(preparation) => {
                self.handle_pull_failure(cx, of, (reason, message), actions);
            }
            ContainerEvent::Started { container_id } => {
                if self.stage == ContainerStage::Starting {
                    self.handle_started(cx, container_id, actions);
                }
            }
            ContainerEvent::StartFailed { preparation, reason, message } => {
                if self.stage == ContainerStage::Starting && self.awaits(preparation) {
                    actions.push(cx.warning("Failed", format!("Error: {message}")));
                    let wait = WaitReason::Config { reason, message };
                    self.stage = ContainerStage::Waiting { wait, until: after(cx.now, RETRY) };
                }
            }
            ContainerEvent::SourcesChanged => {
                if matches!(&self.stage, ContainerStage::Waiting { wait: WaitReason::Config { .. }, .. }) {
                    self.create(cx, actions);
                }
            }
            ContainerEvent::HookFailed => actions.push(cx.warning("FailedPreStopHook", "PreStopHook failed")),
            ContainerEvent::HookFellBack { host } => actions.push(hook::fell_back(&host)),
            ContainerEvent::HookEnded { attempt, failure } => {
                if attempt == self.current() {
                    self.handle_hook(cx, failure, actions);
                }
            }
            ContainerEvent::StoppedListening => {
                if let ContainerStage::Stopping { running, .. } = &mut self.stage {
                    (running.ready, running.stopped_listening) = (false, true);
                }
            }
            ContainerEvent::ImageChanged => self.handle_image_change(cx, actions),
            ContainerEvent::Resized => self.handle_resize(cx, actions),
            ContainerEvent::InstantiationTried { attempt, broken } => {
                if attempt == self.current() {
                    self.handle_trial(cx, broken, actions);
                }
            }
            ContainerEvent::Probed { attempt, kind, result } => {
                if attempt == self.current() {
                    self.handle_probe(cx, kind, result, actions);
                }
            }
            ContainerEvent::Exited { attempt, code, reason, message } if attempt == self.current() => {
                self.handle_exit(cx, (code, reason, message), actions);
            }
            ContainerEvent::Pulled { .. } | ContainerEvent::PullFailed { .. } | ContainerEvent::Exited { .. } => {}
        }
    }

    /// Handles a passed deadline.
    pub(in crate::pod) fn tick(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        let ContainerStage::Waiting { wait, until } = &self.stage else { return };
        if cx.now < *until {
            return;
        }
        match wait.clone() {
            WaitReason::Pull { of, reason, message } if backs_off(reason) => {
                let now = cx.now;
                let (until, _) = self.pull.until(now, now).unwrap_or((after(now, RETRY), RETRY));
                let message = format!("Back-off pulling image {:?}: {reason}: {message}", cx.image(&of));
                let text = |image: &str| format!("Back-off pulling image {image:?}");
                actions.push(cx.image_event(&of, false, "BackOff", text));
                actions.push(cx.warning("Failed", "Error: ImagePullBackOff"));
                self.stage = ContainerStage::Waiting { wait: WaitReason::PullBackOff { message }, until };
            }
            WaitReason::Config { .. } => self.create(cx, actions),
            WaitReason::Hook { .. } => {
                let finished = self.exit.as_ref().map_or(cx.now, |exit| exit.finished);
                self.restart(cx, finished, actions);
            }
            WaitReason::Pull { .. } | WaitReason::PullBackOff { .. } | WaitReason::Crash { .. } => {
                self.prepare(cx, actions)
            }
        }
    }

    fn is_pulling(&self, preparation: u32) -> bool {
        self.stage == ContainerStage::Pulling && self.awaits(preparation)
    }

    /// Begins the next start with a pull, once the volumes are filled.
    fn prepare(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        if cx.sandbox {
            self.stage = ContainerStage::Pulling;
            self.preparation = self.preparation.wrapping_add(1);
            actions.push(Action::Pull(cx.index));
        } else {
            self.stage = ContainerStage::Idle;
        }
    }

    fn create(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        self.stage = ContainerStage::Starting;
        self.preparation = self.preparation.wrapping_add(1);
        actions.push(Action::Start { container: cx.index, attempt: self.next_attempt() });
    }

    fn handle_image_change(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        match &self.stage {
            // As upstream: an init container runs to its end.
            ContainerStage::Running(_) if self.class == Class::Init => {}
            ContainerStage::Running(_) => {
                let name = &cx.own.name;
                let message = match self.class {
                    Class::Sidecar => format!("Init container {name} definition changed"),
                    _ => format!("Container {name} definition changed, will be restarted"),
                };
                self.finish_hook(false);
                self.stop_running(cx, (message, cx.rules.grace, StopReason::Changed { since: cx.now }), actions);
            }
            ContainerStage::Pulling | ContainerStage::Starting => self.prepare(cx, actions),
            ContainerStage::Waiting {
                wait: WaitReason::Pull { .. } | WaitReason::PullBackOff { .. } | WaitReason::Config { .. },
                ..
            } => {
                self.pull = BackOff::default();
                self.prepare(cx, actions);
            }
            // The next start pulls the new image.
            ContainerStage::Waiting { wait: WaitReason::Hook { .. } | WaitReason::Crash { .. }, .. }
            | ContainerStage::Idle
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => {}
        }
    }

    /// Restarts a running container, whatever its restart policy.
    fn handle_resize(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        let message = format!("Container {} resize requires restart", cx.own.name);
        self.stop_running(cx, (message, cx.rules.grace, StopReason::Changed { since: cx.now }), actions);
    }

    /// Stops a running container while its pod continues; `message` is the event's text.
    fn stop_running(
        &mut self,
        cx: &ContainerContext<'_>,
        (message, grace, why): (String, Duration, StopReason),
        actions: &mut Vec<Action>,
    ) {
        if let ContainerStage::Running(running) = &self.stage {
            self.stage = ContainerStage::Stopping { running: running.clone(), why };
            actions.push(cx.normal("Killing", message));
            actions.push(Action::Stop { container: cx.index, grace });
        }
    }

    fn handle_pull_failure(
        &mut self,
        cx: &ContainerContext<'_>,
        of: ImageOwner,
        (reason, message): (&'static str, String),
        actions: &mut Vec<Action>,
    ) {
        let now = cx.now;
        let until = match reason {
            reason if backs_off(reason) => {
                self.pull.next(now, now);
                let text = |image: &str| format!("Failed to pull image {image:?}: {message}");
                actions.push(cx.image_event(&of, true, "Failed", text));
                after(now, PULL_ERROR_SHOWN)
            }
            "InvalidImageName" => {
                actions.push(cx.image_event(&of, true, "InspectFailed", |_| message.clone()));
                after(now, RETRY)
            }
            _ => {
                actions.push(cx.image_event(&of, true, "ErrImageNeverPull", |_| message.clone()));
                after(now, RETRY)
            }
        };
        actions.push(cx.warning("Failed", format!("Error: {reason}")));
        self.stage = ContainerStage::Waiting { wait: WaitReason::Pull { of, reason, message }, until };
    }

    fn handle_started(&mut self, cx: &ContainerContext<'_>, container_id: String, actions: &mut Vec<Action>) {
        self.attempt = Some(self.next_attempt());
        actions.push(cx.normal("Created", "Container created"));
        actions.push(cx.normal("Started", "Container started"));
        let own = cx.own;
        self.stage = ContainerStage::Running(ContainerRun {
            since: cx.now,
            container_id,
            hook_pending: true,
            started: own.startup.is_none(),
            ready: own.readiness.is_none(),
            stopped_listening: false,
            instantiable: true,
            first_probe_pending: true,
            streaks: [(true, 0); 3],
        });
        if own.post_start.is_some() {
            actions.push(Action::Hook(cx.index));
        } else {
            self.mark_running(cx, actions);
        }
    }

    /// Stops a running container. `sooner`: also shortens a stop in progress.
    pub(in crate::pod) fn stop(
        &mut self,
        cx: &ContainerContext<'_>,
        reason: &StopReason,
        grace: Duration,
        sooner: bool,
        actions: &mut Vec<Action>,
    ) {
        let container = cx.index;
        let hooks = matches!(self.stage, ContainerStage::Running(_)) && self.hook_pending();
        self.finish_hook(false);
        match &mut self.stage {
            ContainerStage::Running(running) => {
                // As upstream, where the hook is cancelled with the rest of the pod's start.
                actions.extend(hooks.then(|| cx.hook_failed()));
                actions.push(cx.normal("Killing", format!("Stopping container {}", cx.own.name)));
                actions.push(Action::Stop { container, grace });
                self.stage = ContainerStage::Stopping { running: running.clone(), why: reason.clone() };
            }
            ContainerStage::Stopping { why, .. } if sooner || *why != *reason => {
                *why = reason.clone();
                actions.push(Action::Stop { container, grace });
            }
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Waiting { .. }
            | ContainerStage::Starting
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => {}
        }
    }

    /// Abandons a container that doesn't run: it never starts again, or starts in its turn if `again`.
    pub(in crate::pod) fn abandon(&mut self, cx: &ContainerContext<'_>, again: bool, actions: &mut Vec<Action>) {
        let stage = if again { ContainerStage::Idle } else { ContainerStage::Done };
        if !self.is_live() && self.stage != ContainerStage::Done && self.stage != stage {
            actions.push(Action::Kill(cx.index));
            self.stage = stage;
        }
    }

    /// Handles the end of a run.
    fn handle_exit(
        &mut self,
        cx: &ContainerContext<'_>,
        (code, reason, message): (i32, String, Option<String>),
        actions: &mut Vec<Action>,
    ) {
        let why = match &self.stage {
            ContainerStage::Stopping { why, .. } => Some(why.clone()),
            ContainerStage::Running(running) if running.hook_pending && cx.own.post_start == Some(PostStart::Call) => {
                actions.push(cx.hook_failed());
                None
            }
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Waiting { .. }
            | ContainerStage::Starting
            | ContainerStage::Running(_)
            | ContainerStage::Done => None,
        };
        self.finish_hook(false);
        let (ContainerStage::Running(running) | ContainerStage::Stopping { running, .. }) = &self.stage else { return };
        let mut exit = Exit {
            code,
            reason,
            message,
            started: Some(running.since),
            finished: cx.now,
            container_id: Some(running.container_id.clone()),
        };
        actions.push(Action::Kill(cx.index));
        let stopped = why == Some(StopReason::RestartAll);
        if !cx.closing && (stopped || cx.own.restarts_all(code)) {
            if stopped {
                // Upstream's words.
                exit.reason = "RestartingAllContainers".into();
                exit.message = Some("The container is removed because RestartAllContainers in place".into());
            }
            self.exit = Some(exit);
            self.stage = ContainerStage::Idle;
            return;
        }
        self.exit = Some(exit);
        match why {
            Some(StopReason::Changed { .. }) if !cx.closing => self.prepare(cx, actions),
            Some(StopReason::Hook { message }) if !cx.closing && cx.own.restarts(code) => {
                let wait = WaitReason::Hook { message };
                self.stage = ContainerStage::Waiting { wait, until: after(cx.now, HOOK_ERROR_SHOWN) };
            }
            _ => self.follow_exit(cx, actions),
        }
    }

    /// Decides what follows an exit: another start, now or later, or none.
    fn follow_exit(&mut self, cx: &ContainerContext<'_>, actions: &mut Vec<Action>) {
        let Some(exit) = &self.exit else { return };
        if cx.closing || !cx.own.restarts(exit.code) {
            self.passed |= self.class == Class::Init && exit.code == 0;
            self.stage = ContainerStage::Done;
            return;
        }
        let finished = exit.finished;
        self.restart(cx, finished, actions);
    }

    /// Starts again after an exit at `finished`, now or after the back-off.
    fn restart(&mut self, cx: &ContainerContext<'_>, finished: Timestamp, actions: &mut Vec<Action>) {
        let now = cx.now;
        if let Some((until, wait)) = self.crash.until(finished, now) {
            let (name, pod) = (&cx.own.name, &cx.rules.pod);
            let message = format!("Back-off restarting failed container {name} in pod {pod}");
            actions.push(cx.warning("BackOff", message));
            self.stage = ContainerStage::Waiting { wait: WaitReason::Crash { wait }, until };
            // The next try happens at exactly that time.
            self.crash.next(finished, until);
        } else {
            self.crash.next(finished, now);
            self.prepare(cx, actions);
        }
    }
}
