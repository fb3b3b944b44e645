//! Rolling updates: the ordinals that stay at the current revision, and the next pods to update.

use k8s_openapi::api::apps::v1::RollingUpdateStatefulSetStrategy;
use machinery_client::{Action, Pod};

use super::identity::{revision_of, start, wanted};
use super::{BURST_PODS, Rollout};
use crate::int_or_percent::{Round, scaled_value};

impl Rollout<'_> {
    fn rolling(&self) -> Option<&RollingUpdateStatefulSetStrategy> {
        self.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    pub(super) fn is_rolling(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
        strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
    }

    /// The first ordinal that gets the new revision.
    fn first_updated(&self) -> i64 {
        start(self.set) + i64::from(self.rolling().and_then(|r| r.partition).unwrap_or(0))
    }

    /// Whether a pod of this ordinal is created at the current revision.
    pub(super) fn keeps_current_revision(&self, ordinal: i64) -> bool {
        match self.rolling() {
            Some(_) => ordinal < self.first_updated(),
            None => {
                let current = self.set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0);
                self.is_rolling() && ordinal < start(self.set) + i64::from(current)
            }
        }
    }

    /// Deletes pods of an old revision, the highest ordinals first; with strategy `OnDelete` the user deletes them.
    pub(super) fn update_pods(&mut self) {
        if !self.is_rolling() {
            return;
        }
        let going = if self.replaces_several {
            let total = i32::try_from(wanted(self.set)).unwrap_or(i32::MAX);
            let most = self.rolling().and_then(|r| r.max_unavailable.as_ref());
            // A small percentage of a small set rounds down to zero, with which no pod would ever be updated.
            self.several_to_update(most.map_or(1, |most| scaled_value(most, total, Round::Down).max(1)).into())
        } else {
            // An object that was written with the gate on may still have `maxUnavailable`.
            self.next_to_update().into_iter().collect()
        };
        let deletions: Vec<Action> = going.iter().map(|pod| self.deletion(pod)).collect();
        let known = |action: &Action| self.plan.actions.contains(action);
        let deletions: Vec<Action> = deletions.into_iter().filter(|action| !known(action)).collect();
        self.plan.actions.extend(deletions);
    }

    fn is_outdated(&self, pod: &Pod) -> bool {
        revision_of(pod) != self.update.name && pod.metadata.deletion_timestamp.is_none()
    }

    /// One after the other; an unavailable pod is waited for, unless it has an old revision.
    fn next_to_update(&self) -> Option<&Pod> {
        for ordinal in (self.first_updated()..self.ordinals().end).rev() {
            let pod = self.pods.get(&ordinal)?;
            if self.is_outdated(pod) {
                return Some(pod);
            }
            if self.is_unavailable(pod) {
                return None;
            }
        }
        None
    }

    /// As many as may be unavailable at once.
    fn several_to_update(&self, most: i64) -> Vec<&Pod> {
        let well = self.pods.range(self.ordinals()).filter(|(_, pod)| !self.is_unavailable(pod)).count();
        let allowed = most - (wanted(self.set) - i64::try_from(well).unwrap_or(i64::MAX));
        let allowed = usize::try_from(allowed).unwrap_or(0).min(BURST_PODS);
        let candidates = self.pods.range(self.ordinals()).rev().take_while(|(o, _)| **o >= self.first_updated());
        candidates.map(|(_, pod)| *pod).filter(|pod| self.is_outdated(pod)).take(allowed).collect()
    }
}
