//! PrioritySort: higher priority first, then the earlier queue time.

use std::cmp::Reverse;
use std::time::Duration;

use super::{Plugin, plugin};
use crate::pod::PodInfo;

pub(super) const PLUGIN: Plugin = Plugin { queue_sort: Some(rank), ..plugin("PrioritySort") };

/// The sort key of a pod in the queue, smallest first.
pub type Rank = (Reverse<i32>, Duration);

/// The rank of a pod that was queued at `at`.
#[must_use]
pub fn rank(pod: &PodInfo, at: Duration) -> Rank {
    (Reverse(pod.priority), at)
}
