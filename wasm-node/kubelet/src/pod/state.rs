//! A pod's life: one enum, one step. Pure: what the worker does and what the status says follow from here.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::backoff::BackOff;
pub use super::event::{Action, Event, ProbeKind, Restart, Rules, Thresholds};

/// Between a failed pull and the back-off that it is then said to be in, so that both reasons can be seen.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// What can't begin for its configuration is tried again so often, besides whenever an object that it names changes
/// (upstream's period).
const RETRY: Duration = Duration::from_secs(10);
/// While a pod's beginning goes on, and while a first probe runs, the status that would be overtaken at once is held
/// back so long: it saves the API server half of the writes of a quick start.
const HOLD_PREPARING: Duration = Duration::from_millis(100);
const HOLD_FIRST_PROBE: Duration = Duration::from_millis(20);

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
    pub sound: bool,
    /// The first result of the probe that decides is still to come.
    pub unprobed: bool,
    /// Results in a row per probe: (good, how many).
    rows: [(bool, u32); 3],
}

impl Running {
    fn serves(&self) -> bool {
        self.ready && self.sound && self.started
    }
}

/// Why a running container is being stopped.
#[derive(Debug, Clone, PartialEq)]
pub enum Why {
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

/// Where a pod stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// It asks for what this node doesn't act on: nothing runs, until it is deleted or its deadline has passed.
    Refused {
        /// The paths of those fields, in a sentence.
        message: String,
    },
    /// Volumes are being filled.
    Mounting,
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
        why: Why,
    },
    /// Nothing runs any more; what it has on the node is being removed.
    Cleaning,
    /// Nothing is left of it but its status and logs.
    Ended,
}

/// A pod that ends for a reason of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// `status.reason`.
    pub reason: Option<&'static str>,
    /// `status.message`.
    pub message: Option<String>,
    /// It was never taken up.
    pub rejected: bool,
}

/// All that is remembered of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Where it stands.
    pub stage: Stage,
    /// `status.startTime`.
    pub began: Timestamp,
    /// When this agent took it up.
    taken_up: Timestamp,
    /// Its volumes are filled and it has an address.
    pub sandbox: bool,
    /// How often the container was started before, and once more: none = never.
    pub attempt: Option<u32>,
    /// How the newest container ended; none while it runs and before.
    pub exit: Option<Exit>,
    /// How the one before ended.
    pub last: Option<Exit>,
    /// The image's digest.
    pub image_id: String,
    /// Set where the pod fails whatever its containers did.
    pub verdict: Option<Verdict>,
    /// The phase that it ended with: `true` = succeeded.
    pub succeeded: Option<bool>,
    /// It is being deleted, with that grace.
    pub deleted: Option<Duration>,
    /// The object is gone.
    pub removed: bool,
    /// Taken up from an earlier run of the agent: its status in the API is of a container that is no more.
    pub resumed: bool,
    crash: BackOff,
    pull: BackOff,
}

fn normal(reason: &'static str, message: impl Into<String>) -> Action {
    Action::Note { warning: false, reason, message: message.into(), container: true }
}

fn warning(reason: &'static str, message: impl Into<String>) -> Action {
    Action::Note { warning: true, reason, message: message.into(), container: true }
}

fn pod_warning(reason: &'static str, message: impl Into<String>) -> Action {
    Action::Note { warning: true, reason, message: message.into(), container: false }
}

fn after(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

impl State {
    /// A pod that was never run.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            stage: Stage::Mounting,
            began: now,
            taken_up: now,
            sandbox: false,
            attempt: None,
            exit: None,
            last: None,
            image_id: String::new(),
            verdict: None,
            succeeded: None,
            deleted: None,
            removed: false,
            resumed: false,
            crash: BackOff::default(),
            pull: BackOff::default(),
        }
    }

    /// A pod that an earlier run of the agent had taken up, and whose container was never started.
    #[must_use]
    pub fn begun(now: Timestamp, began: Timestamp) -> Self {
        Self { began, ..Self::new(now) }
    }

    /// A pod whose container an earlier run of the agent had started: it is no more, and ended like `exit`.
    #[must_use]
    pub fn resume(now: Timestamp, began: Timestamp, attempt: u32, exit: Exit, image_id: String) -> Self {
        Self { began, attempt: Some(attempt), exit: Some(exit), image_id, resumed: true, ..Self::new(now) }
    }

    /// What to do first.
    #[must_use]
    pub fn begin(
        mut self,
        rules: &Rules,
        refused: Option<(String, Vec<String>)>,
        now: Timestamp,
    ) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        if let Some(Verdict { reason: Some(reason), message: Some(message), rejected: true }) = &self.verdict {
            actions.push(pod_warning(reason, message.clone()));
        }
        if self.succeeded.is_some() {
            self.stage = Stage::Cleaning;
            actions.push(Action::Clean);
        } else if self.ending() {
            self.finish(&mut actions);
        } else if let Some((message, each)) = refused {
            actions.extend(each.into_iter().map(|one| pod_warning("Unsupported", one)));
            self.stage = Stage::Refused { message };
        } else if self.exit.is_some() {
            self.exited(rules, now, &mut actions);
            if matches!(self.stage, Stage::Pulling) {
                // The volumes went with the agent's last run.
                actions.retain(|action| *action != Action::Pull);
                self.stage = Stage::Mounting;
                actions.push(Action::Mount);
            }
        } else {
            self.stage = Stage::Mounting;
            actions.push(Action::Mount);
        }
        (self, actions)
    }

    /// Whether the pod counts as ready, as far as its container decides.
    #[must_use]
    pub fn ready(&self) -> bool {
        match &self.stage {
            Stage::Running(running) => running.serves(),
            // Its endpoints are not ready for the deletion alone; where there are no others they are still served by.
            Stage::Stopping { running, why: Why::Pod } => self.deleted.is_some() && running.serves(),
            _ => false,
        }
    }

    /// Whether an end of the pod is decided.
    #[must_use]
    pub fn ending(&self) -> bool {
        self.deleted.is_some() || self.removed || self.verdict.is_some()
    }

    /// The start that is under way or was last.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.attempt.unwrap_or(0)
    }

    /// When to say [`Event::Tick`].
    #[must_use]
    pub fn wake_at(&self, rules: &Rules) -> Option<Timestamp> {
        let deadline = rules
            .deadline
            .filter(|_| !self.ending() && self.succeeded.is_none())
            .map(|deadline| after(self.began, deadline));
        let until = match &self.stage {
            Stage::Waiting { until, .. } => Some(*until),
            _ => None,
        };
        deadline.into_iter().chain(until).min()
    }

    /// The wall clock was set, by so much: what waits waits as long as before.
    pub fn clock_was_set(&mut self, by: SignedDuration) {
        if let Stage::Waiting { until, .. } = &mut self.stage {
            *until = until.saturating_add(by).unwrap_or(*until);
        }
    }

    /// Until when the status need not be written, as it is about to change.
    #[must_use]
    pub fn settles_at(&self) -> Option<Timestamp> {
        if self.ending() || self.resumed {
            return None;
        }
        match &self.stage {
            Stage::Mounting | Stage::Pulling | Stage::Starting if self.attempt.is_none_or(|n| n == 0) => {
                Some(after(self.taken_up, HOLD_PREPARING))
            }
            Stage::Running(running) if running.unprobed => Some(after(running.since, HOLD_FIRST_PROBE)),
            _ => None,
        }
    }

    /// One step.
    #[must_use]
    pub fn step(mut self, rules: &Rules, event: Event, now: Timestamp) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        self.take(rules, event, now, &mut actions);
        (self, actions)
    }

    fn take(&mut self, rules: &Rules, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => self.tick(rules, now, actions),
            Event::Deleted(grace) => {
                let before = self.deleted.replace(grace);
                match &self.stage {
                    Stage::Stopping { .. } if before.is_none_or(|before| grace < before) => {
                        if let Stage::Stopping { why, .. } = &mut self.stage {
                            *why = Why::Pod;
                        }
                        actions.push(Action::Stop { grace });
                    }
                    Stage::Stopping { .. } | Stage::Cleaning => {}
                    Stage::Ended => actions.push(Action::Delete),
                    _ => self.end(rules, grace, actions),
                }
            }
            Event::Removed => {
                self.removed = true;
                actions.push(Action::Kill);
                self.stage = Stage::Cleaning;
                actions.push(Action::Clean);
            }
            Event::Mounted => {
                self.sandbox = true;
                if self.stage == Stage::Mounting {
                    self.stage = Stage::Pulling;
                    actions.push(Action::Pull);
                }
            }
            Event::MountFailed(message) => actions.push(pod_warning("FailedMount", message)),
            Event::PullBegan => actions.push(normal("Pulling", format!("Pulling image {:?}", rules.image))),
            Event::Pulled { image_id, message } if self.stage == Stage::Pulling => {
                self.image_id = image_id;
                self.pull = BackOff::default();
                actions.push(normal("Pulled", message));
                self.stage = Stage::Starting;
                actions.push(Action::Start { attempt: self.next_attempt() });
            }
            Event::PullFailed { reason, message } if self.stage == Stage::Pulling => {
                self.pull_failed(rules, reason, message, now, actions);
            }
            Event::Started { container_id } => {
                if self.stage == Stage::Starting {
                    self.started(rules, container_id, now, actions);
                }
            }
            Event::StartFailed { reason, message } if self.stage == Stage::Starting => {
                actions.push(warning("Failed", format!("Error: {message}")));
                self.stage = Stage::Waiting { wait: Wait::Config { reason, message }, until: after(now, RETRY) };
            }
            Event::SourcesChanged => {
                if matches!(&self.stage, Stage::Waiting { wait: Wait::Config { .. }, .. }) {
                    self.stage = Stage::Starting;
                    actions.push(Action::Start { attempt: self.next_attempt() });
                }
            }
            Event::HookFailed => actions.push(warning("FailedPreStopHook", "PreStopHook failed")),
            Event::Closed => {
                if let Stage::Stopping { running, .. } = &mut self.stage {
                    running.ready = false;
                }
            }
            Event::ImageChanged => self.image_changed(rules, actions),
            Event::Sound { attempt, broken } => {
                let current = self.current();
                if let Stage::Running(running) = &mut self.stage
                    && attempt == current
                {
                    if let Some(broken) = &broken
                        && running.sound
                    {
                        let message = format!("The module cannot be instantiated: {broken}");
                        actions.push(warning("Unhealthy", message));
                    }
                    running.sound = broken.is_none();
                    if rules.startup.is_none() && rules.readiness.is_none() {
                        running.unprobed = false;
                    }
                }
            }
            Event::Probed { attempt, kind, failure } => {
                if attempt == self.current() {
                    self.probed(rules, kind, failure, actions);
                }
            }
            Event::Exited { attempt, code, reason, message } if attempt == self.current() => {
                let changed = matches!(&self.stage, Stage::Stopping { why: Why::Changed, .. });
                let (Stage::Running(running) | Stage::Stopping { running, .. }) = &self.stage else { return };
                self.exit = Some(Exit {
                    code,
                    reason,
                    message,
                    started: Some(running.since),
                    finished: now,
                    container_id: Some(running.container_id.clone()),
                });
                actions.push(Action::Kill);
                if changed && !self.ending() {
                    self.prepare(actions);
                } else {
                    self.exited(rules, now, actions);
                }
            }
            Event::Evicted(message) => {
                if !self.ending() && self.succeeded.is_none() {
                    actions.push(pod_warning("Evicted", message.clone()));
                    self.verdict = Some(Verdict { reason: Some("Evicted"), message: Some(message), rejected: false });
                    // As upstream: what fills the disk gets no grace.
                    self.end(rules, Duration::ZERO, actions);
                }
            }
            Event::Cleaned => {
                if self.stage == Stage::Cleaning {
                    self.sandbox = false;
                    self.stage = Stage::Ended;
                    if self.deleted.is_some() && !self.removed {
                        actions.push(Action::Delete);
                    }
                }
            }
            Event::Pulled { .. } | Event::PullFailed { .. } | Event::StartFailed { .. } | Event::Exited { .. } => {}
        }
    }

    /// The number of the start that is next or under way, while the container doesn't run.
    #[must_use]
    pub fn next_attempt(&self) -> u32 {
        match (self.attempt, &self.exit) {
            (None, _) => 0,
            (Some(attempt), Some(_)) => attempt + 1,
            (Some(attempt), None) => attempt,
        }
    }

    fn tick(&mut self, rules: &Rules, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(deadline) = rules.deadline
            && !self.ending()
            && self.succeeded.is_none()
            && now >= after(self.began, deadline)
        {
            let message = "Pod was active on the node longer than the specified deadline";
            actions.push(Action::Note {
                warning: false,
                reason: "DeadlineExceeded",
                message: message.into(),
                container: false,
            });
            self.verdict =
                Some(Verdict { reason: Some("DeadlineExceeded"), message: Some(message.into()), rejected: false });
            self.end(rules, rules.grace, actions);
            return;
        }
        let Stage::Waiting { wait, until } = &self.stage else { return };
        if now < *until {
            return;
        }
        match wait.clone() {
            Wait::Pull { reason: "ErrImagePull", message } => {
                let (until, _) = self.pull.until(now, now).unwrap_or((after(now, RETRY), RETRY));
                let message = format!("Back-off pulling image {:?}: ErrImagePull: {message}", rules.image);
                actions.push(normal("BackOff", format!("Back-off pulling image {:?}", rules.image)));
                actions.push(warning("Failed", "Error: ImagePullBackOff"));
                self.stage = Stage::Waiting { wait: Wait::PullBackOff { message }, until };
            }
            Wait::Config { .. } => {
                self.stage = Stage::Starting;
                actions.push(Action::Start { attempt: self.next_attempt() });
            }
            Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Crash { .. } => self.prepare(actions),
        }
    }

    /// Makes the container anew: the volumes are there, or come first.
    fn prepare(&mut self, actions: &mut Vec<Action>) {
        if self.sandbox {
            self.stage = Stage::Pulling;
            actions.push(Action::Pull);
        } else {
            self.stage = Stage::Mounting;
            actions.push(Action::Mount);
        }
    }

    fn image_changed(&mut self, rules: &Rules, actions: &mut Vec<Action>) {
        match &self.stage {
            Stage::Running(running) => {
                let container = &rules.container;
                actions.push(normal("Killing", format!("Container {container} definition changed, will be restarted")));
                actions.push(Action::Stop { grace: rules.grace });
                self.stage = Stage::Stopping { running: running.clone(), why: Why::Changed };
            }
            Stage::Pulling | Stage::Starting => self.prepare(actions),
            Stage::Waiting { wait: Wait::Pull { .. } | Wait::PullBackOff { .. } | Wait::Config { .. }, .. } => {
                self.pull = BackOff::default();
                self.prepare(actions);
            }
            _ => {}
        }
    }

    fn pull_failed(
        &mut self,
        rules: &Rules,
        reason: &'static str,
        message: String,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let until = match reason {
            "ErrImagePull" => {
                self.pull.next(now, now);
                actions.push(warning("Failed", format!("Failed to pull image {:?}: {message}", rules.image)));
                after(now, PULL_ERROR_SHOWN)
            }
            "InvalidImageName" => {
                actions.push(warning("InspectFailed", message.clone()));
                after(now, RETRY)
            }
            _ => {
                actions.push(warning("ErrImageNeverPull", message.clone()));
                after(now, RETRY)
            }
        };
        actions.push(warning("Failed", format!("Error: {reason}")));
        self.stage = Stage::Waiting { wait: Wait::Pull { reason, message }, until };
    }

    fn started(&mut self, rules: &Rules, container_id: String, now: Timestamp, actions: &mut Vec<Action>) {
        self.attempt = Some(self.next_attempt());
        if let Some(exit) = self.exit.take() {
            self.last = Some(exit);
        }
        self.resumed = false;
        actions.push(normal("Created", "Container created"));
        actions.push(normal("Started", "Container started"));
        self.stage = Stage::Running(Running {
            since: now,
            container_id,
            started: rules.startup.is_none(),
            ready: rules.readiness.is_none(),
            sound: true,
            unprobed: true,
            rows: [(true, 0); 3],
        });
        if rules.startup.is_some() {
            actions.push(Action::Probe(ProbeKind::Startup));
        } else {
            probe_the_rest(rules, actions);
        }
    }

    fn probed(&mut self, rules: &Rules, kind: ProbeKind, failure: Option<String>, actions: &mut Vec<Action>) {
        let Stage::Running(running) = &mut self.stage else { return };
        let Some(thresholds) = rules.thresholds(kind) else { return };
        let good = failure.is_none();
        let row = &mut running.rows[kind as usize];
        *row = if row.0 == good { (good, row.1.saturating_add(1)) } else { (good, 1) };
        let (_, times) = *row;
        if kind != ProbeKind::Liveness {
            running.unprobed = false;
        }
        if let Some(failure) = failure {
            actions.push(warning("Unhealthy", format!("{} probe failed: {failure}", kind.word())));
            if times < thresholds.failure {
                return;
            }
            if kind == ProbeKind::Readiness {
                running.ready = false;
                return;
            }
            let container = &rules.container;
            let word = kind.word().to_lowercase();
            actions.push(normal("Killing", format!("Container {container} failed {word} probe, will be restarted")));
            let grace = thresholds.grace.unwrap_or(rules.grace);
            actions.push(Action::Stop { grace });
            let running = running.clone();
            self.stage = Stage::Stopping { running, why: Why::Probe };
        } else if times >= thresholds.success {
            match kind {
                ProbeKind::Readiness => running.ready = true,
                ProbeKind::Startup if !running.started => {
                    running.started = true;
                    running.unprobed = rules.readiness.is_some();
                    probe_the_rest(rules, actions);
                }
                ProbeKind::Startup | ProbeKind::Liveness => {}
            }
        }
    }

    /// Ends the pod.
    fn end(&mut self, rules: &Rules, grace: Duration, actions: &mut Vec<Action>) {
        match &self.stage {
            Stage::Running(running) => {
                actions.push(normal("Killing", format!("Stopping container {}", rules.container)));
                actions.push(Action::Stop { grace });
                self.stage = Stage::Stopping { running: running.clone(), why: Why::Pod };
            }
            Stage::Stopping { .. } => {
                actions.push(Action::Stop { grace });
                if let Stage::Stopping { why, .. } = &mut self.stage {
                    *why = Why::Pod;
                }
            }
            Stage::Cleaning | Stage::Ended => {}
            _ => {
                actions.push(Action::Kill);
                self.finish(actions);
            }
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        if self.succeeded.is_none() {
            let clean = self.exit.as_ref().is_some_and(|exit| exit.code == 0);
            self.succeeded = Some(clean && self.verdict.is_none());
        }
        self.resumed = false;
        self.stage = Stage::Cleaning;
        actions.push(Action::Clean);
    }

    /// What follows a container's end.
    fn exited(&mut self, rules: &Rules, now: Timestamp, actions: &mut Vec<Action>) {
        let Some(exit) = &self.exit else { return };
        let again = match rules.restart {
            Restart::Always => true,
            Restart::OnFailure => exit.code != 0,
            Restart::Never => false,
        };
        if self.ending() || !again {
            self.finish(actions);
            return;
        }
        let finished = exit.finished;
        if let Some((until, wait)) = self.crash.until(finished, now) {
            let (container, pod) = (&rules.container, &rules.pod);
            actions.push(warning("BackOff", format!("Back-off restarting failed container {container} in pod {pod}")));
            self.stage = Stage::Waiting { wait: Wait::Crash { wait }, until };
            // The next try will surely come, at that time.
            self.crash.next(finished, until);
        } else {
            self.crash.next(finished, now);
            self.stage = Stage::Pulling;
            actions.push(Action::Pull);
        }
    }
}

fn probe_the_rest(rules: &Rules, actions: &mut Vec<Action>) {
    for kind in [ProbeKind::Readiness, ProbeKind::Liveness] {
        if rules.thresholds(kind).is_some() {
            actions.push(Action::Probe(kind));
        }
    }
}

#[cfg(test)]
mod tests;
