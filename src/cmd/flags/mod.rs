//! Flags shared by several verbs, with upstream's names.

pub(super) mod guests;
mod keyvalue;
pub(super) mod nodes;
pub(super) mod output;
pub(super) mod sharing;
pub(super) mod store;
pub(super) mod takeover;
