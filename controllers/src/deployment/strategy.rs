//! What a Deployment's strategy allows: how many replicas more, and how many fewer, while pods change.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::wanted;
use crate::share::{Round, share};

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
    let surge = part(strategy.and_then(|s| s.max_surge.as_ref()), total, Round::Up);
    let unavailable = part(strategy.and_then(|s| s.max_unavailable.as_ref()), total, Round::Down);
    // Both zero would never move: percentages can round to that.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Unset means none, as the API's defaults are set by the server.
fn part(of: Option<&IntOrString>, total: i32, round: Round) -> i32 {
    of.map_or(0, |of| share(of, total, round))
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
