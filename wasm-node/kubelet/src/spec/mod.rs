//! What a pod's spec says of its containers together: their list, and the sums of their resources; and durations. Pure, and below all that
//! runs pods.

pub mod containers;
pub(crate) mod duration;
pub mod requests;
pub(crate) mod resting;
