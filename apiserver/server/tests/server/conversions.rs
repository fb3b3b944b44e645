//! Conversion webhooks with good and bad responses: reads, writes, lists and watches of a custom resource in a version
//! that is not the stored one.

use super::webhooks::{Hooks, hooks};
use super::*;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/things.example.com";
const V1: &str = "/apis/example.com/v1/namespaces/default/things";
const V2: &str = "/apis/example.com/v2/namespaces/default/things";

/// `spec.size` of v1 is `spec.sizes` of v2.
fn converted(old: &Value, api_version: &Value) -> Value {
    let mut new = old.clone();
    new["apiVersion"] = api_version.clone();
    // An object that is pruned before a merge may have no spec.
    let Some(spec) = new["spec"].as_object_mut() else { return new };
    if let Some(size) = spec.remove("size") {
        spec.insert("sizes".into(), json!([size]));
    } else if let Some(sizes) = spec.remove("sizes") {
        spec.insert("size".into(), sizes[0].clone());
    }
    new
}

/// The response of the hook at a path to a review.
pub(super) fn answered(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let objects = request["objects"].as_array().unwrap();
    let mut new: Vec<Value> = objects.iter().map(|old| converted(old, &request["desiredAPIVersion"])).collect();
    let mut uid = request["uid"].clone();
    let mut padding = String::new();
    match path {
        "/label" => {
            let more = json!({"labels": {"by": "hook"}, "finalizers": ["example.com/f"], "generation": 99});
            new[0]["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        "/fewer" => drop(new.pop()),
        "/rename" => new[0]["metadata"]["name"] = json!("other"),
        "/kind" => new[0]["kind"] = json!("Other"),
        "/unlabelled" => new[0]["metadata"]["labels"] = json!({"a b": "c"}),
        "/wrong" => uid = json!("another"),
        "/huge" => padding = "A".repeat(16 << 20),
        "/failure" => {
            let result = json!({"status": "Failure", "message": "not today"});
            return json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview",
                "response": {"uid": uid, "result": result}});
        }
        _ => {}
    }
    let result = json!({"status": "Success"});
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "padding": padding,
        "response": {"uid": uid, "result": result, "convertedObjects": new}})
}

fn definition(hooks: &Hooks, path: &str, bundle: &str) -> Value {
    let sizes = |name: &str, schema: Value| {
        json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": schema}}}}})
    };
    let one = sizes("v1", json!({"size": {"type": "integer"}, "unit": {"type": "string", "default": "m"}}));
    let integers = json!({"type": "array", "items": {"type": "integer"}});
    let two = sizes("v2", json!({"sizes": integers, "lost": {"type": "string", "default": "x"}}));
    let client = json!({"url": format!("https://{}{path}", hooks.address), "caBundle": bundle});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing", "shortNames": [path.trim_start_matches('/')]},
            "versions": [one, two], "conversion": {"strategy": "Webhook",
                "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client}}}})
}

/// A thing in v2, with an empty spec.
fn thing(name: &str, spec: Value) -> Value {
    let version = if spec["sizes"].is_null() { "v1" } else { "v2" };
    json!({"apiVersion": format!("example.com/{version}"), "kind": "Thing", "metadata": {"name": name, "labels": {"k": "v"}}, "spec": spec})
}

impl Server {
    async fn defined(&self, hooks: &Hooks, path: &str, bundle: &str) {
        let mut wanted = definition(hooks, path, bundle);
        let (code, there) = self.ask("GET", DEFINITION, &Value::Null).await;
        let (code, answer) = if code == 404 {
            self.ask("POST", DEFINITIONS, &wanted).await
        } else {
            wanted["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
            self.ask("PUT", DEFINITION, &wanted).await
        };
        assert!(code < 300, "{answer}");
        // The short name shows that the definition is served.
        let deadline = Env::real().deadline(WAIT);
        loop {
            let served = self.ask("GET", "/apis/example.com/v2", &Value::Null).await.1;
            if served["resources"][0]["shortNames"][0] == path.trim_start_matches('/') {
                return;
            }
            assert!(!deadline.passed(&Env::real()), "it is not served: {served}");
            tokio::task::yield_now().await;
        }
    }
}

/// The paths of the hook's requests, and their numbers of objects.
fn take_requests(hooks: &Hooks) -> Vec<(String, usize)> {
    let reviews = std::mem::take(&mut *hooks.reviews.lock().unwrap());
    let count = |review: &Value| review["request"]["objects"].as_array().unwrap().len();
    reviews.iter().map(|review| (review["path"].as_str().unwrap().to_owned(), count(review))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_and_policies_of_another_version_see_objects_converted() {
    let (server, hooks) = (server().await, hooks().await);
    server.defined(&hooks, "/good", &hooks.ca).await;
    let rules =
        json!([{"apiGroups": ["example.com"], "apiVersions": ["v2"], "operations": ["*"], "resources": ["things"]}]);
    let mut hook = hooks.hook("/sized", "things");
    hook["rules"] = rules.clone();
    hook["matchConditions"] = json!([{"name": "new", "expression": "object.spec.sizes[0] > 0"}]);
    server.hooked("Mutating", "a", vec![hook]).await;
    let (code, made) = server.ask("POST", V1, &thing("a", json!({"size": 5}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"size": 5, "unit": "m"}));
    assert_eq!(made["metadata"]["labels"], json!({"size": "5"}));
    let reviews = std::mem::take(&mut *hooks.reviews.lock().unwrap());
    let review = &reviews.iter().find(|review| review["path"] == "/sized").unwrap()["request"];
    assert_eq!((&review["kind"]["version"], &review["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
    assert_eq!(review["object"]["apiVersion"], "example.com/v2");
    let admission = "/apis/admissionregistration.k8s.io/v1";
    let policy = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "object.spec.sizes[0] < 7"}]}});
    let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    for (plural, object) in [("validatingadmissionpolicies", policy), ("validatingadmissionpolicybindings", binding)] {
        assert_eq!(server.ask("POST", &format!("{admission}/{plural}"), &object).await.0, 201);
    }
    let (code, refused) = server.ask("POST", V1, &thing("b", json!({"size": 7}))).await;
    let why = refused["message"].as_str().unwrap_or_default();
    assert!(code == 422 && why.contains("failed expression: object.spec.sizes[0] < 7"), "{refused}");
    assert_eq!(server.ask("POST", V1, &thing("c", json!({"size": 6}))).await.0, 201);
    // An object whose conversion fails is not skipped.
    server.defined(&hooks, "/failure", &hooks.ca).await;
    let (code, refused) = server.ask("POST", V1, &thing("d", json!({"size": 6}))).await;
    let why = refused["message"].as_str().unwrap_or_default();
    assert!(code == 500 && why.contains("not today"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_shown_and_taken_in_every_version() {
    let (server, hooks) = (server().await, hooks().await);
    server.defined(&hooks, "/good", &hooks.ca).await;
    assert_eq!(server.ask("POST", V1, &thing("a", json!({"size": 1}))).await.0, 201);
    assert_eq!(take_requests(&hooks), [], "an object in the stored version needs no conversion");
    let (code, made) = server.ask("POST", V2, &thing("b", json!({"sizes": [2]}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"sizes": [2]})), "{made}");
    let (_, shown) = server.ask("GET", &format!("{V1}/b"), &Value::Null).await;
    assert_eq!(shown["spec"], json!({"size": 2, "unit": "m"}), "with defaults of the version that is stored");
    let (_, shown) = server.ask("GET", &format!("{V2}/a"), &Value::Null).await;
    assert_eq!((&shown["spec"], &shown["apiVersion"]), (&json!({"sizes": [1]}), &json!("example.com/v2")));
    take_requests(&hooks);
    assert_eq!(server.ask("GET", &format!("{V2}/a"), &Value::Null).await.0, 200);
    assert_eq!(take_requests(&hooks), [], "a revision is converted once");
    let mut watch = server.watch(&format!("{V2}?watch=1")).await;
    assert_eq!(watch.next().await.unwrap().1, "a");
    assert_eq!(watch.next().await.unwrap().1, "b");
    for at in 0..250 {
        assert_eq!(server.ask("POST", V1, &thing(&format!("c{at}"), json!({"size": at}))).await.0, 201);
        assert_eq!(watch.next().await.unwrap().1, format!("c{at}"));
    }
    // Each event was converted once for the watch, and the list uses the same results.
    assert_eq!(take_requests(&hooks).iter().map(|(_, count)| count).sum::<usize>(), 251, "with b");
    let (code, list) = server.ask("GET", V2, &Value::Null).await;
    let items = list["items"].as_array().unwrap();
    assert_eq!((code, items.len()), (200, 252));
    assert!(items.iter().all(|item| item["spec"]["sizes"].is_array()), "{list}");
    assert_eq!(take_requests(&hooks), []);
    // Another definition: all objects are converted again, a hundred per request.
    server.defined(&hooks, "/again", &hooks.ca).await;
    assert_eq!(server.ask("GET", V2, &Value::Null).await.0, 200);
    let counts: Vec<usize> = take_requests(&hooks).into_iter().map(|(_, count)| count).collect();
    assert_eq!(counts, [100, 100, 52]);
    let patch = json!({"spec": {"sizes": [7]}});
    let (code, patched) = server.ask("PATCH", &format!("{V2}/a"), &patch).await;
    assert_eq!((code, &patched["spec"]["sizes"]), (200, &json!([7])), "{patched}");
    assert_eq!(server.ask("GET", &format!("{V1}/a"), &Value::Null).await.1["spec"], json!({"size": 7, "unit": "m"}));
    assert_eq!(server.ask("DELETE", &format!("{V2}/a"), &Value::Null).await.0, 200);
}

/// The managers of the spec's fields, with their versions.
fn managers(object: &Value) -> Vec<(String, String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = object["metadata"]["managedFields"].as_array().unwrap().iter();
    let of = |entry: &Value| {
        let fields = entry["fieldsV1"]["f:spec"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
        (text(&entry["manager"]), text(&entry["apiVersion"]).replace("example.com/", ""), fields.collect())
    };
    entries.map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_in_another_version_keeps_own_fields_and_takes_others() {
    let (outside, hooks) = (apply::outside().await, hooks().await);
    outside.server.defined(&hooks, "/good", &hooks.ca).await;
    let apply = async |path: &str, manager: &str, spec: Value, more: &str| {
        let path = format!("{path}/a?fieldManager={manager}{more}");
        outside.ask("PATCH", &path, "application/apply-patch+yaml", &thing("a", spec)).await
    };
    assert_eq!(apply(V1, "one", json!({"size": 1, "unit": "k"}), "").await.0, 201);
    // The same manager, in another version: its new fields are set, and those that it no longer applies are removed.
    let (code, applied) = apply(V2, "one", json!({"sizes": [2], "lost": "y"}), "").await;
    assert_eq!((code, &applied["spec"]["sizes"]), (200, &json!([2])), "{applied}");
    assert_eq!(managers(&applied), [("one".into(), "v2".into(), vec!["f:lost".into(), "f:sizes".into()])]);
    let (_, shown) = outside.ask("GET", &format!("{V1}/a"), "", &Value::Null).await;
    assert_eq!(shown["spec"]["size"], 2, "{shown}");
    // Another manager gets a conflict, whatever version it uses.
    let (code, refused) = apply(V1, "two", json!({"size": 3}), "").await;
    let why = refused["message"].as_str().unwrap();
    assert!(code == 409 && why.contains("conflict with \"one\": .spec.sizes"), "{code} {refused}");
    assert_eq!(apply(V1, "two", json!({"size": 2}), "").await.0, 200, "the same is no conflict");
    let (code, forced) = apply(V1, "two", json!({"size": 3}), "&force=true").await;
    assert_eq!((code, &forced["spec"]["size"]), (200, &json!(3)), "{forced}");
    let owned = managers(&forced);
    assert!(owned.contains(&("one".into(), "v2".into(), vec!["f:lost".into()])), "{owned:?}");
    assert!(owned.contains(&("two".into(), "v1".into(), vec!["f:size".into()])), "{owned:?}");
    // So does a write that is no apply.
    let merge = "application/merge-patch+json";
    let (code, updated) =
        outside.ask("PATCH", &format!("{V2}/a?fieldManager=three"), merge, &json!({"spec": {"sizes": [4]}})).await;
    assert_eq!(code, 200, "{updated}");
    let owned = managers(&updated);
    assert!(
        !owned.iter().any(|(manager, _, fields)| manager == "two" && fields.contains(&"f:size".into())),
        "{owned:?}"
    );
    // The webhook fails: no manager's fields are guessed.
    outside.server.defined(&hooks, "/failure", &hooks.ca).await;
    let (code, refused) = apply(V1, "two", json!({"size": 5}), "&force=true").await;
    assert!(code == 500 && refused["message"].as_str().unwrap().contains("not today"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_converts_as_the_write_does() {
    let (server, hooks) = (server().await, hooks().await);
    server.defined(&hooks, "/good", &hooks.ca).await;
    let (code, dry) = server.ask("POST", &format!("{V2}?dryRun=All"), &thing("a", json!({"sizes": [1, 2]}))).await;
    assert_eq!((code, &dry["spec"]), (201, &json!({"sizes": [1]})), "{dry}");
    assert_eq!(server.ask("GET", &format!("{V2}/a"), &Value::Null).await.0, 404);
    server.defined(&hooks, "/failure", &hooks.ca).await;
    let (code, refused) = server.ask("POST", &format!("{V2}?dryRun=All"), &thing("a", json!({"sizes": [1]}))).await;
    assert!(code == 500 && refused["message"].as_str().unwrap().contains("not today"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversion_changes_labels_and_nothing_else_of_metadata() {
    let (server, hooks) = (server().await, hooks().await);
    server.defined(&hooks, "/label", &hooks.ca).await;
    assert_eq!(server.ask("POST", V1, &thing("a", json!({"size": 1}))).await.0, 201);
    let shown = server.ask("GET", &format!("{V2}/a"), &Value::Null).await.1;
    let metadata = &shown["metadata"];
    assert_eq!((&metadata["labels"], &metadata["generation"]), (&json!({"by": "hook"}), &json!(1)));
    assert!(metadata["finalizers"].is_null(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_webhooks_are_named_and_harm_no_other_kind() {
    let (server, hooks) = (Arc::new(server().await), hooks().await);
    server.defined(&hooks, "/good", &hooks.ca).await;
    assert_eq!(server.ask("POST", V1, &thing("a", json!({"size": 1}))).await.0, 201);
    let rows = [
        ("/never", "context deadline exceeded"),
        ("/endless", "reading the answer: length limit exceeded"),
        ("/huge", "reading the answer: length limit exceeded"),
        ("/redirect", "the webhook redirects (307 Temporary Redirect), which is not followed"),
        ("/html", "failed: couldn't get version/kind; json parse error: expected value at line 1 column 1"),
        ("/fails", "failed: an error on the server (\"on fire\") has prevented the request from succeeding"),
        ("/wrong", "failed: expected response.uid="),
        ("/fewer", "returned 0 objects, expected 1"),
        ("/rename", "returned invalid object: must have the same name: a != other"),
        ("/kind", "returned invalid object at index 0: invalid kind (expected Thing, received Other)"),
        ("/unlabelled", "returned invalid metadata: metadata.labels: Invalid value: \"a b\": name part must"),
        ("/failure", "failed: not today"),
    ];
    for (path, why) in rows {
        server.defined(&hooks, path, &hooks.ca).await;
        // All but one respond at once, however slow this machine is.
        let patience = if path == "/never" { "1s" } else { "30s" };
        let asking = {
            let server = server.clone();
            tokio::spawn(async move { server.ask("GET", &format!("{V2}/a?timeout={patience}"), &Value::Null).await })
        };
        let (code, there) = server.ask("GET", &format!("{V1}/a"), &Value::Null).await;
        assert_eq!((code, &there["spec"]), (200, &json!({"size": 1, "unit": "m"})), "others go on");
        let (code, refused) = asking.await.unwrap();
        let message = refused["message"].as_str().unwrap();
        let who = "conversion webhook for example.com/v1, Kind=Thing ";
        let is_named = message.starts_with(who) && message.contains(why);
        // On a slow machine, the request times out first.
        let is_late = code == 504 && path == "/never";
        assert!(is_late || (code == 500 && is_named), "{path}: {code} {message}");
        let (code, refused) = server.ask("GET", &format!("{V2}?timeout={patience}"), &Value::Null).await;
        assert!(code == 500 || code == 504, "{path}: a list is whole or not at all: {code} {refused}");
        let (code, refused) =
            server.ask("POST", &format!("{V2}?timeout={patience}"), &thing("b", json!({"sizes": [1]}))).await;
        assert!(code == 500 || code == 504, "{path}: nothing is stored that isn't converted: {code} {refused}");
        assert_eq!(server.ask("GET", &format!("{V1}/b"), &Value::Null).await.0, 404);
    }
    let now = server.ask("GET", V1, &Value::Null).await.1["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = server.watch(&format!("{V2}?watch=1&resourceVersion={now}")).await;
    assert_eq!(server.ask("POST", V1, &thing("c", json!({"size": 1}))).await.0, 201);
    assert_eq!(watch.next().await.unwrap().0, "ERROR");
    assert_eq!(watch.next().await, None, "a failed conversion ends the watch");
    server.defined(&hooks, "/good", "").await;
    let (code, refused) = server.ask("GET", &format!("{V2}/a"), &Value::Null).await;
    assert!(code == 500 && refused["message"].as_str().unwrap().contains("names no caBundle"), "{refused}");
    // Another path has another short name, by which it is recognized once it is served.
    server.defined(&hooks, "/well", &hooks.ca).await;
    assert_eq!(
        server.ask("GET", &format!("{V2}/a"), &Value::Null).await.0,
        200,
        "and is asked again once it answers well"
    );
    let page = server.metrics().await;
    let counted = |line: &str| page.lines().any(|one| one.starts_with(line) && !one.ends_with(" 0"));
    for (name, labels) in [
        ("conversion_webhook_request_total", "result=\"success\",failure_type=\"\"}"),
        ("conversion_webhook_request_total", "result=\"failure\",failure_type=\"conversion_webhook_call_failure\"}"),
        ("conversion_webhook_duration_seconds_count", "result=\"failure\""),
        ("crd_conversion_webhook_duration_seconds_count", "crd_name=\"things.example.com\",from_version=\"v1\""),
    ] {
        assert!(counted(&format!("apiserver_{name}{{{labels}")), "{name}{labels}: {page}");
    }
}
