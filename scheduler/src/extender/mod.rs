//! Extenders: processes elsewhere that are asked over HTTP which nodes will do for a pod, how good they are, and to bind it. What they
//! are and what they have said is data; [`client`] asks.

pub mod client;
pub mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::pod::PodInfo;

/// Stands among the plugins that refused for whatever extenders refused.
pub const EXTENDER: &str = "Extender";
/// An extender's scores go to 10, and those of plugins to 100.
const SCALE: i64 = 10;

/// One extender, as a file has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtenderConfig {
    /// Its address, to which verbs are appended.
    pub url_prefix: String,
    /// How it is asked which nodes will do; empty: it isn't.
    pub filter_verb: String,
    /// How it is asked which are better.
    pub prioritize_verb: String,
    /// How it is asked on which nodes others may go for a pod.
    pub preempt_verb: String,
    /// How it is told to bind.
    pub bind_verb: String,
    /// What its scores count for.
    pub weight: i64,
    /// For how long it is waited.
    pub timeout: Duration,
    /// It knows the nodes: their names are enough.
    pub node_cache_capable: bool,
    /// It is asked about pods that ask for one of these alone; none: about all.
    pub managed_resources: BTreeSet<String>,
    /// Where it fails, it is done without it.
    pub ignorable: bool,
    /// How its certificate is checked, and what it is shown.
    pub tls: TlsConfig,
}

/// `tlsConfig`. Data stands before files.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TlsConfig {
    /// Its certificate isn't checked.
    pub insecure: bool,
    /// Whose certificate it has to show, if not the host's.
    pub server_name: String,
    /// A certificate, its key and the authorities, by file.
    pub files: [String; 3],
    /// The same, in base64.
    pub data: [String; 3],
}

impl std::fmt::Debug for TlsConfig {
    // A key is nobody's to read.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConfig").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

impl ExtenderConfig {
    /// Whether it is asked about a pod.
    #[must_use]
    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        self.managed_resources.is_empty()
            || pod.wants.requests.others.keys().any(|resource| self.managed_resources.contains(resource))
    }

    /// Whether it has a say in who goes for a pod.
    #[must_use]
    pub fn has_say_in_preemption(&self, pod: &PodInfo) -> bool {
        !self.preempt_verb.is_empty() && self.is_interested(pod)
    }

    /// Whether it is asked before a pod is given a node.
    #[must_use]
    pub fn is_asked(&self, pod: &PodInfo) -> bool {
        !(self.filter_verb.is_empty() && self.prioritize_verb.is_empty()) && self.is_interested(pod)
    }
}

/// Who would go for a pod from one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Victims {
    /// The most important first.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them would go against a disruption budget.
    pub violations: i64,
}

/// What others than the plugins here said of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It will do; the sum of their scores, each times its weight.
    Fits(i64),
    /// It won't, and why.
    Refused {
        /// [`EXTENDER`], or a plugin's name.
        by: &'static str,
        /// In the extender's words; none: it has left the node out.
        why: Option<String>,
        /// No other pod's going would help.
        unresolvable: bool,
    },
}

/// What extenders said, of the nodes that they were asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts(HashMap<String, Verdict>);

impl Verdicts {
    /// Of nodes that nobody has said anything against.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = String>) -> Self {
        Self(nodes.into_iter().map(|name| (name, Verdict::Fits(0))).collect())
    }

    /// Of a node; none: nobody was asked.
    #[must_use]
    pub fn of(&self, node: &str) -> Option<&Verdict> {
        self.0.get(node)
    }

    /// A node won't do, if somebody was asked about it.
    pub(crate) fn refuse(&mut self, node: &str, verdict: Verdict) {
        if let Some(known) = self.0.get_mut(node) {
            *known = verdict;
        }
    }

    /// A score that counts so much. Sums wrap around, as upstream's.
    pub(crate) fn add(&mut self, node: &str, score: i64) {
        if let Some(Verdict::Fits(sum)) = self.0.get_mut(node) {
            *sum = sum.wrapping_add(score);
        }
    }

    /// Whether a node will do, by all who were asked.
    #[must_use]
    pub fn fits(&self, node: &str) -> bool {
        matches!(self.0.get(node), Some(Verdict::Fits(_)))
    }

    /// The nodes that will do, in order.
    #[must_use]
    pub fn fitting(&self) -> BTreeSet<String> {
        let fits = self.0.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Fits(_)));
        fits.map(|(name, _)| name.clone()).collect()
    }

    /// An extender leaves these, and says of others why it doesn't. It is nobody's to bring back what another one refused.
    pub(crate) fn filter(&mut self, filtered: wire::Filtered) {
        let wire::Filtered { left, mut failed, mut unresolvable } = filtered;
        for (name, verdict) in self.0.iter_mut().filter(|(_, verdict)| matches!(verdict, Verdict::Fits(_))) {
            let hopeless = unresolvable.remove(name);
            let why = hopeless.clone().or_else(|| failed.remove(name));
            if !left.contains(name) {
                *verdict = Verdict::Refused { by: EXTENDER, why, unresolvable: hopeless.is_some() };
            }
        }
    }

    /// An extender's scores, with what they count for. Nodes that nobody asked about have none.
    pub(crate) fn score(&mut self, scores: Vec<(String, i64)>, weight: i64) {
        for (name, score) in scores {
            self.add(&name, score.wrapping_mul(weight).wrapping_mul(SCALE));
        }
    }
}
