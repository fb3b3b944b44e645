//! One pass over an autoscaler: what its target's scale and its metrics say, what size that makes, and what is told of it.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus,
};
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_client::{Context, Memory, ObjectCache, Plan, Pod, Question, key_of};

use super::compute::{Proposed, Refused, Source};
use super::history::{Behavior, Wish};
use super::metrics::Scope;
use super::replicas::{Calculator, Tolerances};
use super::status::{ABLE, ACTIVE, LIMITED, Told};
use super::{Known, Settings, scales_to_zero};
use crate::scale::{self, Scale, Stop, mapping};

/// How often a new size is written again after somebody else wrote (upstream's).
const CONFLICTS_MAX: u32 = 5;
/// How soon what is said of a size is said again that could not be said before that size.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);
const MIN_REPLICAS: &str = "Current number of replicas below Spec.MinReplicas";

fn span(duration: std::time::Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// A pass that looks.
pub(super) struct Looking<'a> {
    view: &'a ObjectCache,
    hpa: &'a HorizontalPodAutoscaler,
    spec: HorizontalPodAutoscalerSpec,
    namespace: &'a str,
    context: &'a Context<'a, Settings>,
    known: Known,
    told: Told,
}

/// What all metrics say together.
enum Measured {
    /// So many, by this metric.
    Size(i32, String, Vec<MetricStatus>),
    /// Nothing can be done, for a reason.
    Nothing(String, Vec<MetricStatus>),
}

/// A size, why, and whether it is to be written.
struct Decision {
    desired: i32,
    reason: String,
    metrics: Vec<MetricStatus>,
    rescale: bool,
}

/// Why nobody knows a size, and what is measured all the same.
type Unknown = (String, Vec<MetricStatus>);

/// What was decided before a new size is written.
#[derive(Clone)]
pub(super) struct Decided {
    known: Known,
    told: Told,
    path: String,
    scale: Scale,
    desired: i32,
    reason: String,
    metrics: Vec<MetricStatus>,
    conflicts: u32,
    step: Step,
    /// The autoscaler as its announcement left it.
    announced: Option<Box<HorizontalPodAutoscaler>>,
}

/// What was asked for last on the way to a new size.
#[derive(Clone)]
enum Step {
    /// That the last pod is about to be taken away is written first, by this question.
    Announcing(Question),
    Writing,
    /// The scale is asked for again, after a conflict.
    Reading,
}

impl<'a> Looking<'a> {
    pub(super) fn new(
        view: &'a ObjectCache,
        hpa: &'a HorizontalPodAutoscaler,
        known: Known,
        waiting: Vec<String>,
        context: &'a Context<'a, Settings>,
    ) -> Self {
        let spec = hpa.spec.clone();
        let known = Known { looked_at: context.now, spec: Some(hpa.spec.clone()), waiting, ..known };
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        Self { view, hpa, spec, namespace, context, known, told: Told::new(hpa, context.now) }
    }

    /// The plan, or what has to be asked for it.
    pub(super) fn look(mut self) -> Result<Plan, Vec<Question>> {
        let (path, scale) = match self.scale() {
            Ok(found) => found,
            Err(Stop::Ask(questions)) => return Err(questions),
            Err(Stop::Failed(why)) => {
                self.told.warn(self.hpa, "FailedGetScale", why.clone());
                let message = format!("the HPA controller was unable to get the target's current scale: {why}");
                self.told.set(ABLE, false, "FailedGetScale", message);
                return Ok(self.end());
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.told.set(ABLE, true, "SucceededGetScale", message);
        self.known.history.begin(self.context.now, scale.wanted);
        let decision = match self.decide(&scale)? {
            Ok(decision) => decision,
            Err((why, metrics)) => {
                self.told.sizes(scale.wanted, None, metrics, false);
                self.told.warn(self.hpa, "FailedComputeMetricsReplicas", why);
                return Ok(self.end());
            }
        };
        if !decision.rescale {
            if scale.wanted > 0 && scales_to_zero(self.context) && self.told.scaled_to_zero() {
                // It was announced and not done, or somebody else has undone it.
                self.told.set_to_zero(false, true);
            }
            self.told.sizes(scale.wanted, Some(scale.wanted), decision.metrics, false);
            return Ok(self.end());
        }
        let Decision { desired, reason, metrics, .. } = decision;
        let (known, told) = (self.known, self.told);
        let (conflicts, step, announced) = (0, Step::Writing, None);
        let decided = Decided { known, told, path, scale, desired, reason, metrics, conflicts, step, announced };
        Ok(decided.begin(self.hpa, self.context))
    }

    fn end(self) -> Plan {
        ended(self.told.plan(self.hpa), self.known, self.context)
    }

    /// The target's scale, and its path.
    fn scale(&mut self) -> Result<(String, Scale), Stop> {
        let target = &self.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        let mapping = mapping(self.context.pass, &mut self.known.mappings, version, &target.kind)?;
        let path = mapping.scale(self.namespace, &target.name);
        match scale::got(self.context.pass, &path)? {
            Ok(scale) => Ok((path, Scale::read(scale))),
            Err(failure) => {
                // Kinds come and go: what was found once is looked for again.
                self.known.mappings.clear();
                Err(Stop::Failed(failure.message.clone()))
            }
        }
    }

    /// What size it shall be; else why nobody knows.
    fn decide(&mut self, scale: &Scale) -> Result<Result<Decision, Unknown>, Vec<Question>> {
        let (current, min) = (scale.wanted, self.spec.min_replicas.unwrap_or(1));
        let as_is =
            |desired, reason: &str, rescale| Decision { desired, reason: reason.into(), metrics: vec![], rescale };
        let gate = scales_to_zero(self.context);
        let of_zero = gate && self.told.scaled_to_zero();
        if current == 0 {
            if !(of_zero && (min != 0 || self.has_figure_of_no_pod())) {
                let message = "scaling is disabled since the replica count of the target is zero";
                self.told.set(ACTIVE, false, "ScalingDisabled", message);
                if !gate {
                    self.told.forget_zero();
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
            Measured::Size(replicas, metric, metrics) => (replicas, metric, metrics),
            Measured::Nothing(why, metrics) => return Ok(Err((why, metrics))),
        };
        let mut wanted = measured.max(0);
        if wanted == 0 && min == 0 && !self.known.waiting.is_empty() {
            // Whatever is measured of pods that aren't ready yet: requests wait for one.
            wanted = 1;
        }
        let mut reason = match wanted.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let mut desired = self.normalize(Wish { min, max: self.spec.max_replicas, current, desired: wanted });
        if current == 0 && min != 0 && of_zero && desired < min {
            desired = min;
            if reason.is_empty() {
                reason = MIN_REPLICAS.into();
            }
        }
        Ok(Ok(Decision { desired, reason, metrics, rescale: desired != current }))
    }

    /// Whether something is measured also where there is no pod.
    fn has_figure_of_no_pod(&self) -> bool {
        self.spec.metrics.iter().flatten().any(|metric| matches!(&*metric.type_, "Object" | "External"))
    }

    fn normalize(&mut self, wish: Wish) -> i32 {
        let (now, history) = (self.context.now, &mut self.known.history);
        let window = span(self.context.settings.autoscaler.downscale_stabilization);
        let normal = match &self.spec.behavior {
            None => history.plain(wish, now, window),
            Some(behavior) => history.ruled(wish, &Behavior::of(behavior, window), now),
        };
        let (reason, message) =
            normal.stabilized.unwrap_or(("ReadyForNewScale", "recommended size matches current size"));
        self.told.set(ABLE, true, reason, message);
        self.told.set(LIMITED, normal.limited, normal.limit.0, normal.limit.1);
        normal.replicas
    }

    fn tolerances(&self) -> Tolerances {
        let all = self.context.settings.autoscaler.tolerance;
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

    /// What all metrics propose: the most of them.
    fn measure(&mut self, scale: &Scale) -> Result<Measured, Vec<Question>> {
        let pods = match self.pods(scale) {
            Ok(pods) => pods,
            Err(why) => return Ok(Measured::Nothing(why, Vec::new())),
        };
        let settings = &self.context.settings.autoscaler;
        let calculator = Calculator {
            now: self.context.now,
            pods: &pods,
            tolerances: self.tolerances(),
            cpu_initialization_period: span(settings.cpu_initialization_period),
            initial_readiness_delay: span(settings.initial_readiness_delay),
            current: scale.wanted,
            existing: scale.existing,
        };
        let scope = Scope { namespace: self.namespace, pods: &scale.selector };
        let known = &mut self.known.mappings;
        let mut source = Source { pass: self.context.pass, known, scope, calculator: &calculator };
        let specs: Vec<MetricSpec> = self.spec.metrics.clone().unwrap_or_default();
        let (mut asked, mut outcomes) = (Vec::new(), Vec::new());
        for spec in &specs {
            match source.propose(spec) {
                Ok(outcome) => outcomes.push(outcome),
                Err(Stop::Ask(questions)) => asked.extend(questions),
                Err(Stop::Failed(_)) => {}
            }
        }
        if !asked.is_empty() {
            let mut once: Vec<Question> = Vec::new();
            asked.into_iter().for_each(|question| {
                if !once.contains(&question) {
                    once.push(question);
                }
            });
            return Err(once);
        }
        Ok(self.summed(scale.wanted, outcomes))
    }

    fn summed(&mut self, current: i32, outcomes: Vec<Result<Proposed, Refused>>) -> Measured {
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
                    self.told.warn(self.hpa, no.reason, no.why.clone());
                    statuses.push(MetricStatus::default());
                    refused.push(no);
                }
            }
        }
        if let Some(first) = refused.first()
            && (refused.len() >= all || replicas < current)
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            self.told.set(ACTIVE, false, first.reason, message);
            let count = refused.len();
            let why = format!("invalid metrics ({count} invalid out of {all}), first error is: {}", first.error);
            return Measured::Nothing(why, statuses);
        }
        let message = format!("the HPA was able to successfully calculate a replica count from {metric}");
        self.told.set(ACTIVE, true, "ValidMetricFound", message);
        Measured::Size(replicas, metric, statuses)
    }

    /// The workload's pods, where no other autoscaler has them.
    fn pods(&mut self, scale: &Scale) -> Result<Vec<&'a Pod>, String> {
        if scale.selector.is_empty() {
            let why = "selector is required";
            self.told.warn(self.hpa, "SelectorRequired", why);
            self.told.set(ACTIVE, false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return Err(why.into());
        }
        let selector = scale::selector(&scale.selector).inspect_err(|why| {
            self.told.warn(self.hpa, "InvalidSelector", why.clone());
            self.told.set(ACTIVE, false, "InvalidSelector", why.clone());
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
            self.told.warn(self.hpa, "AmbiguousSelector", why.clone());
            self.told.set(ACTIVE, false, "AmbiguousSelector", why.clone());
            return Err(why);
        }
        Ok(pods)
    }

    /// Other autoscalers of which some of these pods are.
    fn others(&self, pods: &[&Pod], own: &ObjectKey) -> Vec<&'a ObjectKey> {
        let (view, memories) = (self.view, self.context.memories);
        let others = memories.within::<Known>(self.namespace).filter(|(key, _)| *key != own);
        let others = others.filter(|(_, known)| {
            let labels = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref());
            known.selector.as_ref().is_some_and(|selector| labels.into_iter().any(|labels| selector.matches(labels)))
        });
        others.map(|(key, _)| key).filter(|key| view.get::<HorizontalPodAutoscaler>(key).is_some()).collect()
    }
}

/// A pass's last plan.
fn ended(mut plan: Plan, known: Known, context: &Context<'_, Settings>) -> Plan {
    plan.requeue_after(context.now, context.settings.autoscaler.sync_period);
    plan.memory = Some(Memory::of(known));
    plan
}

impl Decided {
    /// A workload of no pods whose autoscaler doesn't say that this is its own doing is left alone. So who takes the last pod away
    /// says so first: dead before it could, or told that the write failed when it didn't, it would never bring one back.
    fn begin(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        let goes = self.desired == 0 && self.scale.wanted > 0 && hpa.spec.min_replicas == Some(0);
        if !goes || !scales_to_zero(context) || self.told.scaled_to_zero() {
            return self.write();
        }
        self.told.set_to_zero(true, true);
        let question = self.told.announcement(hpa);
        self.step = Step::Announcing(question.clone());
        Plan { questions: vec![question], memory: Some(Memory::of(self)), ..Plan::nothing() }
    }

    fn write(mut self) -> Plan {
        self.step = Step::Writing;
        let question = Question::Put(self.path.clone(), self.scale.of_size(self.desired));
        Plan { questions: vec![question], memory: Some(Memory::of(self)), ..Plan::nothing() }
    }

    /// What follows what became of the new size.
    pub(super) fn go_on(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        match &self.step {
            Step::Announcing(question) => {
                let Some(Ok(announced)) = context.pass.answer(question) else { return self.later(context) };
                let Ok(announced) = serde_json::from_value((**announced).clone()) else { return self.later(context) };
                self.announced = Some(Box::new(announced));
                return self.write();
            }
            Step::Reading => {
                if let Some(Ok(scale)) = context.pass.got(&self.path) {
                    self.scale.object = (**scale).clone();
                }
                return self.write();
            }
            Step::Writing => {}
        }
        let announced = self.announced.take();
        let hpa = announced.as_deref().unwrap_or(hpa);
        let question = Question::Put(self.path.clone(), self.scale.of_size(self.desired));
        let failure = match context.pass.answer(&question) {
            Some(Ok(_)) => return self.rescaled(hpa, context),
            Some(Err(failure)) => failure,
            // The driver answers what it is asked.
            None => return self.write(),
        };
        self.conflicts += 1;
        if failure.code == 409 && self.conflicts < CONFLICTS_MAX {
            self.step = Step::Reading;
            self.announced = announced;
            let question = Question::Get(self.path.clone());
            return Plan { questions: vec![question], memory: Some(Memory::of(self)), ..Plan::nothing() };
        }
        let (desired, why) = (self.desired, &failure.message);
        let message = format!("New size: {desired}; reason: {}; error: {why}", self.reason);
        self.told.warn(hpa, "FailedRescale", message);
        let message = format!("the HPA controller was unable to update the target scale: {why}");
        self.told.set(ABLE, false, "FailedUpdateScale", message);
        self.told.sizes(self.scale.wanted, None, self.metrics, false);
        ended(self.told.plan(hpa), self.known, context)
    }

    /// Somebody else wrote, or nobody answers: all of it is looked at again, soon.
    fn later(self, context: &Context<'_, Settings>) -> Plan {
        let mut plan = Plan { memory: Some(Memory::of(Known { spec: None, ..self.known })), ..Plan::nothing() };
        plan.requeue_after(context.now, ANNOUNCE_AGAIN);
        plan
    }

    fn rescaled(mut self, hpa: &HorizontalPodAutoscaler, context: &Context<'_, Settings>) -> Plan {
        let (current, desired) = (self.scale.wanted, self.desired);
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        self.told.set(ABLE, true, "SucceededRescale", message);
        let message = format!("New size: {desired}; reason: {}", self.reason);
        self.told.note(hpa, "SuccessfulRescale", message);
        if let Some(behavior) = &hpa.spec.behavior {
            let window = span(context.settings.autoscaler.downscale_stabilization);
            let behavior = Behavior::of(behavior, window);
            self.known.history.scaled(&behavior, context.now, current, desired);
        }
        let may = hpa.spec.min_replicas == Some(0);
        if scales_to_zero(context) {
            self.told.set_to_zero(may && current > 0 && desired == 0, may);
        } else {
            self.told.forget_zero();
        }
        self.told.sizes(current, Some(desired), self.metrics, true);
        ended(self.told.plan(hpa), self.known, context)
    }
}
