//! The group `scheduling.k8s.io`: priorities of pods.

pub(crate) mod priorityclasses;
