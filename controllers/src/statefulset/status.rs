//! Status of a set: the number of pods by revision, and the completion of a rolling update.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use machinery_client::{Action, Pod};

use super::Rollout;
use super::identity::{revision_of, wanted};
use crate::pods;

pub(super) fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

impl Rollout<'_> {
    /// Writes the status if it differs. The write comes before changes of pods: those may fail, and the next pass
    /// counts them.
    pub(super) fn write_status(&mut self, collisions: i32) {
        let status = self.status(collisions);
        let known = self.set.status.clone().unwrap_or_default();
        if differs(&known, &status) {
            self.plan.push(Action::update_status(&StatefulSet { status: Some(status), ..self.set.clone() }));
        }
    }

    fn status(&self, collisions: i32) -> StatefulSetStatus {
        let many = |wanted: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.values().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
        };
        let of_revision =
            |name: &str| many(&|pod| revision_of(pod) == name && pod.metadata.deletion_timestamp.is_none());
        let (replicas, ready) = (many(&|_| true), many(&is_running_and_ready));
        let updated = of_revision(self.update.name);
        let all = |n: i32| i64::from(n) == wanted(self.set);
        let done = self.is_rolling() && all(updated) && all(ready) && all(replicas);
        let current = if done { &self.update } else { &self.current };
        StatefulSetStatus {
            available_replicas: Some(many(&|pod| is_running_and_ready(pod) && self.is_available(pod))),
            collision_count: Some(collisions),
            conditions: None,
            current_replicas: pods::count(of_revision(current.name)),
            current_revision: Some(current.name.to_owned()),
            observed_generation: self.set.metadata.generation,
            ready_replicas: pods::count(ready),
            replicas,
            update_revision: Some(self.update.name.to_owned()),
            updated_replicas: pods::count(updated),
        }
    }
}

/// Whether the controller's own counts differ.
fn differs(known: &StatefulSetStatus, status: &StatefulSetStatus) -> bool {
    let counts = |s: &StatefulSetStatus| {
        let n = |n: Option<i32>| n.unwrap_or(0);
        [s.replicas, n(s.current_replicas), n(s.ready_replicas), n(s.updated_replicas), n(s.available_replicas)]
    };
    let observed = |s: &StatefulSetStatus| s.observed_generation.unwrap_or(0);
    let names = |s: &StatefulSetStatus| (s.current_revision.clone(), s.update_revision.clone());
    observed(status) > observed(known) || counts(known) != counts(status) || names(known) != names(status)
}
