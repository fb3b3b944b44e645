//! Whether a Deployment's rollout is complete, by the rule of `kubectl rollout status`. Pure.

use k8s_openapi::api::apps::v1::Deployment;

/// Whether the rollout is complete (as `kubectl rollout status`) and the old pods are gone.
pub(crate) fn is_rolled_out(deployment: &Deployment) -> bool {
    let want = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return false };
    status.observed_generation >= deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == want
        && status.available_replicas.unwrap_or(0) == want
        && status.replicas.unwrap_or(0) == want
}
