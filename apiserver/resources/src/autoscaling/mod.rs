//! The group `autoscaling`: replica counts that follow metrics.

mod conversion;
pub(crate) mod horizontalpodautoscalers;
mod validate;
