//! A pod's life: where it stands, its containers, and one step. Pure: what the worker does and what the status says follow
//! from here.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use super::cell::{Cell, CellStage, Exit, Running, StopReason, Wait};
use super::cell::{CellContext, after};
pub use super::event::{
    Action, CellEvent, Class, ContainerPolicy, Event, ImageOf, LifecyclePolicy, PostStart, ProbeKind, ProbeResult,
    Restart, RestartRule, Thresholds,
};
use super::order;

/// While a pod's beginning goes on, and while a first probe runs, the status that would be overtaken at once is held
/// back so long: it saves the API server half of the writes of a quick start.
const HOLD_PREPARING: Duration = Duration::from_millis(100);
const HOLD_FIRST_PROBE: Duration = Duration::from_millis(20);
/// While a container is started again at once, as upstream's kubelet shows nothing of what lies between: it looks at its
/// containers each second. What takes longer is shown.
const HOLD_RESTARTING: Duration = Duration::from_millis(500);
/// None is held back longer, wherever the clock is set to meanwhile.
pub(super) const HOLD_MAX: Duration = HOLD_RESTARTING;
/// Why a pod ends with its node (upstream's words).
const SHUT_DOWN: &str = "Pod was terminated in response to imminent node shutdown.";
/// What a sidecar gets to end in, also where those before it have used up the grace period (upstream's).
const TURN_MIN: Duration = Duration::from_secs(2);

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

/// How long a pod may take to close.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Closing {
    until: Timestamp,
    /// No time at all was given.
    at_once: bool,
}

/// All that is remembered of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Where it stands.
    pub stage: Stage,
    /// Its containers, in the order of [`crate::spec::containers`].
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
    /// Its containers are being stopped, to begin anew together.
    pub anew: bool,
    /// Set once nothing of it begins any more.
    closes: Option<Closing>,
}

fn pod_warning(reason: &'static str, message: impl Into<String>) -> Action {
    Action::EventRecord { warning: true, reason, message: message.into(), container: None }
}

impl State {
    /// A pod that was never run.
    #[must_use]
    pub fn new(now: Timestamp, rules: &LifecyclePolicy) -> Self {
        Self {
            stage: Stage::Mounting,
            cells: rules.containers.iter().map(|container| Cell::new(container.class)).collect(),
            began: now,
            taken_up: now,
            sandbox: false,
            terminal_reason: None,
            succeeded: None,
            deleted: None,
            removed: false,
            resumed: false,
            anew: false,
            closes: None,
        }
    }

    /// A pod that an earlier run of the agent had taken up, and none of whose containers was ever started.
    #[must_use]
    pub fn begun(now: Timestamp, began: Timestamp, rules: &LifecyclePolicy) -> Self {
        Self { began, ..Self::new(now, rules) }
    }

    /// A container that an earlier run of the agent had started: it is no more, and ended like `exit`.
    pub fn resume(&mut self, container: usize, attempt: u32, exit: Exit, image_id: String) {
        if let Some(cell) = self.cells.get_mut(container) {
            *cell = Cell::resume(cell.class, attempt, exit, image_id);
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
            self.each(rules, now, |cell, around| cell.recall(around));
            self.advance(rules, now, &mut actions);
            if self.stage == Stage::Mounting {
                actions.push(Action::Mount);
            }
        }
        (self, actions)
    }

    /// Has each container take part.
    fn each(&mut self, rules: &LifecyclePolicy, now: Timestamp, mut act: impl FnMut(&mut Cell, &CellContext<'_>)) {
        (0..self.cells.len()).for_each(|index| self.one(rules, now, index, &mut act));
    }

    /// Has a container take part.
    fn one(
        &mut self,
        rules: &LifecyclePolicy,
        now: Timestamp,
        index: usize,
        act: impl FnOnce(&mut Cell, &CellContext<'_>),
    ) {
        let (closing, sandbox) = (self.closing(), self.sandbox);
        if let (Some(cell), Some(own)) = (self.cells.get_mut(index), rules.containers.get(index)) {
            act(cell, &CellContext { rules, own, index, now, closing, sandbox });
        }
    }

    /// Whether the pod counts as ready, as far as its containers decide.
    #[must_use]
    pub fn ready(&self) -> bool {
        let mut count = self.cells.iter().filter(|cell| matches!(cell.class, Class::Main | Class::Sidecar)).peekable();
        count.peek().is_some() && count.all(|cell| cell.ready(self.deleted.is_some()))
    }

    /// Whether nothing of the pod begins any more.
    fn closing(&self) -> bool {
        self.ending() || self.closes.is_some() || self.succeeded.is_some()
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
        let deadline = rules.deadline.filter(|_| !self.closing()).map(|deadline| after(self.began, deadline));
        let waits_for_turn = |cell: &Cell| cell.class == Class::Sidecar && matches!(cell.stage, CellStage::Running(_));
        let late = self.closes.filter(|_| self.cells.iter().any(waits_for_turn)).map(|closes| closes.until);
        let waits = self.cells.iter().filter_map(|cell| match &cell.stage {
            CellStage::Waiting { until, .. } => Some(*until),
            _ => None,
        });
        deadline.into_iter().chain(late).chain(waits).min()
    }

    /// The wall clock was set, by so much: what waits waits as long as before.
    pub fn clock_was_set(&mut self, by: SignedDuration) {
        for cell in &mut self.cells {
            if let CellStage::Waiting { until, .. } = &mut cell.stage {
                *until = until.saturating_add(by).unwrap_or(*until);
            }
        }
        if let Some(closes) = &mut self.closes {
            closes.until = closes.until.saturating_add(by).unwrap_or(closes.until);
        }
    }

    /// Until when the status need not be written, as it is about to change.
    #[must_use]
    pub fn settles_at(&self) -> Option<Timestamp> {
        if self.ending() || self.resumed || !matches!(self.stage, Stage::Mounting | Stage::Active) {
            return None;
        }
        let settles = self.cells.iter().filter_map(|cell| match &cell.stage {
            CellStage::Idle | CellStage::Pulling | CellStage::Starting => match &cell.exit {
                Some(exit) => Some(after(exit.finished, HOLD_RESTARTING)),
                None => Some(after(self.taken_up, HOLD_PREPARING)).filter(|_| cell.attempt.is_none_or(|n| n == 0)),
            },
            CellStage::Stopping { why: StopReason::Changed { since }, .. } => Some(after(*since, HOLD_RESTARTING)),
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
        let actions = self.happen(rules, event, now);
        (self, actions)
    }

    /// The same in place: the state of a pod of thousands of containers is not copied for each event.
    pub fn happen(&mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        self.join(rules);
        self.take(rules, event, now, &mut actions);
        self.advance(rules, now, &mut actions);
        actions
    }

    /// Takes in the containers that were added to the pod.
    fn join(&mut self, rules: &LifecyclePolicy) {
        for own in rules.containers.iter().skip(self.cells.len()) {
            let mut cell = Cell::new(own.class);
            if self.is_over() {
                cell.stage = CellStage::Done;
            }
            self.cells.push(cell);
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Cleaning | Stage::Ended)
    }

    fn take(&mut self, rules: &LifecyclePolicy, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => self.tick(rules, now, actions),
            Event::Deleted(grace) => {
                self.deleted = Some(grace);
                match &self.stage {
                    Stage::Cleaning => {}
                    Stage::Ended => actions.push(Action::Delete),
                    _ => self.end(rules, grace, now, actions),
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
                }
            }
            Event::MountFailed(message) => actions.push(pod_warning("FailedMount", message)),
            Event::Evicted(message) => {
                if !self.closing() {
                    actions.push(pod_warning("Evicted", message.clone()));
                    self.terminal_reason =
                        Some(TerminalReason { reason: Some("Evicted"), message: Some(message), rejected: false });
                    // As upstream: what fills the disk gets no grace.
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
        let (Some(cell), Some(own)) = (self.cells.get(index), rules.containers.get(index)) else { return };
        let (was_live, code) =
            (cell.is_live(), if let CellEvent::Exited { code, .. } = &event { Some(*code) } else { None });
        let anew = code.is_some_and(|code| own.restarts_all(code));
        self.one(rules, now, index, |cell, around| cell.take(around, event, actions));
        let is_live = self.cells.get(index).is_some_and(Cell::is_live);
        self.resumed &= !is_live;
        if was_live && !is_live && anew && !self.closing() {
            self.begin_anew(rules, now, actions);
        }
    }

    /// Stops all containers but ephemeral ones, to start them again together.
    fn begin_anew(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        self.anew = true;
        self.each(rules, now, |cell, around| {
            if cell.class != Class::Ephemeral {
                // As upstream: without grace.
                cell.stop(around, &StopReason::Anew, Duration::ZERO, false, actions);
                cell.give_up(around, true, actions);
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
            self.each(rules, now, |cell, around| cell.tick(around, actions));
        }
    }

    /// Decides that the pod ends within that time. Those that are stopped already have no more than that.
    fn end(&mut self, rules: &LifecyclePolicy, grace: Duration, now: Timestamp, actions: &mut Vec<Action>) {
        let until = after(now, grace);
        if self.closes.is_some_and(|closes| closes.until <= until) {
            return;
        }
        self.closes = Some(Closing { until, at_once: grace.is_zero() });
        self.each(rules, now, |cell, around| {
            if matches!(cell.stage, CellStage::Stopping { .. }) {
                cell.stop(around, &StopReason::Pod, grace, true, actions);
            }
        });
    }

    /// What follows from where the containers stand now: those begin and end whose turn has come.
    fn advance(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        if self.is_over() {
            return;
        }
        if !self.closing() && order::is_over(&self.cells) {
            self.end(rules, rules.grace, now, actions);
        }
        if self.closing() {
            self.close(rules, now, actions);
            return;
        }
        let live = |cell: &Cell| cell.class != Class::Ephemeral && cell.is_live();
        if self.anew && !self.cells.iter().any(live) {
            self.anew = false;
            self.cells.iter_mut().filter(|cell| cell.class != Class::Ephemeral).for_each(Cell::reset);
        }
        if self.stage == Stage::Active && !self.anew {
            for index in order::begin(&self.cells, rules) {
                self.one(rules, now, index, |cell, around| cell.begin(around, actions));
            }
        }
    }

    /// Ends those whose turn has come, and the pod after the last of them.
    fn close(&mut self, rules: &LifecyclePolicy, now: Timestamp, actions: &mut Vec<Action>) {
        self.each(rules, now, |cell, around| cell.give_up(around, false, actions));
        let closes = self.closes.unwrap_or(Closing { until: now, at_once: true });
        let left = Duration::try_from(closes.until.duration_since(now)).unwrap_or_default();
        for index in order::end(&self.cells, left.is_zero()) {
            self.one(rules, now, index, |cell, around| {
                let waited = cell.class == Class::Sidecar && !closes.at_once;
                let left = if waited { left.max(TURN_MIN) } else { left };
                cell.stop(around, &StopReason::Pod, left, false, actions);
            });
        }
        if self.cells.iter().all(|cell| cell.stage == CellStage::Done) {
            self.finish(actions);
        }
    }

    fn finish(&mut self, actions: &mut Vec<Action>) {
        if self.succeeded.is_none() {
            let mut own = self.cells.iter().filter(|cell| cell.class == Class::Main);
            let clean = own.all(|cell| cell.exit.as_ref().is_some_and(|exit| exit.code == 0));
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
mod order_tests;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
