//! The first actions of a resumed pod, held back until the API has its status: Ready goes through False before anything
//! runs again, and clients observe the restart. Pure: takes events, returns the actions to perform now. Each action is
//! returned at most once.

use std::time::Duration;

use super::event::Action;

/// The maximum time that a resumed pod waits for the API to accept Ready=False. A slower API counts as unavailable; a
/// pod that this node already ran starts without it.
const HELD_MAX: Duration = Duration::from_secs(5);

/// An event that may release the actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReleaseEvent {
    /// The monotonic time.
    Elapsed(Duration),
    /// The API has the status, or never accepts it.
    StatusReported,
    /// The stage of the pod or of a container has changed.
    StageChanged,
}

/// The held actions of a pod; none of most pods.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct FirstActions {
    actions: Vec<Action>,
    /// The deadline, by the monotonic clock; `None` while nothing is held.
    until: Option<Duration>,
}

impl FirstActions {
    /// Holds these actions from that monotonic time on.
    pub(crate) fn hold(&mut self, actions: Vec<Action>, elapsed: Duration) {
        (self.actions, self.until) = (actions, Some(elapsed + HELD_MAX));
    }

    /// Whether actions are held.
    pub(crate) fn is_holding(&self) -> bool {
        self.until.is_some()
    }

    /// The time until the deadline.
    pub(crate) fn wake_in(&self, elapsed: Duration) -> Option<Duration> {
        self.until.map(|until| until.saturating_sub(elapsed))
    }

    /// Handles an event. Returns the actions to perform now.
    pub(crate) fn step(&mut self, event: ReleaseEvent) -> Vec<Action> {
        let Some(until) = self.until else { return Vec::new() };
        if matches!(event, ReleaseEvent::Elapsed(elapsed) if elapsed < until) {
            return Vec::new();
        }
        self.until = None;
        let mut actions = std::mem::take(&mut self.actions);
        if event == ReleaseEvent::StageChanged {
            // The other actions are obsolete, but the events are still true.
            actions.retain(|action| matches!(action, Action::EventRecord { .. }));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Action {
        Action::EventRecord { warning: true, reason: "r", message: "m".into(), container: None }
    }

    fn held() -> FirstActions {
        let mut first = FirstActions::default();
        first.hold(vec![record(), Action::Mount], Duration::from_secs(1));
        first
    }

    #[test]
    fn a_report_releases_the_actions_once() {
        let mut first = held();
        assert!(first.is_holding());
        assert_eq!(first.step(ReleaseEvent::StatusReported), [record(), Action::Mount]);
        assert_eq!((first.is_holding(), first.wake_in(Duration::ZERO)), (false, None));
        for event in
            [ReleaseEvent::StatusReported, ReleaseEvent::StageChanged, ReleaseEvent::Elapsed(Duration::from_secs(99))]
        {
            assert_eq!(first.step(event), [], "{event:?}");
        }
    }

    #[test]
    fn the_deadline_releases_them_without_the_api() {
        let mut first = held();
        let at = Duration::from_millis;
        assert_eq!(first.wake_in(at(2_000)), Some(at(4_000)));
        assert_eq!(first.step(ReleaseEvent::Elapsed(at(5_999))), []);
        assert_eq!(first.step(ReleaseEvent::Elapsed(at(6_000))), [record(), Action::Mount]);
        assert!(!first.is_holding());
    }

    #[test]
    fn a_stage_change_leaves_the_events_alone() {
        let mut first = held();
        assert_eq!(first.step(ReleaseEvent::StageChanged), [record()]);
        assert_eq!(first.step(ReleaseEvent::StatusReported), []);
    }

    #[test]
    fn no_held_actions_is_a_state_too() {
        let mut first = FirstActions::default();
        assert_eq!(first.step(ReleaseEvent::StatusReported), []);
        first.hold(Vec::new(), Duration::ZERO);
        assert!(first.is_holding(), "a pod without first actions waits for its report like others");
        assert_eq!(first.step(ReleaseEvent::StatusReported), []);
        assert!(!first.is_holding());
    }
}
