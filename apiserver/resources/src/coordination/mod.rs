//! The group `coordination.k8s.io`: who is alive, and who leads.

pub(crate) mod leases;
