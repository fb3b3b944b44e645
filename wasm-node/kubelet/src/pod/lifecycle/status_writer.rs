//! Decides when a pod's status and its final delete are written to the API. Pure: takes projected statuses, versions of
//! the watch and the results of writes, and returns the next write and its delay. At most one write is in flight; a
//! failed one is retried with exponential back-off.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;

use super::state::HOLD_MAX;
use crate::spec::compressed::Compressed;
use reported::ReportedStatus;

mod reported;

/// The first delay before a failed write to the API is retried; it doubles up to the maximum.
pub(crate) const WRITE_RETRY_FIRST: Duration = Duration::from_millis(200);
pub(crate) const WRITE_RETRY_MAX: Duration = Duration::from_secs(15);
/// The number of doublings after which the maximum is reached.
const DOUBLINGS_MAX: u32 = 10;

/// The API object that receives a pod's status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum StatusTarget {
    /// The pod itself.
    #[default]
    Pod,
    /// The mirror of a static pod, by uid; `None` while there is no mirror.
    Mirror(Option<String>),
}

/// A kind of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusWrite {
    /// A patch of the status.
    Patch,
    /// The delete of the ended pod.
    Delete,
}

/// A write in flight.
#[derive(Debug)]
enum WriteInFlight {
    Patch(Arc<Compressed<PodStatus>>),
    /// A patch of an earlier target: its result says nothing about the status of the current one.
    Superseded,
    Delete,
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    /// The API has accepted it as this version.
    Accepted(u64),
    /// The pod was deleted, or another one has its name.
    Gone,
    /// The object would exceed the API's size limit.
    TooLarge,
    /// Another client error.
    Rejected,
    /// No response, or one that promises nothing about a retry.
    Failed,
}

impl WriteOutcome {
    /// The outcome of a failed write; the code is 0 without a response.
    pub(crate) fn of_failure(code: u16) -> Self {
        match code {
            404 | 409 => Self::Gone,
            413 => Self::TooLarge,
            408 | 429 => Self::Failed,
            400..500 => Self::Rejected,
            _ => Self::Failed,
        }
    }
}

/// An event of the writer.
#[derive(Debug)]
pub(crate) enum StatusEvent {
    /// The projection has yielded another status.
    Projected(Arc<Compressed<PodStatus>>),
    /// An earlier run of the agent has written the desired status, and others may have changed it since.
    WrittenBefore,
    /// The watch has delivered the pod, whose status is written to that object.
    Observed { target: StatusTarget, version: u64 },
    /// The pod has ended while it is being deleted.
    DeleteRequested,
    /// The write in flight has ended. `newest` is the newest version of the watch; `jitter` is added to a retry's delay.
    WriteEnded { outcome: WriteOutcome, newest: u64, jitter: Duration },
}

/// An action for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusAction {
    /// The API has the status or never accepts it: perform the held first actions.
    ReleaseFirstActions,
    /// Record an event: the status exceeds the API's size limit.
    RecordTooLarge,
}

/// The facts outside of this machine that decide on the next write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteFacts {
    /// The monotonic time.
    pub(crate) elapsed: Duration,
    /// The time until the pod's state settles, if a change is about to follow.
    pub(crate) settles_in: Option<Duration>,
    /// The desired status is older than the pod's state.
    pub(crate) stale: bool,
    /// The pod was removed from the API.
    pub(crate) removed: bool,
}

/// What the writer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextWrite {
    /// The API hasn't the desired status.
    pub(crate) dirty: bool,
    /// The write to start now.
    pub(crate) start: Option<StatusWrite>,
    /// Nothing is to be written, in flight or to be retried.
    pub(crate) idle: bool,
    /// The time until a delayed write may start.
    pub(crate) settles_in: Option<Duration>,
    /// The time until a failed write is retried.
    pub(crate) retry_in: Option<Duration>,
}

/// The writer of one pod's status.
#[derive(Debug, Default)]
pub(crate) struct StatusWriter {
    target: StatusTarget,
    desired: Arc<Compressed<PodStatus>>,
    reported: ReportedStatus,
    /// Whether the status has to be written; `None` until this is computed.
    dirty: Option<bool>,
    delete_pending: bool,
    in_flight: Option<WriteInFlight>,
    /// The number of consecutive failed writes.
    failures: u32,
    /// The earliest monotonic time of the next write after a failed one.
    retry_at: Option<Duration>,
    /// The event for a status above the API's size limit was recorded.
    too_large: bool,
}

impl StatusWriter {
    pub(crate) fn new(target: StatusTarget) -> Self {
        Self { target, ..Self::default() }
    }

    /// The object that receives the status.
    pub(crate) fn target(&self) -> &StatusTarget {
        &self.target
    }

    /// The newest projected status.
    pub(crate) fn desired(&self) -> &Arc<Compressed<PodStatus>> {
        &self.desired
    }

    /// Handles an event.
    pub(crate) fn step(&mut self, event: StatusEvent, elapsed: Duration) -> Vec<StatusAction> {
        match event {
            StatusEvent::Projected(status) => {
                self.desired = status;
                self.dirty = None;
            }
            StatusEvent::WrittenBefore => {
                self.reported.suppress_writes(self.desired.clone());
                self.dirty = None;
            }
            StatusEvent::Observed { target, version } => {
                if target != self.target {
                    // Another object, whose contents are unknown.
                    self.reported = ReportedStatus::default();
                    self.target = target;
                    if let Some(WriteInFlight::Patch(_)) = self.in_flight {
                        self.in_flight = Some(WriteInFlight::Superseded);
                    }
                }
                self.dirty = None;
                self.reported.observe(version);
            }
            StatusEvent::DeleteRequested => self.delete_pending = true,
            StatusEvent::WriteEnded { outcome, newest, jitter } => {
                return self.end_write(outcome, newest, (elapsed, jitter));
            }
        }
        Vec::new()
    }

    fn end_write(
        &mut self,
        outcome: WriteOutcome,
        newest: u64,
        (elapsed, jitter): (Duration, Duration),
    ) -> Vec<StatusAction> {
        let Some(write) = self.in_flight.take() else { return Vec::new() };
        self.dirty = None;
        self.retry_at = None;
        self.failures = if matches!(outcome, WriteOutcome::Accepted(_)) { 0 } else { self.failures.saturating_add(1) };
        let mut actions = Vec::new();
        if outcome != WriteOutcome::Failed {
            actions.push(StatusAction::ReleaseFirstActions);
        }
        match (write, outcome) {
            (WriteInFlight::Patch(status), WriteOutcome::Accepted(version)) => {
                self.reported.record_write(status, version, newest, elapsed);
            }
            // A watch event follows soon.
            (WriteInFlight::Patch(status), WriteOutcome::Gone) => self.reported.suppress_writes(status),
            (WriteInFlight::Patch(status), WriteOutcome::TooLarge) => {
                // A retry would be rejected again, so only a different status is written.
                self.reported.suppress_writes(status);
                if !std::mem::replace(&mut self.too_large, true) {
                    actions.push(StatusAction::RecordTooLarge);
                }
            }
            (WriteInFlight::Superseded, WriteOutcome::Accepted(_) | WriteOutcome::Gone | WriteOutcome::TooLarge) => {}
            (WriteInFlight::Delete, WriteOutcome::Accepted(_) | WriteOutcome::Gone) => self.delete_pending = false,
            (WriteInFlight::Patch(_) | WriteInFlight::Superseded, WriteOutcome::Rejected | WriteOutcome::Failed)
            | (WriteInFlight::Delete, WriteOutcome::TooLarge | WriteOutcome::Rejected | WriteOutcome::Failed) => {
                let wait = WRITE_RETRY_FIRST.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)).min(WRITE_RETRY_MAX);
                self.retry_at = Some(elapsed + wait + jitter);
            }
        }
        actions
    }

    /// Decides on the next write, and counts it as in flight. `observed` returns the status that the watch has
    /// delivered; it is called once per change.
    pub(crate) fn next<'a>(
        &mut self,
        facts: &WriteFacts,
        observed: impl FnOnce() -> Option<&'a PodStatus>,
    ) -> NextWrite {
        let dirty = self.is_dirty(facts.elapsed, observed);
        let retry_in = self.retry_at.map(|at| at.saturating_sub(facts.elapsed)).filter(|wait| !wait.is_zero());
        let settles_in = if dirty && self.in_flight.is_none() { self.settle_delay(facts) } else { None };
        let mut start = None;
        if self.in_flight.is_none() && retry_in.is_none() && !facts.removed {
            if dirty && settles_in.is_none() {
                self.in_flight = Some(WriteInFlight::Patch(self.desired.clone()));
                start = Some(StatusWrite::Patch);
            } else if !dirty && !facts.stale && self.delete_pending {
                self.in_flight = Some(WriteInFlight::Delete);
                start = Some(StatusWrite::Delete);
            }
        }
        let idle = !dirty && self.in_flight.is_none() && retry_in.is_none();
        NextWrite { dirty, start, idle, settles_in, retry_in }
    }

    /// Whether the status has to be written: computed once per change of its inputs.
    fn is_dirty<'a>(&mut self, elapsed: Duration, observed: impl FnOnce() -> Option<&'a PodStatus>) -> bool {
        if self.target == StatusTarget::Mirror(None) {
            return false;
        }
        if let Some(dirty) = self.dirty {
            return dirty;
        }
        let dirty = self.reported.dirty(&self.desired, observed());
        self.reported.record_overwrite(dirty, &self.desired, elapsed);
        self.dirty = Some(dirty);
        dirty
    }

    /// How long a write is delayed, as it would be superseded or overwritten at once.
    fn settle_delay(&self, facts: &WriteFacts) -> Option<Duration> {
        let settles_in = facts.settles_in.filter(|wait| !wait.is_zero() && *wait <= HOLD_MAX);
        settles_in.max(self.reported.repair_delay(&self.desired, facts.elapsed))
    }
}

#[cfg(test)]
mod tests;
