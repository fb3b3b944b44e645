//! The group `coordination.k8s.io`: heartbeats and leader election.

pub(crate) mod leases;
