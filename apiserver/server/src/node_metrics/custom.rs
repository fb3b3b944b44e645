//! `custom.metrics.k8s.io/v1beta2` for autoscalers: request and fuel rates of Wasm pods and of Services. A pod's value
//! is measured by its node; a Service's value is the sum of its pods, plus the requests that wait in the activator
//! while it has no pod.

use std::sync::Arc;

use apiserver_resources::objects::ObjectSource;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind, Verb};
use futures::future::{BoxFuture, FutureExt as _};
use machinery_api::error::GroupResource;
use machinery_api::quantity::{Format, Quantity};
use machinery_api::selector::LabelSelector;
use machinery_api::{ApiError, GroupVersion, time};
use machinery_rules::activation;
use serde_json::{Value, json};

use super::NodeMetrics;
use super::resources::resource;

/// The group and version.
const VERSION: GroupVersion<'static> = GroupVersion { group: "custom.metrics.k8s.io", version: "v1beta2" };
const KIND: &str = "MetricValueList";
const REQUESTS: &str = "http_requests_per_second";
const FUEL: &str = "fuel_per_second";

/// `pods` and `services`, with their metrics as subresources.
pub(super) fn resources(metrics: &Arc<NodeMetrics>) -> [ResourceInfo; 2] {
    let of = |plural: &'static str, source: Arc<dyn ObjectSource>| {
        let item = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "The value of one object."});
        let schema = json!({"type": "object", "description": "Values of a metric of some objects.", "properties": {
            "items": {"type": "array", "items": item, "description": "A value for each object."}}});
        let subresource = |name| Subresource { name, what: SubresourceKind::Metric, body: None, verbs: &[Verb::Get] };
        ResourceInfo {
            verbs: Vec::new(),
            subresources: [REQUESTS, FUEL].map(subresource).into(),
            ..resource(VERSION, (plural, KIND), true, &schema, source)
        }
    };
    [of("pods", Arc::new(Pods(metrics.clone()))), of("services", Arc::new(Services(metrics.clone())))]
}

#[derive(Debug)]
struct Pods(Arc<NodeMetrics>);

#[derive(Debug)]
struct Services(Arc<NodeMetrics>);

fn not_found(plural: &str, name: &str) -> ApiError {
    ApiError::NotFound(GroupResource::new("", plural), name.to_owned())
}

fn selector(text: &str) -> Result<LabelSelector, ApiError> {
    LabelSelector::parse(text).map_err(|error| ApiError::BadRequest(error.to_string()))
}

/// One MetricValue of the object `object` of kind `kind`.
fn value(kind: &str, object: &Value, metric: &str, milli: i64, at: &Value, window_seconds: i64) -> Value {
    let metadata = &object["metadata"];
    json!({
        "describedObject": {"kind": kind, "namespace": metadata["namespace"], "name": metadata["name"], "apiVersion": "v1"},
        "metric": {"name": metric, "selector": null},
        "timestamp": at, "windowSeconds": window_seconds,
        "value": Quantity::from_milli(milli, Format::DecimalSi).to_string(),
    })
}

fn list(items: Vec<Value>) -> Value {
    json!({"kind": KIND, "apiVersion": VERSION.to_string(), "metadata": {}, "items": items})
}

impl Pods {
    async fn values(&self, namespace: &str, name: &str, metric: &str, labels: &str) -> Result<Value, ApiError> {
        let objects = self.0.objects();
        let pods = if name == "*" {
            let chosen = selector(labels)?;
            let all = objects.list("", "pods", Some(namespace)).into_iter();
            all.filter(|pod| chosen.matches_object(pod)).collect()
        } else {
            vec![objects.get("", "pods", namespace, name).ok_or_else(|| not_found("pods", name))?]
        };
        let served = self.0.custom_metric(&pods, metric).await;
        if served.is_empty() && name != "*" {
            let message = format!("the server could not find the metric {metric} for pods {name}");
            return Err(ApiError::NotFoundByNode(message));
        }
        let of = |(pod, one): (Arc<Value>, super::summary::CustomMetric)| {
            value("Pod", &pod, metric, one.milli, &one.time, one.window_seconds)
        };
        Ok(list(served.into_iter().map(of).collect()))
    }
}

impl Services {
    async fn values(&self, namespace: &str, name: &str, metric: &str) -> Result<Value, ApiError> {
        let objects = self.0.objects();
        let service = objects.get("", "services", namespace, name).ok_or_else(|| not_found("services", name))?;
        let labels = service["spec"]["selector"].as_object().filter(|labels| !labels.is_empty());
        let pods = labels.map(|labels| {
            let pairs = labels.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()));
            let chosen = LabelSelector::from_labels(pairs);
            let all = objects.list("", "pods", Some(namespace)).into_iter();
            all.filter(|pod| chosen.matches_object(pod)).collect::<Vec<_>>()
        });
        let served = self.0.custom_metric(&pods.unwrap_or_default(), metric).await;
        let now = self.0.now();
        // Waiting requests count as demand, although no pod serves them.
        let waits = activation::waiting_requests_of_service(&service, now).filter(|_| metric == REQUESTS).unwrap_or(0);
        let waits = i64::try_from(waits).unwrap_or(i64::MAX).saturating_mul(1000);
        let sum = served.iter().fold(waits, |sum, (_, one)| sum.saturating_add(one.milli));
        let window = served.iter().map(|(_, one)| one.window_seconds).max().unwrap_or(0);
        Ok(list(vec![value("Service", &service, metric, sum, &json!(time::seconds(now)), window)]))
    }
}

impl ObjectSource for Pods {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Option<Value>> {
        async { None }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async { Vec::new() }.boxed()
    }

    fn metric<'a>(
        &'a self,
        (namespace, name): (&'a str, &'a str),
        metric: &'a str,
        labels: &'a str,
    ) -> BoxFuture<'a, Result<Value, ApiError>> {
        self.values(namespace, name, metric, labels).boxed()
    }
}

impl ObjectSource for Services {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Option<Value>> {
        async { None }.boxed()
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        async { Vec::new() }.boxed()
    }

    fn metric<'a>(
        &'a self,
        (namespace, name): (&'a str, &'a str),
        metric: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Value, ApiError>> {
        self.values(namespace, name, metric).boxed()
    }
}
