//! A pod's life: where it stands, its containers, and one step. Pure: what the worker does and what the status says follow
//! from here.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use super::cell::{Cell, CellStage, Exit, Running, StopReason, Wait};
use super::cell::{CellContext, after};
pub use super::event::{Action, CellEvent, ContainerPolicy, Event, LifecyclePolicy, ProbeKind, Restart, Thresholds};

/// While a pod's beginning goes on, and while a first probe runs, the status that would be overtaken at once is held
/// back so long: it saves the API server half of the writes of a quick start.
const HOLD_PREPARING: Duration = Duration::from_millis(100);
const HOLD_FIRST_PROBE: Duration = Duration::from_millis(20);

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
    /// Its containers have their turn.
    Active,
    /// Nothing runs any more; what it has on the node is being removed.
    Cleaning,
    /// Nothing is left of it but its status and logs.
    Ended,
}

/// A pod that ends for a reason of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct TerminalReason {
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
    /// Its containers, in the spec's order.
    pub cells: Vec<Cell>,
    /// `status.startTime`.
    pub began: Timestamp,
    /// When this agent took it up.
    taken_up: Timestamp,
    /// Its volumes are filled and it has an address.
    pub sandbox: bool,
    /// Set where the pod fails whatever its containers did.
    pub terminal_reason: Option<TerminalReason>,
    /// The phase that it ended with: `true` = succeeded.
    pub succeeded: Option<bool>,
    /// It is being deleted, with that grace.
    pub deleted: Option<Duration>,
    /// The object is gone.
    pub removed: bool,
    /// Taken up from an earlier run of the agent: its status in the API is of containers that are no more.
    pub resumed: bool,
}

fn pod_warning(reason: &'static str, message: impl Into<String>) -> Action {
    Action::EventRecord { warning: true, reason, message: message.into(), container: None }
}

impl State {
    /// A pod that was never run, of so many containers.
    #[must_use]
    pub fn new(now: Timestamp, containers: usize) -> Self {
        Self {
            stage: Stage::Mounting,
            cells: vec![Cell::default(); containers],
            began: now,
            taken_up: now,
            sandbox: false,
            terminal_reason: None,
            succeeded: None,
            deleted: None,
            removed: false,
            resumed: false,
        }
    }

    /// A pod that an earlier run of the agent had taken up, and none of whose containers was ever started.
    #[must_use]
    pub fn begun(now: Timestamp, began: Timestamp, containers: usize) -> Self {
        Self { began, ..Self::new(now, containers) }
    }

    /// A container that an earlier run of the agent had started: it is no more, and ended like `exit`.
    pub fn resume(&mut self, container: usize, attempt: u32, exit: Exit, image_id: String) {
        if let Some(cell) = self.cells.get_mut(container) {
            *cell = Cell::resume(attempt, exit, image_id);
            self.resumed = true;
        }
    }

    /// What to do first.
    #[must_use]
    pub fn begin(
        mut self,
        rules: &LifecyclePolicy,
        refused: Option<(String, Vec<String>)>,
        now: Timestamp,
    ) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        if let Some(TerminalReason { reason: Some(reason), message: Some(message), rejected: true }) =
            &self.terminal_reason
        {
            actions.push(pod_warning(reason, message.clone()));
        }
        if self.succeeded.is_some() || self.ending() {
            self.finish(&mut actions);
        } else if let Some((message, each)) = refused {
            actions.extend(each.into_iter().map(|one| pod_warning("Unsupported", one)));
            self.stage = Stage::Refused { message };
        } else {
            self.stage = Stage::Mounting;
            self.each(rules, now, |cell, around| cell.follow_exit(around, &mut actions));
            if !self.finish_if_done(&mut actions) {
                actions.push(Action::Mount);
            }
        }
        (self, actions)
    }

    /// Has each container take part.
    fn each(&mut self, rules: &LifecyclePolicy, now: Timestamp, mut act: impl FnMut(&mut Cell, &CellContext<'_>)) {
        let (ending, sandbox) = (self.ending(), self.sandbox);
        for (index, (cell, own)) in self.cells.iter_mut().zip(&rules.containers).enumerate() {
            act(cell, &CellContext { rules, own, index, now, ending, sandbox });
        }
    }

    /// Whether the pod counts as ready, as far as its containers decide.
    #[must_use]
    pub fn ready(&self) -> bool {
        !self.cells.is_empty() && self.cells.iter().all(|cell| cell.ready(self.deleted.is_some()))
    }

    /// Whether an end of the pod is decided.
    #[must_use]
    pub fn ending(&self) -> bool {
        self.deleted.is_some() || self.removed || self.terminal_reason.is_some()
    }

    /// Whether any container was ever started.
    #[must_use]
    pub fn ran(&self) -> bool {
        self.cells.iter().any(|cell| cell.exit.is_some() || cell.attempt.is_some())
    }

    /// When to say [`Event::Tick`].
    #[must_use]
    pub fn wake_at(&self, rules: &LifecyclePolicy) -> Option<Timestamp> {
        let deadline = rules
            .deadline
            .filter(|_| !self.ending() && self.succeeded.is_none())
            .map(|deadline| after(self.began, deadline));
        let waits = self.cells.iter().filter_map(|cell| match &cell.stage {
            CellStage::Waiting { until, .. } => Some(*until),
            _ => None,
        });
        deadline.into_iter().chain(waits).min()
    }

    /// The wall clock was set, by so much: what waits waits as long as before.
    pub fn clock_was_set(&mut self, by: SignedDuration) {
        for cell in &mut self.cells {
            if let CellStage::Waiting { until, .. } = &mut cell.stage {
                *until = until.saturating_add(by).unwrap_or(*until);
            }
        }
    }

    /// Until when the status need not be written, as it is about to change.
    #[must_use]
    pub fn settles_at(&self) -> Option<Timestamp> {
        if self.ending() || self.resumed || !matches!(self.stage, Stage::Mounting | Stage::Active) {
            return None;
        }
        let settles = self.cells.iter().filter_map(|cell| match &cell.stage {
            CellStage::Idle | CellStage::Pulling | CellStage::Starting if cell.attempt.is_none_or(|n| n == 0) => {
                Some(after(self.taken_up, HOLD_PREPARING))
            }
            CellStage::Running(running) if running.unprobed => Some(after(running.since, HOLD_FIRST_PROBE)),
            _ => None,
        });
        settles.max()
    }

    /// Whether the pod or one of its containers stands elsewhere.
    #[must_use]
    pub fn moved_from(&self, before: &Self) -> bool {
        self.stage != before.stage || self.cells.iter().zip(&before.cells).any(|(now, was)| now.stage != was.stage)
    }

    /// One step.
    #[must_use]
    pub fn step(mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp) -> (Self, Vec<Action>) {
        let mut actions = Vec::new();
        self.take(rules, event, now, &mut actions);
        (self, actions)
    }

    fn take(&mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => self.tick(rules, now, actions),
            Event::Deleted(grace) => {
                let before = self.deleted.replace(grace);
                match &self.stage {
                    Stage::Cleaning => {}
                    Stage::Ended => actions.push(Action::Delete),
                    _ => self.end(rules, grace, before.is_none_or(|before| grace < before), now, actions),
                }
            }
            Event::Removed => {
                self.removed = true;
                for (index, cell) in self.cells.iter_mut().enumerate() {
                    actions.push(Action::Kill(index));
                    cell.stage = CellStage::Done;
                }
                self.stage = Stage::Cleaning;
                actions.push(Action::Clean);
            }
            Event::Mounted => {
                if self.stage == Stage::Mounting {
                    self.stage = Stage::Active;
                    self.sandbox = true;
                    self.each(rules, now, |cell, around| cell.mounted(around, actions));
                }
            }
            Event::MountFailed(message) => actions.push(pod_warning("FailedMount", message)),
            Event::Evicted(message) => {
                if !self.ending() && self.succeeded.is_none() {
                    actions.push(pod_warning("Evicted", message.clone()));
                    self.terminal_reason =
                        Some(TerminalReason { reason: Some("Evicted"), message: Some(message), rejected: false });
                    // As upstream: what fills the disk gets no grace.
                    self.end(rules, Duration::ZERO, true, now, actions);
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
                // What comes of a container after the pod's end, or of one that isn't there, changes nothing.
                if matches!(self.stage, Stage::Mounting | Stage::Active) {
                    self.take_of(rules, index, event, now, actions);
                }
            }
        }
    }

    fn take_of(
        &mut self,
        rules: &LifecyclePolicy,
        index: usize,
        event: CellEvent,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        let (ending, sandbox) = (self.ending(), self.sandbox);
        let (Some(cell), Some(own)) = (self.cells.get_mut(index), rules.containers.get(index)) else { return };
        cell.take(&CellContext { rules, own, index, now, ending, sandbox }, event, actions);
        if cell.is_live() {
            self.resumed = false;
        }
        self.finish_if_done(actions);
    }

    fn tick(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        if let Some(deadline) = rules.deadline
            && !self.ending()
            && self.succeeded.is_none()
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
            self.end(rules, rules.grace, true, now, actions);
            return;
        }
        if matches!(self.stage, Stage::Mounting | Stage::Active) {
            self.each(rules, now, |cell, around| cell.tick(around, actions));
        }
    }

    /// Ends the pod: its containers first, where any runs.
    fn end(
        &mut self,
        rules: &LifecyclePolicy,
        grace: Duration,
        sooner: bool,
        now: Timestamp,
        actions: &mut Vec<Action>,
    ) {
        if matches!(self.stage, Stage::Cleaning | Stage::Ended) {
            return;
        }
        self.each(rules, now, |cell, around| cell.end(around, grace, sooner, actions));
        self.finish_if_done(actions);
    }

    /// Ends the pod where no container has anything left to do.
    fn finish_if_done(&mut self, actions: &mut Vec<Action>) -> bool {
        let done = self.cells.iter().all(|cell| cell.stage == CellStage::Done);
        if done && !matches!(self.stage, Stage::Cleaning | Stage::Ended) {
            self.finish(actions);
        }
        done
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        if self.succeeded.is_none() {
            let clean = self.cells.iter().all(|cell| cell.exit.as_ref().is_some_and(|exit| exit.code == 0));
            self.succeeded = Some(clean && self.terminal_reason.is_none());
        }
        for cell in &mut self.cells {
            cell.stage = CellStage::Done;
        }
        self.resumed = false;
        self.stage = Stage::Cleaning;
        actions.push(Action::Clean);
    }
}

#[cfg(test)]
mod tests;
