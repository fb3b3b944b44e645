//! Rejection of a node by a plugin, with the reasons that the message of an unschedulable pod counts.

use std::borrow::Cow;

/// Upstream's texts. Most rejections have one static reason, so that rejecting thousands of nodes allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reasons {
    /// A static reason.
    One(&'static str),
    /// Several reasons, or formatted ones.
    Many(Vec<Cow<'static, str>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each is counted in the message.
    pub reasons: Reasons,
    /// Preemption can't help.
    pub unresolvable: bool,
}

impl Refusal {
    pub(crate) fn new(reason: &'static str, unresolvable: bool) -> Self {
        Self { reasons: Reasons::One(reason), unresolvable }
    }

    pub(crate) fn unresolvable(reason: &'static str) -> Self {
        Self::new(reason, true)
    }
}
