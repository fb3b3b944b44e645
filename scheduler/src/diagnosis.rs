//! Diagnosis of an unschedulable pod: rejections counted by reason, and upstream's message about them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::node::NodeId;
use crate::refusal::{Reasons, Refusal};

/// The rejections of one decision.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// Plugin, fixed reason and count, found by address: there are few.
    known: Vec<(&'static str, &'static str, usize)>,
    made: BTreeMap<Cow<'static, str>, usize>,
    /// Nodes where preemption might help, in the order in which they were filtered.
    pub resolvable: Vec<NodeId>,
    /// The number of nodes where preemption can't help.
    pub unresolvable: usize,
    /// The plugins that rejected nodes.
    pub refused_by: BTreeSet<&'static str>,
    /// Nodes that only WebAssembly plugins reject, and where preemption might help.
    pub rejected_by_wasm: BTreeSet<NodeId>,
    /// Whether the profile has WebAssembly plugins that filter.
    pub has_wasm_filters: bool,
}

impl Diagnosis {
    pub(crate) fn count(&mut self, node: NodeId, plugin: &'static str, refusal: Refusal) {
        match refusal.reasons {
            Reasons::One(reason) => {
                let same = |known: &str, it: &str| std::ptr::eq(known, it);
                match self.known.iter_mut().find(|(by, known, _)| same(by, plugin) && same(known, reason)) {
                    Some((.., count)) => *count += 1,
                    None => {
                        self.refused_by.insert(plugin);
                        self.known.push((plugin, reason, 1));
                    }
                }
            }
            Reasons::Many(reasons) => {
                if !self.refused_by.contains(plugin) {
                    self.refused_by.insert(plugin);
                }
                for reason in reasons {
                    *self.made.entry(reason).or_default() += 1;
                }
            }
        }
        if refusal.unresolvable {
            self.unresolvable += 1;
        } else {
            self.resolvable.push(node);
        }
    }

    /// One plugin rejected all nodes in `PreFilter`.
    pub(crate) fn all(nodes: usize, plugin: &'static str) -> Self {
        Self { unresolvable: nodes, refused_by: BTreeSet::from([plugin]), ..Self::default() }
    }

    /// Upstream's message about `nodes` nodes.
    #[must_use]
    pub fn message(&self, nodes: usize) -> String {
        not_available(nodes, self.counts().into_iter().map(|(reason, count)| (count, reason)).collect())
    }

    /// As [`message`](Self::message), with the reason `others` for the nodes that were not rejected.
    #[must_use]
    pub fn message_with(&self, nodes: usize, others: &str) -> String {
        let mut counts = self.counts();
        let left = nodes.saturating_sub(self.resolvable.len() + self.unresolvable);
        if left > 0 {
            *counts.entry(others).or_default() += left;
        }
        not_available(nodes, counts.into_iter().map(|(reason, count)| (count, reason)).collect())
    }

    fn counts(&self) -> BTreeMap<&str, usize> {
        let mut reasons: BTreeMap<&str, usize> = self.made.iter().map(|(reason, count)| (&**reason, *count)).collect();
        for (_, reason, count) in &self.known {
            *reasons.entry(reason).or_default() += count;
        }
        reasons
    }
}

/// Upstream's message: none of `nodes` nodes is available, with the reasons.
#[must_use]
pub fn not_available(nodes: usize, counts: Vec<(usize, &str)>) -> String {
    let mut parts: Vec<String> = counts.iter().map(|(count, reason)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
