//! Why a pod fits nowhere: refusals counted by reason, in upstream's words.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::node::NodeId;
use crate::refusal::{Reasons, Refusal};

/// See the module.
#[derive(Debug, Default)]
pub struct Diagnosis {
    /// Plugins with fixed sentences, found by their address: there are few.
    known: Vec<(&'static str, &'static str, usize)>,
    made: BTreeMap<Cow<'static, str>, usize>,
    /// Nodes that might take the pod if others weren't there, in the order in which they were tried.
    pub resolvable: Vec<NodeId>,
    /// How many nodes wouldn't take it whoever goes.
    pub unresolvable: usize,
    /// The plugins that refused nodes.
    pub refused_by: BTreeSet<&'static str>,
    /// Nodes that only plugins which run elsewhere refuse, and might not if others went.
    pub refused_elsewhere: BTreeSet<NodeId>,
    /// Such plugins have a say in who goes.
    pub asks_elsewhere: bool,
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

    /// A plugin refused all nodes before any was tried.
    pub(crate) fn all(nodes: usize, plugin: &'static str) -> Self {
        Self { unresolvable: nodes, refused_by: BTreeSet::from([plugin]), ..Self::default() }
    }

    /// The sentence about `nodes` nodes.
    #[must_use]
    pub fn message(&self, nodes: usize) -> String {
        not_available(nodes, self.counts().into_iter().map(|(reason, count)| (count, reason)).collect())
    }

    /// The same, with one reason for all nodes that nothing was found out about.
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

/// Upstream's sentence: of `nodes` nodes none is available, and why.
#[must_use]
pub fn not_available(nodes: usize, counts: Vec<(usize, &str)>) -> String {
    let mut parts: Vec<String> = counts.iter().map(|(count, reason)| format!("{count} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}
