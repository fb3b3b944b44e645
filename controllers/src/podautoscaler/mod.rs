//! `horizontal-pod-autoscaler-controller`: how many pods a workload has follows what is measured of it
//! (<https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/>).
//!
//! A pass over one autoscaler is the same function called again with the answers to what it asked: its target's scale, then
//! metrics, then what became of a new size. What it decided before it wrote the size is carried on, not computed again.

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
use machinery_api::waiting;
use machinery_client::driver::own_key;
use machinery_client::{BackOff, Change, Context, Controller, Input, Memory, ObjectCache, Plan, Pod, key_of};

use crate::Settings;
use crate::scale::Mapping;
use history::History;
use pass::Looking;

/// How soon after one pass requests that wait may cause another.
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

/// What autoscalers are told.
#[derive(Debug, Clone)]
pub struct AutoscalerSettings {
    /// How often each is looked at.
    pub sync_period: Duration,
    /// How long a smaller size waits, where an autoscaler's own rules don't say.
    pub downscale_stabilization: Duration,
    /// How far from the target usage may be.
    pub tolerance: f64,
    /// For how long after its start a pod's use of CPU may be that of its start.
    pub cpu_initialization_period: Duration,
    /// Until when after its start a pod that isn't ready never was.
    pub initial_readiness_delay: Duration,
}

impl Default for AutoscalerSettings {
    /// As upstream where a flag isn't given.
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

/// What is remembered of an autoscaler: all of it may be forgotten, as upstream's after a restart.
#[derive(Debug, Clone, Default)]
struct Known {
    looked_at: Timestamp,
    spec: Option<HorizontalPodAutoscalerSpec>,
    mappings: Vec<Mapping>,
    history: History,
    /// The pods that are its own.
    selector: Option<LabelSelector>,
    /// What Services said of waiting requests when they were looked at.
    waiting: Vec<String>,
}

/// Autoscalers that requests wait for: what a data plane says of a Service without endpoints.
fn of_service(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(service) = change.after::<Service>().filter(|service| says_waiting(service).is_some()) else {
        return Vec::new();
    };
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let all = view.list::<HorizontalPodAutoscaler>(&change.key.namespace);
    let of = |hpa: &&HorizontalPodAutoscaler| is_to_zero(hpa) && described(hpa).any(|described| described == name);
    all.filter(of).map(|hpa| key_of(&hpa.metadata)).collect()
}

/// The gate `HPAScaleToZero`.
fn scales_to_zero(context: &Context<'_, Settings>) -> bool {
    context.settings.features.has(Feature::HpaScaleToZero)
}

fn is_to_zero(hpa: &HorizontalPodAutoscaler) -> bool {
    hpa.spec.min_replicas == Some(0)
}

/// The Services that an autoscaler's metrics are about.
fn described(hpa: &HorizontalPodAutoscaler) -> impl Iterator<Item = &str> {
    hpa.spec.metrics.iter().flatten().filter_map(|metric| {
        let of = &metric.object.as_ref()?.described_object;
        let core = of.api_version.as_deref().is_none_or(|version| version.is_empty() || version == "v1");
        (core && of.kind == "Service").then_some(&*of.name)
    })
}

/// The condition by which a data plane says that requests wait, in its own words.
fn says_waiting(service: &Service) -> Option<(Timestamp, &str)> {
    let mut conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let said = conditions.find(|one| one.type_ == waiting::CONDITION && one.status == "True")?;
    Some((said.last_transition_time.0, &said.message))
}

/// What the Services of an autoscaler say of waiting requests; empty: none waits.
fn waiting_now(view: &ObjectCache, hpa: &HorizontalPodAutoscaler, now: Timestamp) -> Vec<String> {
    if !is_to_zero(hpa) {
        return Vec::new();
    }
    let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
    let said = described(hpa).filter_map(|name| {
        let service = view.get::<Service>(&ObjectKey::new(namespace, name))?;
        let (since, message) = says_waiting(service)?;
        waiting::requests("True", since, message, now)?;
        Some(format!("{since} {message}"))
    });
    said.collect()
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(hpa) = view.get::<HorizontalPodAutoscaler>(key) else { return Plan::nothing() };
    if let Some(decided) = context.pass.carried.as_ref().and_then(Memory::get::<pass::Decided>) {
        return decided.clone().go_on(hpa, context);
    }
    let known = context.memories.of::<Known>(key).cloned().unwrap_or_default();
    let waiting = match scales_to_zero(context) {
        true => waiting_now(view, hpa, context.now),
        false => Vec::new(),
    };
    // A pass that has begun asks on, whatever the time.
    if !context.pass.has_begun()
        && let Some(at) = not_before(&known, hpa, &waiting, context)
    {
        let mut plan = Plan { memory: Some(Memory::of(known)), ..Plan::nothing() };
        plan.revisit(at);
        return plan;
    }
    match Looking::new(view, hpa, known, waiting, context).look() {
        Ok(plan) => plan,
        Err(questions) => Plan { questions, ..Plan::nothing() },
    }
}

/// When an autoscaler is to be looked at again, where that isn't now: its status changes with each pass, its spec seldom.
fn not_before(
    known: &Known,
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
    let due = known.looked_at.saturating_add(wait).unwrap_or(Timestamp::MAX);
    // A clock that was set back holds nothing up.
    (known.looked_at <= context.now && context.now < due).then_some(due)
}
