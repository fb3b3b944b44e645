//! The group `discovery.k8s.io`: endpoints of Services.

pub(crate) mod endpointslices;
