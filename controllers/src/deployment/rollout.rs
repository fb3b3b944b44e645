//! How many replicas each ReplicaSet shall have: pure arithmetic on the copies in a [`Rollout`].

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use machinery_client::{Failure, Pod};

use super::{Rollout, actual, revision, size, wanted};
use crate::pods;

/// Whether the Deployment goes from template to template step by step.
pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// How many replicas more than asked for, and how many fewer available ones, there may be.
fn bounds(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let total = wanted(deployment);
    let surge = share(strategy.and_then(|s| s.max_surge.as_ref()), total, true);
    let unavailable = share(strategy.and_then(|s| s.max_unavailable.as_ref()), total, false);
    // Both zero would never move: percentages can round to that.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// A number, or a part of `total`. Unset means none, as the API's defaults are set by the server.
fn share(of: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match of {
        None => 0,
        Some(IntOrString::Int(n)) => (*n).max(0),
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.max(0).saturating_mul(i64::from(total.max(0)));
            let rounded = if up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// How many replicas more than asked for there may be.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    bounds(deployment).0
}

/// How many of the replicas asked for may be missing.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    match wanted(deployment) {
        0 => 0,
        total => bounds(deployment).1.min(total),
    }
}

fn resize(set: &mut ReplicaSet, to: i32, deployment: &Deployment) {
    if let Some(spec) = &mut set.spec {
        spec.replicas = Some(to);
    }
    revision::note_size(set, deployment);
}

/// How many replicas of a set are available and stay: its status may still count those that it is about to give up.
fn available(set: &ReplicaSet) -> i32 {
    super::available(set).min(size(set))
}

fn total<'a>(sets: impl Iterator<Item = &'a ReplicaSet>) -> i32 {
    sets.map(size).fold(0, i32::saturating_add)
}

/// How many replicas the new set, that has `present`, may have now.
pub(super) fn replicas_of_new(rollout: &Rollout<'_>, present: i32) -> i32 {
    let wanted = wanted(rollout.deployment);
    if !is_rolling(rollout.deployment) {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(rollout.deployment));
    let room = most.saturating_sub(total(rollout.all()));
    if room <= 0 { present } else { present + room.min(wanted - present) }
}

/// One step of a rolling update. Answers false where it can't go on in this pass.
pub(super) fn rolling(rollout: &mut Rollout<'_>, failure: Option<&Failure>) -> bool {
    let deployment = rollout.deployment;
    if rollout.new.is_none() {
        // The next pass goes on with it.
        return revision::create(rollout, failure);
    }
    let present = rollout.new.as_ref().map_or(0, size);
    let wanted = wanted(deployment);
    let next = if present > wanted { wanted } else { replicas_of_new(rollout, present) };
    if next != present {
        if let Some(new) = &mut rollout.new {
            resize(new, next, deployment);
        }
    } else {
        shrink_old(rollout);
    }
    rollout.write_sets();
    true
}

/// Takes replicas from the old sets: first those that aren't available anyway, then as many as may be missing.
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

/// One step of a recreation: nothing new before the last old pod has ended.
pub(super) fn recreate(rollout: &mut Rollout<'_>, failure: Option<&Failure>) -> bool {
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
        None => return revision::create(rollout, failure),
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

/// Whether the number asked for has changed since the sets were last written.
pub(super) fn is_scaling(rollout: &Rollout<'_>) -> bool {
    let active = rollout.all().filter(|set| size(set) > 0);
    active.filter_map(revision::desired).any(|desired| desired != wanted(rollout.deployment))
}

/// Scales all sets in proportion to their size, so that scaling doesn't hasten a rollout.
pub(super) fn proportional(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let wanted = wanted(deployment);
    let active = rollout.all().filter(|set| size(set) > 0).count();
    if active <= 1 {
        // The only one with replicas, else the newest.
        let only = match (active, rollout.new.is_some()) {
            (0, true) => rollout.new.as_mut(),
            (0, false) => rollout.old.last_mut(),
            _ => rollout.old.iter_mut().chain(&mut rollout.new).find(|set| size(set) > 0),
        };
        if let Some(set) = only
            && (size(set) != wanted || active == 1 && revision::desired(set).is_some_and(|d| d != wanted))
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
    let known = deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let mut sets: Vec<&mut ReplicaSet> =
        rollout.old.iter_mut().chain(&mut rollout.new).filter(|set| size(set) > 0).collect();
    // The largest first; among equals the newest gains and the oldest loses first.
    sets.sort_by(|a, b| {
        let by_age = super::age(a).cmp(&super::age(b));
        size(b).cmp(&size(a)).then(if to_add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for set in &sets {
        let part = part(set, wanted, allowed, known);
        let room = to_add - added;
        let part = if to_add > 0 { part.min(room) } else { part.max(room) };
        let part = if to_add == 0 || room == 0 { 0 } else { part };
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
    size(new) == wanted && revision::desired(new) == Some(wanted) && available(new) == wanted
}

/// What a set gains or loses when the whole goes to `allowed`.
fn part(set: &ReplicaSet, wanted: i32, allowed: i32, known: i32) -> i32 {
    if wanted == 0 {
        return -size(set);
    }
    let before = revision::max(set).filter(|n| *n > 0).unwrap_or(known);
    if before == 0 {
        return 0;
    }
    let exact = f64::from(size(set)) * f64::from(allowed) / f64::from(before);
    #[expect(clippy::cast_possible_truncation, reason = "a float's cast to an integer saturates")]
    let rounded = exact.round() as i32;
    rounded - size(set)
}
