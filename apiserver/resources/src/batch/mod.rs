//! `batch`.

pub(crate) mod jobs;
