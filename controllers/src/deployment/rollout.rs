//! Sizes of the ReplicaSets in a rollout: pure arithmetic on the copies in a [`Rollout`].

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use machinery_client::Pod;

use super::create::{create, replicas_of_new};
use super::strategy::{is_rolling, max_surge, max_unavailable};
use super::{Rollout, actual, annotations, size, total, wanted};
use crate::pods;

fn resize(set: &mut ReplicaSet, to: i32, deployment: &Deployment) {
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(to);
    }
    annotations::note_size(set, deployment);
}

/// The available replicas of a set that stay: its status may still count replicas that it is about to delete.
fn available(set: &ReplicaSet) -> i32 {
    super::available(set).min(size(set))
}

/// Whether a set's controller has yet to observe a smaller size. Such a set must not grow: its status would count
/// replicas that are about to be deleted as those of its new size.
fn is_shrinking(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    observed < set.metadata.generation && super::available(set) > size(set)
}

/// One step of a rolling update. Returns false if the pass must end.
pub(super) fn rolling(rollout: &mut Rollout<'_>) -> bool {
    let deployment = rollout.deployment;
    if rollout.new.is_none() {
        // The next pass continues with the new set.
        return create(rollout);
    }
    let present = rollout.new.as_ref().map_or(0, size);
    let wanted = wanted(deployment);
    let next = if present > wanted { wanted } else { replicas_of_new(rollout, present) };
    if next != present {
        if let Some(new) = &mut rollout.new
            && (next < present || !is_shrinking(new))
        {
            resize(new, next, deployment);
        }
    } else {
        shrink_old(rollout);
    }
    rollout.write_sets();
    true
}

/// Scales old sets down: unavailable replicas first, then as many as may be unavailable.
fn shrink_old(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let Some(new) = &rollout.new else { return };
    let least = wanted(deployment).saturating_sub(max_unavailable(deployment));
    let new_missing = size(new).saturating_sub(available(new));
    let surplus = total(rollout.all()).saturating_sub(least).saturating_sub(new_missing);
    if surplus <= 0 {
        return;
    }
    let mut left = surplus;
    for set in &mut rollout.old {
        let ill = size(set).saturating_sub(available(set)).min(left);
        if ill > 0 && size(set) > 0 {
            let to = size(set) - ill;
            resize(set, to, deployment);
            left -= ill;
        }
    }
    let up = rollout.all().map(available).fold(0, i32::saturating_add);
    let mut left = up.saturating_sub(least);
    for set in &mut rollout.old {
        let gone = size(set).min(left);
        if gone > 0 {
            let to = size(set) - gone;
            resize(set, to, deployment);
            left -= gone;
        }
    }
}

/// One step of strategy Recreate: no new pod before the last old one has ended.
pub(super) fn recreate(rollout: &mut Rollout<'_>) -> bool {
    let deployment = rollout.deployment;
    let mut shrunk = false;
    for set in rollout.old.iter_mut().filter(|set| size(set) > 0) {
        resize(set, 0, deployment);
        shrunk = true;
    }
    if shrunk || old_pods_run(rollout) {
        rollout.write_sets();
        return true;
    }
    match &mut rollout.new {
        None => return create(rollout),
        Some(new) if size(new) != wanted(deployment) => resize(new, wanted(deployment), deployment),
        Some(_) => {}
    }
    rollout.write_sets();
    true
}

fn old_pods_run(rollout: &Rollout<'_>) -> bool {
    rollout.old.iter().any(|set| {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        actual(set) > 0 || rollout.view.controlled::<Pod>(uid).any(|pod| !pods::is_terminal(pod))
    })
}

/// Whether the Deployment's replicas changed since the last write of the sets.
pub(super) fn is_scaling(rollout: &Rollout<'_>) -> bool {
    let active = rollout.all().filter(|set| size(set) > 0);
    active.filter_map(annotations::desired).any(|desired| desired != wanted(rollout.deployment))
}

/// Scales all sets in proportion to their size, so that scaling doesn't accelerate a rollout.
pub(super) fn proportional(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let wanted = wanted(deployment);
    let active = rollout.all().filter(|set| size(set) > 0).count();
    if active <= 1 {
        // The only set with replicas, else the newest.
        let only = match (active, rollout.new.is_some()) {
            (0, true) => rollout.new.as_mut(),
            (0, false) => rollout.old.last_mut(),
            _ => rollout.old.iter_mut().chain(&mut rollout.new).find(|set| size(set) > 0),
        };
        if let Some(set) = only
            && (size(set) != wanted || active == 1 && annotations::desired(set).is_some_and(|d| d != wanted))
        {
            resize(set, wanted, deployment);
        }
        return;
    }
    if rollout.new.as_ref().is_some_and(|new| is_saturated(new, wanted)) {
        rollout.old.iter_mut().filter(|set| size(set) > 0).for_each(|set| resize(set, 0, deployment));
        return;
    }
    if !is_rolling(deployment) {
        return;
    }
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(deployment)) } else { 0 };
    let to_add = allowed.saturating_sub(total(rollout.all()));
    if to_add > 0 && rollout.all().any(is_shrinking) {
        return;
    }
    let known = deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let mut sets: Vec<&mut ReplicaSet> =
        rollout.old.iter_mut().chain(&mut rollout.new).filter(|set| size(set) > 0).collect();
    // The largest first; among equals the newest grows first and the oldest shrinks first.
    sets.sort_by(|a, b| super::age(a).cmp(&super::age(b)));
    if to_add > 0 {
        sets.reverse();
    }
    sets.sort_by_key(|set| Reverse(size(set)));
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in &sets {
        let part = part(set, wanted, allowed, known);
        let left = to_add - added;
        let part = if to_add > 0 { part.min(left) } else { part.max(left) };
        let part = if to_add == 0 || left == 0 { 0 } else { part };
        sizes.push(size(set) + part);
        added += part;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (set, to) in sets.into_iter().zip(sizes) {
        resize(set, to.max(0), deployment);
    }
}

fn is_saturated(new: &ReplicaSet, wanted: i32) -> bool {
    size(new) == wanted && annotations::desired(new) == Some(wanted) && available(new) == wanted
}

/// The change of a set's size when the total becomes `allowed`.
fn part(set: &ReplicaSet, wanted: i32, allowed: i32, known: i32) -> i32 {
    if wanted == 0 {
        return -size(set);
    }
    let before = annotations::max(set).filter(|n| *n > 0).unwrap_or(known);
    if before == 0 {
        return 0;
    }
    let exact = f64::from(size(set)) * f64::from(allowed) / f64::from(before);
    #[expect(clippy::cast_possible_truncation, reason = "a float's cast to an integer saturates")]
    let rounded = exact.round() as i32;
    rounded - size(set)
}
