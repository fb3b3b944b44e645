//! Custom resources and their definitions: responses that were found to differ from upstream's.

use super::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const ALL: &str = "/apis/c.example.com/v1/namespaces/default/things";

fn definition(spec: &Value) -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec,
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}});
    json!({"metadata": {"name": "things.c.example.com"}, "spec": {
        "group": "c.example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}}]}})
}

fn thing(spec: &Value) -> Value {
    json!({"apiVersion": "c.example.com/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

impl Server {
    /// The code, the texts of the warnings, and the response.
    async fn warned(&self, method: &str, path: &str, body: &Value) -> (u16, Vec<String>, Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
        request.extensions_mut().insert(admin());
        let response = self.send(request).await;
        let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, warnings, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Serves things with this spec.
    async fn serve_things(&self, spec: &Value) {
        let (code, answer) = self.ask("POST", DEFINITIONS, &definition(spec)).await;
        assert_eq!(code, 201, "{answer}");
        Env::real()
            .timeout(WAIT, async {
                while self.ask("GET", ALL, &Value::Null).await.0 != 200 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("things are served");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_an_unchanged_part_breaks_warns() {
    let server = server().await;
    let rule = |rule: &str, message: &str| json!([{"rule": rule, "message": message}]);
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let ruled = json!({"type": "object", "properties": {
        "n": {"type": "integer", "x-kubernetes-validations": rule("self < 5", "n is small")},
        "once": {"type": "string", "x-kubernetes-validations": rule("self != oldSelf", "once changes")},
        "list": {"type": "array", "maxItems": 9, "items": {"type": "integer",
            "x-kubernetes-validations": rule("self < 5", "items are small")}},
        "broken": {"type": "integer", "x-kubernetes-validations": rule("10 / self > 0", "it divides")},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "x-kubernetes-validations": rule("false", "never")},
        "free": {"type": "string"}}});
    server.serve_things(&open).await;
    let one = format!("{ALL}/a");
    let given = json!({"n": 9, "once": "x", "list": [7, 1], "broken": 0, "open": {"a": 1}, "free": "a"});
    assert_eq!(server.ask("POST", ALL, &thing(&given)).await.0, 201);
    let versions = definition(&ruled)["spec"]["versions"].clone();
    let path = format!("{DEFINITIONS}/things.c.example.com");
    let (code, answer) = server.ask("PATCH", &path, &json!({"spec": {"versions": versions}})).await;
    assert_eq!(code, 200, "{answer}");
    // The new schema is in use once it rejects.
    let change = |spec: Value| json!({"spec": spec});
    let later = Env::real().timeout(WAIT, async {
        while server.ask("PATCH", &format!("{one}?dryRun=All"), &change(json!({"n": 8}))).await.0 != 422 {
            tokio::task::yield_now().await;
        }
    });
    later.await.expect("the new schema is served");
    let causes = |answer: &Value| {
        let all = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|cause| cause["field"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let small = "299 - \"spec.n: Invalid value: 9: n is small\"";
    let item = "299 - \"spec.list[0]: Invalid value: 7: items are small\"";
    // Rejected: a transition rule, a rule that can't be evaluated, and a part with a field outside the schema.
    let (code, warnings, answer) = server.warned("PATCH", &one, &change(json!({"free": "b"}))).await;
    assert_eq!((code, causes(&answer)), (422, ["spec.broken", "spec.once", "spec.open"].map(str::to_owned).into()));
    assert_eq!(warnings, [item, small]);
    let (code, warnings, answer) =
        server.warned("PATCH", &one, &change(json!({"free": "b", "once": "y", "broken": 1, "open": null}))).await;
    assert_eq!((code, warnings), (200, vec![item.to_owned(), small.to_owned()]), "{answer}");
    // The items of a list without keys are unchanged only if the whole list is.
    let (code, warnings, answer) = server.warned("PATCH", &one, &change(json!({"once": "z", "list": [7]}))).await;
    assert_eq!((code, causes(&answer)), (422, vec!["spec.list[0]".to_owned()]), "{answer}");
    assert_eq!(warnings, [small]);
    let (code, warnings, answer) =
        server.warned("PATCH", &one, &change(json!({"once": "z", "n": 1, "list": [1]}))).await;
    assert_eq!((code, warnings), (200, Vec::new()), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_of_custom_resources_are_refused_as_their_handler_refuses() {
    let server = server().await;
    server.serve_things(&json!({"type": "object"})).await;
    assert_eq!(server.ask("POST", ALL, &thing(&json!({}))).await.0, 201);
    let unsupported = |verb: &str| format!("{verb} is not supported on resources of kind \"things.c.example.com\"");
    let missing = "things.c.example.com \"a\" not found";
    let nameless = "name must be provided";
    for (method, below, code, message) in [
        ("GET", "/a/unknown", 404, missing.to_owned()),
        ("PUT", "/a/unknown", 404, missing.to_owned()),
        ("POST", "/a/unknown", 404, missing.to_owned()),
        ("PATCH", "/a/unknown", 404, missing.to_owned()),
        ("DELETE", "/a/unknown", 404, missing.to_owned()),
        ("DELETE", "/a/scale", 404, missing.to_owned()),
        ("POST", "/a/status", 405, unsupported("create")),
        ("DELETE", "/a/status", 405, unsupported("delete")),
        ("OPTIONS", "/a", 405, unsupported("")),
        ("PUT", "", 400, nameless.to_owned()),
        ("PATCH", "", 400, nameless.to_owned()),
    ] {
        let (got, answer) = server.ask(method, &format!("{ALL}{below}"), &thing(&json!({}))).await;
        assert_eq!((got, answer["message"].as_str()), (code, Some(&*message)), "{method} {below}: {answer}");
        let details = &answer["details"];
        if code == 405 {
            assert_eq!((&details["group"], &details["kind"]), (&json!("c.example.com"), &json!("things")));
        }
    }
    // By its verb, this is a create.
    let mut other = thing(&json!({}));
    other["metadata"]["name"] = json!("b");
    let (code, answer) = server.ask("POST", &format!("{ALL}/c"), &other).await;
    assert_eq!((code, &answer["metadata"]["name"]), (201, &json!("b")), "{answer}");
    assert_eq!(server.ask("HEAD", &format!("{ALL}/b"), &Value::Null).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_shows_the_list_of_versions_that_it_was_given() {
    let server = server().await;
    for (versions, shown) in [(json!([]), "[]"), (Value::Null, "null")] {
        let mut given = definition(&json!({"type": "object"}));
        given["spec"]["versions"] = versions;
        let (code, answer) = server.ask("POST", DEFINITIONS, &given).await;
        let causes = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
        let message = format!("Invalid value: {shown}: must have exactly one version marked as storage version");
        let is_reported =
            causes.iter().any(|cause| cause["field"] == "spec.versions" && cause["message"] == json!(message));
        assert!(code == 422 && is_reported, "{answer}");
    }
}

/// Upstream responds to each delete with the marked definition until it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_returns_the_definition_that_waits_for_its_finalizer() {
    let server = server().await;
    let mut held = definition(&json!({"type": "object"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(server.ask("POST", DEFINITIONS, &held).await.0, 201);
    for _ in 0..2 {
        let path = format!("{DEFINITIONS}/things.c.example.com");
        let (code, answer) = server.ask("DELETE", &path, &Value::Null).await;
        assert_eq!((code, &answer["kind"]), (200, &json!("CustomResourceDefinition")), "{answer}");
        assert!(answer["metadata"]["deletionTimestamp"].is_string() && answer["details"].is_null(), "{answer}");
    }
}

/// Upstream responds with 500 to a version that is no number; here a client's mistake is 400 (docs/compatibility.md).
#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_version_is_no_number_is_a_bad_request() {
    let server = server().await;
    assert_eq!(server.ask("POST", MAPS, &json!({"metadata": {"name": "m"}})).await.0, 201);
    let map = json!({"metadata": {"name": "m", "resourceVersion": "abc"}});
    let (code, answer) = server.ask("PUT", &format!("{MAPS}/m"), &map).await;
    assert_eq!((code, &answer["reason"]), (400, &json!("BadRequest")), "{answer}");
}
