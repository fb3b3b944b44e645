//! The group `admissionregistration.k8s.io`: webhooks and policies that admit or mutate writes.

pub mod checking;
mod constraints;
pub mod expressions;
mod field_ref;
pub(crate) mod matching;
pub(crate) mod mutating;
pub(crate) mod validating;
pub(crate) mod webhooks;
