//! Rules at the cost limit, and another user's requests beside them.

use std::sync::Arc;

use super::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const HEAVIES: &str = "/apis/example.com/v1/namespaces/default/heavies";

/// Each rule is a nested loop whose cost is just below the limit.
fn definition() -> Value {
    let list = json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1000});
    let rule = |n: usize| json!({"rule": format!("self.all(x, self.all(y, x + y >= -{n}))"), "message": "never"});
    let lists: serde_json::Map<String, Value> = (0..8)
        .map(|n| {
            let mut list = list.clone();
            list["x-kubernetes-validations"] = json!([rule(n)]);
            (format!("list{n}"), list)
        })
        .collect();
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "heavies.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "heavies", "kind": "Heavy"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": lists}}}]}})
}

/// One worker serves all requests. Without the fair queue, the rules would block it until they end.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_neighbour_is_answered_while_rules_are_costly() {
    let server = Arc::new(server().await);
    let (code, made) = server.ask("POST", DEFINITIONS, &definition()).await;
    assert_eq!(code, 201, "{made}");
    let list: Vec<usize> = vec![1; 300];
    let mut heavy = json!({"apiVersion": "example.com/v1", "kind": "Heavy", "metadata": {"name": "h"}});
    for n in 0..8 {
        heavy[format!("list{n}")] = json!(list);
    }
    let deadline = Env::real().deadline(WAIT);
    while server.ask("GET", HEAVIES, &Value::Null).await.0 != 200 {
        assert!(!deadline.passed(&Env::real()), "the definition is served");
        tokio::task::yield_now().await;
    }
    let costly = tokio::spawn({
        let server = server.clone();
        async move { server.ask("POST", HEAVIES, &heavy).await }
    });
    let neighbour = tokio::spawn({
        let (server, costly) = (server.clone(), costly.abort_handle());
        async move {
            let (code, answer) = server.ask("GET", "/api/v1/namespaces/default", &Value::Null).await;
            assert_eq!(code, 200, "{answer}");
            costly.is_finished()
        }
    });
    assert!(!neighbour.await.unwrap(), "answered while the rules run");
    let (code, made) = costly.await.unwrap();
    assert_eq!(code, 201, "{made}");
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

/// Deletes and virtual objects are checked by policies, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_neighbour_is_answered_while_policies_of_deletes_and_tokens_are_costly() {
    let server = Arc::new(server().await);
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "x".repeat(400)}});
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/configmaps", &map).await.0, 201);
    // As many iterations over the existing object as the cost limit allows.
    let digits = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    let slow = format!(
        "{digits}.all(a, {digits}.all(b, {digits}.all(c, {digits}.all(d, {digits}.all(e, a + b + c + d + e >= 0)))))"
    );
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "slow"}, "spec": {"failurePolicy": "Ignore",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"]},
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["serviceaccounts/token"]}]},
            "validations": [{"expression": slow}]}});
    let (code, made) = server.ask("POST", POLICIES, &policy).await;
    assert_eq!(code, 201, "{made}");
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "slow"}, "spec": {"policyName": "slow", "validationActions": ["Deny"]}});
    assert_eq!(server.ask("POST", BINDINGS, &binding).await.0, 201);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}});
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"]}});
    for (verb, path, body, wanted) in [
        ("POST", "/api/v1/namespaces/default/serviceaccounts/a/token", token, 201),
        ("DELETE", "/api/v1/namespaces/default/configmaps/m", Value::Null, 200),
    ] {
        let costly = tokio::spawn({
            let server = server.clone();
            async move { server.ask(verb, path, &body).await }
        });
        let neighbour = tokio::spawn({
            let (server, costly) = (server.clone(), costly.abort_handle());
            async move {
                let (code, answer) = server.ask("GET", "/api/v1/namespaces/default", &Value::Null).await;
                assert_eq!(code, 200, "{answer}");
                costly.is_finished()
            }
        });
        assert!(!neighbour.await.unwrap(), "answered while {verb} runs");
        let (code, answer) = costly.await.unwrap();
        assert_eq!(code, wanted, "{answer}");
    }
}
