//! One container of a pod: where it stands, and what follows from what happens to it. Pure; the pod decides when its
//! containers begin and end ([`super::state`]).

use std::time::Duration;

use jiff::Timestamp;

use super::backoff::BackOff;
use super::event::{
    Action, CellEvent, Class, ContainerPolicy, ImageOf, LifecyclePolicy, PostStart, ProbeKind, ProbeResult, Restart,
};
pub use super::stage::{CellStage, Exit, Running, StopReason, Wait};

mod hook;

/// Between a failed pull and the back-off that it is then said to be in, so that both reasons can be seen.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// The same between a hook that failed and what follows.
const HOOK_ERROR_SHOWN: Duration = PULL_ERROR_SHOWN;
/// What can't begin for its configuration is tried again so often, besides whenever an object that it names changes
/// (upstream's period).
const RETRY: Duration = Duration::from_secs(10);

/// All that is remembered of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What it is to the pod.
    pub class: Class,
    /// Where it stands.
    pub stage: CellStage,
    /// How often it was started before, and once more: none = never.
    pub attempt: Option<u32>,
    /// The number of the newest pull or start. Its result carries the number, so that an older result is dropped.
    pub preparation: u32,
    /// How the newest run ended; none while it runs and before.
    pub exit: Option<Exit>,
    /// How the one before ended.
    pub last: Option<Exit>,
    /// The image's digest.
    pub image_id: String,
    /// It has let those begin that come after it: an init container by its good end, a sidecar by having started.
    pub passed: bool,
    crash: BackOff,
    pull: BackOff,
}

/// What of the pod a container's step depends on.
pub(super) struct CellContext<'a> {
    pub(super) rules: &'a LifecyclePolicy,
    pub(super) own: &'a ContainerPolicy,
    pub(super) index: usize,
    pub(super) now: Timestamp,
    /// Nothing of the pod begins any more.
    pub(super) closing: bool,
    /// The volumes are there.
    pub(super) sandbox: bool,
}

impl CellContext<'_> {
    fn note(&self, warning: bool, reason: &'static str, message: impl Into<String>) -> Action {
        Action::EventRecord { warning, reason, message: message.into(), container: Some(self.index) }
    }

    fn normal(&self, reason: &'static str, message: impl Into<String>) -> Action {
        self.note(false, reason, message)
    }

    fn warning(&self, reason: &'static str, message: impl Into<String>) -> Action {
        self.note(true, reason, message)
    }

    /// What an image is called in the pod's spec.
    fn image<'a>(&'a self, of: &'a ImageOf) -> &'a str {
        match of {
            ImageOf::Container => &self.own.image,
            ImageOf::Volume(reference) => reference,
        }
    }

    /// Of an image that several containers may mount it is the pod that something is said of.
    fn of_image(&self, of: &ImageOf, warning: bool, reason: &'static str, said: impl FnOnce(&str) -> String) -> Action {
        let container = (*of == ImageOf::Container).then_some(self.index);
        Action::EventRecord { warning, reason, message: said(self.image(of)), container }
    }

    /// Upstream's words, which tell nothing that the hook was answered.
    fn hook_failed(&self) -> Action {
        self.warning("FailedPostStartHook", "PostStartHook failed")
    }

    fn probe_the_rest(&self, actions: &mut Vec<Action>) {
        for kind in [ProbeKind::Readiness, ProbeKind::Liveness] {
            if self.own.thresholds(kind).is_some() {
                actions.push(Action::Probe(self.index, kind));
            }
        }
    }
}

pub(super) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

/// Whether a pull that failed for this reason is tried again later and later: the registry was asked.
fn backs_off(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
}

impl Cell {
    /// One that was never started.
    #[must_use]
    pub fn new(class: Class) -> Self {
        Self {
            class,
            stage: CellStage::Idle,
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

    /// One that an earlier run of the agent had started: it is no more, and ended like `exit`.
    pub(super) fn resume(class: Class, attempt: u32, exit: Exit, image_id: String) -> Self {
        Self { attempt: Some(attempt), exit: Some(exit), image_id, ..Self::new(class) }
    }

    /// Whether it counts as ready; `deleted`: the pod is being deleted.
    #[must_use]
    pub fn ready(&self, deleted: bool) -> bool {
        match &self.stage {
            CellStage::Running(running) => running.serves(),
            // Its endpoints are not ready for the deletion alone; where there are no others they are still served by.
            CellStage::Stopping { running, why: StopReason::Pod } => deleted && running.serves(),
            _ => false,
        }
    }

    /// Whether a container of it is there.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.stage, CellStage::Running(_) | CellStage::Stopping { .. })
    }

    /// The start that is under way or was last.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.attempt.unwrap_or(0)
    }

    /// The number of the start that is next or under way, while the container doesn't run.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        match (self.attempt, &self.exit) {
            (None, _) => 0,
            (Some(attempt), Some(_)) => attempt.saturating_add(1),
            (Some(attempt), None) => attempt,
        }
    }

    /// Whether the pull or start of that number is under way.
    #[must_use]
    pub fn awaits(&self, preparation: u32) -> bool {
        matches!(self.stage, CellStage::Pulling | CellStage::Starting) && self.preparation == preparation
    }

    /// Its turn has come.
    pub(super) fn begin(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        if self.stage == CellStage::Idle {
            match self.exit.as_ref().map(|exit| exit.finished) {
                Some(finished) => self.again(around, finished, actions),
                None => self.prepare(around, actions),
            }
        }
    }

    /// Decides what becomes of one that an earlier run of the agent had started.
    pub(super) fn recall(&mut self, around: &CellContext<'_>) {
        let Some(exit) = &self.exit else { return };
        // A pod that always restarts begins from the start, as upstream's whose sandbox is no more.
        let anew = self.class == Class::Init && around.rules.restart == Restart::Always;
        if around.closing || !anew && !around.own.restarts(exit.code) {
            self.passed = exit.code == 0;
            self.stage = CellStage::Done;
        }
    }

    /// The whole pod is started anew: it has its turn again.
    pub(super) fn reset(&mut self) {
        self.passed = false;
        self.stage = CellStage::Idle;
    }

    /// Something happened to it.
    pub(super) fn take(&mut self, around: &CellContext<'_>, event: CellEvent, actions: &mut Vec<Action>) {
        match event {
            CellEvent::PullBegan { of } => {
                actions.push(around.of_image(&of, false, "Pulling", |image| format!("Pulling image {image:?}")));
            }
            CellEvent::VolumePulled { message } => {
                actions.push(Action::EventRecord { warning: false, reason: "Pulled", message, container: None });
            }
            CellEvent::Pulled { preparation, image_id, message } if self.is_pulling(preparation) => {
                self.image_id = image_id;
                self.pull = BackOff::default();
                actions.push(around.normal("Pulled", message));
                self.begin_start(around, actions);
            }
            CellEvent::PullFailed { preparation, of, reason, message } if self.is_pulling(preparation) => {
                self.pull_failed(around, of, (reason, message), actions);
            }
            CellEvent::Started { container_id } => {
                if self.stage == CellStage::Starting {
                    self.started(around, container_id, actions);
                }
            }
            CellEvent::StartFailed { preparation, reason, message } => {
                if self.stage == CellStage::Starting && self.awaits(preparation) {
                    actions.push(around.warning("Failed", format!("Error: {message}")));
                    let wait = Wait::Config { reason, message };
                    self.stage = CellStage::Waiting { wait, until: after(around.now, RETRY) };
                }
            }
            CellEvent::SourcesChanged => {
                if matches!(&self.stage, CellStage::Waiting { wait: Wait::Config { .. }, .. }) {
                    self.begin_start(around, actions);
                }
            }
            CellEvent::HookFailed => actions.push(around.warning("FailedPreStopHook", "PreStopHook failed")),
            CellEvent::HookFellBack { host } => actions.push(hook::fell_back(&host)),
            CellEvent::Hooked { attempt, failure } => {
                if attempt == self.current() {
                    self.hooked(around, failure, actions);
                }
            }
            CellEvent::Closed => {
                if let CellStage::Stopping { running, .. } = &mut self.stage {
                    running.ready = false;
                }
            }
            CellEvent::ImageChanged => self.image_changed(around, actions),
            CellEvent::Resized => self.resized(around, actions),
            CellEvent::Tried { attempt, broken } => {
                if attempt == self.current() {
                    self.tried(around, broken, actions);
                }
            }
            CellEvent::Probed { attempt, kind, result } => {
                if attempt == self.current() {
                    self.probed(around, kind, result, actions);
                }
            }
            CellEvent::Exited { attempt, code, reason, message } if attempt == self.current() => {
                self.exited(around, (code, reason, message), actions);
            }
            CellEvent::Pulled { .. } | CellEvent::PullFailed { .. } | CellEvent::Exited { .. } => {}
        }
    }

    /// Its time has come, where it waited for one.
    pub(super) fn tick(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        let CellStage::Waiting { wait, until } = &self.stage else { return };
        if around.now < *until {
            return;
        }
        match wait.clone() {
            Wait::Pull { of, reason, message } if backs_off(reason) => {
                let now = around.now;
                let (until, _) = self.pull.until(now, now).unwrap_or((after(now, RETRY), RETRY));
                let message = format!("Back-off pulling image {:?}: {reason}: {message}", around.image(&of));
                let said = |image: &str| format!("Back-off pulling image {image:?}");
                actions.push(around.of_image(&of, false, "BackOff", said));
                actions.push(around.warning("Failed", "Error: ImagePullBackOff"));
                self.stage = CellStage::Waiting { wait: Wait::PullBackOff { message }, until };
            }
            Wait::Config { .. } => self.begin_start(around, actions),
            Wait::Hook { .. } => {
                let finished = self.exit.as_ref().map_or(around.now, |exit| exit.finished);
                self.again(around, finished, actions);
            }
            Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Crash { .. } => self.prepare(around, actions),
        }
    }

    fn is_pulling(&self, preparation: u32) -> bool {
        self.stage == CellStage::Pulling && self.awaits(preparation)
    }

    /// Makes the container anew, as soon as the volumes are there.
    fn prepare(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        if around.sandbox {
            self.stage = CellStage::Pulling;
            self.preparation = self.preparation.wrapping_add(1);
            actions.push(Action::Pull(around.index));
        } else {
            self.stage = CellStage::Idle;
        }
    }

    fn begin_start(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        self.stage = CellStage::Starting;
        self.preparation = self.preparation.wrapping_add(1);
        actions.push(Action::Start { container: around.index, attempt: self.next_attempt() });
    }

    fn image_changed(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        match &self.stage {
            // As upstream: one that runs once is left to its end.
            CellStage::Running(_) if self.class == Class::Init => {}
            CellStage::Running(_) => {
                let name = &around.own.name;
                let message = match self.class {
                    Class::Sidecar => format!("Init container {name} definition changed"),
                    _ => format!("Container {name} definition changed, will be restarted"),
                };
                self.hook_over(false);
                self.stop_running(
                    around,
                    (message, around.rules.grace, StopReason::Changed { since: around.now }),
                    actions,
                );
            }
            CellStage::Pulling | CellStage::Starting => self.prepare(around, actions),
            CellStage::Waiting { wait: Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Config { .. }, .. } => {
                self.pull = BackOff::default();
                self.prepare(around, actions);
            }
            _ => {}
        }
    }

    /// One that runs is started anew, whatever its restart policy.
    fn resized(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        let message = format!("Container {} resize requires restart", around.own.name);
        self.stop_running(around, (message, around.rules.grace, StopReason::Changed { since: around.now }), actions);
    }

    /// What runs is stopped on its own account, and its pod goes on; `message` says in an event why.
    fn stop_running(
        &mut self,
        around: &CellContext<'_>,
        (message, grace, why): (String, Duration, StopReason),
        actions: &mut Vec<Action>,
    ) {
        if let CellStage::Running(running) = &self.stage {
            self.stage = CellStage::Stopping { running: running.clone(), why };
            actions.push(around.normal("Killing", message));
            actions.push(Action::Stop { container: around.index, grace });
        }
    }

    fn pull_failed(
        &mut self,
        around: &CellContext<'_>,
        of: ImageOf,
        (reason, message): (&'static str, String),
        actions: &mut Vec<Action>,
    ) {
        let now = around.now;
        let until = match reason {
            reason if backs_off(reason) => {
                self.pull.next(now, now);
                let said = |image: &str| format!("Failed to pull image {image:?}: {message}");
                actions.push(around.of_image(&of, true, "Failed", said));
                after(now, PULL_ERROR_SHOWN)
            }
            "InvalidImageName" => {
                actions.push(around.of_image(&of, true, "InspectFailed", |_| message.clone()));
                after(now, RETRY)
            }
            _ => {
                actions.push(around.of_image(&of, true, "ErrImageNeverPull", |_| message.clone()));
                after(now, RETRY)
            }
        };
        actions.push(around.warning("Failed", format!("Error: {reason}")));
        self.stage = CellStage::Waiting { wait: Wait::Pull { of, reason, message }, until };
    }

    fn started(&mut self, around: &CellContext<'_>, container_id: String, actions: &mut Vec<Action>) {
        self.attempt = Some(self.next_attempt());
        actions.push(around.normal("Created", "Container created"));
        actions.push(around.normal("Started", "Container started"));
        let own = around.own;
        self.stage = CellStage::Running(Running {
            since: around.now,
            container_id,
            hooking: true,
            started: own.startup.is_none(),
            ready: own.readiness.is_none(),
            instantiable: true,
            unprobed: true,
            rows: [(true, 0); 3],
        });
        if own.post_start.is_some() {
            actions.push(Action::Hook(around.index));
        } else {
            self.counts(around, actions);
        }
    }

    fn tried(&mut self, around: &CellContext<'_>, broken: Option<String>, actions: &mut Vec<Action>) {
        let CellStage::Running(running) = &mut self.stage else { return };
        if let Some(broken) = &broken
            && running.instantiable
        {
            actions.push(around.warning("Unhealthy", format!("The module cannot be instantiated: {broken}")));
        }
        running.instantiable = broken.is_none();
        if around.own.startup.is_none() && around.own.readiness.is_none() {
            running.unprobed = false;
        }
    }

    fn probed(&mut self, around: &CellContext<'_>, kind: ProbeKind, result: ProbeResult, actions: &mut Vec<Action>) {
        let CellStage::Running(running) = &mut self.stage else { return };
        let Some(thresholds) = around.own.thresholds(kind) else { return };
        let word = kind.word();
        let failure = match result {
            ProbeResult::Passed => None,
            ProbeResult::Failed(why) => Some(why),
            ProbeResult::Warned(what) => {
                actions.push(around.warning("ProbeWarning", format!("{word} probe warning: {what}")));
                None
            }
            ProbeResult::Errored(why) => {
                let message = format!("{word} probe errored and resulted in unknown state: {why}");
                actions.push(around.warning("Unhealthy", message));
                return;
            }
        };
        let good = failure.is_none();
        let row = &mut running.rows[kind as usize];
        *row = if row.0 == good { (good, row.1.saturating_add(1)) } else { (good, 1) };
        let (_, times) = *row;
        if kind != ProbeKind::Liveness {
            running.unprobed = false;
        }
        if let Some(failure) = failure {
            actions.push(around.warning("Unhealthy", format!("{word} probe failed: {failure}")));
            if times < thresholds.failure {
                return;
            }
            if kind == ProbeKind::Readiness {
                running.ready = false;
                return;
            }
            let grace = thresholds.grace.unwrap_or(around.rules.grace);
            self.stop_running(around, (failed_probe(around.own, kind), grace, StopReason::Probe), actions);
        } else if times >= thresholds.success {
            match kind {
                ProbeKind::Readiness => running.ready = true,
                ProbeKind::Startup if !running.started => {
                    running.started = true;
                    self.passed |= self.class == Class::Sidecar;
                    running.unprobed = around.own.readiness.is_some();
                    around.probe_the_rest(actions);
                }
                ProbeKind::Startup | ProbeKind::Liveness => {}
            }
        }
    }

    /// It is stopped where it runs; `sooner`: also where it is being stopped, as it has less time now.
    pub(super) fn stop(
        &mut self,
        around: &CellContext<'_>,
        reason: &StopReason,
        grace: Duration,
        sooner: bool,
        actions: &mut Vec<Action>,
    ) {
        let container = around.index;
        let hooks = matches!(self.stage, CellStage::Running(_)) && self.hooking();
        self.hook_over(false);
        match &mut self.stage {
            CellStage::Running(running) => {
                // As upstream, where the hook is broken off with what else is done to begin the pod.
                actions.extend(hooks.then(|| around.hook_failed()));
                actions.push(around.normal("Killing", format!("Stopping container {}", around.own.name)));
                actions.push(Action::Stop { container, grace });
                self.stage = CellStage::Stopping { running: running.clone(), why: reason.clone() };
            }
            CellStage::Stopping { why, .. } if sooner || *why != *reason => {
                *why = reason.clone();
                actions.push(Action::Stop { container, grace });
            }
            _ => {}
        }
    }

    /// It is given up where it doesn't run: it will not begin any more (or has its turn `again`).
    pub(super) fn give_up(&mut self, around: &CellContext<'_>, again: bool, actions: &mut Vec<Action>) {
        let stage = if again { CellStage::Idle } else { CellStage::Done };
        if !self.is_live() && self.stage != CellStage::Done && self.stage != stage {
            actions.push(Action::Kill(around.index));
            self.stage = stage;
        }
    }

    /// The container has ended.
    fn exited(
        &mut self,
        around: &CellContext<'_>,
        (code, reason, message): (i32, String, Option<String>),
        actions: &mut Vec<Action>,
    ) {
        let why = match &self.stage {
            CellStage::Stopping { why, .. } => Some(why.clone()),
            CellStage::Running(running) if running.hooking && around.own.post_start == Some(PostStart::Call) => {
                actions.push(around.hook_failed());
                None
            }
            _ => None,
        };
        self.hook_over(false);
        let (CellStage::Running(running) | CellStage::Stopping { running, .. }) = &self.stage else { return };
        let mut exit = Exit {
            code,
            reason,
            message,
            started: Some(running.since),
            finished: around.now,
            container_id: Some(running.container_id.clone()),
        };
        actions.push(Action::Kill(around.index));
        let stopped = why == Some(StopReason::Anew);
        if !around.closing && (stopped || around.own.restarts_all(code)) {
            if stopped {
                // Upstream's words.
                exit.reason = "RestartingAllContainers".into();
                exit.message = Some("The container is removed because RestartAllContainers in place".into());
            }
            self.exit = Some(exit);
            self.stage = CellStage::Idle;
            return;
        }
        self.exit = Some(exit);
        match why {
            Some(StopReason::Changed { .. }) if !around.closing => self.prepare(around, actions),
            Some(StopReason::Hook { message }) if !around.closing && around.own.restarts(code) => {
                let wait = Wait::Hook { message };
                self.stage = CellStage::Waiting { wait, until: after(around.now, HOOK_ERROR_SHOWN) };
            }
            _ => self.follow_exit(around, actions),
        }
    }

    /// What follows an end: another start, now or later, or none.
    fn follow_exit(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        let Some(exit) = &self.exit else { return };
        if around.closing || !around.own.restarts(exit.code) {
            self.passed |= self.class == Class::Init && exit.code == 0;
            self.stage = CellStage::Done;
            return;
        }
        let finished = exit.finished;
        self.again(around, finished, actions);
    }

    /// Another start, now or later, after an end at `finished`.
    fn again(&mut self, around: &CellContext<'_>, finished: Timestamp, actions: &mut Vec<Action>) {
        let now = around.now;
        if let Some((until, wait)) = self.crash.until(finished, now) {
            let (name, pod) = (&around.own.name, &around.rules.pod);
            let message = format!("Back-off restarting failed container {name} in pod {pod}");
            actions.push(around.warning("BackOff", message));
            self.stage = CellStage::Waiting { wait: Wait::Crash { wait }, until };
            // The next try will surely come, at that time.
            self.crash.next(finished, until);
        } else {
            self.crash.next(finished, now);
            self.prepare(around, actions);
        }
    }
}

/// Upstream's words, which differ by where the container stands in the spec.
fn failed_probe(own: &ContainerPolicy, kind: ProbeKind) -> String {
    let (name, word) = (&own.name, kind.word().to_lowercase());
    match own.class {
        Class::Sidecar => format!("Init container {name} failed {word} probe"),
        _ if own.restart == Restart::Never => format!("Container {name} failed {word} probe"),
        _ => format!("Container {name} failed {word} probe, will be restarted"),
    }
}
