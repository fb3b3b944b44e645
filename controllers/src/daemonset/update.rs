//! Rolling updates: deletes old pods before or after the creation of their successors, within the limits of the
//! strategy.

use k8s_openapi::api::apps::v1::{DaemonSetSpec, RollingUpdateDaemonSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_client::Pod;

use super::node::Eligibility;
use super::{DaemonSetPass, PodChanges};
use crate::int_or_percent::{Round, scaled_value};

fn rolling(spec: &DaemonSetSpec) -> Option<&RollingUpdateDaemonSet> {
    let strategy = spec.update_strategy.as_ref()?;
    strategy.rolling_update.as_ref().filter(|_| strategy.type_.as_deref() == Some("RollingUpdate"))
}

/// The maximum number of nodes with two pods.
pub(super) fn surge(spec: &DaemonSetSpec, nodes: usize) -> usize {
    part(rolling(spec).and_then(|r| r.max_surge.as_ref()), nodes)
}

/// Unset means zero, as the server sets the API's defaults.
fn part(of: Option<&IntOrString>, nodes: usize) -> usize {
    let part = of.map_or(0, |of| scaled_value(of, i32::try_from(nodes).unwrap_or(i32::MAX), Round::Up));
    usize::try_from(part).unwrap_or(0)
}

/// A node's pods of the new and an old template; none if there are two of either.
fn new_and_old<'a>(daemons: &DaemonSetPass<'a>, pods: &[&'a Pod]) -> Option<(Option<&'a Pod>, Option<&'a Pod>)> {
    let staying = pods.iter().copied().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let (new, old): (Vec<&'a Pod>, Vec<&'a Pod>) = staying.partition(|pod| daemons.is_updated(pod));
    (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
}

impl<'a> DaemonSetPass<'a> {
    /// The next step of the update.
    pub(super) fn updates(&self) -> PodChanges<'a> {
        if self.spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("OnDelete")) {
            return PodChanges::default();
        }
        let nodes = self.nodes.values().filter(|fit| **fit == Eligibility::ShouldRun).count();
        let surge = surge(self.spec, nodes);
        let unavailable = part(rolling(self.spec).and_then(|r| r.max_unavailable.as_ref()), nodes);
        if surge > 0 { self.update_with_surge(surge, nodes) } else { self.update_in_place(unavailable.max(1)) }
    }

    /// Nodes that have pods, and nodes that should.
    fn on_nodes(&self) -> Vec<(&'a str, &[&'a Pod])> {
        let with = self.pods.iter().map(|(name, pods)| (*name, pods.as_slice()));
        let bare =
            self.nodes.iter().filter(|(name, fit)| **fit == Eligibility::ShouldRun && !self.pods.contains_key(*name));
        with.chain(bare.map(|(name, _)| (*name, &[] as &[&'a Pod]))).collect()
    }

    /// Deletes the old pod first.
    fn update_in_place(&self, most: usize) -> PodChanges<'a> {
        let (mut unavailable, mut unwell, mut candidates) = (0_usize, Vec::new(), Vec::new());
        for (_, pods) in self.on_nodes() {
            match new_and_old(self, pods) {
                None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if !self.is_available(old) => {
                    unwell.push(old);
                    unavailable += 1;
                }
                Some((None, Some(old))) => candidates.push(old),
            }
        }
        let allowed = most.saturating_sub(unavailable);
        PodChanges {
            make: Vec::new(),
            delete: unwell.into_iter().chain(candidates.into_iter().take(allowed)).collect(),
        }
    }

    /// Creates the new pod first.
    fn update_with_surge(&self, most: usize, wanted: usize) -> PodChanges<'a> {
        let (mut surging, mut available) = (0_usize, 0_usize);
        let (mut changes, mut leaving, mut candidates) = (PodChanges::default(), Vec::new(), Vec::new());
        for (name, pods) in self.on_nodes() {
            let Some((new, old)) = new_and_old(self, pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|pod| self.is_available(pod)));
            let Some(old) = old else { continue };
            let stays = self.fit(name) == Some(Eligibility::ShouldRun);
            match new {
                Some(new) if self.is_available(new) => changes.delete.push(old),
                Some(_) => surging += 1,
                None => match (self.is_available(old), stays) {
                    (false, false) => changes.delete.push(old),
                    (false, true) => changes.make.push(name),
                    (true, false) => leaving.push(old),
                    (true, true) => candidates.push(name),
                },
            }
        }
        changes.delete.extend(leaving.into_iter().take(available.saturating_sub(wanted)));
        changes.make.extend(candidates.into_iter().take(most.saturating_sub(surging)));
        changes
    }
}
