//! What a pod's spec says of its containers together: their list, and the sums of their resources. Pure, and below all that
//! runs pods.

pub mod containers;
pub mod requests;
