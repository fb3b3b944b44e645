//! `horizontal-pod-autoscaler-controller`: scales workloads by metrics
//! (<https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/>).
//!
//! One pass over an autoscaler calls the same function repeatedly, with the answers to its effects: the target's
//! scale, then metrics, then the result of the scale update. The decision before the update is carried over, and not
//! recomputed.

mod compute;
mod history;
mod metrics;
mod pass;
mod replicas;
mod status;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use k8s_openapi::api::core::v1::Service;
use machinery_api::ObjectKey;
use machinery_api::features::Feature;
use machinery_api::selector::LabelSelector;
use machinery_client::driver::own_key;
use machinery_client::{BackOff, Change, Context, Controller, Input, ObjectCache, Plan, Pod, ReconcilerState, key_of};
use machinery_rules::activation;

use crate::Settings;
use crate::scale::Mapping;
use history::History;
use pass::ReadPass;

/// The minimum interval between two passes that waiting requests trigger.
const WAKE_INTERVAL: SignedDuration = SignedDuration::from_secs(1);

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "horizontal-pod-autoscaler-controller",
    account: "horizontal-pod-autoscaler",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<HorizontalPodAutoscaler>(own_key),
        Input::of::<Pod>(|_, _| Vec::new()),
        Input::of::<Service>(of_service),
    ],
    reconcile,
};

/// The settings of all autoscalers.
#[derive(Debug, Clone)]
pub struct AutoscalerSettings {
    /// The interval of passes.
    pub sync_period: Duration,
    /// The default scale-down stabilization window.
    pub downscale_stabilization: Duration,
    /// The tolerated relative deviation from the target.
    pub tolerance: f64,
    /// The time after a pod's start in which its CPU usage is ignored as that of its start.
    pub cpu_initialization_period: Duration,
    /// The time after a pod's start until which an unready pod counts as never having been ready.
    pub initial_readiness_delay: Duration,
}

impl Default for AutoscalerSettings {
    /// Upstream's defaults of the flags.
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: Duration::from_mins(5),
            tolerance: 0.1,
            cpu_initialization_period: Duration::from_mins(5),
            initial_readiness_delay: Duration::from_secs(30),
        }
    }
}

/// The memory of an autoscaler between passes. Losing it is harmless, as with upstream's after a restart.
#[derive(Debug, Clone, Default)]
struct AutoscalerMemory {
    passed_at: Timestamp,
    spec: Option<HorizontalPodAutoscalerSpec>,
    mappings: Vec<Mapping>,
    history: History,
    /// The selector of its pods.
    selector: Option<LabelSelector>,
    /// The messages of Services about waiting requests at the last pass.
    waiting: Vec<String>,
}

/// Autoscalers with waiting requests: a data plane reports them on a Service without endpoints.
fn of_service(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(service) = change.after::<Service>().filter(|service| waiting_condition(service).is_some()) else {
        return Vec::new();
    };
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let all = view.list::<HorizontalPodAutoscaler>(&change.key.namespace);
    let of = |hpa: &&HorizontalPodAutoscaler| is_to_zero(hpa) && described(hpa).any(|described| described == name);
    all.filter(of).map(|hpa| key_of(&hpa.metadata)).collect()
}

/// The feature gate `HPAScaleToZero`.
fn scales_to_zero(context: &Context<'_, Settings>) -> bool {
    context.settings.features.has(Feature::HpaScaleToZero)
}

fn is_to_zero(hpa: &HorizontalPodAutoscaler) -> bool {
    hpa.spec.min_replicas == Some(0)
}

/// The Services in an autoscaler's metrics.
fn described(hpa: &HorizontalPodAutoscaler) -> impl Iterator<Item = &str> {
    hpa.spec.metrics.iter().flatten().filter_map(|metric| {
        let of = &metric.object.as_ref()?.described_object;
        let core = of.api_version.as_deref().is_none_or(|version| version.is_empty() || version == "v1");
        (core && of.kind == "Service").then_some(&*of.name)
    })
}

/// The time and message of the condition by which a data plane reports waiting requests.
fn waiting_condition(service: &Service) -> Option<(Timestamp, &str)> {
    let mut conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let said = conditions.find(|one| one.type_ == activation::CONDITION && one.status == "True")?;
    Some((said.last_transition_time.0, &said.message))
}

/// The messages of an autoscaler's Services about waiting requests; empty: none wait.
fn waiting_now(view: &ObjectCache, hpa: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<String> {
    if !is_to_zero(hpa) {
        return Vec::new();
    }
    let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
    let said = described(hpa).filter_map(|name| {
        let service = view.get::<Service>(&ObjectKey::new(namespace, name))?;
        let (since, message) = waiting_condition(service)?;
        activation::waiting_requests("True", since, message, now)?;
        Some(format!("{since} {message}"))
    });
    said.collect()
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(hpa) = view.get::<HorizontalPodAutoscaler>(key) else { return Plan::nothing() };
    if let Some(decided) = context.pass.scratch.as_ref().and_then(ReconcilerState::get::<pass::PendingScale>) {
        return decided.clone().resume(hpa, context);
    }
    let known = context.reconciler_cache.of::<AutoscalerMemory>(key).cloned().unwrap_or_default();
    let waiting = match scales_to_zero(context) {
        true => waiting_now(view, hpa, context.now),
        false => Vec::new(),
    };
    // A pass in progress continues at any time.
    if !context.pass.has_results()
        && let Some(at) = not_before(&known, hpa, &waiting, context)
    {
        let mut plan = Plan { state: Some(ReconcilerState::of(known)), ..Plan::nothing() };
        plan.revisit(at);
        return plan;
    }
    match ReadPass::new(view, hpa, known, waiting, context).run() {
        Ok(plan) => plan,
        Err(effects) => Plan { effects, ..Plan::nothing() },
    }
}

/// When the next pass is due, if not now: each pass changes the status, but the spec rarely changes.
fn not_before(
    known: &AutoscalerMemory,
    hpa: &HorizontalPodAutoscaler,
    waiting: &[String],
    context: &Context<'_, Settings>,
) -> Option<Timestamp> {
    if known.spec.as_ref() != Some(&hpa.spec) {
        return None;
    }
    let woken = !waiting.is_empty() && waiting != known.waiting;
    let period = SignedDuration::try_from(context.settings.autoscaler.sync_period).unwrap_or(SignedDuration::MAX);
    let wait = if woken { WAKE_INTERVAL.min(period) } else { period };
    let due = known.passed_at.saturating_add(wait).unwrap_or(Timestamp::MAX);
    // If the clock was set back, the pass runs at once.
    (known.passed_at <= context.now && context.now < due).then_some(due)
}
