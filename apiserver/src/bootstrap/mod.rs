//! What a fresh cluster holds.

use crate::auth::rules::Rule;

/// The rules that every kubelet has for what isn't told apart by node: those of the default role `system:node`.
#[must_use]
pub fn node_rules() -> Vec<Rule> {
    Vec::new()
}
