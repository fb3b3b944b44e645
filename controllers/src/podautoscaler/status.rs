//! Collects the conditions and events of one pass over an autoscaler, and yields one status write. Unchanged conditions
//! keep their transition time.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use machinery_client::{Action, Effect, EventRecord, Kind, Plan, key_of, value_of};

use crate::conditions;
use crate::pods::stamp;

const SOURCE: &str = "horizontal-pod-autoscaler";
pub(super) const ABLE: &str = "AbleToScale";
pub(super) const ACTIVE: &str = "ScalingActive";
pub(super) const LIMITED: &str = "ScalingLimited";
const TO_ZERO: &str = "ScaledToZero";

/// The status and events so far.
#[derive(Debug, Clone)]
pub(super) struct StatusDraft {
    status: HorizontalPodAutoscalerStatus,
    events: Vec<EventRecord>,
    now: Timestamp,
}

impl StatusDraft {
    pub(super) fn new(hpa: &HorizontalPodAutoscaler, now: Timestamp) -> Self {
        Self { status: hpa.status.clone().unwrap_or_default(), events: Vec::new(), now }
    }

    pub(super) fn set(&mut self, type_: &str, status: bool, reason: &str, message: impl Into<String>) {
        let condition = HorizontalPodAutoscalerCondition {
            type_: type_.into(),
            status: if status { "True" } else { "False" }.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: Some(stamp(self.now)),
        };
        conditions::set(self.status.conditions.get_or_insert_default(), condition);
    }

    pub(super) fn warn(&mut self, hpa: &HorizontalPodAutoscaler, reason: &'static str, message: impl Into<String>) {
        self.events.push(EventRecord::warning(hpa, reason, message).from(SOURCE));
    }

    pub(super) fn note(&mut self, hpa: &HorizontalPodAutoscaler, reason: &'static str, message: impl Into<String>) {
        self.events.push(EventRecord::normal(hpa, reason, message).from(SOURCE));
    }

    /// Whether this controller has scaled the workload to zero.
    pub(super) fn scaled_to_zero(&self) -> bool {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.any(|one| one.type_ == TO_ZERO && one.status == "True")
    }

    /// Sets the condition ScaledToZero, if the autoscaler may scale to zero or has the condition.
    pub(super) fn set_scaled_to_zero(&mut self, zero: bool, may: bool) {
        let known = self.status.conditions.iter().flatten().any(|one| one.type_ == TO_ZERO);
        if zero {
            self.set(TO_ZERO, true, "ScaledToZero", "the HPA controller scaled the workload to zero");
        } else if may || known {
            self.set(TO_ZERO, false, "NotScaledToZero", "the HPA controller did not scale the workload to zero");
        }
    }

    /// Removes the condition ScaledToZero.
    pub(super) fn forget_zero(&mut self) {
        if let Some(conditions) = &mut self.status.conditions {
            conditions.retain(|one| one.type_ != TO_ZERO);
        }
    }

    pub(super) fn set_sizes(&mut self, current: i32, desired: Option<i32>, metrics: Vec<MetricStatus>, rescaled: bool) {
        let old = std::mem::take(&mut self.status);
        self.status = HorizontalPodAutoscalerStatus {
            conditions: old.conditions,
            current_metrics: (!metrics.is_empty()).then_some(metrics),
            current_replicas: Some(current),
            desired_replicas: desired.unwrap_or(old.desired_replicas),
            last_scale_time: if rescaled { Some(stamp(self.now)) } else { old.last_scale_time },
            observed_generation: None,
        };
    }

    /// The status so far, as a write whose result the pass waits for.
    pub(super) fn announcement(&self, hpa: &HorizontalPodAutoscaler) -> Effect {
        let path = format!("{}/status", Kind::of::<HorizontalPodAutoscaler>().path(&key_of(&hpa.metadata)));
        Effect::Put(path, value_of(&HorizontalPodAutoscaler { status: Some(self.status.clone()), ..hpa.clone() }))
    }

    /// The writes.
    pub(super) fn plan(self, hpa: &HorizontalPodAutoscaler) -> Plan {
        let mut plan = Plan::from(self.events.into_iter().map(Action::Event).collect::<Vec<_>>());
        let normalized = |status: &HorizontalPodAutoscalerStatus| {
            let mut status = status.clone();
            // Absent and zero are equal.
            status.current_replicas = Some(status.current_replicas.unwrap_or(0));
            status
        };
        if normalized(&self.status)
            != normalized(hpa.status.as_ref().unwrap_or(&HorizontalPodAutoscalerStatus::default()))
        {
            plan.push(Action::update_status(&HorizontalPodAutoscaler { status: Some(self.status), ..hpa.clone() }));
        }
        plan
    }
}
