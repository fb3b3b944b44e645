//! One container of a pod: where it stands, and what follows from what happens to it. Pure; the pod decides when its
//! containers begin and end ([`super::state`]).

use std::time::Duration;

use jiff::Timestamp;

use super::backoff::BackOff;
use super::event::{Action, CellEvent, ContainerPolicy, LifecyclePolicy, ProbeKind, Restart};

/// Between a failed pull and the back-off that it is then said to be in, so that both reasons can be seen.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// What can't begin for its configuration is tried again so often, besides whenever an object that it names changes
/// (upstream's period).
const RETRY: Duration = Duration::from_secs(10);

/// How a container ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled` …
    pub reason: String,
    /// Termination message.
    pub message: Option<String>,
    /// When it was started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Its id.
    pub container_id: Option<String>,
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    /// Since when.
    pub since: Timestamp,
    /// Its id.
    pub container_id: String,
    /// The startup probe, where there is one, has succeeded.
    pub started: bool,
    /// The readiness probe, where there is one, says so.
    pub ready: bool,
    /// An instance can be made.
    pub instantiable: bool,
    /// The first result of the probe that decides is still to come.
    pub unprobed: bool,
    /// Results in a row per probe: (good, how many).
    rows: [(bool, u32); 3],
}

impl Running {
    fn serves(&self) -> bool {
        self.ready && self.instantiable && self.started
    }
}

/// Why a running container is being stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum StopReason {
    /// The pod ends.
    Pod,
    /// A probe has failed too often: it is started again.
    Probe,
    /// Its image is another one: it is started again, whatever its restart policy.
    Changed,
}

/// Why a container waits before its next try.
#[derive(Debug, Clone, PartialEq)]
pub enum Wait {
    /// The image can't be had; the reason and message are shown, then its back-off.
    Pull {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// Waiting to pull again.
    PullBackOff {
        /// Why the last pull failed.
        message: String,
    },
    /// It can't be configured, created or started.
    Config {
        /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// It has ended too often.
    Crash {
        /// For how long.
        wait: Duration,
    },
}

/// Where a container stands.
#[derive(Debug, Clone, PartialEq)]
pub enum CellStage {
    /// It waits for the pod's volumes.
    Idle,
    /// The image is being had.
    Pulling,
    /// Until the next try.
    Waiting {
        /// Why.
        wait: Wait,
        /// Until when.
        until: Timestamp,
    },
    /// The container is being made.
    Starting,
    /// The container runs.
    Running(Running),
    /// The container is being stopped.
    Stopping {
        /// What it is.
        running: Running,
        /// Why.
        why: StopReason,
    },
    /// It runs no more, and never will.
    Done,
}

/// All that is remembered of a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Where it stands.
    pub stage: CellStage,
    /// How often it was started before, and once more: none = never.
    pub attempt: Option<u32>,
    /// How the newest run ended; none while it runs and before.
    pub exit: Option<Exit>,
    /// How the one before ended.
    pub last: Option<Exit>,
    /// The image's digest.
    pub image_id: String,
    crash: BackOff,
    pull: BackOff,
}

/// What of the pod a container's step depends on.
pub(super) struct CellContext<'a> {
    pub(super) rules: &'a LifecyclePolicy,
    pub(super) own: &'a ContainerPolicy,
    pub(super) index: usize,
    pub(super) now: Timestamp,
    /// The pod's end is decided.
    pub(super) ending: bool,
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

impl Default for Cell {
    fn default() -> Self {
        Self {
            stage: CellStage::Idle,
            attempt: None,
            exit: None,
            last: None,
            image_id: String::new(),
            crash: BackOff::default(),
            pull: BackOff::default(),
        }
    }
}

impl Cell {
    /// One that an earlier run of the agent had started: it is no more, and ended like `exit`.
    pub(super) fn resume(attempt: u32, exit: Exit, image_id: String) -> Self {
        Self { attempt: Some(attempt), exit: Some(exit), image_id, ..Self::default() }
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

    /// The volumes are there.
    pub(super) fn mounted(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        if self.stage == CellStage::Idle {
            self.prepare(around, actions);
        }
    }

    /// Something happened to it.
    pub(super) fn take(&mut self, around: &CellContext<'_>, event: CellEvent, actions: &mut Vec<Action>) {
        match event {
            CellEvent::PullBegan => {
                actions.push(around.normal("Pulling", format!("Pulling image {:?}", around.own.image)));
            }
            CellEvent::Pulled { image_id, message } if self.stage == CellStage::Pulling => {
                self.image_id = image_id;
                self.pull = BackOff::default();
                actions.push(around.normal("Pulled", message));
                self.begin_start(around, actions);
            }
            CellEvent::PullFailed { reason, message } if self.stage == CellStage::Pulling => {
                self.pull_failed(around, reason, message, actions);
            }
            CellEvent::Started { container_id } => {
                if self.stage == CellStage::Starting {
                    self.started(around, container_id, actions);
                }
            }
            CellEvent::StartFailed { reason, message } if self.stage == CellStage::Starting => {
                actions.push(around.warning("Failed", format!("Error: {message}")));
                let wait = Wait::Config { reason, message };
                self.stage = CellStage::Waiting { wait, until: after(around.now, RETRY) };
            }
            CellEvent::SourcesChanged => {
                if matches!(&self.stage, CellStage::Waiting { wait: Wait::Config { .. }, .. }) {
                    self.begin_start(around, actions);
                }
            }
            CellEvent::HookFailed => actions.push(around.warning("FailedPreStopHook", "PreStopHook failed")),
            CellEvent::Closed => {
                if let CellStage::Stopping { running, .. } = &mut self.stage {
                    running.ready = false;
                }
            }
            CellEvent::ImageChanged => self.image_changed(around, actions),
            CellEvent::Tried { attempt, broken } => {
                if attempt == self.current() {
                    self.tried(around, broken, actions);
                }
            }
            CellEvent::Probed { attempt, kind, failure } => {
                if attempt == self.current() {
                    self.probed(around, kind, failure, actions);
                }
            }
            CellEvent::Exited { attempt, code, reason, message } if attempt == self.current() => {
                self.exited(around, (code, reason, message), actions);
            }
            CellEvent::Pulled { .. }
            | CellEvent::PullFailed { .. }
            | CellEvent::StartFailed { .. }
            | CellEvent::Exited { .. } => {}
        }
    }

    /// Its time has come, where it waited for one.
    pub(super) fn tick(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        let CellStage::Waiting { wait, until } = &self.stage else { return };
        if around.now < *until {
            return;
        }
        match wait.clone() {
            Wait::Pull { reason: "ErrImagePull", message } => {
                let now = around.now;
                let (until, _) = self.pull.until(now, now).unwrap_or((after(now, RETRY), RETRY));
                let image = &around.own.image;
                let message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
                actions.push(around.normal("BackOff", format!("Back-off pulling image {image:?}")));
                actions.push(around.warning("Failed", "Error: ImagePullBackOff"));
                self.stage = CellStage::Waiting { wait: Wait::PullBackOff { message }, until };
            }
            Wait::Config { .. } => self.begin_start(around, actions),
            Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Crash { .. } => self.prepare(around, actions),
        }
    }

    /// Makes the container anew, as soon as the volumes are there.
    fn prepare(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        if around.sandbox {
            self.stage = CellStage::Pulling;
            actions.push(Action::Pull(around.index));
        } else {
            self.stage = CellStage::Idle;
        }
    }

    fn begin_start(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        self.stage = CellStage::Starting;
        actions.push(Action::Start { container: around.index, attempt: self.next_attempt() });
    }

    fn image_changed(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        match &self.stage {
            CellStage::Running(running) => {
                let name = &around.own.name;
                let message = format!("Container {name} definition changed, will be restarted");
                actions.push(around.normal("Killing", message));
                actions.push(Action::Stop { container: around.index, grace: around.rules.grace });
                self.stage = CellStage::Stopping { running: running.clone(), why: StopReason::Changed };
            }
            CellStage::Pulling | CellStage::Starting => self.prepare(around, actions),
            CellStage::Waiting { wait: Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Config { .. }, .. } => {
                self.pull = BackOff::default();
                self.prepare(around, actions);
            }
            _ => {}
        }
    }

    fn pull_failed(
        &mut self,
        around: &CellContext<'_>,
        reason: &'static str,
        message: String,
        actions: &mut Vec<Action>,
    ) {
        let now = around.now;
        let until = match reason {
            "ErrImagePull" => {
                self.pull.next(now, now);
                let message = format!("Failed to pull image {:?}: {message}", around.own.image);
                actions.push(around.warning("Failed", message));
                after(now, PULL_ERROR_SHOWN)
            }
            "InvalidImageName" => {
                actions.push(around.warning("InspectFailed", message.clone()));
                after(now, RETRY)
            }
            _ => {
                actions.push(around.warning("ErrImageNeverPull", message.clone()));
                after(now, RETRY)
            }
        };
        actions.push(around.warning("Failed", format!("Error: {reason}")));
        self.stage = CellStage::Waiting { wait: Wait::Pull { reason, message }, until };
    }

    fn started(&mut self, around: &CellContext<'_>, container_id: String, actions: &mut Vec<Action>) {
        self.attempt = Some(self.next_attempt());
        if let Some(exit) = self.exit.take() {
            self.last = Some(exit);
        }
        actions.push(around.normal("Created", "Container created"));
        actions.push(around.normal("Started", "Container started"));
        let own = around.own;
        self.stage = CellStage::Running(Running {
            since: around.now,
            container_id,
            started: own.startup.is_none(),
            ready: own.readiness.is_none(),
            instantiable: true,
            unprobed: true,
            rows: [(true, 0); 3],
        });
        if own.startup.is_some() {
            actions.push(Action::Probe(around.index, ProbeKind::Startup));
        } else {
            around.probe_the_rest(actions);
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

    fn probed(
        &mut self,
        around: &CellContext<'_>,
        kind: ProbeKind,
        failure: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let CellStage::Running(running) = &mut self.stage else { return };
        let Some(thresholds) = around.own.thresholds(kind) else { return };
        let good = failure.is_none();
        let row = &mut running.rows[kind as usize];
        *row = if row.0 == good { (good, row.1.saturating_add(1)) } else { (good, 1) };
        let (_, times) = *row;
        if kind != ProbeKind::Liveness {
            running.unprobed = false;
        }
        if let Some(failure) = failure {
            actions.push(around.warning("Unhealthy", format!("{} probe failed: {failure}", kind.word())));
            if times < thresholds.failure {
                return;
            }
            if kind == ProbeKind::Readiness {
                running.ready = false;
                return;
            }
            let (name, word) = (&around.own.name, kind.word().to_lowercase());
            actions.push(around.normal("Killing", format!("Container {name} failed {word} probe, will be restarted")));
            let grace = thresholds.grace.unwrap_or(around.rules.grace);
            actions.push(Action::Stop { container: around.index, grace });
            self.stage = CellStage::Stopping { running: running.clone(), why: StopReason::Probe };
        } else if times >= thresholds.success {
            match kind {
                ProbeKind::Readiness => running.ready = true,
                ProbeKind::Startup if !running.started => {
                    running.started = true;
                    running.unprobed = around.own.readiness.is_some();
                    around.probe_the_rest(actions);
                }
                ProbeKind::Startup | ProbeKind::Liveness => {}
            }
        }
    }

    /// The pod ends, and this with it; `sooner`: within less than was said before.
    pub(super) fn end(&mut self, around: &CellContext<'_>, grace: Duration, sooner: bool, actions: &mut Vec<Action>) {
        let container = around.index;
        match &mut self.stage {
            CellStage::Running(running) => {
                actions.push(around.normal("Killing", format!("Stopping container {}", around.own.name)));
                actions.push(Action::Stop { container, grace });
                self.stage = CellStage::Stopping { running: running.clone(), why: StopReason::Pod };
            }
            CellStage::Stopping { why, .. } => {
                if sooner {
                    *why = StopReason::Pod;
                    actions.push(Action::Stop { container, grace });
                }
            }
            CellStage::Done => {}
            _ => {
                actions.push(Action::Kill(container));
                self.stage = CellStage::Done;
            }
        }
    }

    /// The container has ended.
    fn exited(
        &mut self,
        around: &CellContext<'_>,
        (code, reason, message): (i32, String, Option<String>),
        actions: &mut Vec<Action>,
    ) {
        let changed = matches!(&self.stage, CellStage::Stopping { why: StopReason::Changed, .. });
        let (CellStage::Running(running) | CellStage::Stopping { running, .. }) = &self.stage else { return };
        self.exit = Some(Exit {
            code,
            reason,
            message,
            started: Some(running.since),
            finished: around.now,
            container_id: Some(running.container_id.clone()),
        });
        actions.push(Action::Kill(around.index));
        if changed && !around.ending {
            self.prepare(around, actions);
        } else {
            self.follow_exit(around, actions);
        }
    }

    /// What follows an end: another start, now or later, or none.
    pub(super) fn follow_exit(&mut self, around: &CellContext<'_>, actions: &mut Vec<Action>) {
        let Some(exit) = &self.exit else { return };
        let again = match around.rules.restart {
            Restart::Always => true,
            Restart::OnFailure => exit.code != 0,
            Restart::Never => false,
        };
        if around.ending || !again {
            self.stage = CellStage::Done;
            return;
        }
        let (finished, now) = (exit.finished, around.now);
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
