//! The group `policy`: how many pods may be disrupted at a time.

pub mod evictions;
pub(crate) mod poddisruptionbudgets;
