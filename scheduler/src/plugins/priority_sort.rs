//! PrioritySort: higher priority first, then who has waited longer.

use std::cmp::Reverse;
use std::time::Duration;

use super::{Plugin, plugin};
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin { queue_sort: Some(rank), ..plugin("PrioritySort") };

/// Where a pod stands in the queue: the smallest goes first.
pub type Rank = (Reverse<i32>, Duration);

/// Where a pod stands that came to the queue `at` an instant.
#[must_use]
pub fn rank(pod: &PodInfo, at: Duration) -> Rank {
    (Reverse(pod.priority), at)
}
