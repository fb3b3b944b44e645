//! `apps`.

pub(crate) mod deployments;
pub(crate) mod replicasets;
