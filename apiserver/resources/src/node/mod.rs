//! The group `node.k8s.io`: runtimes that nodes offer to pods.

pub(crate) mod runtimeclasses;
