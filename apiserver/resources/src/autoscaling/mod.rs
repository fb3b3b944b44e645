//! The group `autoscaling`: how many pods there are to be, by what is measured.

mod conversion;
pub(crate) mod horizontalpodautoscalers;
mod validate;
