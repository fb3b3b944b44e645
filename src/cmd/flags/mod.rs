//! Flags shared by several verbs, with upstream's names.

mod autoscaler;
pub(super) mod controllers;
pub(super) mod duration;
pub(super) mod election;
pub(super) mod features;
pub(super) mod guests;
mod keyvalue;
pub(super) mod nodes;
pub(super) mod output;
pub(super) mod rejected;
pub(super) mod scheduler;
pub(super) mod sharing;
pub(super) mod store;
pub(super) mod takeover;
