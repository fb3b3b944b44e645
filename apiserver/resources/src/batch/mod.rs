//! The group `batch`: workloads that come to an end.

pub(crate) mod cronjobs;
pub(crate) mod jobs;
