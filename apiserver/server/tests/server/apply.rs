//! Managed fields as external clients see them, and apply patches: conflicts and transfers between managers.

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use machinery_env::Env;
use serde_json::{Value, json};

use super::{MAPS, Server, WAIT, server};

const APPLY: &str = "application/apply-patch+yaml";
const ONE: &str = "/api/v1/namespaces/default/configmaps/x";

pub(super) struct Outside {
    pub(super) server: Server,
    token: String,
}

pub(super) async fn outside() -> Outside {
    let server = server().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rule = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"});
    for (path, body) in [
        (accounts.to_owned(), json!({"metadata": {"name": "c"}})),
        (accounts.to_owned(), json!({"metadata": {"name": "default"}})),
        (format!("{rbac}/clusterroles"), json!({"metadata": {"name": "all"}, "rules": [rule]})),
        (
            format!("{rbac}/clusterrolebindings"),
            json!({"metadata": {"name": "all"}, "roleRef": role,
                "subjects": [{"kind": "ServiceAccount", "name": "c", "namespace": "default"}]}),
        ),
    ] {
        let (code, made) = server.ask("POST", &path, &body).await;
        assert_eq!(code, 201, "{made}");
    }
    let (code, token) = server.ask("POST", &format!("{accounts}/c/token"), &json!({"spec": {}})).await;
    assert_eq!(code, 201, "{token}");
    let token = token["status"]["token"].as_str().unwrap().to_owned();
    Outside { server, token }
}

impl Outside {
    pub(super) async fn ask(&self, method: &str, path: &str, kind: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request =
            request.header("authorization", format!("Bearer {}", self.token)).header("user-agent", "tool/1 x");
        let response = self.server.send(request.body(body).unwrap()).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
    }

    async fn apply(&self, manager: &str, data: Value) -> (u16, Value) {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data});
        self.ask("PATCH", &format!("{ONE}?fieldManager={manager}"), APPLY, &body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, "", &Value::Null).await.1
    }
}

/// `manager operation fields` of each entry.
fn managers(object: &Value) -> Vec<String> {
    let entry = |e: &Value| {
        let text = |field: &str| e[field].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", text("manager"), text("operation"), e["fieldsV1"])
    };
    object["metadata"]["managedFields"].as_array().into_iter().flatten().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_are_shown_everywhere_but_to_components() {
    let outside = outside().await;
    let body = json!({"metadata": {"name": "x"}, "data": {"k": "v"}});
    let (code, made) = outside.ask("POST", MAPS, "application/json", &body).await;
    let wanted = [r#"tool Update {"f:data":{".":{},"f:k":{}}}"#];
    assert_eq!((code, managers(&made)), (201, wanted.map(Into::into).to_vec()), "{made}");
    let list = outside.get(MAPS).await;
    let yaml = outside.get(&format!("{ONE}?pretty=1")).await;
    assert_eq!((managers(&list["items"][0]), managers(&yaml)), (managers(&made), managers(&made)));
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let (_, inside) = outside.server.ask("GET", ONE, &Value::Null).await;
    assert_eq!((inside["data"]["k"].as_str(), inside["metadata"].get("managedFields")), (Some("v"), None));
    // A component's update without managedFields keeps them.
    let (_, put) = outside.server.ask("PUT", ONE, &inside).await;
    assert_eq!(put["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "no change is no write");
    let (_, dry) = outside
        .ask("PATCH", &format!("{ONE}?dryRun=All"), "application/merge-patch+json", &json!({"data": {"l": "w"}}))
        .await;
    assert_eq!(managers(&dry), [r#"tool Update {"f:data":{".":{},"f:k":{},"f:l":{}}}"#]);
    assert_eq!(managers(&outside.get(ONE).await), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn appliers_share_conflict_and_take() {
    let outside = outside().await;
    assert_eq!(outside.apply("a", json!({"k": "v"})).await.0, 201);
    let (code, again) = outside.apply("a", json!({"k": "v"})).await;
    let (_, shared) = outside.apply("b", json!({"k": "v", "l": "v"})).await;
    assert_eq!((code, managers(&again).len(), managers(&shared).len()), (200, 1, 2));
    let (code, refused) = outside.apply("b", json!({"k": "w"})).await;
    assert_eq!(
        (code, refused["message"].as_str()),
        (409, Some("Apply failed with 1 conflict: conflict with \"a\": .data.k"))
    );
    let (code, taken) = outside.apply("b&force=true", json!({"k": "w"})).await;
    assert_eq!((code, &taken["data"]), (200, &json!({"k": "w"})), "and l, which b alone had, is gone");
    assert_eq!(managers(&taken), [r#"b Apply {"f:data":{"f:k":{}}}"#]);
    // As in kubectl's migration from client-side apply.
    let moved = json!([{"manager": "c", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:k": {}}}}]);
    let version = &taken["metadata"]["resourceVersion"];
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": moved},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version}]);
    let (code, migrated) = outside.ask("PATCH", ONE, "application/json-patch+json", &patch).await;
    assert_eq!((code, managers(&migrated)), (200, vec![r#"c Apply {"f:data":{"f:k":{}}}"#.to_owned()]), "{migrated}");
    assert_eq!(outside.ask("PATCH", ONE, "application/json-patch+json", &patch).await.0, 409);
    // And another patch keeps them.
    let (_, patched) = outside.ask("PATCH", ONE, "application/merge-patch+json", &json!({"data": {"m": "v"}})).await;
    assert_eq!(managers(&patched).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_makes_wants_the_right_to_create() {
    let outside = outside().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/clusterroles/all";
    let rule = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "patch"]});
    assert_eq!(outside.server.ask("PATCH", rbac, &json!({"rules": [rule]})).await.0, 200);
    let (code, refused) = outside.apply("a", json!({"k": "v"})).await;
    assert_eq!(code, 403, "{refused}");
    let body = json!({"metadata": {"name": "x"}});
    assert_eq!(outside.server.ask("POST", MAPS, &body).await.0, 201);
    assert_eq!(outside.apply("a", json!({"k": "v"})).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_scale_is_managed_where_its_path_leads_and_a_status_is_nothing_else() {
    let outside = outside().await;
    let number = |name: &str| json!({"type": "object", "properties": {name: {"type": "integer"}}});
    let schema = json!({"type": "object", "properties": {"status": number("running"),
        "spec": {"type": "object", "properties": {"unit": {"type": "string"}, "size": number("count")}}}});
    let scale = json!({"specReplicasPath": ".spec.size.count", "statusReplicasPath": ".status.running"});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, "scale": scale}});
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}, "versions": [version]}});
    let (code, made) =
        outside.server.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    assert_eq!(code, 201, "{made}");
    let one = "/apis/example.com/v1/namespaces/default/things/x";
    let body = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"},
        "spec": {"unit": "m", "size": {"count": 1}}});
    // The definition is served once it is established.
    let deadline = Env::real().deadline(WAIT);
    loop {
        let (code, answer) = outside.ask("PATCH", &format!("{one}?fieldManager=a"), APPLY, &body).await;
        if code == 201 {
            break;
        }
        assert!(code == 404 && !deadline.passed(&Env::real()), "{code} {answer}");
        tokio::task::yield_now().await;
    }
    let scaled = json!({"spec": {"replicas": 3}});
    let (code, answer) =
        outside.ask("PATCH", &format!("{one}/scale?fieldManager=b"), "application/merge-patch+json", &scaled).await;
    assert_eq!((code, &answer["spec"]["replicas"]), (200, &json!(3)), "{answer}");
    let there = outside.get(one).await;
    assert_eq!(there["spec"]["size"]["count"], 3);
    let of_scale = r#"b Update {"f:spec":{"f:size":{"f:count":{}}}}"#;
    assert_eq!(managers(&there), [r#"a Apply {"f:spec":{"f:unit":{}}}"#, of_scale]);
    let reported = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"unit": "n"}, "status": {"running": 2}});
    let (code, answer) =
        outside.ask("PATCH", &format!("{one}/status?fieldManager=c"), "application/merge-patch+json", &reported).await;
    assert_eq!(code, 200, "{answer}");
    let mine = r#"c Update {"f:status":{".":{},"f:running":{}}}"#;
    assert_eq!(managers(&answer), [r#"a Apply {"f:spec":{"f:unit":{}}}"#, of_scale, mine]);
    let (code, answer) = outside.ask("PATCH", &format!("{one}?fieldManager=a"), APPLY, &body).await;
    let conflict = "Apply failed with 1 conflict: conflict with \"b\" with subresource \"scale\" using example.com/v1: .spec.size.count";
    assert_eq!((code, answer["message"].as_str()), (409, Some(conflict)), "{answer}");
    let (code, answer) = outside.ask("PATCH", one, "application/strategic-merge-patch+json", &reported).await;
    let types = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
    assert!(code == 415 && answer["message"].as_str().is_some_and(|why| why.ends_with(types)), "{answer}");
    let list = outside.get("/apis/example.com/v1/things").await;
    assert_eq!(list["metadata"]["continue"], "", "as upstream prints what is no struct: {list}");
    let version = outside.get(one).await["metadata"]["resourceVersion"].clone();
    // As in kubectl's migration from client-side apply: an empty entry resets the managers, also of custom objects.
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]);
    let (code, answer) = outside.ask("PATCH", one, "application/json-patch+json", &patch).await;
    assert_eq!((code, managers(&answer)), (200, vec![]), "{answer}");
    assert_ne!(answer["metadata"]["resourceVersion"], version);
    let (code, answer) = outside.ask("PATCH", &format!("{one}?fieldManager=a"), APPLY, &body).await;
    let conflict =
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using example.com/v1: .spec.size.count";
    assert_eq!((code, answer["message"].as_str()), (409, Some(conflict)), "the conflict names no manager: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_bound_while_a_user_applies_it() {
    let outside = outside().await;
    let one = "/api/v1/persistentvolumes/x";
    let claim = json!({"namespace": "default", "name": "c"});
    let body = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "x"}, "spec": {
        "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "claimRef": claim, "hostPath": {"path": "/x"}}});
    let applied = format!("{one}?fieldManager=a");
    let apply = || outside.ask("PATCH", &applied, APPLY, &body);
    assert_eq!(apply().await.0, 201);
    let bound = json!({"spec": {"claimRef": {"kind": "PersistentVolumeClaim", "uid": "u"}}});
    let (code, answer) =
        outside.ask("PATCH", &format!("{one}?fieldManager=b"), "application/merge-patch+json", &bound).await;
    assert_eq!(code, 200, "{answer}");
    let (code, answer) = apply().await;
    assert_eq!((code, &answer["spec"]["claimRef"]["uid"]), (200, &json!("u")), "claimRef is granular: {answer}");
}
