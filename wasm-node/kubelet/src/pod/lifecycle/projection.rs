//! Projects a pod's status from its state, and limits how often: the projection of a large pod takes long. Pure: takes
//! the state, the object and the monotonic time, returns the status and the time of the next projection.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus, ResourceRequirements};

use super::event::LifecyclePolicy;
use super::resize::ResizeTracker;
use super::state::PodState;
use super::status;
use crate::spec::compressed::Compressed;

/// The status of a pod with at most this many containers is projected on every event.
const PROJECTED_AT_ONCE_MAX: usize = 32;
/// The projection of a larger pod takes at most this fraction (1/20) of its worker's time.
const PROJECTED_PART: u32 = 20;

/// The inputs of a projection.
pub(crate) struct ProjectionInput<'a> {
    pub(crate) state: &'a PodState,
    pub(crate) pod: &'a Pod,
    pub(crate) rules: &'a LifecyclePolicy,
    pub(crate) facts: status::Facts,
    pub(crate) resize: &'a ResizeTracker,
    /// The actual resources of a running container, by name.
    pub(crate) actual: &'a dyn Fn(&str) -> Option<ResourceRequirements>,
}

/// The projection of one pod.
#[derive(Debug, Default)]
pub(crate) struct StatusProjection {
    /// The conditions at adoption, for their transition times, until the first projection.
    first_conditions: Option<Vec<PodCondition>>,
    /// The final status that an earlier run of the agent wrote: it replaces the projection.
    final_status: Option<Compressed<PodStatus>>,
    /// The earliest monotonic time of the next projection, if it is limited.
    next_at: Option<Duration>,
    /// The state has changed since the last projection.
    stale: bool,
}

impl StatusProjection {
    pub(crate) fn new(first_conditions: Option<Vec<PodCondition>>) -> Self {
        Self { first_conditions, ..Self::default() }
    }

    /// Keeps the final status of an earlier run, which has more information than this one.
    pub(crate) fn keep_final_status(&mut self, status: PodStatus) {
        self.final_status = Some(status.into());
    }

    /// The state may have changed. Returns whether the status is projected now; otherwise it is stale until then.
    pub(crate) fn request(&mut self, elapsed: Duration) -> bool {
        self.stale = self.next_at.is_some_and(|at| elapsed < at);
        !self.stale
    }

    /// Records the duration of a projection, which determines the time of the next one.
    pub(crate) fn record(&mut self, began: Duration, ended: Duration, containers: usize) {
        if containers > PROJECTED_AT_ONCE_MAX {
            self.next_at = Some(ended + ended.saturating_sub(began) * PROJECTED_PART);
        }
    }

    /// Whether the state has changed since the last projection.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// The time until a deferred projection.
    pub(crate) fn wake_in(&self, elapsed: Duration) -> Option<Duration> {
        self.next_at.filter(|_| self.stale).map(|at| at.saturating_sub(elapsed))
    }

    /// Projects the status. `before` is the result of the previous projection.
    pub(crate) fn project(&mut self, input: &ProjectionInput<'_>, before: &PodStatus, now: Timestamp) -> PodStatus {
        let pod = input.pod;
        let own = self.first_conditions.take().or_else(|| before.conditions.clone()).unwrap_or_default();
        let others = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut previous = own;
        let foreign: Vec<PodCondition> =
            others.filter(|other| previous.iter().all(|own| own.type_ != other.type_)).cloned().collect();
        previous.extend(foreign);
        let mut status = match &self.final_status {
            Some(last) => PodStatus { observed_generation: pod.metadata.generation, ..(*last.get()).clone() },
            None => status::project(input.state, pod, input.rules, &input.facts, &previous, now),
        };
        if let Some(conditions) = &mut status.conditions
            && pod.status.iter().any(|s| s.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled"))
        {
            // The scheduler has written this condition, and it stays unchanged.
            conditions.retain(|condition| condition.type_ != "PodScheduled");
        }
        input.resize.add_conditions(&mut status, pod.metadata.generation, &previous, now);
        add_resources(&mut status, pod, input.actual);
        status
    }

    /// Compresses the final status of an earlier run.
    pub(crate) fn compress(&self) {
        if let Some(status) = &self.final_status {
            status.compress();
        }
    }
}

/// Running containers show their actual resources, and the pod its allocated ones.
fn add_resources(status: &mut PodStatus, pod: &Pod, actual: &dyn Fn(&str) -> Option<ResourceRequirements>) {
    let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        let runs = container.state.as_ref().is_some_and(|state| state.running.is_some());
        if let Some(actual) = actual(&container.name).filter(|_| runs) {
            container.resources = Some(ResourceRequirements { claims: None, ..actual });
        }
    }
    if let Some(spec) = pod.spec.as_ref().filter(|spec| spec.resources.is_some()) {
        status.resources = spec.resources.clone();
        status.allocated_resources = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::lifecycle::event::{Admission, ContainerEvent, Event};
    use crate::pod::lifecycle::settings::rules;

    const fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "2"}}}]},
            "status": status,
        }))
        .unwrap()
    }

    /// The projection of a running pod, from the conditions of an earlier one.
    fn project(projection: &mut StatusProjection, pod: &Pod, before: &PodStatus) -> PodStatus {
        let (rules, now) = (rules(pod), Timestamp::from_second(9).unwrap());
        let (mut state, _) = PodState::new(now, &rules).begin(&rules, Admission::default(), now);
        let pulled = ContainerEvent::Pulled { preparation: 1, image_id: "id".into(), message: String::new() };
        let started = ContainerEvent::Started { container_id: "x://1".into() };
        for event in [Event::Mounted, Event::Container(0, pulled), Event::Container(0, started)] {
            state = state.step(&rules, event, now).0;
        }
        let actual =
            |name: &str| (name == "c").then(|| serde_json::from_value(json!({"limits": {"cpu": "1"}})).unwrap());
        let facts = status::Facts { host_ip: [127, 0, 0, 1].into(), pod_ip: None };
        let resize = ResizeTracker::default();
        let input = ProjectionInput { state: &state, pod, rules: &rules, facts, resize: &resize, actual: &actual };
        projection.project(&input, before, now)
    }

    fn since(status: &PodStatus, kind: &str) -> Option<i64> {
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
        Some(condition.last_transition_time.as_ref().unwrap().0.as_second())
    }

    #[test]
    fn a_small_pod_is_projected_at_once_and_a_large_one_at_a_limited_rate() {
        let mut small = StatusProjection::default();
        small.record(second(1), second(2), PROJECTED_AT_ONCE_MAX);
        assert!(small.request(second(2)) && !small.is_stale());
        assert_eq!(small.wake_in(second(2)), None);
        let mut large = StatusProjection::default();
        assert!(large.request(second(1)), "the first one");
        large.record(second(1), second(2), PROJECTED_AT_ONCE_MAX + 1);
        assert_eq!((large.is_stale(), large.wake_in(second(2))), (false, None), "nothing has changed yet");
        assert!(!large.request(second(3)) && !large.request(second(21)));
        assert_eq!((large.is_stale(), large.wake_in(second(3))), (true, Some(second(19))));
        assert!(large.request(second(22)) && !large.is_stale());
        large.record(second(22), second(22), PROJECTED_AT_ONCE_MAX + 1);
        assert!(large.request(second(22)), "a projection without cost delays nothing");
    }

    #[test]
    fn transition_times_come_from_the_first_conditions_once() {
        let condition = |at: &str| json!({"type": "Ready", "status": "True", "lastTransitionTime": at});
        let conditions = |at: &str| serde_json::from_value(json!([condition(at)])).unwrap();
        let mut projection = StatusProjection::new(Some(conditions("1970-01-01T00:00:05Z")));
        let pod =
            pod(json!({"conditions": [condition("1970-01-01T00:00:01Z"), {"type": "PodScheduled", "status": "True"}]}));
        let first = project(&mut projection, &pod, &PodStatus::default());
        assert_eq!((since(&first, "Ready"), since(&first, "ContainersReady")), (Some(5), Some(9)));
        assert_eq!(since(&first, "PodScheduled"), None, "it is the scheduler's");
        let before = PodStatus { conditions: Some(conditions("1970-01-01T00:00:07Z")), ..PodStatus::default() };
        assert_eq!(since(&project(&mut projection, &pod, &before), "Ready"), Some(7));
        assert_eq!(since(&project(&mut projection, &pod, &PodStatus::default()), "Ready"), Some(1), "the API's");
    }

    #[test]
    fn a_running_container_shows_its_actual_resources() {
        let status = project(&mut StatusProjection::default(), &pod(json!({})), &PodStatus::default());
        let container = &status.container_statuses.unwrap()[0];
        assert_eq!(json!(container.resources), json!({"limits": {"cpu": "1"}}));
    }

    #[test]
    fn the_final_status_of_an_earlier_run_stays() {
        let mut projection = StatusProjection::default();
        let last = PodStatus { phase: Some("Failed".into()), message: Some("m".into()), ..PodStatus::default() };
        projection.keep_final_status(last);
        projection.compress();
        let status = project(&mut projection, &pod(json!({})), &PodStatus::default());
        assert_eq!((status.phase.as_deref(), status.message.as_deref()), (Some("Failed"), Some("m")));
        assert_eq!(status.observed_generation, Some(3));
    }
}
