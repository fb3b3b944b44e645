//! The group `apps`: workloads that replace their pods.

pub(crate) mod deployments;
pub(crate) mod replicasets;
