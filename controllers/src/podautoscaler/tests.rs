//! Rows of upstream's tables (`replica_calculator_test.go`, `horizontal_test.go`); and passes, driven as by the driver.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior};
use machinery_api::ObjectKey;
use machinery_api::features::{Feature, Features};
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Effect, Failure, Pass, Plan, Pod};
use serde_json::{Value, json};

use super::history::{Behavior, DesiredScale, History};
use super::replicas::{Calculator, PodMetric, PodMetrics, Tolerances};
use super::{CONTROLLER, ratio, reconcile};
use crate::Settings;
use crate::table_tests::start;

const YEAR_ONE: &str = "0001-01-01T00:00:00Z";

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value) -> i32 {
    i32::try_from(value.as_i64().unwrap_or(0)).unwrap()
}

/// The pods of a row of `replica_calculator_test.go`.
fn pods_of(row: &Value) -> Vec<Pod> {
    let at = |list: &str, i: usize| row[list].get(i).cloned().unwrap_or(Value::Null);
    let phases = row["phases"].as_array().map_or(0, Vec::len);
    let count = phases.max(usize::try_from(number(&row["current"])).unwrap());
    let pod = |i: usize| {
        let before = |wait: i64| (start() - SignedDuration::from_secs(wait)).to_string();
        let started = match at("started", i).as_str() {
            Some("hot") => before(0),
            Some("cool") => before(180),
            _ => YEAR_ONE.into(),
        };
        let requests = at("requests", i);
        let resources = if requests.is_null() {
            json!({})
        } else {
            json!({"requests": {row["resource"].as_str().unwrap(): requests}})
        };
        let containers = ["container1", "container2"].map(|name| json!({"name": name, "resources": resources}));
        let gone = (at("deleted", i) == json!(true)).then(|| start().to_string());
        json!({
            "metadata": {"name": format!("test-pod-{i}"), "deletionTimestamp": gone},
            "spec": {"containers": containers},
            "status": {
                "phase": at("phases", i).as_str().unwrap_or("Running"), "startTime": started,
                "conditions": [{"type": "Ready", "status": at("ready", i).as_str().unwrap_or("True"), "lastTransitionTime": YEAR_ONE}],
            },
        })
    };
    (0..count).map(|i| serde_json::from_value(pod(i)).unwrap()).collect()
}

fn metrics_of(row: &Value) -> PodMetrics {
    let levels = row["levels"].as_array().unwrap();
    let metric = |(i, level): (usize, &Value)| {
        let name = row["names"][i].as_str().map_or_else(|| format!("test-pod-{i}"), Into::into);
        let value = match (level.as_i64(), row["container"].as_str()) {
            (Some(value), _) => value,
            (None, Some(container)) => level.get(if container == "container1" { 0 } else { 1 })?.as_i64()?,
            (None, None) => level.as_array().unwrap().iter().filter_map(Value::as_i64).sum(),
        };
        Some((name, PodMetric { at: YEAR_ONE.parse().unwrap(), window: SignedDuration::from_mins(1), value }))
    };
    levels.iter().enumerate().filter_map(metric).collect()
}

/// The proposal of a row's metric, in the form of the row.
fn proposed(row: &Value) -> Value {
    let pods = pods_of(row);
    let pods: Vec<&Pod> = pods.iter().collect();
    let tolerance = |i: usize| row["tolerance"][i].as_f64().unwrap_or(0.1);
    let calculator = Calculator {
        now: start(),
        pods: &pods,
        tolerances: Tolerances { down: tolerance(0), up: tolerance(1) },
        cpu_initialization_period: SignedDuration::from_mins(2),
        initial_readiness_delay: SignedDuration::from_secs(10),
        current: number(&row["current"]),
        existing: number(&row["current"]),
    };
    let target = row["target"].as_i64().unwrap();
    let all = || row["levels"].as_array().unwrap().iter().filter_map(Value::as_i64).fold(0, i64::saturating_add);
    let proposal = match row["of"].as_str().unwrap() {
        "utilization" if row["levels"] == json!([]) => {
            Err("unable to get metrics for resource cpu: no metrics returned from resource metrics API".into())
        }
        "utilization" => {
            let (resource, container) = (row["resource"].as_str().unwrap(), row["container"].as_str());
            calculator.utilization(metrics_of(row), i32::try_from(target).unwrap(), resource, container)
        }
        "pods" => calculator.per_pod(metrics_of(row), target, ""),
        "object" | "external" => calculator.of_all(all(), target),
        _ => Ok(calculator.of_each(all(), target)),
    };
    match proposal {
        Err(error) => json!({"error": error}),
        Ok(found) if row["of"] == "utilization" => {
            json!({"replicas": found.replicas, "percent": found.percent, "usage": found.usage})
        }
        Ok(found) => json!({"replicas": found.replicas, "usage": found.usage}),
    }
}

#[test]
fn proposals_are_upstreams() {
    let rows = rows(include_str!("testdata/replicas.jsonl"));
    let wrong = rows.iter().filter_map(|row| {
        let found = proposed(row);
        let wanted = &row["wants"];
        // Upstream's table has a part of the error.
        let same = match (wanted["error"].as_str(), found["error"].as_str()) {
            (Some(part), Some(error)) => error.contains(part),
            _ => found == *wanted,
        };
        (!same).then(|| format!("{}: {found}, not {wanted}", row["is"]))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(rows.len(), 75);
}

/// `generateScalingRules`.
fn rules(of: &Value, default: &[i32; 5]) -> HPAScalingRules {
    let given: Vec<i32> = of.as_array().map_or_else(|| default.to_vec(), |list| list.iter().map(number).collect());
    let policy = |kind: &str, value: i32, period: i32| json!({"type": kind, "value": value, "periodSeconds": period});
    let all = [("Pods", given[0], given[1]), ("Percent", given[2], given[3])];
    let some = all.into_iter().filter(|(_, value, _)| *value != 0);
    let policies: Vec<Value> = some.map(|(kind, value, period)| policy(kind, value, period)).collect();
    serde_json::from_value(json!({"selectPolicy": "Max", "stabilizationWindowSeconds": given[4], "policies": policies}))
        .unwrap()
}

#[test]
fn rates_are_upstreams() {
    let rows = rows(include_str!("testdata/rates.jsonl"));
    let mut wrong = Vec::new();
    for row in &rows {
        let behavior = HorizontalPodAutoscalerBehavior {
            scale_up: Some(rules(&row["up"], &[4, 15, 100, 15, 0])),
            scale_down: Some(rules(&row["down"], &[0, 0, 100, 15, 300])),
        };
        let behavior = Behavior::of(&behavior, SignedDuration::from_mins(5));
        let mut history = History::default();
        for (list, sign) in [("added", 1), ("removed", -1)] {
            let changes: Vec<i32> = row[list][0].as_array().into_iter().flatten().map(number).collect();
            let period = row[list][1].as_f64().unwrap_or(0.0);
            for (i, change) in changes.iter().enumerate() {
                // In the middle of its part of the period, as `generateEventsUniformDistribution`.
                let segment = period / changes.len() as f64;
                let ago = period - segment * (i + 1) as f64 + segment / 2.0;
                let at = start() - SignedDuration::from_secs(ago as i64);
                history.remember_change(at, sign * change);
            }
        }
        let [min, max, current, desired] = ["min", "max", "current", "desired"].map(|key| number(&row[key]));
        let (replicas, why) = history.rate(DesiredScale { min, max, current, desired }, &behavior, start());
        if (replicas, why.0) != (number(&row["replicas"]), row["reason"].as_str().unwrap()) {
            wrong.push(format!("{}: {replicas} {}", row["is"], why.0));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(rows.len() >= 30, "{}", rows.len());
}

#[test]
fn a_smaller_size_waits_and_a_larger_one_only_by_its_rules() {
    let at = |seconds: i64| start() + SignedDuration::from_secs(seconds);
    let wish = |current, desired| DesiredScale { min: 1, max: 100, current, desired };
    let window = SignedDuration::from_mins(5);
    let mut history = History::default();
    history.begin(at(0), 8);
    let held = history.limit_by_default(wish(8, 2), at(10), window);
    assert_eq!((held.replicas, held.stabilized.map(|why| why.0)), (8, Some("ScaleDownStabilized")));
    assert_eq!(history.limit_by_default(wish(8, 2), at(301), window).replicas, 2);
    assert_eq!(history.limit_by_default(wish(3, 50), at(302), window).limit.0, "ScaleUpLimit");
    let rules = json!({"scaleUp": {"stabilizationWindowSeconds": 60}, "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"}});
    let rules: HorizontalPodAutoscalerBehavior = serde_json::from_value(rules).unwrap();
    let rules = Behavior::of(&rules, window);
    let mut history = History::default();
    history.begin(at(0), 2);
    let held = history.limit_by_rules(wish(2, 4), &rules, at(10));
    assert_eq!((held.replicas, held.stabilized.map(|why| why.0)), (2, Some("ScaleUpStabilized")));
    assert_eq!(history.limit_by_rules(wish(2, 4), &rules, at(61)).replicas, 4);
    let never = history.limit_by_rules(wish(4, 1), &rules, at(200));
    assert_eq!((never.replicas, never.limited), (4, true), "{never:?}");
}

#[test]
fn no_figure_makes_an_absurd_size() {
    let figures = [i64::MIN, -1, 0, 1, i64::MAX];
    for (usage, target) in figures.iter().flat_map(|a| figures.map(|b| (*a, b))) {
        for current in [0, 1, i32::MAX] {
            let calculator = Calculator {
                now: start(),
                pods: &[],
                tolerances: Tolerances { down: 0.1, up: 0.1 },
                cpu_initialization_period: SignedDuration::MAX,
                initial_readiness_delay: SignedDuration::MAX,
                current,
                existing: current,
            };
            let each = calculator.of_each(usage, target).replicas;
            let all = calculator.of_all(usage, target).map_or(0, |proposal| proposal.replicas);
            for desired in [each, all] {
                let wish = DesiredScale { min: 1, max: 10, current, desired };
                let plain = History::default().limit_by_default(wish, start(), SignedDuration::from_mins(5));
                let own = HorizontalPodAutoscalerBehavior::default();
                let ruled = History::default().limit_by_rules(wish, &Behavior::of(&own, SignedDuration::ZERO), start());
                assert!((1..=10).contains(&plain.replicas), "{plain:?}");
                // A size above the maximum is reduced before any metric is read.
                assert!(current > 10 || (0..=10).contains(&ruled.replicas), "{wish:?} {ruled:?}");
            }
        }
    }
}

/// The answers of a server.
type Answers<'a> = dyn Fn(&Effect) -> Result<Value, (u16, &'static str)> + 'a;

/// Drives passes as the driver does, with the answers of a simulated server.
struct Play<'a> {
    simulation: Simulation,
    settings: Settings,
    answer: &'a Answers<'a>,
    requests: Vec<String>,
}

fn key() -> ObjectKey {
    ObjectKey::new("a", "web")
}

impl<'a> Play<'a> {
    fn new(objects: Vec<Value>, answer: &'a Answers<'a>) -> Self {
        let (simulation, settings) = (crate::simulation(start(), objects), Settings::default());
        Self { simulation, settings, answer, requests: Vec::new() }
    }

    /// One pass; returns its events, as `Reason: message`.
    fn pass(&mut self) -> Vec<String> {
        self.simulation.pass = Pass::default();
        let plan = loop {
            let context = self.simulation.context(&self.settings);
            let plan: Plan = reconcile(&self.simulation.view, &key(), &context);
            if plan.effects.is_empty() {
                break plan;
            }
            assert!(self.requests.len() < 100, "requests without end: {:?}", self.requests);
            self.simulation.pass.scratch = plan.state;
            for effect in plan.effects {
                self.requests.push(match &effect {
                    Effect::Get(path) => format!("GET {path}"),
                    Effect::Put(path, body) => format!("PUT {path} {}", body["spec"]),
                });
                let answer = match &effect {
                    Effect::Put(path, object) if path.ends_with("/status") => self.announced(object),
                    other => (self.answer)(other),
                };
                let answer = answer.map(Arc::new).map_err(|(code, message)| {
                    let (verb, resource, reason) = ("get", String::new(), String::new());
                    Failure { verb, resource, code, reason, message: message.into() }
                });
                self.simulation.pass.record(effect, answer);
            }
        };
        self.simulation.reconciler_cache.set(&key(), plan.state.clone());
        let reported = plan.actions.iter().filter_map(|action| match action {
            Action::Event(event) => Some(format!("{}: {}", event.reason, event.message)),
            _ => None,
        });
        let reported = reported.collect();
        assert!(plan.requeue_at.is_some(), "it is looked at again");
        assert_eq!(self.simulation.apply(plan), Vec::<String>::new());
        reported
    }

    /// Handles the status write before a scale update.
    fn announced(&mut self, object: &Value) -> Result<Value, (u16, &'static str)> {
        let kind = self.simulation.kind_of(object);
        let update = Action::Update { kind: kind.clone(), object: object.clone(), subresource: Some("status") };
        let problems = self.simulation.apply(vec![update].into());
        let view = &self.simulation.view;
        if problems.is_empty() {
            Ok(view.object(&kind, &key()).unwrap().to_value())
        } else {
            Err((409, "it was changed"))
        }
    }

    fn later(&mut self, seconds: i64) {
        self.simulation.now += SignedDuration::from_secs(seconds);
    }

    fn status(&self) -> Value {
        let hpa = self.simulation.view.get::<HorizontalPodAutoscaler>(&key()).unwrap();
        serde_json::to_value(hpa).unwrap()["status"].clone()
    }

    /// `Type=Status Reason`, in order.
    fn conditions(&self) -> Vec<String> {
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let all = self.status()["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().map(|one| format!("{}={} {}", text(one, "type"), text(one, "status"), text(one, "reason"))).collect()
    }
}

fn autoscaler(name: &str, spec: &Value) -> Value {
    let mut whole =
        json!({"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "maxReplicas": 10});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name, "namespace": "a"}, "spec": whole})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
        "status": {"phase": "Running", "startTime": "2025-12-31T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-31T00:00:00Z"}]}})
}

fn cpu(percent: i32) -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}])
}

/// A server with a Deployment of `size` pods that use `milli` of CPU each.
fn server(effect: &Effect, size: i64, milli: i64) -> Result<Value, (u16, &'static str)> {
    let scale = || {
        json!({"metadata": {"name": "web", "resourceVersion": "5"}, "spec": {"replicas": size},
            "status": {"replicas": size, "selector": "app=web"}})
    };
    match effect {
        Effect::Put(..) => Ok(scale()),
        Effect::Get(path) if path == "/apis/apps/v1" => {
            Ok(json!({"resources": [{"name": "deployments", "kind": "Deployment"}]}))
        }
        Effect::Get(path) if path.ends_with("/scale") => Ok(scale()),
        Effect::Get(path)
            if path.starts_with("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods?labelSelector=app%3Dweb") =>
        {
            let one = |i: i64| {
                json!({"metadata": {"name": format!("p{i}")}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s",
                    "containers": [{"name": "c", "usage": {"cpu": format!("{milli}m")}}]})
            };
            Ok(json!({"items": (0..size).map(one).collect::<Vec<_>>()}))
        }
        Effect::Get(_) => Err((404, "404 page not found\n")),
    }
}

#[test]
fn a_pass_measures_decides_writes_and_records_events() {
    let answer = |effect: &Effect| server(effect, 2, 90);
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": cpu(50)})), pod("p0"), pod("p1")], &answer);
    assert_eq!(
        play.pass(),
        ["SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target"]
    );
    assert_eq!(play.requests.len(), 4, "{:?}", play.requests);
    assert_eq!(play.requests[3], r#"PUT /apis/apps/v1/namespaces/a/deployments/web/scale {"replicas":4}"#);
    assert_eq!(
        play.conditions(),
        [
            "AbleToScale=True SucceededRescale",
            "ScalingActive=True ValidMetricFound",
            "ScalingLimited=False DesiredWithinRange"
        ]
    );
    let status = play.status();
    assert_eq!((&status["currentReplicas"], &status["desiredReplicas"]), (&json!(2), &json!(4)));
    assert_eq!(status["lastScaleTime"], "2026-01-01T00:00:00Z");
    assert_eq!(
        status["currentMetrics"],
        json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 90, "averageValue": "90m"}}}])
    );
    // Its own status update requeues it at once: nothing is due before the next period.
    assert_eq!((play.pass(), play.requests.len()), (Vec::<String>::new(), 4));
    play.later(15);
    play.pass();
    assert_eq!(play.requests.len(), 7, "the kind of its target is cached: {:?}", play.requests);
}

#[test]
fn missing_metrics_have_upstreams_messages() {
    let metric = json!([{"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "5"}}}]);
    let answer = |effect: &Effect| server(effect, 2, 90);
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": metric})), pod("p0")], &answer);
    let why = "unable to get external metric a/queue/nil: unable to fetch metrics from external \
               metrics API: the server could not find the requested resource (get queue.external.metrics.k8s.io)";
    assert_eq!(
        play.pass(),
        [
            format!("FailedGetExternalMetric: {why}"),
            format!(
                "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get queue external metric value: \
                 failed to get external metric queue: {why}"
            )
        ]
    );
    let message = format!("the HPA was unable to compute the replica count: {why}");
    assert_eq!(play.status()["conditions"][1]["message"], message);
    assert_eq!(play.status()["currentMetrics"], json!([{"type": ""}]));
    let gone = |_: &Effect| Err((404, r#"deployments.apps "web" not found"#));
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": cpu(50)}))], &gone);
    assert_eq!(play.pass(), ["FailedGetScale: no matches for kind \"Deployment\" in group \"apps\""]);
    assert_eq!(play.conditions(), ["AbleToScale=False FailedGetScale"]);
}

#[test]
fn two_autoscalers_of_the_same_pods_scale_nothing() {
    let answer = |effect: &Effect| server(effect, 2, 90);
    let other = autoscaler("other", &json!({"metrics": cpu(50)}));
    let objects = vec![autoscaler("web", &json!({"metrics": cpu(50)})), other, pod("p0"), pod("p1")];
    let mut play = Play::new(objects, &answer);
    play.pass();
    let known = play.simulation.reconciler_cache.of::<super::AutoscalerMemory>(&key()).unwrap().clone();
    let theirs = ObjectKey::new("a", "other");
    play.simulation.reconciler_cache.set(&theirs, Some(machinery_client::ReconcilerState::of(known)));
    play.later(15);
    let why = "pods by selector app=web are controlled by multiple HPAs: [a/other a/web]";
    assert_eq!(play.pass(), [format!("AmbiguousSelector: {why}"), format!("FailedComputeMetricsReplicas: {why}")]);
    assert!(play.conditions().contains(&"ScalingActive=False AmbiguousSelector".to_owned()));
}

#[test]
fn conflicts_are_retried_and_rejections_reported() {
    let tries = std::cell::Cell::new(0);
    let answer = |effect: &Effect| match effect {
        Effect::Put(..) if tries.replace(tries.get() + 1) == 0 => Err((409, "it was changed")),
        other => server(other, 2, 90),
    };
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": cpu(50)})), pod("p0"), pod("p1")], &answer);
    assert_eq!(play.pass().len(), 1);
    assert_eq!(tries.get(), 2);
    let refused = |effect: &Effect| match effect {
        Effect::Put(..) => Err((403, "quota")),
        other => server(other, 2, 90),
    };
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": cpu(50)})), pod("p0"), pod("p1")], &refused);
    let reason = "cpu resource utilization (percentage of request) above target";
    assert_eq!(play.pass(), [format!("FailedRescale: New size: 4; reason: {reason}; error: quota")]);
    assert!(play.conditions().contains(&"AbleToScale=False FailedUpdateScale".to_owned()));
    assert_eq!(play.status().get("lastScaleTime"), None);
}

#[test]
fn a_workload_scales_to_zero_and_back_for_waiting_requests() {
    let (size, rate) = (std::cell::Cell::new(1_i64), std::cell::Cell::new("0"));
    let answer = |effect: &Effect| match effect {
        Effect::Put(_, scale) => {
            size.set(scale["spec"]["replicas"].as_i64().unwrap());
            Ok(scale.clone())
        }
        Effect::Get(path) if path == "/api/v1" => Ok(json!({"resources": [{"name": "services", "kind": "Service"}]})),
        Effect::Get(path)
            if path.starts_with(
                "/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/services/web/http_requests_per_second?",
            ) =>
        {
            Ok(json!({"items": [{"describedObject": {"name": "web"}, "value": rate.get()}]}))
        }
        other => server(other, size.get(), 0),
    };
    let metric = json!([{"type": "Object", "object": {"describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
        "metric": {"name": "http_requests_per_second"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]);
    let spec =
        json!({"minReplicas": 0, "metrics": metric, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
    let service = |status: &str, at: Timestamp| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "a"}, "status": {"conditions": [
            {"type": machinery_rules::activation::CONDITION, "status": status, "reason": "x", "lastTransitionTime": at.to_string(),
             "message": machinery_rules::activation::message(3)}]}})
    };
    let mut play = Play::new(vec![autoscaler("web", &spec), pod("p0"), service("False", start())], &answer);
    assert_eq!(play.pass(), ["SuccessfulRescale: New size: 0; reason: All metrics below target"]);
    assert_eq!(size.get(), 0);
    let puts: Vec<_> =
        play.requests.iter().filter_map(|request| request.strip_prefix("PUT ")?.split(' ').next()).collect();
    let paths = [
        "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers/web/status",
        "/apis/apps/v1/namespaces/a/deployments/web/scale",
    ];
    assert_eq!(puts, paths, "the announcement is written before the scale");
    assert!(play.conditions().contains(&"ScaledToZero=True ScaledToZero".to_owned()), "{:?}", play.conditions());
    play.later(15);
    assert_eq!((play.pass(), size.get()), (Vec::new(), 0), "nobody comes");
    play.later(2);
    assert_eq!(play.pass(), Vec::<String>::new(), "it isn't time");
    // A data plane reports waiting requests: the pass runs at once, not in the next period.
    let kind = play.simulation.kind_of(&service("True", start()));
    let now = play.simulation.now;
    play.simulation.write(&kind, service("True", now));
    let changes: Vec<_> = play.simulation.view.as_changes().filter(|change| change.kind == kind).collect();
    let woken: Vec<_> =
        CONTROLLER.inputs.iter().flat_map(|input| input.keys(&play.simulation.view, &changes[0])).collect();
    assert_eq!(woken, [key()]);
    rate.set("3");
    assert_eq!(play.pass().len(), 1, "{:?}", play.conditions());
    assert_eq!(size.get(), 1);
    assert!(play.conditions().contains(&"ScaledToZero=False NotScaledToZero".to_owned()));
    // The pod isn't there yet, and no metric has a value: the waiting request keeps the size.
    rate.set("0");
    play.later(15);
    assert_eq!((play.pass(), size.get()), (Vec::new(), 1));
    play.later(60);
    assert_eq!((play.pass().len(), size.get()), (1, 0), "an old announcement no longer counts");
    // A user who sets the size to zero has disabled the autoscaler.
    let by_hand = |effect: &Effect| server(effect, 0, 0);
    let mut play = Play::new(vec![autoscaler("web", &json!({"metrics": cpu(50)}))], &by_hand);
    assert_eq!(play.pass(), Vec::<String>::new());
    assert!(play.conditions().contains(&"ScalingActive=False ScalingDisabled".to_owned()));
}

#[test]
fn without_the_gate_a_workload_without_pods_is_left_alone() {
    let size = std::cell::Cell::new(1_i64);
    let answer = |effect: &Effect| match effect {
        Effect::Put(_, scale) => {
            size.set(scale["spec"]["replicas"].as_i64().unwrap());
            Ok(scale.clone())
        }
        Effect::Get(path) if path.starts_with("/apis/external.metrics.k8s.io/") => {
            Ok(json!({"items": [{"metricName": "queue", "value": "0"}]}))
        }
        other => server(other, size.get(), 0),
    };
    let metrics = json!([{"type": "External", "external": {"metric": {"name": "queue"},
        "target": {"type": "AverageValue", "averageValue": "5"}}}]);
    let behavior = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
    let mut hpa = autoscaler("web", &json!({"minReplicas": 0, "metrics": metrics, "behavior": behavior}));
    hpa["status"] = json!({"desiredReplicas": 1, "conditions": [{"type": "ScaledToZero", "status": "True",
        "reason": "ScaledToZero", "message": "", "lastTransitionTime": start().to_string()}]});
    let mut play = Play::new(vec![hpa, pod("p0")], &answer);
    play.settings.features = Features::default().with(Feature::HpaScaleToZero, false);
    assert_eq!(play.pass(), ["SuccessfulRescale: New size: 0; reason: All metrics below target"]);
    let is_reported = |play: &Play<'_>| play.conditions().iter().any(|one| one.starts_with("ScaledToZero"));
    assert!(!is_reported(&play), "{:?}", play.conditions());
    play.later(15);
    assert_eq!((play.pass(), size.get()), (Vec::new(), 0));
    assert!(play.conditions().contains(&"ScalingActive=False ScalingDisabled".to_owned()) && !is_reported(&play));
}

#[test]
fn a_queue_outside_scales_to_zero_and_back() {
    let (size, length) = (std::cell::Cell::new(1_i64), std::cell::Cell::new("0"));
    let answer = |effect: &Effect| match effect {
        Effect::Put(_, scale) => {
            size.set(scale["spec"]["replicas"].as_i64().unwrap());
            Ok(scale.clone())
        }
        Effect::Get(path)
            if path == "/apis/external.metrics.k8s.io/v1beta1/namespaces/a/queue?labelSelector=name%3Dorders" =>
        {
            Ok(json!({"items": [{"metricName": "queue", "value": length.get()}]}))
        }
        other => server(other, size.get(), 0),
    };
    let metric = |target: Value| {
        json!([{"type": "External", "external": {"target": target,
            "metric": {"name": "queue", "selector": {"matchLabels": {"name": "orders"}}}}}])
    };
    for (target, wanted) in
        [(json!({"type": "AverageValue", "averageValue": "5"}), 2), (json!({"type": "Value", "value": "5"}), 2)]
    {
        let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
        let spec = json!({"minReplicas": 0, "metrics": metric(target), "behavior": down});
        size.set(1);
        length.set("0");
        let mut play = Play::new(vec![autoscaler("web", &spec), pod("p0")], &answer);
        assert_eq!(play.pass(), ["SuccessfulRescale: New size: 0; reason: All metrics below target"]);
        play.later(15);
        assert_eq!((play.pass(), size.get()), (Vec::new(), 0));
        length.set("7");
        play.later(15);
        assert_eq!((play.pass().len(), size.get()), (1, wanted), "{:?}", play.conditions());
        assert!(play.conditions().contains(&"ScaledToZero=False NotScaledToZero".to_owned()));
    }
}

#[test]
fn a_tolerance_is_a_ratio() {
    assert_eq!(ratio("0.1"), Ok(0.1));
    assert!(ratio("NaN").is_err() && ratio("-1").is_err() && ratio("inf").is_err());
}
