//! `custom.metrics.k8s.io/v1beta2` for autoscalers and dashboards: rates and response times of Wasm pods and of Services,
//! and the calls of Services by caller. A pod's values are measured by its node; a Service's value is computed from its
//! pods, and its rate of requests includes those that wait in the activator while it has no pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use apiserver_resources::objects::{MetricSelectors, ObjectReader, ObjectSource};
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind, Verb};
use futures::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use machinery_api::error::GroupResource;
use machinery_api::quantity::{Format, Quantity};
use machinery_api::selector::LabelSelector;
use machinery_api::{ApiError, GroupVersion, time};
use machinery_rules::activation;
use serde_json::{Value, json};

use super::NodeMetrics;
use super::resources::resource;
use super::responses::{Caller, Calls, Measurement, PodResponses, Recent, calls};
use super::selected::PodsByLabel;
use super::source::NodeResponses;

/// The group and version.
const VERSION: GroupVersion<'static> = GroupVersion { group: "custom.metrics.k8s.io", version: "v1beta2" };
const KIND: &str = "MetricValueList";
const REQUESTS: &str = "http_requests_per_second";

/// How a metric is computed.
#[derive(Debug, Clone, Copy)]
enum Measure {
    /// A rate that nodes compute under the metric's name. A Service has the sum over its pods.
    Rate,
    /// The time within which so many percent of the responses came. A Service's is over the responses of all its pods.
    Percentile(u8),
    /// Of the calls of a Service, for each caller.
    Calls(fn(&Calls) -> Option<Measurement>),
}

/// The metrics of pods and Services.
const METRICS: [(&str, Measure); 5] = [
    (REQUESTS, Measure::Rate),
    ("fuel_per_second", Measure::Rate),
    ("http_errors_per_second", Measure::Rate),
    ("http_request_duration_p50_seconds", Measure::Percentile(50)),
    ("http_request_duration_p99_seconds", Measure::Percentile(99)),
];
/// The metrics of Services alone.
const CALL_METRICS: [(&str, Measure); 3] = [
    ("http_calls_per_second", Measure::Calls(|calls| Some(calls.per_second()))),
    ("http_call_errors_per_second", Measure::Calls(|calls| Some(calls.errors_per_second()))),
    ("http_call_duration_p50_seconds", Measure::Calls(|calls| calls.percentile(50))),
];

fn measure(metric: &str) -> Result<Measure, ApiError> {
    let known = METRICS.iter().chain(&CALL_METRICS).find(|(name, _)| *name == metric);
    known.map(|(_, measure)| *measure).ok_or(ApiError::NoSuchResource)
}

/// `pods` and `services`, with their metrics as subresources.
pub(super) fn resources(metrics: &Arc<NodeMetrics>) -> [ResourceInfo; 2] {
    let of = |plural: &'static str, source: Arc<dyn ObjectSource>, names: Vec<&'static str>| {
        let item = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "The value of one object."});
        let schema = json!({"type": "object", "description": "Values of a metric of some objects.", "properties": {
            "items": {"type": "array", "items": item, "description": "A value for each object."}}});
        let subresource = |name| Subresource { name, what: SubresourceKind::Metric, body: None, verbs: &[Verb::Get] };
        ResourceInfo {
            verbs: Vec::new(),
            subresources: names.into_iter().map(subresource).collect(),
            ..resource(VERSION, (plural, KIND), true, &schema, source)
        }
    };
    let shared = METRICS.iter().map(|(name, _)| *name);
    let of_services = shared.clone().chain(CALL_METRICS.iter().map(|(name, _)| *name)).collect();
    [
        of("pods", Arc::new(CustomMetrics::Pods(metrics.clone())), shared.collect()),
        of("services", Arc::new(CustomMetrics::Services(metrics.clone())), of_services),
    ]
}

/// The values of one kind of objects. Nothing but metrics is served.
#[derive(Debug)]
enum CustomMetrics {
    Pods(Arc<NodeMetrics>),
    Services(Arc<NodeMetrics>),
}

fn not_found(plural: &str, name: &str) -> ApiError {
    ApiError::NotFound(GroupResource::new("", plural), name.to_owned())
}

fn no_metric(metric: &str, plural: &str, name: &str) -> ApiError {
    ApiError::NotFoundByNode(format!("the server could not find the metric {metric} for {plural} {name}"))
}

fn selector(text: &str) -> Result<LabelSelector, ApiError> {
    LabelSelector::parse(text).map_err(|error| ApiError::BadRequest(error.to_string()))
}

/// A value of a metric as a quantity: in thousandths, or in millionths where that loses digits.
fn quantity(micros: i128) -> String {
    if micros % 1000 == 0 {
        let milli = i64::try_from(micros / 1000).unwrap_or(i64::MAX);
        return Quantity::from_milli(milli, Format::DecimalSi).to_string();
    }
    format!("{micros}u")
}

/// A metric's name and labels.
type Metric<'a> = (&'a str, &'a BTreeMap<String, String>);

/// One MetricValue of the object `object` of kind `kind`.
fn value(kind: &str, object: &Value, (metric, labels): Metric<'_>, of: Measurement, at: &Value) -> Value {
    let metadata = &object["metadata"];
    let selector = if labels.is_empty() { Value::Null } else { json!({"matchLabels": labels}) };
    json!({
        "describedObject": {"kind": kind, "namespace": metadata["namespace"], "name": metadata["name"], "apiVersion": "v1"},
        "metric": {"name": metric, "selector": selector},
        "timestamp": at, "windowSeconds": of.window_seconds.round() as i64,
        "value": quantity(of.micros),
    })
}

fn list(items: Vec<Value>) -> Value {
    json!({"kind": KIND, "apiVersion": VERSION.to_string(), "metadata": {}, "items": items})
}

/// The value of one pod, with its time.
fn of_pod<'a>(pod: &'a PodResponses, (name, measure): (&str, Measure)) -> Option<(Measurement, &'a Value)> {
    match measure {
        Measure::Rate => pod.rates.get(name).map(|rate| (rate.into(), &rate.time)),
        Measure::Percentile(percent) => Some((pod.recent?.percentile(percent)?, &pod.time)),
        Measure::Calls(_) => None,
    }
}

/// The values of a Service: one, or one for each caller that the metric's selector chooses.
fn of_service(
    (service, now): (&Value, Timestamp),
    pods: &[&PodResponses],
    (name, measure): (&str, Measure),
    callers: &LabelSelector,
) -> Vec<Value> {
    let at = json!(time::seconds(now));
    let one = |of: Measurement| vec![value("Service", service, (name, &BTreeMap::new()), of, &at)];
    match measure {
        Measure::Rate => {
            // Waiting requests count as demand, although no pod serves them.
            let waits = activation::waiting_requests_of_service(service, now).filter(|_| name == REQUESTS).unwrap_or(0);
            let rates = pods.iter().filter_map(|pod| of_pod(pod, (name, measure)));
            let (micros, window_seconds) = rates
                .fold((i128::from(waits) * 1_000_000, 0.0), |(sum, window), (one, _)| {
                    (sum + one.micros, one.window_seconds.max(window))
                });
            one(Measurement { micros, window_seconds })
        }
        Measure::Percentile(percent) => {
            let mut all = Recent::default();
            pods.iter().filter_map(|pod| pod.recent.as_ref()).for_each(|recent| all.add(recent));
            all.percentile(percent).map(one).unwrap_or_default()
        }
        Measure::Calls(of) => {
            let metadata = &service["metadata"];
            let [namespace, service_name] = ["namespace", "name"].map(|key| metadata[key].as_str().unwrap_or_default());
            let by_caller = calls(pods.iter().copied(), (namespace, service_name));
            let one = |(caller, calls): (&Caller, Calls)| {
                let labels = caller.labels();
                let of = Some(&labels).filter(|labels| callers.matches(*labels)).and_then(|_| of(&calls))?;
                Some(value("Service", service, (name, &labels), of, &at))
            };
            by_caller.into_iter().filter_map(one).collect()
        }
    }
}

/// The object of a name, or for `*` those that match a label selector.
fn named(
    objects: &dyn ObjectReader,
    plural: &'static str,
    (namespace, name): (&str, &str),
    labels: &str,
) -> Result<Vec<Arc<Value>>, ApiError> {
    if name != "*" {
        return Ok(vec![objects.get("", plural, namespace, name).ok_or_else(|| not_found(plural, name))?]);
    }
    let chosen = selector(labels)?;
    let all = objects.list("", plural, Some(namespace)).into_iter();
    Ok(all.filter(|object| chosen.matches_object(object)).collect())
}

async fn values_of_pods(
    metrics: &NodeMetrics,
    (namespace, name): (&str, &str),
    metric: &str,
    selectors: MetricSelectors<'_>,
) -> Result<Value, ApiError> {
    let objects = metrics.objects();
    let measure = measure(metric)?;
    let pods = named(objects, "pods", (namespace, name), selectors.objects)?;
    let responses = metrics.responses(namespace, &pods).await;
    let of = |pod: &Arc<Value>| {
        let (of, at) = of_pod(responses.of(pod)?, (metric, measure))?;
        Some(value("Pod", pod, (metric, &BTreeMap::new()), of, at))
    };
    let values: Vec<Value> = pods.iter().filter_map(of).collect();
    if values.is_empty() && name != "*" {
        return Err(no_metric(metric, "pods", name));
    }
    Ok(list(values))
}

async fn values_of_services(
    metrics: &NodeMetrics,
    (namespace, name): (&str, &str),
    metric: &str,
    selectors: MetricSelectors<'_>,
) -> Result<Value, ApiError> {
    let objects = metrics.objects();
    let (measure, callers) = (measure(metric)?, selector(selectors.metric)?);
    let services = named(objects, "services", (namespace, name), selectors.objects)?;
    let pods = objects.list("", "pods", Some(namespace));
    let by_label = PodsByLabel::new(&pods);
    let selected = |service: &Value| {
        let labels = service["spec"]["selector"].as_object();
        labels.map(|labels| by_label.selected(labels)).unwrap_or_default()
    };
    let wanted: Vec<Arc<Value>> = match services.as_slice() {
        [service] => selected(service).into_iter().cloned().collect(),
        _ => pods.clone(),
    };
    let (responses, now): (NodeResponses, _) = (metrics.responses(namespace, &wanted).await, metrics.now());
    let mut values = Vec::new();
    for service in &services {
        let pods: Vec<&PodResponses> = selected(service).into_iter().filter_map(|pod| responses.of(pod)).collect();
        values.extend(of_service((service, now), &pods, (metric, measure), &callers));
        // A namespace may have thousands of Services of thousands of pods.
        tokio::task::yield_now().await;
    }
    if values.is_empty() && name != "*" {
        return Err(no_metric(metric, "services", name));
    }
    Ok(list(values))
}

impl ObjectSource for CustomMetrics {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Option<Value>> {
        async { None }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async { Vec::new() }.boxed()
    }

    fn metric<'a>(
        &'a self,
        of: (&'a str, &'a str),
        metric: &'a str,
        selectors: MetricSelectors<'a>,
    ) -> BoxFuture<'a, Result<Value, ApiError>> {
        match self {
            Self::Pods(metrics) => values_of_pods(metrics, of, metric, selectors).boxed(),
            Self::Services(metrics) => values_of_services(metrics, of, metric, selectors).boxed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_canonical_quantities() {
        let of = [0, 153, 1_750, 2_000, 1_500_000, 30_000_000].map(quantity);
        assert_eq!(of, ["0", "153u", "1750u", "2m", "1500m", "30"]);
        assert_eq!(quantity(i128::MAX / 1000 * 1000), Quantity::from_milli(i64::MAX, Format::DecimalSi).to_string());
        for micros in [1, 999, 1_001, 60_000_001] {
            assert_eq!(quantity(micros).parse::<Quantity>().unwrap().to_string(), quantity(micros));
        }
    }

    #[test]
    fn a_service_counts_waiting_requests_and_callers() {
        let service = json!({"metadata": {"name": "cart", "namespace": "shop"}});
        let now = Timestamp::UNIX_EPOCH;
        let everyone = LabelSelector::everything();
        let of = |metric| of_service((&service, now), &[], (metric, measure(metric).unwrap()), &everyone);
        let idle = of(REQUESTS);
        assert_eq!(idle[0]["value"], "0");
        assert_eq!(idle[0]["metric"], json!({"name": REQUESTS, "selector": null}));
        assert!(of("http_request_duration_p99_seconds").is_empty());
        assert!(of("http_calls_per_second").is_empty());
        assert!(measure("nope").is_err());

        let stats = json!({"time": "t", "boundsMicroseconds": machinery_rules::response_times::BOUNDS_MICROS, "pods": [
            {"podRef": {"uid": "u"}, "containers": [{
                "responses": {"windowSeconds": 10.0, "durations": bucket(0, 30)},
                "calls": [
                    {"service": {"namespace": "shop", "name": "cart"}, "durations": bucket(0, 10), "errors": 0},
                    {"service": {"namespace": "shop", "name": "cart"}, "pod": {"namespace": "shop", "name": "web"},
                        "durations": bucket(0, 20), "errors": 5},
                ],
            }]},
        ]});
        let read = super::super::responses::Responses::read(&stats);
        let pods = [read.of(&json!({"metadata": {"uid": "u"}})).unwrap()];
        let of = |metric, text: &str| {
            let callers = LabelSelector::parse(text).unwrap();
            let values = of_service((&service, now), &pods, (metric, measure(metric).unwrap()), &callers);
            values.iter().map(|one| (one["metric"]["selector"].clone(), one["value"].clone())).collect::<Vec<_>>()
        };
        let web = json!({"matchLabels": {"caller-namespace": "shop", "caller-pod": "web"}});
        assert_eq!(of("http_calls_per_second", ""), [(Value::Null, json!("1")), (web.clone(), json!("2"))]);
        assert_eq!(of("http_call_errors_per_second", "caller-pod=web"), [(web, json!("500m"))]);
        assert_eq!(of("http_call_duration_p50_seconds", "!caller-pod"), [(Value::Null, json!("50u"))]);
        assert_eq!(of("http_request_duration_p50_seconds", ""), [(Value::Null, json!("50u"))]);
    }

    fn bucket(at: usize, count: u64) -> Value {
        let mut counts = [0; machinery_rules::response_times::BUCKETS];
        counts[at] = count;
        json!(counts)
    }
}
