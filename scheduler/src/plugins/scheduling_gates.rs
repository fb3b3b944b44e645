//! SchedulingGates: a pod with gates isn't queued. The apiserver tells so in its conditions.

use crate::pod::PodInfo;

pub(super) const NAME: &str = "SchedulingGates";

/// Whether the pod may be queued.
#[must_use]
pub fn admits(pod: &PodInfo) -> bool {
    !pod.gated
}
