//! PrioritySort: higher priority first, then who has waited longer.

use std::cmp::Reverse;
use std::time::Duration;

pub(super) const NAME: &str = "PrioritySort";

/// Where a pod stands in the queue, `at` being when it got there.
#[must_use]
pub fn rank(priority: i32, at: Duration) -> (Reverse<i32>, Duration) {
    (Reverse(priority), at)
}
