//! Sets conditions of any kind of object. Invariant: `lastTransitionTime` changes only with the status.

use k8s_openapi::api::apps::v1::DeploymentCondition;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerCondition;
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{NamespaceCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) trait Condition {
    fn type_(&self) -> &str;
    fn status(&self) -> &str;
    fn last_transition(&mut self) -> &mut Option<Time>;
}

macro_rules! conditions {
    ($($type:ty),*) => {
        $(impl Condition for $type {
            fn type_(&self) -> &str {
                &self.type_
            }

            fn status(&self) -> &str {
                &self.status
            }

            fn last_transition(&mut self) -> &mut Option<Time> {
                &mut self.last_transition_time
            }
        })*
    };
}

conditions!(DeploymentCondition, HorizontalPodAutoscalerCondition, JobCondition, NamespaceCondition, PodCondition);

/// Sets a condition in place, or appends it if there is none of its type.
pub(crate) fn set<C: Condition>(conditions: &mut Vec<C>, mut new: C) {
    match conditions.iter_mut().find(|known| known.type_() == new.type_()) {
        Some(known) => {
            keep_transition(known, &mut new);
            *known = new;
        }
        None => conditions.push(new),
    }
}

/// Sets a condition and moves it to the end, as upstream's Deployments do.
pub(crate) fn set_last<C: Condition>(conditions: &mut Vec<C>, mut new: C) {
    if let Some(at) = conditions.iter().position(|known| known.type_() == new.type_()) {
        keep_transition(&mut conditions.remove(at), &mut new);
    }
    conditions.push(new);
}

fn keep_transition<C: Condition>(known: &mut C, new: &mut C) {
    if known.status() == new.status()
        && let Some(since) = known.last_transition().take()
    {
        *new.last_transition() = Some(since);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn condition(type_: &str, status: &str, at: i64) -> PodCondition {
        let last_transition_time = Some(Time(Timestamp::from_second(at).unwrap()));
        PodCondition { type_: type_.into(), status: status.into(), last_transition_time, ..PodCondition::default() }
    }

    #[test]
    fn only_a_change_of_status_is_a_transition() {
        let mut conditions = vec![condition("A", "True", 1), condition("B", "True", 1)];
        set(&mut conditions, condition("A", "True", 2));
        assert_eq!(conditions, [condition("A", "True", 1), condition("B", "True", 1)]);
        set(&mut conditions, condition("A", "False", 3));
        assert_eq!(conditions, [condition("A", "False", 3), condition("B", "True", 1)]);
        set_last(&mut conditions, condition("A", "False", 4));
        set_last(&mut conditions, condition("C", "True", 4));
        assert_eq!(conditions, [condition("B", "True", 1), condition("A", "False", 3), condition("C", "True", 4)]);
    }
}
