//! Pods of a Job, and the order in which surplus pods are deleted.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{self as core, Container, EnvVar, EnvVarSource, ObjectFieldSelector};
use machinery_client::{Pod, controlled_by};

use super::index::{self, INDEX};
use crate::pods;

/// The finalizer that keeps a pod until its end is counted (KEP-2307).
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The annotation with the number of an index's failures before this pod (KEP-3850).
pub(super) const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";

/// The prefix of a generated name leaves five of a host name's 63 characters for the suffix.
const PREFIX_LENGTH_MAX: usize = 58;

/// A pod for the Job, for one index if it is Indexed; `failures` of that index are recorded if there is a limit per
/// index.
pub(super) fn pod(job: &Job, index: Option<i32>, failures: Option<u32>) -> core::Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let mut pod = pods::from_template(
        &spec.template,
        job.metadata.namespace.as_deref().unwrap_or_default(),
        name,
        controlled_by(job),
    );
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == TRACKING) {
        finalizers.push(TRACKING.into());
    }
    let Some(index) = index else { return pod };
    let ending = format!("-{index}-");
    let kept = name.len().min(PREFIX_LENGTH_MAX.saturating_sub(ending.len()));
    pod.metadata.generate_name = Some(format!("{}{ending}", &name[..kept]));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if let Some(failures) = failures {
        annotations.insert(FAILURE_COUNT.into(), failures.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        if spec.hostname.as_deref().unwrap_or_default().is_empty() {
            spec.hostname = Some(format!("{name}-{index}"));
        }
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(name_index);
    }
    pod
}

fn name_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == "JOB_COMPLETION_INDEX") {
        return;
    }
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let from = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    env.push(EnvVar { name: "JOB_COMPLETION_INDEX".into(), value: None, value_from: Some(from) });
}

/// The active pods to delete, at least `surplus`: pods with a duplicate or out-of-range index first.
pub(super) fn surplus_pods<'a>(job: &Job, active: &[&'a Pod], surplus: usize) -> Vec<&'a Pod> {
    let spec = job.spec.as_ref();
    let mut order = active.to_vec();
    order.sort_by_key(|pod| {
        let assigned = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (
            assigned,
            pods::phase(pod) == "Running",
            pods::is_ready(pod),
            std::cmp::Reverse(created),
            pod.metadata.name.clone(),
        )
    });
    let mut given_up = Vec::new();
    let mut kept = Vec::new();
    if let Some(completions) =
        spec.filter(|spec| spec.completion_mode.as_deref() == Some("Indexed")).and_then(|spec| spec.completions)
    {
        let mut best: BTreeMap<i32, &Pod> = BTreeMap::new();
        // The last pod in the order is the best of its index.
        for pod in &order {
            match index::of_pod(pod).filter(|index| *index < completions) {
                None => given_up.push(*pod),
                Some(index) => {
                    given_up.extend(best.insert(index, pod));
                }
            }
        }
        let stays = |pod: &&&Pod| best.values().any(|other| other.metadata.uid == pod.metadata.uid);
        kept.extend(order.iter().filter(stays).copied());
    } else {
        kept = order;
    }
    let more = surplus.saturating_sub(given_up.len());
    given_up.extend(kept.into_iter().take(more));
    given_up
}
