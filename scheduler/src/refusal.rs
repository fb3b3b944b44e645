//! Why a node is refused: what plugins say of it, and what is told of a pod that fits nowhere is made of.

use std::borrow::Cow;

/// In upstream's words. Most refusals have one reason that is known beforehand: it costs nothing to say so on each of
/// thousands of nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reasons {
    /// One.
    One(&'static str),
    /// Several, or made up.
    Many(Vec<Cow<'static, str>>),
}

/// Why a node is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Each is counted in the message.
    pub reasons: Reasons,
    /// No other pod's going would help.
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
