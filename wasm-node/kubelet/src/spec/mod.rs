//! What a pod's spec says of its containers together: their list, and the sums of their resources; durations; and objects as they are kept
//! ([`resting`]). Below all that runs pods.

pub mod containers;
pub(crate) mod duration;
pub mod requests;
pub(crate) mod resting;
