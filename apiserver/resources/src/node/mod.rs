//! The group `node.k8s.io`: what nodes offer pods to run in.

pub(crate) mod runtimeclasses;
