//! Bounds of a Deployment's strategy: the maximum surge and the maximum of unavailable replicas.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::wanted;
use crate::int_or_percent::{Round, scaled_value};

/// Whether the strategy is RollingUpdate.
pub(super) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// The maximum surge, and the maximum of unavailable replicas.
fn bounds(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let total = wanted(deployment);
    let surge = part(strategy.and_then(|s| s.max_surge.as_ref()), total, Round::Up);
    let unavailable = part(strategy.and_then(|s| s.max_unavailable.as_ref()), total, Round::Down);
    // With both zero a rollout would never progress; percentages can round to that.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// Unset means zero, as the server sets the API's defaults.
fn part(of: Option<&IntOrString>, total: i32, round: Round) -> i32 {
    of.map_or(0, |of| scaled_value(of, total, round))
}

/// The maximum number of replicas above `spec.replicas`.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    bounds(deployment).0
}

/// The maximum number of unavailable replicas.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    match wanted(deployment) {
        0 => 0,
        total => bounds(deployment).1.min(total),
    }
}
