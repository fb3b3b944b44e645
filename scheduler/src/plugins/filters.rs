//! What the plugins of a profile computed of a pod and the whole cluster before nodes are tried, and the question to all
//! of them whether the pod may go to a node.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Cycle, Filter, PreFilterResult, Profile, Reasons, Refusal};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// See the module.
pub struct Filters<'a> {
    cycle: Cycle<'a>,
    filters: Vec<NamedFilter<'a>>,
    /// Only these are tried, by this plugin's will.
    only: Option<(&'static str, BTreeSet<&'a str>)>,
}

struct NamedFilter<'a> {
    plugin: &'static str,
    /// Its place among the filters.
    at: usize,
    filter: Box<dyn Filter + 'a>,
    /// It refuses no node as long as pods are where they are.
    idle: bool,
}

impl std::fmt::Debug for Filters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.filters.iter().map(|named| named.plugin)).finish()
    }
}

impl<'a> Filters<'a> {
    /// No plugin has any.
    pub(crate) fn none(cycle: Cycle<'a>) -> Self {
        Self { cycle, filters: Vec::new(), only: None }
    }

    /// Asks each plugin of the profile for its filter.
    ///
    /// # Errors
    /// With the plugin that says that the pod can go nowhere, and why.
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
            // One may speak before nodes are tried, and not of each node.
            if let Some(at) = at {
                this.filters.push(NamedFilter { plugin: plugin.name, at, filter, idle });
            }
        }
        this.filters.sort_by_key(|named| named.at);
        Ok(this)
    }

    /// Whether the pod may go to a node.
    ///
    /// # Errors
    /// With the first plugin that refuses it.
    pub fn check(&self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        if let Some((plugin, _)) = self.only.as_ref().filter(|(_, names)| !names.contains(node.name())) {
            let reason = format!("node(s) didn't satisfy plugin(s) [{plugin}]").into();
            return Err((plugin, Refusal { reasons: Reasons::Many(vec![reason]), unresolvable: true }));
        }
        let asked = self.filters.iter().filter(|named| !named.idle);
        asked
            .map(|named| (named.plugin, named.filter.check(node)))
            .try_for_each(|(plugin, answer)| answer.map_err(|refusal| (plugin, refusal)))
    }

    /// Whether the pod may go to a node, with the pods for which room is being made there and without them: those go
    /// first that are as important, and whom the pod needs there may yet go elsewhere.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn fits(&mut self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        if self.first(node).is_empty() { self.check(node) } else { self.fits_with_nominated(&mut node.clone()) }
    }

    /// The same with a node that may be changed for it, and is the same in the end.
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

    /// The pods that wait for a node and aren't less important.
    fn first(&self, node: &NodeInfo) -> Vec<Arc<PodInfo>> {
        let Cycle { pod, snapshot, .. } = self.cycle;
        if snapshot.nominated.is_empty() {
            return Vec::new();
        }
        let others = snapshot.nominated.on(node.name());
        others.filter(|other| other.priority >= pod.priority && other.uid != pod.uid).cloned().collect()
    }

    /// Brings what was computed up to date as if a pod were on the node. The node itself is the caller's to change.
    pub fn add_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for named in &mut self.filters {
            named.filter.add_pod(pod, node);
            named.idle = false;
        }
    }

    /// The same as if a pod weren't on the node any more.
    pub fn remove_pod(&mut self, pod: &PodInfo, node: &NodeInfo) {
        for named in &mut self.filters {
            named.filter.remove_pod(pod, node);
            named.idle = false;
        }
    }
}
