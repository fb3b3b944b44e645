//! Requests to the three metrics APIs, and parsers of their answers. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery_api::quantity::Quantity;
use machinery_client::{Failure, Pass, selector};
use serde_json::Value;

use super::replicas::{PodMetric, PodMetrics};
use crate::scale::{Mapping, Stop, encode, fetch, mapping};

const RESOURCE: &str = "/apis/metrics.k8s.io/v1beta1";
const CUSTOM: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
/// The default window of a metric.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);

/// The namespace and pods of a query.
#[derive(Debug, Clone, Copy)]
pub(super) struct MetricScope<'a> {
    pub(super) namespace: &'a str,
    /// The label selector of the workload's scale.
    pub(super) pods: &'a str,
}

/// An upstream client's message for a missing API, where the server's answer is only text.
fn message(failure: &Failure, subject: &str) -> String {
    if failure.code == 404 && failure.message.trim() == "404 page not found" {
        return format!("the server could not find the requested resource (get {subject})");
    }
    failure.message.clone()
}

fn items<'a>(answer: Result<&'a Value, &'a Failure>, api: &str, subject: &str) -> Result<&'a [Value], String> {
    let list =
        answer.map_err(|why| format!("unable to fetch metrics from {api} metrics API: {}", message(why, subject)))?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return Err(format!("no metrics returned from {api} metrics API"));
    }
    Ok(items)
}

/// A quantity, as string or number.
fn quantity(value: &Value) -> Result<i64, String> {
    let number;
    let text = match value {
        Value::String(text) => text,
        Value::Number(plain) => {
            number = plain.to_string();
            &number
        }
        _ => "",
    };
    Quantity::parse(text).map(|quantity| quantity.milli()).map_err(|error| error.to_string())
}

fn timestamp(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The usage of a resource by pods, or by one container of each.
pub(super) fn resource(
    pass: &Pass,
    scope: MetricScope<'_>,
    resource: &str,
    container: Option<&str>,
) -> Result<PodMetrics, Stop> {
    let path = format!("{RESOURCE}/namespaces/{}/pods?labelSelector={}", scope.namespace, encode(scope.pods));
    let items = items(fetch(pass, &path)?, "resource", "pods.metrics.k8s.io")?;
    let of = |pod: &Value| -> Option<(String, PodMetric)> {
        let containers = pod["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let used = |one: &Value| quantity(&one["usage"][resource]).ok();
        let value = match container {
            Some(name) => used(containers.iter().find(|one| one["name"] == name)?)?,
            None if containers.is_empty() => return None,
            None => containers.iter().map(used).try_fold(0_i64, |sum, one| Some(sum.saturating_add(one?)))?,
        };
        let window = pod["window"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
        let metric = PodMetric { at: timestamp(&pod["timestamp"]), window, value };
        Some((pod["metadata"]["name"].as_str()?.to_owned(), metric))
    };
    Ok(items.iter().filter_map(of).collect())
}

/// The query parameter of a metric's own selector.
fn of_metric(metric: &MetricIdentifier) -> String {
    metric.selector.as_ref().map(selector::text).unwrap_or_default()
}

/// A metric of each pod.
pub(super) fn pods(pass: &Pass, scope: MetricScope<'_>, metric: &MetricIdentifier) -> Result<PodMetrics, Stop> {
    let path = format!(
        "{CUSTOM}/namespaces/{}/pods/%2A/{}?labelSelector={}&metricLabelSelector={}",
        scope.namespace,
        encode(&metric.name),
        encode(scope.pods),
        encode(&of_metric(metric))
    );
    let items = items(fetch(pass, &path)?, "custom", "pods.custom.metrics.k8s.io *")?;
    let of = |one: &Value| {
        let seconds = one["windowSeconds"].as_i64();
        let window = seconds.map_or(WINDOW, SignedDuration::from_secs);
        let metric = PodMetric { at: timestamp(&one["timestamp"]), window, value: quantity(&one["value"])? };
        Ok((one["describedObject"]["name"].as_str().unwrap_or_default().to_owned(), metric))
    };
    let all: Result<PodMetrics, String> = items.iter().map(of).collect();
    Ok(all.map_err(|why| format!("unable to fetch metrics from custom metrics API: {why}"))?)
}

/// A metric of one object, in thousandths.
pub(super) fn object(
    pass: &Pass,
    known: &mut Vec<Mapping>,
    namespace: &str,
    metric: &MetricIdentifier,
    of: &CrossVersionObjectReference,
) -> Result<i64, Stop> {
    let failed = |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
    let version = of.api_version.as_deref().unwrap_or_default();
    let is_core = !version.contains('/');
    let (about, subject) = if is_core && of.kind == "Namespace" {
        ("metrics".to_owned(), format!("namespaces.custom.metrics.k8s.io {namespace}"))
    } else {
        let mapping = mapping(pass, known, version, &of.kind).map_err(|stop| match stop {
            Stop::Failed(why) => Stop::Failed(failed(format!("unable to map kind {} to resource: {why}", of.kind))),
            ask @ Stop::Ask(_) => ask,
        })?;
        let resource = mapping.resource();
        (format!("{resource}/{}", encode(&of.name)), format!("{resource}.custom.metrics.k8s.io {}", of.name))
    };
    let path = format!(
        "{CUSTOM}/namespaces/{namespace}/{about}/{}?metricLabelSelector={}",
        encode(&metric.name),
        encode(&of_metric(metric))
    );
    let list = fetch(pass, &path)?.map_err(|why| failed(message(why, &subject)))?;
    match list["items"].as_array().map(Vec::as_slice).unwrap_or_default() {
        [one] => Ok(quantity(&one["value"]).map_err(failed)?),
        many => {
            let count = many.len();
            let why = format!("the custom metrics API server returned {count} results when we asked for exactly one");
            Err(failed(why).into())
        }
    }
}

/// The sum of an external metric's values, in thousandths.
pub(super) fn external(pass: &Pass, namespace: &str, metric: &MetricIdentifier) -> Result<i64, Stop> {
    let path = format!(
        "{EXTERNAL}/namespaces/{namespace}/{}?labelSelector={}",
        encode(&metric.name),
        encode(&of_metric(metric))
    );
    let items = items(fetch(pass, &path)?, "external", &format!("{}.external.metrics.k8s.io", metric.name))?;
    let values: Result<Vec<i64>, String> = items.iter().map(|one| quantity(&one["value"])).collect();
    let values = values.map_err(|why| format!("unable to fetch metrics from external metrics API: {why}"))?;
    Ok(values.into_iter().fold(0, i64::saturating_add))
}

/// A selector in Go's printed form.
pub(super) fn printed(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},"));
    let wishes = selector.match_expressions.iter().flatten().map(|one| {
        let values = one.values.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", one.key, one.operator)
    });
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.collect::<String>(),
        wishes.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use machinery_client::Effect;
    use serde_json::json;

    use super::*;

    fn measured<T: std::fmt::Debug>(
        ask: impl Fn(&Pass) -> Result<T, Stop>,
        answer: Result<Value, (u16, &str)>,
    ) -> Result<T, String> {
        let mut pass = Pass::default();
        let Err(Stop::Ask(effects)) = ask(&pass) else { panic!("it asks first") };
        for effect in effects {
            let failed = |(code, message): &(u16, &str)| {
                let (verb, resource, reason) = ("get", String::new(), String::new());
                Failure { verb, resource, code: *code, reason, message: (*message).into() }
            };
            pass.record(effect, answer.as_ref().map(|value| Arc::new(value.clone())).map_err(failed));
        }
        match ask(&pass) {
            Ok(found) => Ok(found),
            Err(Stop::Failed(why)) => Err(why),
            Err(Stop::Ask(more)) => panic!("{more:?}"),
        }
    }

    const SCOPE: MetricScope<'static> = MetricScope { namespace: "a", pods: "app=web,tier in (x,y)" };

    fn metric(name: &str) -> MetricIdentifier {
        MetricIdentifier { name: name.into(), selector: None }
    }

    #[test]
    fn resources_are_summed_over_containers() {
        let pod = |name: &str, containers: Value| json!({"metadata": {"name": name}, "timestamp": "2026-01-01T00:00:00Z", "window": "1m1.5s", "containers": containers});
        let list = json!({"items": [
            pod("both", json!([{"name": "a", "usage": {"cpu": "1500u"}}, {"name": "b", "usage": {"cpu": "2"}}])),
            pod("one", json!([{"name": "a", "usage": {"cpu": "7n"}}, {"name": "b", "usage": {"memory": "1"}}])),
            pod("none", json!([])),
            pod("wild", json!([{"name": "a", "usage": {"cpu": "9999999E"}}, {"name": "b", "usage": {"cpu": "9999999E"}}])),
        ]});
        let of = |container: Option<&'static str>| {
            let found = measured(|pass| resource(pass, SCOPE, "cpu", container), Ok(list.clone())).unwrap();
            found.into_iter().map(|(name, metric)| (name, metric.value)).collect::<Vec<_>>()
        };
        let named = |list: &[(&str, i64)]| list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect::<Vec<_>>();
        assert_eq!(of(None), named(&[("both", 2002), ("wild", i64::MAX)]));
        assert_eq!(of(Some("a")), named(&[("both", 2), ("one", 1), ("wild", i64::MAX)]));
        assert_eq!(of(Some("c")), named(&[]));
        let whole = measured(|pass| resource(pass, SCOPE, "cpu", None), Ok(list.clone())).unwrap();
        assert_eq!(whole["both"].window, SignedDuration::from_millis(61_500));
    }

    #[test]
    fn missing_values_have_upstreams_messages() {
        let gone = Err((404, "404 page not found\n"));
        let missing = "the server could not find the requested resource";
        for (ask, wanted) in [
            (
                measured(|pass| resource(pass, SCOPE, "cpu", None).map(|_| ()), gone.clone()),
                format!("unable to fetch metrics from resource metrics API: {missing} (get pods.metrics.k8s.io)"),
            ),
            (
                measured(|pass| external(pass, "a", &metric("queue")).map(|_| ()), gone.clone()),
                format!("unable to fetch metrics from external metrics API: {missing} (get queue.external.metrics.k8s.io)"),
            ),
            (
                measured(|pass| pods(pass, SCOPE, &metric("rps")).map(|_| ()), Err((404, "the server could not find the metric rps for pods"))),
                "unable to fetch metrics from custom metrics API: the server could not find the metric rps for pods".into(),
            ),
            (
                measured(|pass| pods(pass, SCOPE, &metric("rps")).map(|_| ()), Ok(json!({"items": []}))),
                "no metrics returned from custom metrics API".into(),
            ),
            (
                measured(|pass| external(pass, "a", &metric("q")).map(|_| ()), Ok(json!({"items": [{"value": "NaN"}]}))),
                "unable to fetch metrics from external metrics API: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into(),
            ),
        ] {
            assert_eq!(ask.unwrap_err(), wanted);
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        let Err(Stop::Ask(effects)) = pods(&Pass::default(), SCOPE, &metric("../../secrets?x=y#z")) else { panic!() };
        let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/pods/%2A/..%2F..%2Fsecrets%3Fx%3Dy%23z?labelSelector=app%3Dweb%2Ctier%20in%20%28x%2Cy%29&metricLabelSelector=";
        assert_eq!(effects, [Effect::Get(path.into())]);
        let of = CrossVersionObjectReference { api_version: None, kind: "Namespace".into(), name: "other".into() };
        let Err(Stop::Ask(effects)) = object(&Pass::default(), &mut Vec::new(), "a", &metric("m"), &of) else {
            panic!()
        };
        let path = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/a/metrics/m?metricLabelSelector=";
        assert_eq!(effects, [Effect::Get(path.into())], "its own namespace, whatever it names");
    }

    #[test]
    fn sums_of_values_saturate() {
        let list =
            |values: &[&str]| json!({"items": values.iter().map(|value| json!({"value": value})).collect::<Vec<_>>()});
        let sum = |values: &[&str]| measured(|pass| external(pass, "a", &metric("q")), Ok(list(values))).unwrap();
        assert_eq!((sum(&["1", "500m"]), sum(&["9E", "9E"]), sum(&["-3", "1"])), (1500, i64::MAX, -2000));
        let plain = measured(|pass| external(pass, "a", &metric("q")), Ok(json!({"items": [{"value": 3}]}))).unwrap();
        assert_eq!(plain, 3000);
    }

    #[test]
    fn selectors_are_printed_as_go_prints_them() {
        let selector = serde_json::from_value(json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}));
        assert_eq!(
            printed(Some(&selector.unwrap())),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}"
        );
        assert_eq!(printed(None), "nil");
    }
}
