//! Index of the affinity terms of existing pods, deduplicated, by the labels of the pods that they match.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use machinery_api::selector::Operator;

use super::{DomainSums, Topology};
use crate::node::NodeId;
use crate::pod::{Labels, PodInfo, PodTerm};

/// Sums by domain are kept if there are at most this many domains per node with an amount. So memory stays proportional
/// to the amounts; with fewer nodes a sum is computed quickly.
const DOMAINS_PER_NODE_MAX: usize = 4;

/// Amounts per node that are summed by the domains of one label.
#[derive(Debug, Default)]
pub struct NodeAmounts {
    /// The amount, which may be zero, and the number of pods that contribute to it.
    by_node: HashMap<NodeId, (i64, usize)>,
    /// Computed on first use.
    sums: Mutex<Option<Arc<DomainSums>>>,
}

impl NodeAmounts {
    /// Whether no pod contributes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_node.is_empty()
    }

    /// The nodes with their amounts.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, i64)> {
        self.by_node.iter().map(|(node, (amount, _))| (*node, *amount))
    }

    /// The sums by domain; none if summing [`nodes`](Self::nodes) is cheaper.
    #[must_use]
    pub fn sums(&self, topology: &Arc<Topology>) -> Option<Arc<DomainSums>> {
        let mut known = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if self.by_node.len().saturating_mul(DOMAINS_PER_NODE_MAX) < topology.domains() {
            *known = None;
        } else if known.as_ref().is_none_or(|sums| !sums.is_of(topology)) {
            *known = Some(Arc::new(DomainSums::of(topology, self.nodes())));
        }
        known.clone()
    }

    fn change(&mut self, node: NodeId, amount: i64, adds: bool) {
        let known = self.by_node.entry(node).or_default();
        known.0 += if adds { amount } else { -amount };
        known.1 = if adds { known.1 + 1 } else { known.1.saturating_sub(1) };
        if known.1 == 0 {
            self.by_node.remove(&node);
        }
        // Sums of an outdated topology are updated too; they are never read again.
        if let Some(sums) = self.sums.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Arc::make_mut(sums).add(node, if adds { amount } else { -amount });
        }
    }
}

/// The nodes of the pods with a term.
#[derive(Debug, Default)]
pub struct TermUse {
    /// The number of pods with the term as required anti-affinity.
    pub required_anti_affinity: NodeAmounts,
    /// The sum of preferred weights (negative for anti-affinity).
    pub preferred: NodeAmounts,
    /// The number of pods with the term as required affinity.
    pub required_affinity: NodeAmounts,
}

impl TermUse {
    fn is_empty(&self) -> bool {
        self.required_anti_affinity.is_empty() && self.preferred.is_empty() && self.required_affinity.is_empty()
    }
}

/// All terms of existing pods, by the labels that they require.
#[derive(Debug, Default)]
pub struct TermIndex {
    terms: HashMap<Arc<PodTerm>, TermUse>,
    /// Terms that require one of certain values of a label, by label and value.
    by_label: HashMap<String, HashMap<String, Vec<Arc<PodTerm>>>>,
    /// All other terms.
    others: Vec<Arc<PodTerm>>,
}

impl TermIndex {
    /// The terms that match a pod, with their use.
    pub fn matching<'a>(
        &'a self,
        pod: &'a PodInfo,
        namespaces: &'a BTreeMap<String, Labels>,
    ) -> impl Iterator<Item = (&'a PodTerm, &'a TermUse)> {
        let by_label = pod.labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value));
        let terms = by_label.flatten().chain(&self.others).filter(|term| term.matches(pod, namespaces));
        terms.filter_map(|term| self.terms.get(term).map(|used| (&**term, used)))
    }

    pub(crate) fn add(&mut self, pod: &PodInfo, node: NodeId) {
        self.change(pod, node, true);
    }

    pub(crate) fn remove(&mut self, pod: &PodInfo, node: NodeId) {
        self.change(pod, node, false);
    }

    fn change(&mut self, pod: &PodInfo, node: NodeId, adds: bool) {
        for term in &pod.requirements.anti_affinity.required {
            self.used(term).required_anti_affinity.change(node, 1, adds);
            self.drop_unused(term);
        }
        for term in &pod.requirements.affinity.required {
            self.used(term).required_affinity.change(node, 1, adds);
            self.drop_unused(term);
        }
        for (weight, term) in preferences(pod) {
            self.used(term).preferred.change(node, weight, adds);
            self.drop_unused(term);
        }
    }

    fn used(&mut self, term: &PodTerm) -> &mut TermUse {
        if !self.terms.contains_key(term) {
            let term = Arc::new(term.clone());
            match only_with(&term) {
                Some((key, values)) => {
                    let by_value = self.by_label.entry(key.to_owned()).or_default();
                    values.iter().for_each(|value| by_value.entry(value.clone()).or_default().push(term.clone()));
                }
                None => self.others.push(term.clone()),
            }
            self.terms.insert(term, TermUse::default());
        }
        self.terms.get_mut(term).expect("the entry was there or has just been made")
    }

    fn drop_unused(&mut self, term: &PodTerm) {
        if !self.terms.get(term).is_some_and(|used| used.is_empty()) {
            return;
        }
        self.terms.remove(term);
        let Some((key, values)) = only_with(term) else {
            self.others.retain(|other| **other != *term);
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else { return };
        for value in values {
            if let Some(terms) = by_value.get_mut(value) {
                terms.retain(|other| **other != *term);
                if terms.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
    }
}

/// A label and values of which a pod must have one to match the term.
fn only_with(term: &PodTerm) -> Option<(&str, &[String])> {
    let mut requirements = term.selector.requirements().iter();
    let one = requirements.find(|r| matches!(r.operator, Operator::In | Operator::Equals | Operator::DoubleEquals))?;
    Some((&one.key, &one.values))
}

/// The preferred terms of a pod; the weights of anti-affinity are negative.
fn preferences(pod: &PodInfo) -> impl Iterator<Item = (i64, &PodTerm)> {
    let (near, away) = (&pod.requirements.affinity, &pod.requirements.anti_affinity);
    let preferred = near.preferred.iter().map(|(weight, term)| (*weight, term));
    preferred.chain(away.preferred.iter().map(|(weight, term)| (-weight, term)))
}
