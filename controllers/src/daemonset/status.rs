//! The status of a DaemonSet: the number of nodes that should have pods, and of those that do.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use machinery_client::Action;

use super::DaemonSetPass;
use super::node::Eligibility;
use crate::pods;

impl DaemonSetPass<'_> {
    /// Writes the status if it differs. The write comes before changes of pods: those may fail, and the next pass
    /// counts them.
    pub(super) fn write_status(&mut self) {
        let known = self.set.status.clone().unwrap_or_default();
        let status = self.status(known.clone());
        if normal(known) != normal(status.clone()) {
            self.plan.push(Action::update_status(&DaemonSet { status: Some(status), ..self.set.clone() }));
        }
        let min_ready = self.spec.min_ready_seconds.unwrap_or(0);
        let upcoming: Vec<_> = self.pods.values().flatten().filter_map(|p| pods::available_at(p, min_ready)).collect();
        upcoming.into_iter().filter(|at| *at > self.now).for_each(|at| self.plan.revisit(at));
    }

    fn status(&self, known: DaemonSetStatus) -> DaemonSetStatus {
        let mut status = DaemonSetStatus {
            current_number_scheduled: 0,
            desired_number_scheduled: 0,
            number_available: None,
            number_misscheduled: 0,
            number_ready: 0,
            number_unavailable: None,
            observed_generation: self.set.metadata.generation,
            updated_number_scheduled: None,
            ..known
        };
        let (mut available, mut updated) = (0, 0);
        for (name, fit) in &self.nodes {
            let first = self.pods.get(name).and_then(|pods| pods.first());
            if *fit != Eligibility::ShouldRun {
                status.number_misscheduled += i32::from(first.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = first else { continue };
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(pods::is_ready(pod));
            available += i32::from(self.is_available(pod));
            updated += i32::from(self.is_updated(pod));
        }
        status.number_available = pods::count(available);
        status.number_unavailable = pods::count(status.desired_number_scheduled - available);
        status.updated_number_scheduled = pods::count(updated);
        status
    }
}

/// For comparison: absent and zero are equal.
fn normal(mut status: DaemonSetStatus) -> DaemonSetStatus {
    let zero = |n: Option<i32>| n.filter(|n| *n != 0);
    status.number_available = zero(status.number_available);
    status.number_unavailable = zero(status.number_unavailable);
    status.updated_number_scheduled = zero(status.updated_number_scheduled);
    status.observed_generation = status.observed_generation.filter(|g| *g != 0);
    status
}
