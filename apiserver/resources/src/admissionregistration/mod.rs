//! admissionregistration.k8s.io: who is asked about what is written.

pub(crate) mod client;
pub(crate) mod matching;
pub(crate) mod webhooks;
