//! The progress of a pod's in-place resize: deferred, granted, blocked by memory in use, applied. Pure: takes events and
//! the monotonic time, returns what the worker reports and when it applies the amounts again. A retry is pending only
//! while a granted resize is not applied.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

use super::{PendingResize, ResizeProgress, conditions};

/// The retry interval while too much memory is in use.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// An event of a resize.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResizeEvent {
    /// The newest decision of the node: the requested amounts that don't fit now, or none.
    Deferred(Option<PendingResize>),
    /// The pod's allocated amounts have changed to those of this generation.
    Granted(Option<i64>),
    /// Memory limits can't be lowered below the current usage; with upstream's error.
    Blocked(String),
    /// The amounts were applied where possible. `complete`: to all running containers.
    Applied { complete: bool },
    /// Time has passed.
    Elapsed,
    /// The pod's resources on the node are being removed.
    Cleaned,
}

/// An action for the worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResizeAction {
    /// Record that the requested amounts are deferred.
    RecordDeferred { requested: String },
    /// Record the start of a resize.
    RecordStarted,
    /// Record the error that delays the resize to this generation.
    RecordError { generation: Option<i64>, error: String },
    /// Record the end of the resize to this generation.
    RecordCompleted { generation: Option<i64> },
    /// Apply the allocated amounts to all containers.
    Apply,
}

/// The resize of one pod.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ResizeTracker {
    /// A resize that can't be granted now.
    pending: Option<PendingResize>,
    /// A granted one that isn't applied to all containers.
    progress: Option<ResizeProgress>,
    /// The monotonic time of the next try.
    retry_at: Option<Duration>,
}

impl ResizeTracker {
    /// Handles an event.
    pub(crate) fn step(&mut self, event: ResizeEvent, elapsed: Duration) -> Vec<ResizeAction> {
        match event {
            ResizeEvent::Deferred(pending) => {
                let before = self.pending.take().map(|before| before.requested);
                self.pending = pending;
                let requested = self.pending.as_ref().map(|pending| pending.requested.clone());
                let changed = requested.filter(|requested| before.as_ref() != Some(requested));
                changed.map(|requested| ResizeAction::RecordDeferred { requested }).into_iter().collect()
            }
            ResizeEvent::Granted(generation) => {
                self.progress = Some(ResizeProgress { generation, error: None });
                vec![ResizeAction::RecordStarted, ResizeAction::Apply]
            }
            ResizeEvent::Blocked(error) => {
                self.retry_at = Some(elapsed + RETRY_INTERVAL);
                let progress = self.progress.get_or_insert_default();
                if progress.error.is_some() {
                    return Vec::new();
                }
                progress.error = Some(error.clone());
                vec![ResizeAction::RecordError { generation: progress.generation, error }]
            }
            ResizeEvent::Applied { complete } => match self.progress.take_if(|_| complete) {
                Some(ResizeProgress { generation, .. }) => {
                    self.retry_at = None;
                    vec![ResizeAction::RecordCompleted { generation }]
                }
                None => Vec::new(),
            },
            ResizeEvent::Elapsed => match self.retry_at.take_if(|at| *at <= elapsed) {
                Some(_) => vec![ResizeAction::Apply],
                None => Vec::new(),
            },
            ResizeEvent::Cleaned => {
                (self.progress, self.retry_at) = (None, None);
                Vec::new()
            }
        }
    }

    /// Whether a granted resize isn't applied to all containers yet.
    pub(crate) fn is_in_progress(&self) -> bool {
        self.progress.is_some()
    }

    /// The time until the next try.
    pub(crate) fn retry_in(&self, elapsed: Duration) -> Option<Duration> {
        self.retry_at.map(|at| at.saturating_sub(elapsed))
    }

    /// Adds the conditions of the resize to a status. `previous` supplies transition times.
    pub(crate) fn add_conditions(
        &self,
        status: &mut PodStatus,
        generation: Option<i64>,
        previous: &[PodCondition],
        now: Timestamp,
    ) {
        let own = conditions(self.pending.as_ref(), self.progress.as_ref(), generation, previous, now);
        status.conditions.get_or_insert_default().extend(own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pending(requested: &str) -> ResizeEvent {
        ResizeEvent::Deferred(Some(PendingResize { message: "why".into(), requested: requested.into() }))
    }

    fn deferred(requested: &str) -> ResizeAction {
        ResizeAction::RecordDeferred { requested: requested.into() }
    }

    fn blocked() -> ResizeEvent {
        ResizeEvent::Blocked("in use".into())
    }

    fn condition_types(resize: &ResizeTracker) -> Vec<String> {
        let mut status = PodStatus::default();
        resize.add_conditions(&mut status, Some(1), &[], Timestamp::UNIX_EPOCH);
        status.conditions.unwrap_or_default().into_iter().map(|condition| condition.type_).collect()
    }

    #[test]
    fn a_deferred_resize_is_recorded_once_for_each_request() {
        let mut resize = ResizeTracker::default();
        assert_eq!(resize.step(ResizeEvent::Deferred(None), second(0)), []);
        assert_eq!(resize.step(pending("2"), second(0)), [deferred("2")]);
        assert_eq!(resize.step(pending("2"), second(1)), []);
        assert_eq!(resize.step(pending("3"), second(1)), [deferred("3")]);
        assert_eq!(condition_types(&resize), ["PodResizePending"]);
        assert_eq!(resize.step(ResizeEvent::Deferred(None), second(2)), []);
        assert_eq!(condition_types(&resize), [""; 0]);
        assert_eq!(resize.step(pending("3"), second(3)), [deferred("3")], "a later request");
    }

    #[test]
    fn a_granted_resize_is_applied_and_completed_once() {
        let mut resize = ResizeTracker::default();
        let granted = resize.step(ResizeEvent::Granted(Some(2)), second(0));
        assert_eq!(granted, [ResizeAction::RecordStarted, ResizeAction::Apply]);
        assert_eq!(resize.step(ResizeEvent::Applied { complete: false }, second(0)), [], "a container restarts");
        assert!(resize.is_in_progress());
        let completed = resize.step(ResizeEvent::Applied { complete: true }, second(1));
        assert_eq!(completed, [ResizeAction::RecordCompleted { generation: Some(2) }]);
        assert_eq!(resize.step(ResizeEvent::Applied { complete: true }, second(1)), []);
        assert_eq!((resize.is_in_progress(), resize.retry_in(second(1))), (false, None));
    }

    #[test]
    fn a_blocked_resize_is_retried_each_second_and_its_error_recorded_once() {
        let mut resize = ResizeTracker::default();
        resize.step(ResizeEvent::Granted(Some(2)), second(0));
        let error = ResizeAction::RecordError { generation: Some(2), error: "in use".into() };
        assert_eq!(resize.step(blocked(), second(0)), [error]);
        assert_eq!(resize.retry_in(second(0)), Some(second(1)));
        assert_eq!(resize.step(ResizeEvent::Elapsed, Duration::from_millis(999)), []);
        assert_eq!(resize.step(ResizeEvent::Elapsed, second(1)), [ResizeAction::Apply]);
        assert_eq!(resize.step(ResizeEvent::Elapsed, second(1)), [], "one try for each deadline");
        assert_eq!(resize.step(blocked(), second(1)), []);
        assert_eq!(resize.step(blocked(), Duration::from_millis(1_500)), [], "another cause tries in between");
        assert_eq!(resize.retry_in(second(2)), Some(Duration::from_millis(500)), "a second after the last try");
        resize.step(ResizeEvent::Granted(Some(3)), second(2));
        let error = ResizeAction::RecordError { generation: Some(3), error: "in use".into() };
        assert_eq!(resize.step(blocked(), second(2)), [error], "the error of another resize");
        resize.step(ResizeEvent::Applied { complete: true }, second(2));
        assert_eq!(resize.step(ResizeEvent::Elapsed, second(9)), [], "nothing is left to apply");
    }

    #[test]
    fn a_limit_that_a_restart_left_blocked_counts_as_a_resize() {
        let mut resize = ResizeTracker::default();
        let error = ResizeAction::RecordError { generation: None, error: "in use".into() };
        assert_eq!(resize.step(blocked(), second(0)), [error]);
        assert_eq!(condition_types(&resize), ["PodResizeInProgress"]);
    }

    #[test]
    fn a_cleaned_pod_retries_nothing_and_shows_a_pending_request() {
        let mut resize = ResizeTracker::default();
        resize.step(pending("2"), second(0));
        resize.step(ResizeEvent::Granted(Some(2)), second(0));
        resize.step(blocked(), second(0));
        assert_eq!(resize.step(ResizeEvent::Cleaned, second(0)), []);
        assert_eq!(resize.step(ResizeEvent::Elapsed, second(9)), []);
        assert_eq!(resize.step(ResizeEvent::Applied { complete: true }, second(9)), []);
        assert_eq!(condition_types(&resize), ["PodResizePending"]);
    }
}
