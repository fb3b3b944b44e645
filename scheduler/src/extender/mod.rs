//! Extenders: external processes that filter nodes, score them and bind pods over HTTP. Configuration and verdicts are
//! data here; [`client`] sends the requests.

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

/// The plugin name of rejections by extenders.
pub const EXTENDER: &str = "Extender";
/// Extenders score from 0 to 10, plugins from 0 to 100.
const SCALE: i64 = 10;

/// The configuration of one extender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtenderConfig {
    /// The base URL, to which verbs are appended.
    pub url_prefix: String,
    /// The verb that filters nodes; empty: the extender doesn't filter.
    pub filter_verb: String,
    /// The verb that scores nodes.
    pub prioritize_verb: String,
    /// The verb that chooses victims of a preemption.
    pub preempt_verb: String,
    /// The verb that binds a pod.
    pub bind_verb: String,
    /// The weight of its scores.
    pub weight: i64,
    /// The timeout of a request.
    pub timeout: Duration,
    /// Whether the extender caches nodes: requests then have only names.
    pub node_cache_capable: bool,
    /// The resources of which a pod must request one to be passed to the extender; empty: all pods are.
    pub managed_resources: BTreeSet<String>,
    /// Whether decisions go on without the extender when it fails.
    pub ignorable: bool,
    /// The TLS settings of the client.
    pub tls: TlsConfig,
}

/// `tlsConfig`. Data takes precedence over files.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TlsConfig {
    /// Whether the server's certificate is not verified.
    pub insecure: bool,
    /// The server name to verify instead of the URL's host.
    pub server_name: String,
    /// Certificate, key and authorities, by file.
    pub files: [String; 3],
    /// Certificate, key and authorities, in base64.
    pub data: [String; 3],
}

impl std::fmt::Debug for TlsConfig {
    // Debug output omits the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConfig").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

impl ExtenderConfig {
    /// Whether the extender handles a pod.
    #[must_use]
    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        self.managed_resources.is_empty()
            || pod.requirements.requests.others.keys().any(|resource| self.managed_resources.contains(resource))
    }

    /// Whether the extender takes part in the preemption for a pod.
    #[must_use]
    pub fn supports_preemption(&self, pod: &PodInfo) -> bool {
        !self.preempt_verb.is_empty() && self.is_interested(pod)
    }

    /// Whether the extender filters or scores nodes for a pod.
    #[must_use]
    pub fn scores_or_filters(&self, pod: &PodInfo) -> bool {
        !(self.filter_verb.is_empty() && self.prioritize_verb.is_empty()) && self.is_interested(pod)
    }
}

/// The victims on one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Victims {
    /// The most important first.
    pub pods: Vec<Arc<PodInfo>>,
    /// The number of victims whose deletion violates a disruption budget.
    pub violations: i64,
}

/// The verdict of extenders and WebAssembly plugins on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted, with the sum of the weighted scores.
    Fits(i64),
    /// Rejected.
    Refused {
        /// [`EXTENDER`], or a plugin's name.
        by: &'static str,
        /// The extender's reason; none if it only left the node out.
        why: Option<String>,
        /// Preemption can't help.
        unresolvable: bool,
    },
}

/// The verdicts on the nodes that were passed to extenders and WebAssembly plugins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts(HashMap<String, Verdict>);

impl Verdicts {
    /// Accepts all nodes, with a score of zero.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = String>) -> Self {
        Self(nodes.into_iter().map(|name| (name, Verdict::Fits(0))).collect())
    }

    /// The verdict on a node; none if the node was not passed to anyone.
    #[must_use]
    pub fn of(&self, node: &str) -> Option<&Verdict> {
        self.0.get(node)
    }

    /// Rejects a node, if it has a verdict.
    pub(crate) fn refuse(&mut self, node: &str, verdict: Verdict) {
        if let Some(known) = self.0.get_mut(node) {
            *known = verdict;
        }
    }

    /// Adds a weighted score. Sums wrap around, as upstream's.
    pub(crate) fn add(&mut self, node: &str, score: i64) {
        if let Some(Verdict::Fits(sum)) = self.0.get_mut(node) {
            *sum = sum.wrapping_add(score);
        }
    }

    /// Whether a node is accepted.
    #[must_use]
    pub fn fits(&self, node: &str) -> bool {
        matches!(self.0.get(node), Some(Verdict::Fits(_)))
    }

    /// The accepted nodes, in order.
    #[must_use]
    pub fn fitting(&self) -> BTreeSet<String> {
        let fits = self.0.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Fits(_)));
        fits.map(|(name, _)| name.clone()).collect()
    }

    /// Applies an extender's filter result. A node that was rejected before stays rejected.
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

    /// Adds an extender's weighted scores. Nodes without a verdict are ignored.
    pub(crate) fn score(&mut self, scores: Vec<(String, i64)>, weight: i64) {
        for (name, score) in scores {
            self.add(&name, score.wrapping_mul(weight).wrapping_mul(SCALE));
        }
    }
}
