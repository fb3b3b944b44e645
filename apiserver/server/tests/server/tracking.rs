//! Field ownership that was found to differ from upstream's: what defaulting and conversion set, list items without
//! their key, nulls of custom resources, deleted objects and reviews.

use super::apply::{Outside, outside};
use super::*;

const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// The field set of the only manager.
fn only(object: &Value) -> Value {
    match object["metadata"]["managedFields"].as_array().map(Vec::as_slice) {
        Some([one]) => one["fieldsV1"].clone(),
        _ => panic!("not one manager: {object}"),
    }
}

async fn create(outside: &Outside, path: &str, body: Value) -> Value {
    let (code, made) = outside.ask("POST", path, JSON, &body).await;
    assert_eq!(code, 201, "{made}");
    made
}

fn pod_spec() -> Value {
    json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_set_by_defaulting_and_conversion_have_an_owner() {
    let outside = outside().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod_spec()});
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": template}});
    let made = create(&outside, "/apis/batch/v1/namespaces/default/jobs", job).await;
    assert_eq!(only(&made)["f:metadata"], json!({"f:labels": {".": {}, "f:a": {}}}));
    let mut template = template;
    template["spec"]["restartPolicy"] = json!("Always");
    let set = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template,
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": {}}}});
    let sets = "/apis/apps/v1/namespaces/default/daemonsets";
    let made = create(&outside, sets, set.clone()).await;
    let generation = json!({"f:annotations": {".": {}, "f:deprecated.daemonset.template.generation": {}}});
    let rolling = json!({"f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}});
    assert_eq!((&only(&made)["f:metadata"], &only(&made)["f:spec"]["f:updateStrategy"]), (&generation, &rolling));
    let mut odd = set;
    odd["metadata"]["annotations"] = json!({"deprecated.daemonset.template.generation": "x"});
    let (code, refused) = outside.ask("POST", sets, JSON, &odd).await;
    let why =
        "DaemonSet in version \"v1\" cannot be handled as a DaemonSet: strconv.ParseInt: parsing \"x\": invalid syntax";
    assert_eq!((code, refused["message"].as_str()), (400, Some(why)));
    let scaler = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 2,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}});
    let made = create(&outside, "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", scaler).await;
    assert_eq!(only(&made)["f:spec"]["f:targetCPUUtilizationPercentage"], json!({}));
    let role = json!({"metadata": {"name": "r"}, "rules": []});
    let made = create(&outside, "/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await;
    assert_eq!(only(&made), json!({"f:rules": {}}));
    let conflict = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "r"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
    let one = "/apis/rbac.authorization.k8s.io/v1/clusterroles/r?fieldManager=b";
    assert_eq!(outside.ask("PATCH", one, APPLY, &conflict).await.0, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_without_its_key_leaves_other_fields_their_owner() {
    let outside = outside().await;
    let mut spec = pod_spec();
    spec["imagePullSecrets"] = json!([{}, {}]);
    let pods = "/api/v1/namespaces/default/pods";
    let made = create(&outside, pods, json!({"metadata": {"name": "p"}, "spec": spec})).await;
    let fields = only(&made);
    assert_eq!(fields["f:spec"]["f:imagePullSecrets"], json!({".": {}, "k:{\"name\":\"\"}": {}}), "the key's default");
    assert!(fields["f:spec"]["f:containers"].is_object(), "{fields}");
    spec["imagePullSecrets"] = json!([{}]);
    let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q"}, "spec": spec});
    let (code, applied) = outside.ask("PATCH", &format!("{pods}/q?fieldManager=m"), APPLY, &body).await;
    assert_eq!((code, &only(&applied)["f:spec"]["f:imagePullSecrets"]), (201, &json!({"k:{\"name\":\"\"}": {}})));
    // Secrets of an account have no default name.
    let account = json!({"metadata": {"name": "a", "labels": {"a": "b"}}, "secrets": [{}, {"name": "s"}]});
    let made = create(&outside, "/api/v1/namespaces/default/serviceaccounts", account).await;
    let named = json!({".": {}, "k:{\"name\":\"s\"}": {}});
    assert_eq!(only(&made), json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:secrets": named}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_null_of_a_custom_resource_is_refused_and_a_nullable_one_has_an_owner() {
    let outside = outside().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "str": {"type": "string"}, "nul": {"type": "string", "nullable": true}, "filled": {"type": "string", "default": "d"},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "emb": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let definition = json!({"metadata": {"name": "things.t.example.com"}, "spec": {"group": "t.example.com",
        "scope": "Namespaced", "versions": [version],
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}}});
    assert_eq!(outside.server.ask("POST", DEFINITIONS, &definition).await.0, 201);
    let all = "/apis/t.example.com/v1/namespaces/default/things";
    let deadline = Env::real().deadline(WAIT);
    while outside.ask("GET", all, "", &Value::Null).await.0 != 200 {
        assert!(!deadline.passed(&Env::real()), "things are served");
        tokio::task::yield_now().await;
    }
    // The things may be served before the status of their definition is written.
    loop {
        let (_, shown) = outside.ask("GET", &format!("{DEFINITIONS}/things.t.example.com"), "", &Value::Null).await;
        let managers = shown["metadata"]["managedFields"].as_array().unwrap();
        if managers.iter().any(|m| m["manager"] == "kube-apiserver" && m["subresource"] == "status") {
            break;
        }
        assert!(!deadline.passed(&Env::real()), "{shown}");
        tokio::task::yield_now().await;
    }
    let thing = |spec: &Value| json!({"apiVersion": "t.example.com/v1", "kind": "Thing", "metadata": {"name": "x"}, "spec": spec});
    let one = format!("{all}/x?fieldManager=m");
    for (spec, why) in [
        (json!({"str": null}), "spec.str in body must be of type string: \"null\""),
        (json!({"map": {"a": "1", "b": null}}), "spec.map.b in body must be of type string: \"null\""),
        (json!({"map": null}), "spec.map in body must be of type object: \"null\""),
    ] {
        let (code, refused) = outside.ask("PATCH", &one, APPLY, &thing(&spec)).await;
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(code == 422 && message.contains(why), "{spec}: {code} {refused}");
    }
    let given = json!({"nul": null, "filled": null, "emb": {"apiVersion": "v1", "kind": "Pod"}});
    let (code, applied) = outside.ask("PATCH", &one, APPLY, &thing(&given)).await;
    assert_eq!(
        (code, &applied["spec"]["nul"], &applied["spec"]["filled"]),
        (201, &Value::Null, &json!("d")),
        "{applied}"
    );
    assert!(applied["spec"].as_object().unwrap().contains_key("nul"), "{applied}");
    let mut body = thing(&given);
    body["metadata"]["name"] = json!("y");
    body["spec"]["str"] = Value::Null;
    let made = create(&outside, all, body).await;
    let owned = json!({".": {}, "f:emb": {".": {}, "f:apiVersion": {}, "f:kind": {}}, "f:filled": {}, "f:nul": {}});
    assert_eq!(only(&made), json!({"f:spec": owned}), "a null that a create drops has no owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_objects_and_reviews_show_their_managers() {
    let outside = outside().await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let made = create(&outside, services, service).await;
    for dry in ["?dryRun=All", ""] {
        let (code, gone) = outside.ask("DELETE", &format!("{services}/s{dry}"), JSON, &Value::Null).await;
        assert_eq!((code, only(&gone)), (200, only(&made)));
    }
    let pods = "/api/v1/namespaces/default/pods";
    let made = create(&outside, pods, json!({"metadata": {"name": "p"}, "spec": pod_spec()})).await;
    let (code, gone) = outside.ask("DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), JSON, &Value::Null).await;
    assert_eq!((code, only(&gone)), (200, only(&made)));
    let group = "/apis/authorization.k8s.io/v1";
    let review = json!({"spec": {"resourceAttributes": {"verb": "get"}}});
    let made = create(&outside, &format!("{group}/selfsubjectaccessreviews"), review).await;
    assert_eq!(only(&made), json!({"f:spec": {"f:resourceAttributes": {".": {}, "f:verb": {}}}}));
    let rules =
        create(&outside, &format!("{group}/selfsubjectrulesreviews"), json!({"spec": {"namespace": "default"}})).await;
    assert_eq!(rules["metadata"].get("managedFields"), None, "a new object");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_resource_that_only_lists_is_405() {
    let outside = outside().await;
    let (code, refused) = outside.ask("GET", "/api/v1/componentstatuses?watch=true", "", &Value::Null).await;
    let why = "watch is not supported on resources of kind \"componentstatuses\"";
    assert_eq!((code, refused["message"].as_str()), (405, Some(why)));
}
