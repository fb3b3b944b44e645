//! The group `apiregistration.k8s.io`: API servers behind the aggregation layer.

pub(crate) mod apiservices;
