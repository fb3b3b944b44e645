//! One pass over an autoscaler: reads its target's scale and its metrics, computes the size, and writes scale, status
//! and events.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus,
};
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_client::{Context, Effect, ObjectCache, Plan, Pod, ReconcilerState, key_of};

use super::compute::{MetricFailure, MetricInputs, Proposed};
use super::history::{Behavior, DesiredScale};
use super::metrics::MetricScope;
use super::replicas::{Calculator, Tolerances};
use super::status::{ABLE, ACTIVE, LIMITED, StatusDraft};
use super::{AutoscalerMemory, Settings, scales_to_zero};
use crate::scale::{self, Scale, Stop, mapping};

/// The maximum number of retries after a conflict on the scale (upstream's).
const CONFLICTS_MAX: u32 = 5;
/// The delay before the retry of a failed announcement.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);
const MIN_REPLICAS: &str = "Current number of replicas below Spec.MinReplicas";

fn span(duration: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// The reading part of a pass.
pub(super) struct ReadPass<'a> {
    view: &'a ObjectCache,
    hpa: &'a HorizontalPodAutoscaler,
    spec: HorizontalPodAutoscalerSpec,
    namespace: &'a str,
    context: &'a Context<'a, Settings>,
    known: AutoscalerMemory,
    draft: StatusDraft,
}

/// The combined result of all metrics.
enum CombinedMetrics {
    /// The replicas, and the metric that proposed them.
    Size(i32, String, Vec<MetricStatus>),
    /// No metric proposes a size, with the reason.
    Nothing(String, Vec<MetricStatus>),
}

/// The size, its reason, and whether to write it.
struct Decision {
    desired: i32,
    reason: String,
    metrics: Vec<MetricStatus>,
    rescale: bool,
}

/// The error if the size is unknown, and the metrics that succeeded.
type UnknownSize = (String, Vec<MetricStatus>);

/// The decision, carried over until the scale is written.
#[derive(Clone)]
pub(super) struct PendingScale {
    known: AutoscalerMemory,
    draft: StatusDraft,
    path: String,
    scale: Scale,
    desired: i32,
    reason: String,
    metrics: Vec<MetricStatus>,
    conflicts: u32,
    step: ScaleStep,
    /// The autoscaler after the announcement was written.
    announced: Option<Box<HorizontalPodAutoscaler>>,
}

/// The last effect on the way to a new size.
#[derive(Clone)]
enum ScaleStep {
    /// The status is written before a scale to zero, by this effect.
    Announcing(Effect),
    Writing,
    /// The scale is read again, after a conflict.
    Reading,
}

impl<'a> ReadPass<'a> {
    pub(super) fn new(
        view: &'a ObjectCache,
        hpa: &'a HorizontalPodAutoscaler,
        known: AutoscalerMemory,
        waiting: Vec<String>,
        context: &'a Context<'a, Settings>,
    ) -> Self {
        let spec = hpa.spec.clone();
        let known = AutoscalerMemory { passed_at: context.now, spec: Some(hpa.spec.clone()), waiting, ..known };
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        Self { view, hpa, spec, namespace, context, known, draft: StatusDraft::new(hpa, context.now) }
    }

    /// The plan, or the effects that it needs.
    pub(super) fn run(mut self) -> Result<Plan, Vec<Effect>> {
        let (path, scale) = match self.scale() {
            Ok(found) => found,
            Err(Stop::Ask(effects)) => return Err(effects),
            Err(Stop::Failed(why)) => {
                self.draft.warn(self.hpa, "FailedGetScale", why.clone());
                let message = format!("the HPA controller was unable to get the target's current scale: {why}");
                self.draft.set(ABLE, false, "FailedGetScale", message);
                return Ok(self.end());
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.draft.set(ABLE, true, "SucceededGetScale", message);
        self.known.history.begin(self.context.now, scale.wanted);
        let decision = match self.decide(&scale)? {
            Ok(decision) => decision,
            Err((why, metrics)) => {
                self.draft.set_sizes(scale.wanted, None, metrics, false);
                self.draft.warn(self.hpa, "FailedComputeMetricsReplicas", why);
                return Ok(self.end());
            }
        };
        if !decision.rescale {
            if scale.wanted > 0 && scales_to_zero(self.context) && self.draft.scaled_to_zero() {
                // It was announced and not written, or another client has undone it.
                self.draft.set_scaled_to_zero(false, true);
            }
            self.draft.set_sizes(scale.wanted, Some(scale.wanted), decision.metrics, false);
            return Ok(self.end());
        }
        let Decision { desired, reason, metrics, .. } = decision;
        let (known, draft) = (self.known, self.draft);
        let (conflicts, step, announced) = (0, ScaleStep::Writing, None);
        let decided = PendingScale { known, draft, path, scale, desired, reason, metrics, conflicts, step, announced };
        Ok(decided.announce_or_write(self.hpa, self.context))
    }

    fn end(self) -> Plan {
        ended(self.draft.plan(self.hpa), self.known, self.context)
    }

    /// The target's scale, and its path.
    fn scale(&mut self) -> Result<(String, Scale), Stop> {
        let target = &self.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let mapping = mapping(self.context.pass, &mut self.known.mappings, version, &target.kind)?;
        let path = mapping.scale(self.namespace, &target.name);
        match scale::fetch(self.context.pass, &path)? {
            Ok(scale) => Ok((path, Scale::read(scale))),
            Err(failure) => {
                // Kinds may be removed: a cached mapping is looked up again.
                self.known.mappings.clear();
                Err(Stop::Failed(failure.message.clone()))
            }
        }
    }

    /// The decision, or why the size is unknown.
    fn decide(&mut self, scale: &Scale) -> Result<Result<Decision, UnknownSize>, Vec<Effect>> {
        let (current, min) = (scale.wanted, self.spec.min_replicas.unwrap_or(1));
        let as_is =
            |desired, reason: &str, rescale| Decision { desired, reason: reason.into(), metrics: vec![], rescale };
        let gate = scales_to_zero(self.context);
        let of_zero = gate && self.draft.scaled_to_zero();
        if current == 0 {
            if !(of_zero && (min != 0 || self.has_figure_of_no_pod())) {
                let message = "scaling is disabled since the replica count of the target is zero";
                self.draft.set(ACTIVE, false, "ScalingDisabled", message);
                if !gate {
                    self.draft.forget_zero();
                }
                return Ok(Ok(as_is(0, "", false)));
            }
        } else if current > self.spec.max_replicas {
            let reason = "Current number of replicas above Spec.MaxReplicas";
            return Ok(Ok(as_is(self.spec.max_replicas, reason, true)));
        } else if current < min {
            return Ok(Ok(as_is(min, MIN_REPLICAS, true)));
        }
        let (measured, metric, metrics) = match self.measure(scale)? {
            CombinedMetrics::Size(replicas, metric, metrics) => (replicas, metric, metrics),
            CombinedMetrics::Nothing(why, metrics) => return Ok(Err((why, metrics))),
        };
        let mut wanted = measured.max(0);
        if wanted == 0 && min == 0 && !self.known.waiting.is_empty() {
            // A waiting request needs one pod, whatever the metrics of unready pods are.
            wanted = 1;
        }
        let mut reason = match wanted.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let mut desired = self.normalize(DesiredScale { min, max: self.spec.max_replicas, current, desired: wanted });
        if current == 0 && min != 0 && of_zero && desired < min {
            desired = min;
            if reason.is_empty() {
                reason = MIN_REPLICAS.into();
            }
        }
        Ok(Ok(Decision { desired, reason, metrics, rescale: desired != current }))
    }

    /// Whether a metric has a value without pods.
    fn has_figure_of_no_pod(&self) -> bool {
        self.spec.metrics.iter().flatten().any(|metric| matches!(&*metric.type_, "Object" | "External"))
    }

    fn normalize(&mut self, wish: DesiredScale) -> i32 {
        let (now, history) = (self.context.now, &mut self.known.history);
        let window = span(self.context.settings.options.autoscaler.downscale_stabilization);
        let normal = match &self.spec.behavior {
            None => history.limit_by_default(wish, now, window),
            Some(behavior) => history.limit_by_rules(wish, &Behavior::of(behavior, window), now),
        };
        let (reason, message) =
            normal.stabilized.unwrap_or(("ReadyForNewScale", "recommended size matches current size"));
        self.draft.set(ABLE, true, reason, message);
        self.draft.set(LIMITED, normal.limited, normal.limit.0, normal.limit.1);
        normal.replicas
    }

    fn tolerances(&self) -> Tolerances {
        let all = self.context.settings.options.autoscaler.tolerance;
        let behavior = self.spec.behavior.as_ref();
        let own = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
            let text = rules.and_then(|rules| rules.tolerance.as_ref())?;
            #[expect(clippy::cast_precision_loss, reason = "a share: nothing of it is large")]
            Quantity::parse(&text.0).ok().map(|quantity| quantity.milli() as f64 / 1000.0)
        };
        Tolerances {
            down: own(behavior.and_then(|behavior| behavior.scale_down.as_ref())).unwrap_or(all),
            up: own(behavior.and_then(|behavior| behavior.scale_up.as_ref())).unwrap_or(all),
        }
    }

    /// The maximum of all metrics' proposals.
    fn measure(&mut self, scale: &Scale) -> Result<CombinedMetrics, Vec<Effect>> {
        let pods = match self.pods(scale) {
            Ok(pods) => pods,
            Err(why) => return Ok(CombinedMetrics::Nothing(why, Vec::new())),
        };
        let settings = &self.context.settings.options.autoscaler;
        let calculator = Calculator {
            now: self.context.now,
            pods: &pods,
            tolerances: self.tolerances(),
            cpu_initialization_period: span(settings.cpu_initialization_period),
            initial_readiness_delay: span(settings.initial_readiness_delay),
            current: scale.wanted,
            existing: scale.existing,
        };
        let scope = MetricScope { namespace: self.namespace, pods: &scale.selector };
        let known = &mut self.known.mappings;
        let mut source = MetricInputs { pass: self.context.pass, known, scope, calculator: &calculator };
        let specs: Vec<MetricSpec> = self.spec.metrics.clone().unwrap_or_default();
        let (mut requested, mut outcomes) = (Vec::new(), Vec::new());
        for spec in &specs {
            match source.propose(spec) {
                Ok(outcome) => outcomes.push(outcome),
                Err(Stop::Ask(effects)) => requested.extend(effects),
                Err(Stop::Failed(_)) => {}
            }
        }
        if !requested.is_empty() {
            let mut once: Vec<Effect> = Vec::new();
            requested.into_iter().for_each(|effect| {
                if !once.contains(&effect) {
                    once.push(effect);
                }
            });
            return Err(once);
        }
        Ok(self.summed(scale.wanted, outcomes))
    }

    fn summed(&mut self, current: i32, outcomes: Vec<Result<Proposed, MetricFailure>>) -> CombinedMetrics {
        let (all, mut replicas, mut metric) = (outcomes.len(), 0, String::new());
        let (mut statuses, mut refused) = (Vec::with_capacity(all), Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(proposed) => {
                    if replicas == 0 || proposed.replicas > replicas {
                        (replicas, metric) = (proposed.replicas, proposed.name);
                    }
                    statuses.push(proposed.status);
                }
                Err(no) => {
                    self.draft.warn(self.hpa, no.reason, no.why.clone());
                    statuses.push(MetricStatus::default());
                    refused.push(no);
                }
            }
        }
        if let Some(first) = refused.first()
            && (refused.len() >= all || replicas < current)
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            self.draft.set(ACTIVE, false, first.reason, message);
            let count = refused.len();
            let why = format!("invalid metrics ({count} invalid out of {all}), first error is: {}", first.error);
            return CombinedMetrics::Nothing(why, statuses);
        }
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        self.draft.set(ACTIVE, true, "ValidMetricFound", message);
        CombinedMetrics::Size(replicas, metric, statuses)
    }

    /// The workload's pods, unless another autoscaler scales them.
    fn pods(&mut self, scale: &Scale) -> Result<Vec<&'a Pod>, String> {
        if scale.selector.is_empty() {
            let why = "selector is required";
            self.draft.warn(self.hpa, "SelectorRequired", why);
            self.draft.set(ACTIVE, false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return Err(why.into());
        }
        let selector = scale::selector(&scale.selector).inspect_err(|why| {
            self.draft.warn(self.hpa, "InvalidSelector", why.clone());
            self.draft.set(ACTIVE, false, "InvalidSelector", why.clone());
        })?;
        let chosen = |pod: &&Pod| pod.metadata.labels.as_ref().is_some_and(|labels| selector.matches(labels));
        let pods: Vec<&Pod> = self.view.list::<Pod>(self.namespace).filter(chosen).collect();
        self.known.selector = Some(selector);
        let own = key_of(&self.hpa.metadata);
        let mut all: Vec<&ObjectKey> = self.others(&pods, &own);
        if !all.is_empty() {
            all.push(&own);
            all.sort();
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            let (selector, names) = (&scale.selector, names.join(" "));
            let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{names}]");
            self.draft.warn(self.hpa, "AmbiguousSelector", why.clone());
            self.draft.set(ACTIVE, false, "AmbiguousSelector", why.clone());
            return Err(why);
        }
        Ok(pods)
    }

    /// Other autoscalers that scale some of these pods.
    fn others(&self, pods: &[&Pod], own: &ObjectKey) -> Vec<&'a ObjectKey> {
        let (view, reconciler_cache) = (self.view, self.context.reconciler_cache);
        let others = reconciler_cache.within::<AutoscalerMemory>(self.namespace).filter(|(key, _)| *key != own);
        let others = others.filter(|(_, known)| {
            let labels = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref());
            known.selector.as_ref().is_some_and(|selector| labels.into_iter().any(|labels| selector.matches(labels)))
        });
        others.map(|(key, _)| key).filter(|key| view.get::<HorizontalPodAutoscaler>(key).is_some()).collect()
    }
}

/// The last plan of a pass.
fn ended(mut plan: Plan, known: AutoscalerMemory, context: &Context<'_, Settings>) -> Plan {
    plan.requeue_after(context.now, context.settings.options.autoscaler.sync_period);
    plan.state = Some(ReconcilerState::of(known));
    plan
}

impl PendingScale {
    /// An autoscaler leaves a workload at zero alone, unless its status says that it scaled to zero. So the status is
    /// written before the scale to zero: after a crash in between, or a false write error, the autoscaler would
    /// otherwise never scale up.
    fn announce_or_write(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        let goes = self.desired == 0 && self.scale.wanted > 0 && hpa.spec.min_replicas == Some(0);
        if !goes || !scales_to_zero(context) || self.draft.scaled_to_zero() {
            return self.write();
        }
        self.draft.set_scaled_to_zero(true, true);
        let effect = self.draft.announcement(hpa);
        self.step = ScaleStep::Announcing(effect.clone());
        Plan { effects: vec![effect], state: Some(ReconcilerState::of(self)), ..Plan::nothing() }
    }

    fn write(mut self) -> Plan {
        self.step = ScaleStep::Writing;
        let effect = Effect::Put(self.path.clone(), self.scale.with_replicas(self.desired));
        Plan { effects: vec![effect], state: Some(ReconcilerState::of(self)), ..Plan::nothing() }
    }

    /// Continues after the answer to the last effect.
    pub(super) fn resume(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        match &self.step {
            ScaleStep::Announcing(effect) => {
                let Some(Ok(announced)) = context.pass.result(effect) else { return self.retry_later(context) };
                let Ok(announced) = serde_json::from_value((**announced).clone()) else {
                    return self.retry_later(context);
                };
                self.announced = Some(Box::new(announced));
                return self.write();
            }
            ScaleStep::Reading => {
                if let Some(Ok(scale)) = context.pass.get_result(&self.path) {
                    self.scale.object = (**scale).clone();
                }
                return self.write();
            }
            ScaleStep::Writing => {}
        }
        let announced = self.announced.take();
        let hpa = announced.as_deref().unwrap_or(hpa);
        let effect = Effect::Put(self.path.clone(), self.scale.with_replicas(self.desired));
        let failure = match context.pass.result(&effect) {
            Some(Ok(_)) => return self.rescaled(hpa, context),
            Some(Err(failure)) => failure,
            // The driver always sends an answer.
            None => return self.write(),
        };
        self.conflicts += 1;
        if failure.code == 409 && self.conflicts < CONFLICTS_MAX {
            self.step = ScaleStep::Reading;
            self.announced = announced;
            let effect = Effect::Get(self.path.clone());
            return Plan { effects: vec![effect], state: Some(ReconcilerState::of(self)), ..Plan::nothing() };
        }
        let (desired, why) = (self.desired, &failure.message);
        let message = format!("New size: {desired}; reason: {}; error: {why}", self.reason);
        self.draft.warn(hpa, "FailedRescale", message);
        let message = format!("the HPA controller was unable to update the target scale: {why}");
        self.draft.set(ABLE, false, "FailedUpdateScale", message);
        self.draft.set_sizes(self.scale.wanted, None, self.metrics, false);
        ended(self.draft.plan(hpa), self.known, context)
    }

    /// A conflict, or no answer: the whole pass is retried soon.
    fn retry_later(self, context: &Context<'_, Settings>) -> Plan {
        let mut plan =
            Plan { state: Some(ReconcilerState::of(AutoscalerMemory { spec: None, ..self.known })), ..Plan::nothing() };
        plan.requeue_after(context.now, ANNOUNCE_AGAIN);
        plan
    }

    fn rescaled(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        let (current, desired) = (self.scale.wanted, self.desired);
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        self.draft.set(ABLE, true, "SucceededRescale", message);
        let message = format!("New size: {desired}; reason: {}", self.reason);
        self.draft.note(hpa, "SuccessfulRescale", message);
        if let Some(behavior) = &hpa.spec.behavior {
            let window = span(context.settings.options.autoscaler.downscale_stabilization);
            let behavior = Behavior::of(behavior, window);
            self.known.history.scaled(&behavior, context.now, current, desired);
        }
        let may = hpa.spec.min_replicas == Some(0);
        if scales_to_zero(context) {
            self.draft.set_scaled_to_zero(may && current > 0 && desired == 0, may);
        } else {
            self.draft.forget_zero();
        }
        self.draft.set_sizes(current, Some(desired), self.metrics, true);
        ended(self.draft.plan(hpa), self.known, context)
    }
}
