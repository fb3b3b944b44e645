//! The group `batch`: workloads that come to an end.

pub(crate) mod jobs;
