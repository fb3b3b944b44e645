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

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use k8s_openapi::api::core::v1::Service;
use machinery_api::ObjectKey;
use machinery_api::features::Feature;
use machinery_api::selector::LabelSelector;
use machinery_client::driver::own_key;
use machinery_client::{BackOff, Change, Context, Controller, Input, ObjectCache, Plan, Pod, ReconcilerState, key_of};
use machinery_options::duration::{duration, some_time};
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

/// The options of all autoscalers, with upstream's names and defaults.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct AutoscalerOptions {
    /// Interval between two evaluations of a HorizontalPodAutoscaler
    #[arg(long = "horizontal-pod-autoscaler-sync-period", env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_SYNC_PERIOD", default_value = "15s", value_name = "DURATION", value_parser = period)]
    pub sync_period: Duration,
    /// Stabilization window of scaling down, unless the HorizontalPodAutoscaler has one itself
    #[arg(long = "horizontal-pod-autoscaler-downscale-stabilization", env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_DOWNSCALE_STABILIZATION", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    pub downscale_stabilization: Duration,
    /// Minimum deviation from 1 of the ratio of measured to desired value before a workload is scaled
    #[arg(long = "horizontal-pod-autoscaler-tolerance", env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_TOLERANCE", default_value_t = 0.1, value_name = "RATIO", value_parser = ratio)]
    pub tolerance: f64,
    /// Time after a pod's start during which its CPU samples may be skipped
    #[arg(long = "horizontal-pod-autoscaler-cpu-initialization-period", env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_CPU_INITIALIZATION_PERIOD", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    pub cpu_initialization_period: Duration,
    /// Time after a pod's start during which an unready pod counts as never ready
    #[arg(long = "horizontal-pod-autoscaler-initial-readiness-delay", env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_INITIAL_READINESS_DELAY", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub initial_readiness_delay: Duration,
}

/// A shorter period than a second would only load the API server.
fn period(text: &str) -> Result<Duration, String> {
    Ok(some_time(text)?.max(Duration::from_secs(1)))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1e6).contains(&ratio) { Ok(ratio) } else { Err("not 0 or more".into()) }
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
    let waiting = conditions.find(|one| one.type_ == activation::CONDITION && one.status == "True")?;
    Some((waiting.last_transition_time.0, &waiting.message))
}

/// The messages of an autoscaler's Services about waiting requests; empty: none wait.
fn waiting_now(view: &ObjectCache, hpa: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<String> {
    if !is_to_zero(hpa) {
        return Vec::new();
    }
    let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
    let messages = described(hpa).filter_map(|name| {
        let service = view.get::<Service>(&ObjectKey::new(namespace, name))?;
        let (since, message) = waiting_condition(service)?;
        activation::waiting_requests("True", since, message, now)?;
        Some(format!("{since} {message}"))
    });
    messages.collect()
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
    let period =
        SignedDuration::try_from(context.settings.options.autoscaler.sync_period).unwrap_or(SignedDuration::MAX);
    let wait = if woken { WAKE_INTERVAL.min(period) } else { period };
    let due = known.passed_at.saturating_add(wait).unwrap_or(Timestamp::MAX);
    // If the clock was set back, the pass runs at once.
    (known.passed_at <= context.now && context.now < due).then_some(due)
}
