//! The lifecycle of a pod: its stage, its containers, and the step function. Pure. The worker performs the returned
//! actions and projects the status from this state. Fields are private to this module: after its construction, a state
//! changes only by [`PodState::begin`] and [`PodState::step`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::container::{ContainerContext, after};
pub use super::container::{ContainerMachine, ContainerRun, ContainerStage, Exit, StopReason, WaitReason};
pub use super::event::{
    Action, Admission, Class, ContainerEvent, ContainerPolicy, Event, ImageOwner, LifecyclePolicy, PostStart,
    ProbeKind, ProbeResult, RestartPolicy, RestartRule, Thresholds,
};
use super::order;

mod accessors;

/// How long a transient status is held back while a pod starts and during its first probe. This halves the API writes
/// of a quick start.
const HOLD_PREPARING: Duration = Duration::from_millis(100);
const HOLD_FIRST_PROBE: Duration = Duration::from_millis(20);
/// The same during an immediate restart: upstream's kubelet observes its containers once per second, so a quick restart
/// stays invisible. A longer one is shown.
const HOLD_RESTARTING: Duration = Duration::from_millis(500);
/// The upper bound of each hold, even if the clock is set back.
pub(in crate::pod) const HOLD_MAX: Duration = HOLD_RESTARTING;
/// The message of a pod that ends with its node (upstream's).
const SHUT_DOWN: &str = "Pod was terminated in response to imminent node shutdown.";
/// The minimum grace period of a sidecar, even if the main containers have used up the period (upstream's).
const TURN_MIN: Duration = Duration::from_secs(2);

/// The stage of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// The spec uses fields that this node doesn't support. Nothing runs until the pod's deletion or its deadline.
    Refused {
        /// The fields' paths, as a sentence.
        message: String,
    },
    /// Volumes are being filled.
    Mounting,
    /// Containers start and run.
    Active,
    /// All containers have ended; the pod's resources on the node are being removed.
    Cleaning,
    /// Only the status and the logs remain.
    Ended,
}

/// The reason for which a pod ends, besides its containers.
#[derive(Debug, Clone, PartialEq)]
pub struct TerminalReason {
    /// `status.reason`.
    pub reason: Option<&'static str>,
    /// `status.message`.
    pub message: Option<String>,
    /// The pod was rejected at admission.
    pub rejected: bool,
}

/// The deadline of a closing pod.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Closing {
    until: Timestamp,
    /// The grace period is zero.
    at_once: bool,
}

/// The state of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodState {
    stage: Stage,
    /// Its containers, in the order of [`crate::spec::containers`].
    machines: Vec<ContainerMachine>,
    /// `status.startTime`.
    began: Timestamp,
    /// The time of adoption by this agent.
    adopted_at: Timestamp,
    /// The volumes are filled and the pod has an address.
    sandbox: bool,
    /// Set if the pod fails regardless of its containers.
    terminal_reason: Option<TerminalReason>,
    /// The final phase: `true` is Succeeded.
    succeeded: Option<bool>,
    /// The grace period, if the pod is being deleted.
    deleted: Option<Duration>,
    /// The object was removed from the API.
    removed: bool,
    /// Resumed after a restart of the agent: the containers in the pod's status don't exist any more.
    resumed: bool,
    /// All containers are being stopped, to restart together.
    restarting_all: bool,
    /// Set once no container starts any more.
    closes: Option<Closing>,
}

fn pod_warning(reason: &'static str, message: impl Into<String>) -> Action {
    Action::EventRecord { warning: true, reason, message: message.into(), container: None }
}

impl PodState {
    /// The state of a pod that never ran.
    #[must_use]
    pub fn new(now: Timestamp, rules: &LifecyclePolicy) -> Self {
        Self {
            stage: Stage::Mounting,
            machines: rules.containers.iter().map(|container| ContainerMachine::new(container.class)).collect(),
            began: now,
            adopted_at: now,
            sandbox: false,
            terminal_reason: None,
            succeeded: None,
            deleted: None,
            removed: false,
            resumed: false,
            restarting_all: false,
            closes: None,
        }
    }

    /// The state of a pod that an earlier run of the agent had adopted, without any started container.
    #[must_use]
    pub fn adopted(now: Timestamp, began: Timestamp, rules: &LifecyclePolicy) -> Self {
        Self { began, ..Self::new(now, rules) }
    }

    /// Records a container that an earlier run of the agent had started, and that ended with `exit`.
    pub fn resume(&mut self, container: usize, attempt: u32, exit: Exit, image_id: String) {
        if let Some(machine) = self.machines.get_mut(container) {
            *machine = ContainerMachine::resume(machine.class, attempt, exit, image_id);
            self.resumed = true;
        }
    }

    /// Records the final phase that an earlier run of the agent or another writer has reported, with its reason.
    pub fn resume_ended(&mut self, succeeded: bool, terminal_reason: Option<TerminalReason>) {
        self.succeeded = Some(succeeded);
        self.terminal_reason = terminal_reason;
    }

    /// The first step: returns the initial actions.
    #[must_use]
    pub fn begin(mut self, rules: &LifecyclePolicy, admission: Admission, now: Timestamp) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        let Admission { rejection, unsupported, deleted, removed } = admission;
        (self.deleted, self.removed) = (deleted, removed);
        if let Some((reason, message)) = rejection {
            actions.push(pod_warning(reason, message.clone()));
            self.terminal_reason =
                Some(TerminalReason { reason: Some(reason), message: Some(message), rejected: true });
        }
        if self.succeeded.is_some() || self.ending() {
            self.finish(&mut actions);
        } else if let Some((message, each)) = unsupported {
            actions.extend(each.into_iter().map(|one| pod_warning("Unsupported", one)));
            self.stage = Stage::Refused { message };
        } else {
            self.stage = Stage::Mounting;
            self.for_each_container(rules, now, |machine, cx| machine.resume_or_finish(cx));
            self.advance(rules, now, &mut actions);
            if self.stage == Stage::Mounting {
                actions.push(Action::Mount);
            }
        }
        (self, actions)
    }

    /// Calls `act` for each container.
    fn for_each_container(
        &mut self,
        rules: &LifecyclePolicy,
        now: Timestamp,
        mut act: impl FnMut(&mut ContainerMachine, &ContainerContext<'_>),
    ) {
        (0..self.machines.len()).for_each(|index| self.with_container(rules, now, index, &mut act));
    }

    /// Calls `act` for one container.
    fn with_container(
        &mut self,
        rules: &LifecyclePolicy,
        now: Timestamp,
        index: usize,
        act: impl FnOnce(&mut ContainerMachine, &ContainerContext<'_>),
    ) {
        let (closing, sandbox) = (self.closing(), self.sandbox);
        if let (Some(machine), Some(own)) = (self.machines.get_mut(index), rules.containers.get(index)) {
            act(machine, &ContainerContext { rules, own, index, now, closing, sandbox });
        }
    }

    /// Whether no container of the pod starts any more.
    fn closing(&self) -> bool {
        self.ending() || self.closes.is_some() || self.succeeded.is_some()
    }

    /// The time of the next [`Event::Tick`].
    #[must_use]
    pub fn wake_at(&self, rules: &LifecyclePolicy) -> Option<Timestamp> {
        let deadline = rules.deadline.filter(|_| !self.closing()).map(|deadline| after(self.began, deadline));
        let waits_for_turn = |machine: &ContainerMachine| {
            machine.class == Class::Sidecar && matches!(machine.stage, ContainerStage::Running(_))
        };
        let late = self.closes.filter(|_| self.machines.iter().any(waits_for_turn)).map(|closes| closes.until);
        let waits = self.machines.iter().filter_map(|machine| match &machine.stage {
            ContainerStage::Waiting { until, .. } => Some(*until),
            ContainerStage::Idle
            | ContainerStage::Pulling
            | ContainerStage::Starting
            | ContainerStage::Running(_)
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => None,
        });
        deadline.into_iter().chain(late).chain(waits).min()
    }

    /// Shifts all deadlines after a step of the wall clock, so that waits keep their length.
    fn shift_deadlines(&mut self, by: SignedDuration) {
        for machine in &mut self.machines {
            if let ContainerStage::Waiting { until, .. } = &mut machine.stage {
                *until = until.saturating_add(by).unwrap_or(*until);
            }
        }
        if let Some(closes) = &mut self.closes {
            closes.until = closes.until.saturating_add(by).unwrap_or(closes.until);
        }
    }

    /// Until when a status write can be delayed, as the status is about to change.
    #[must_use]
    pub fn settles_at(&self) -> Option<Timestamp> {
        if self.ending() || self.resumed || !matches!(self.stage, Stage::Mounting | Stage::Active) {
            return None;
        }
        let settles = self.machines.iter().filter_map(|machine| match &machine.stage {
            ContainerStage::Idle | ContainerStage::Pulling | ContainerStage::Starting => match &machine.exit {
                Some(exit) => Some(after(exit.finished, HOLD_RESTARTING)),
                None => Some(after(self.adopted_at, HOLD_PREPARING)).filter(|_| machine.attempt.is_none_or(|n| n == 0)),
            },
            ContainerStage::Stopping { why: StopReason::Changed { since }, .. } => Some(after(*since, HOLD_RESTARTING)),
            ContainerStage::Running(running) if running.first_probe_pending => {
                Some(after(running.since, HOLD_FIRST_PROBE))
            }
            ContainerStage::Running(_)
            | ContainerStage::Waiting { .. }
            | ContainerStage::Stopping { .. }
            | ContainerStage::Done => None,
        });
        settles.max()
    }

    /// Applies an event: returns the new state and the actions.
    #[must_use]
    pub fn step(mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp) -> (Self, Vec<Action>) {
        let actions = self.apply(rules, event, now);
        (self, actions)
    }

    /// The same in place, so that the state of a pod with thousands of containers isn't copied per event.
    pub fn apply(&mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.add_containers(rules);
        self.handle_event(rules, event, now, &mut actions);
        self.advance(rules, now, &mut actions);
        actions
    }

    /// Adds new containers to the state.
    fn add_containers(&mut self, rules: &LifecyclePolicy) {
        for own in rules.containers.iter().skip(self.machines.len()) {
            let mut machine = ContainerMachine::new(own.class);
            if self.is_over() {
                machine.stage = ContainerStage::Done;
            }
            self.machines.push(machine);
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Cleaning | Stage::Ended)
    }

    fn handle_event(&mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => self.tick(rules, now, actions),
            Event::ClockStepped(by) => self.shift_deadlines(by),
            Event::Deleted(grace) => {
                self.deleted = Some(grace);
                match &self.stage {
                    Stage::Cleaning => {}
                    Stage::Ended => actions.push(Action::Delete),
                    Stage::Refused { .. } | Stage::Mounting | Stage::Active => self.end(rules, grace, now, actions),
                }
            }
            Event::Removed => {
                self.removed = true;
                for (index, machine) in self.machines.iter_mut().enumerate() {
                    actions.push(Action::Kill(index));
                    machine.stage = ContainerStage::Done;
                }
                self.stage = Stage::Cleaning;
                actions.push(Action::Clean);
            }
            Event::Mounted => {
                if self.stage == Stage::Mounting {
                    self.stage = Stage::Active;
                    self.sandbox = true;
                }
            }
            Event::MountFailed(message) => actions.push(pod_warning("FailedMount", message)),
            Event::Evicted(message) => {
                if !self.closing() {
                    actions.push(pod_warning("Evicted", message.clone()));
                    self.terminal_reason =
                        Some(TerminalReason { reason: Some("Evicted"), message: Some(message), rejected: false });
                    // As upstream: an evicted pod gets no grace period.
                    self.end(rules, Duration::ZERO, now, actions);
                }
            }
            Event::ShutDown(grace) => {
                if !self.closing() {
                    let message = Some(SHUT_DOWN.into());
                    self.terminal_reason =
                        Some(TerminalReason { reason: Some("Terminated"), message, rejected: false });
                    self.end(rules, grace, now, actions);
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
            Event::Container(index, event) => {
                // Events of a container after the pod's end, or of an unknown container, have no effect.
                if matches!(self.stage, Stage::Mounting | Stage::Active) {
                    self.handle_container_event(rules, index, event, now, actions);
                }
            }
        }
    }

    fn handle_container_event(
        &mut self,
        rules: &LifecyclePolicy,
        index: usize,
        event: ContainerEvent,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let (Some(machine), Some(own)) = (self.machines.get(index), rules.containers.get(index)) else { return };
        let (was_live, code) =
            (machine.is_live(), if let ContainerEvent::Exited { code, .. } = &event { Some(*code) } else { None });
        let restarts_all = code.is_some_and(|code| own.restarts_all(code));
        self.with_container(rules, now, index, |machine, cx| machine.handle_event(cx, event, actions));
        let is_live = self.machines.get(index).is_some_and(ContainerMachine::is_live);
        self.resumed &= !is_live;
        if was_live && !is_live && restarts_all && !self.closing() {
            self.restart_all(rules, now, actions);
        }
    }

    /// Stops all containers except ephemeral ones, to restart them together.
    fn restart_all(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        self.restarting_all = true;
        self.for_each_container(rules, now, |machine, cx| {
            if machine.class != Class::Ephemeral {
                // As upstream, without a grace period.
                machine.stop(cx, &StopReason::RestartAll, Duration::ZERO, false, actions);
                machine.abandon(cx, true, actions);
            }
        });
    }

    fn tick(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(deadline) = rules.deadline
            && !self.closing()
            && now >= after(self.began, deadline)
        {
            let message = "Pod was active on the node longer than the specified deadline";
            actions.push(Action::EventRecord {
                warning: false,
                reason: "DeadlineExceeded",
                message: message.into(),
                container: None,
            });
            self.terminal_reason = Some(TerminalReason {
                reason: Some("DeadlineExceeded"),
                message: Some(message.into()),
                rejected: false,
            });
            self.end(rules, rules.grace, now, actions);
            return;
        }
        if matches!(self.stage, Stage::Mounting | Stage::Active) {
            self.for_each_container(rules, now, |machine, cx| machine.tick(cx, actions));
        }
    }

    /// Decides the pod's end within that time, and shortens stops in progress.
    fn end(&mut self, rules: &LifecyclePolicy, grace: Duration, now: Timestamp, actions: &mut Vec<Action>) {
        let until = after(now, grace);
        if self.closes.is_some_and(|closes| closes.until <= until) {
            return;
        }
        self.closes = Some(Closing { until, at_once: grace.is_zero() });
        self.for_each_container(rules, now, |machine, cx| {
            if matches!(machine.stage, ContainerStage::Stopping { .. }) {
                machine.stop(cx, &StopReason::Pod, grace, true, actions);
            }
        });
    }

    /// Starts and stops the containers whose turn it is.
    fn advance(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        if self.is_over() {
            return;
        }
        if !self.closing() && order::is_over(&self.machines) {
            self.end(rules, rules.grace, now, actions);
        }
        if self.closing() {
            self.close(rules, now, actions);
            return;
        }
        let live = |machine: &ContainerMachine| machine.class != Class::Ephemeral && machine.is_live();
        if self.restarting_all && !self.machines.iter().any(live) {
            self.restarting_all = false;
            self.machines
                .iter_mut()
                .filter(|machine| machine.class != Class::Ephemeral)
                .for_each(ContainerMachine::reset);
        }
        if self.stage == Stage::Active && !self.restarting_all {
            for index in order::begin(&self.machines, rules) {
                self.with_container(rules, now, index, |machine, cx| machine.begin(cx, actions));
            }
        }
    }

    /// Stops the containers in their order, and finishes the pod after the last one.
    fn close(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        self.for_each_container(rules, now, |machine, cx| machine.abandon(cx, false, actions));
        let closes = self.closes.unwrap_or(Closing { until: now, at_once: true });
        let left = Duration::try_from(closes.until.duration_since(now)).unwrap_or_default();
        for index in order::end(&self.machines, left.is_zero()) {
            self.with_container(rules, now, index, |machine, cx| {
                let waited = machine.class == Class::Sidecar && !closes.at_once;
                let left = if waited { left.max(TURN_MIN) } else { left };
                machine.stop(cx, &StopReason::Pod, left, false, actions);
            });
        }
        if self.machines.iter().all(|machine| machine.stage == ContainerStage::Done) {
            self.finish(actions);
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        if self.succeeded.is_none() {
            let mut own = self.machines.iter().filter(|machine| machine.class == Class::Main);
            let clean = own.all(|machine| machine.exit.as_ref().is_some_and(|exit| exit.code == 0));
            self.succeeded = Some(clean && self.terminal_reason.is_none());
        }
        for machine in &mut self.machines {
            machine.stage = ContainerStage::Done;
        }
        self.resumed = false;
        self.stage = Stage::Cleaning;
        actions.push(Action::Clean);
    }
}

#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
