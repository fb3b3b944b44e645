//! The end of a Job, and the pods that still count for it.

use machinery_client::Pod;

use super::create;

/// The pending end of a Job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ending {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Ending {
    pub(super) fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.into(), message: message.into() }
    }

    pub(super) fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { success: true, reason: reason.into(), message: message.into() }
    }
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == create::TRACKING)
}
