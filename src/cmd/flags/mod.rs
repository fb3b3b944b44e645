//! Flags shared by several verbs, with upstream's names.

pub(super) mod nodes;
pub(super) mod takeover;
