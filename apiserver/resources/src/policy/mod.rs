//! The group `policy`: limits on voluntary disruptions.

pub mod evictions;
pub(crate) mod poddisruptionbudgets;
