//! The group `batch`: workloads that run to completion.

pub(crate) mod cronjobs;
pub(crate) mod jobs;
