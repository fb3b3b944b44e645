//! The group `scheduling.k8s.io`: which pods go first.

pub(crate) mod priorityclasses;
