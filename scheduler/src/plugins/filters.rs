//! Runs the `PreFilter` plugins of a profile on a pod, and then their filters on each node.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Cycle, Filter, PreFilterResult, Profile, Reasons, Refusal};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// The filters that `PreFilter` created for one pod.
pub struct Filters<'a> {
    cycle: Cycle<'a>,
    filters: Vec<NamedFilter<'a>>,
    /// The only nodes to filter, and the plugin that restricted them.
    only: Option<(&'static str, BTreeSet<&'a str>)>,
}

struct NamedFilter<'a> {
    plugin: &'static str,
    /// Its index among the filters.
    at: usize,
    filter: Box<dyn Filter + 'a>,
    /// Whether it rejects no node until a pod is added or removed.
    idle: bool,
}

impl std::fmt::Debug for Filters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.filters.iter().map(|named| named.plugin)).finish()
    }
}

impl<'a> Filters<'a> {
    /// Without filters.
    pub(crate) fn none(cycle: Cycle<'a>) -> Self {
        Self { cycle, filters: Vec::new(), only: None }
    }

    /// Runs the `PreFilter` plugins of the profile.
    ///
    /// # Errors
    /// The plugin that rejects the pod on all nodes, with its message.
    pub fn of(cycle: Cycle<'a>, profile: &Profile) -> Result<Self, (&'static str, String)> {
        let mut this = Self::none(cycle);
        for (plugin, at) in profile.filtering() {
            let Some(pre_filter) = plugin.pre_filter else { continue };
            let (filter, idle) = match pre_filter(cycle) {
                PreFilterResult::Skip => continue,
                PreFilterResult::Unschedulable(why) => return Err((plugin.name, why)),
                PreFilterResult::Nodes(names, filter) => {
                    this.only = Some((plugin.name, names));
                    (filter, false)
                }
                PreFilterResult::Idle(filter) => (filter, true),
                PreFilterResult::Filter(filter) => (filter, false),
            };
            // A profile may enable a plugin's `PreFilter` without its `Filter`.
            if let Some(at) = at {
                this.filters.push(NamedFilter { plugin: plugin.name, at, filter, idle });
            }
        }
        this.filters.sort_by_key(|named| named.at);
        Ok(this)
    }

    /// Whether the pod fits a node.
    ///
    /// # Errors
    /// The first plugin that rejects the node.
    pub fn check(&self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        if let Some((plugin, _)) = self.only.as_ref().filter(|(_, names)| !names.contains(node.name())) {
            let reason = format!("node(s) didn't satisfy plugin(s) [{plugin}]").into();
            return Err((plugin, Refusal { reasons: Reasons::Many(vec![reason]), unresolvable: true }));
        }
        let active = self.filters.iter().filter(|named| !named.idle);
        active
            .map(|named| (named.plugin, named.filter.check(node)))
            .try_for_each(|(plugin, answer)| answer.map_err(|refusal| (plugin, refusal)))
    }

    /// Whether the pod fits a node both with the node's nominated pods of at least its priority, and without them: they
    /// may come first, and the pod may need them though they may end up elsewhere.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn fits(&mut self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        let alone = self.cycle.snapshot.nominated.is_empty() || self.first(node).is_empty();
        if alone { self.check(node) } else { self.fits_with_nominated(&mut node.clone()) }
    }

    /// As [`fits`](Self::fits), on a node that is changed temporarily and restored.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn fits_with_nominated(&mut self, node: &mut NodeInfo) -> Result<(), (&'static str, Refusal)> {
        let first = self.first(node);
        if first.is_empty() {
            return self.check(node);
        }
        for pod in &first {
            node.put(pod.clone());
            self.add_pod(pod, node);
        }
        let with = self.check(node);
        for pod in &first {
            node.take(&pod.key);
            self.remove_pod(pod, node);
        }
        with?;
        self.check(node)
    }

    /// The pods nominated for a node whose priority is at least the pod's.
    fn first(&self, node: &NodeInfo) -> Vec<Arc<PodInfo>> {
        let Cycle { pod, snapshot, .. } = self.cycle;
        let others = snapshot.nominated.on(node.name());
        others.filter(|other| other.priority >= pod.priority && other.uid != pod.uid).cloned().collect()
    }

    /// Updates the filters as if a pod were added to the node. The caller changes the node itself.
    pub fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for named in &mut self.filters {
            named.filter.add_pod(pod, node);
            named.idle = false;
        }
    }

    /// Updates the filters as if a pod were removed from the node.
    pub fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for named in &mut self.filters {
            named.filter.remove_pod(pod, node);
            named.idle = false;
        }
    }
}
