//! The group `discovery.k8s.io`: where Services lead.

pub(crate) mod endpointslices;
