//! The effect of feature gates on the API server.

use super::*;

const SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";
const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

async fn with(feature: Feature, enabled: bool) -> Server {
    server_under(Features::default().with(feature, enabled), ChainExtensions::default()).await
}

fn set(name: &str, rolling: Value) -> Value {
    let template =
        json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    json!({"metadata": {"name": name}, "spec": {"serviceName": name, "template": template,
        "selector": {"matchLabels": {"app": name}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}})
}

fn most(answer: &Value) -> &Value {
    &answer["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"]
}

#[tokio::test(flavor = "multi_thread")]
async fn max_unavailable_of_a_stateful_set_is_kept_with_its_gate() {
    let server = with(Feature::MaxUnavailableStatefulSet, true).await;
    for (name, given, kept) in [
        ("a", json!({}), json!(1)),
        ("b", json!({"maxUnavailable": 3}), json!(3)),
        ("c", json!({"maxUnavailable": "50%"}), json!("50%")),
    ] {
        let (code, answer) = server.ask("POST", SETS, &set(name, given)).await;
        assert_eq!((code, most(&answer)), (201, &kept), "{answer}");
    }
    let mut bare = set("bare", Value::Null);
    bare["spec"]["updateStrategy"] = json!({});
    let (code, answer) = server.ask("POST", SETS, &bare).await;
    assert_eq!((code, most(&answer)), (201, &json!(1)), "{answer}");
    let at = "spec.updateStrategy.rollingUpdate.maxUnavailable";
    for (given, why) in [
        (json!(0), "Invalid value: 0: cannot be 0"),
        (json!("0%"), "Invalid value: \"0%\": cannot be 0"),
        (json!(-1), "Invalid value: -1: must be greater than or equal to 0"),
        (json!("101%"), "Invalid value: \"101%\": must not be greater than 100%"),
        (
            json!("half"),
            "Invalid value: \"half\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
    ] {
        let (code, answer) = server.ask("POST", SETS, &set("d", json!({"maxUnavailable": given}))).await;
        let causes = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        let is_reported = causes.iter().any(|cause| cause["field"] == at && cause["message"] == why);
        assert!(code == 422 && is_reported, "{given}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn max_unavailable_of_a_stateful_set_is_dropped_without_its_gate() {
    let server = server().await;
    let (code, answer) = server.ask("POST", SETS, &set("a", json!({"maxUnavailable": 0}))).await;
    assert_eq!((code, most(&answer)), (201, &Value::Null), "{answer}");
    let change = json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}}}});
    let (code, answer) = server.ask("PATCH", &format!("{SETS}/a"), &change).await;
    assert_eq!((code, most(&answer)), (200, &Value::Null), "{answer}");
}

fn scaler(metrics: Value) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"minReplicas": 0, "maxReplicas": 3, "metrics": metrics,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscalers_scale_to_zero_with_their_gate() {
    let queue = json!([{"type": "External", "external": {"metric": {"name": "queue"},
        "target": {"type": "AverageValue", "averageValue": "5"}}}]);
    let cpu = json!([{"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": 50}}}]);
    let causes = |answer: &Value| {
        let all = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|cause| cause["field"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    for (enabled, metrics, code, fields) in [
        (true, &queue, 201, &[][..]),
        (true, &cpu, 422, &["spec.minReplicas", "spec.metrics"]),
        (false, &queue, 422, &["spec.minReplicas"]),
        (false, &cpu, 422, &["spec.minReplicas", "spec.metrics"]),
    ] {
        let server = with(Feature::HpaScaleToZero, enabled).await;
        let (got, answer) = server.ask("POST", SCALERS, &scaler(metrics.clone())).await;
        assert_eq!(
            (got, &*causes(&answer)),
            (code, &*fields.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>()),
            "{enabled}: {answer}"
        );
    }
}
