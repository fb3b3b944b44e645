//! admissionregistration.k8s.io: who is asked about what is written.

pub mod checking;
mod constraints;
pub mod expressions;
pub(crate) mod matching;
pub(crate) mod mutating;
pub(crate) mod validating;
pub(crate) mod webhooks;
