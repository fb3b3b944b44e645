//! An autoscaler sets no size beyond its bounds, and scales down only if no metric within its stabilization window requires
//! more. Only metrics of its present life count: a restarted autoscaler has only the current size.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::clock;
use crate::history::History;
use crate::network::Link;

/// The stabilization window, and the target value per pod.
pub(crate) const WINDOW: Duration = Duration::from_secs(30);
pub(crate) const EACH: i64 = 10;
/// Tolerance between a request's time and its response's.
const SLACK: Duration = Duration::from_secs(1);

/// A metric that an autoscaler has received.
struct MetricSample {
    by: Arc<Link>,
    at: Instant,
    load: i64,
}

#[derive(Default)]
struct AutoscalingState {
    /// The current metric of each Deployment.
    loads: BTreeMap<String, i64>,
    reported: BTreeMap<String, Vec<MetricSample>>,
    /// Time of the last clock step.
    jumped: Option<Instant>,
}

/// Checks autoscalers.
#[derive(Default)]
pub(crate) struct Autoscaling(Mutex<AutoscalingState>);

/// The autoscaler of a Deployment, if there is one.
pub(crate) fn autoscaler(history: &History, namespace: &str, name: &str) -> Option<Value> {
    let all = history.now(&format!("/registry/horizontalpodautoscalers/{namespace}/"));
    let found = all.iter().find(|(_, hpa)| hpa.value()["spec"]["scaleTargetRef"]["name"] == name);
    found.map(|(_, hpa)| hpa.value().clone())
}

/// The minimum and maximum of pods.
pub(crate) fn bounds(hpa: &Value) -> (i64, i64) {
    (hpa["spec"]["minReplicas"].as_i64().unwrap_or(1), hpa["spec"]["maxReplicas"].as_i64().unwrap_or(1))
}

/// The minimum number of pods for a load, within the tolerance of a tenth.
fn wanted(load: i64) -> i64 {
    (10 * load + 11 * EACH - 1) / (11 * EACH)
}

impl Autoscaling {
    fn state(&self) -> MutexGuard<'_, AutoscalingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, deployment: &str, load: i64) {
        self.state().loads.insert(deployment.to_owned(), load);
    }

    pub(crate) fn load(&self, deployment: &str) -> i64 {
        self.state().loads.get(deployment).copied().unwrap_or(EACH)
    }

    pub(crate) fn clock_stepped(&self) {
        self.state().jumped = Some(clock::now());
    }

    /// Deployments whose size doesn't match their load after convergence.
    pub(crate) fn unmet(&self, history: &History) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, hpa) in history.now("/registry/horizontalpodautoscalers/") {
            let (hpa, (least, most)) = (hpa.value(), bounds(hpa.value()));
            let part = |path: &str| hpa.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let of = format!("{}/{}", part("/metadata/namespace"), part("/spec/scaleTargetRef/name"));
            let Some(deployment) = history.at(&format!("/registry/deployments/{of}"), u64::MAX) else { continue };
            let (size, load) = (deployment.value()["spec"]["replicas"].as_i64().unwrap_or(0), self.load(&of));
            let wanted = ((load + EACH - 1) / EACH).clamp(least, most);
            let near = 10 * (load - EACH * size).abs() <= EACH * size && (least..=most).contains(&size);
            // An autoscaler ignores a workload that was scaled to zero.
            if size != wanted && !near && size != 0 {
                problems.push(format!("{key} has {size} pods for {load}, and is to have {wanted}"));
            }
        }
        problems
    }

    /// Records a metrics response.
    pub(crate) fn record_metric(&self, by: &Arc<Link>, deployment: &str, load: i64) {
        let reported = MetricSample { by: by.clone(), at: clock::now(), load };
        self.state().reported.entry(deployment.to_owned()).or_default().push(reported);
    }

    /// Checks a size set by an autoscaler. Returns the violation.
    pub(crate) fn check_size(&self, history: &History, by: &Arc<Link>, of: (&str, &str), size: i64) -> Option<String> {
        let (namespace, name) = of;
        let (least, most) = bounds(&autoscaler(history, namespace, name)?);
        if size < least || size > most {
            return Some(format!("{namespace}/{name} is to have {size} pods, of {least} to {most}"));
        }
        let deployment = history.at(&format!("/registry/deployments/{namespace}/{name}"), u64::MAX)?;
        if size >= deployment.value()["spec"]["replicas"].as_i64().unwrap_or(0) {
            return None;
        }
        let (state, now) = (self.state(), clock::now());
        let recent = |at: Instant| at + WINDOW > now + SLACK;
        if state.jumped.is_some_and(|at| at + WINDOW > now) {
            return None;
        }
        let reported = state.reported.get(&format!("{namespace}/{name}"))?;
        let more = reported.iter().rev().find(|reported| {
            Arc::ptr_eq(&reported.by, by) && recent(reported.at) && wanted(reported.load).clamp(least, most) > size
        })?;
        let ago = now.duration_since(more.at).as_millis();
        Some(format!("{namespace}/{name} is to have {size} pods, and {ago} ms ago there was a load of {}", more.load))
    }
}
