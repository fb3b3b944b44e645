//! Policies in CEL over the whole write path.

use super::*;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

fn rules() -> Value {
    json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"],
        "resources": ["configmaps"]}])
}

fn mutable_rules() -> Value {
    json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["configmaps"]}])
}

impl Server {
    async fn validating(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["matchConstraints"]["resourceRules"] = rules();
        let policy = json!({"metadata": {"name": name}, "spec": spec});
        let (code, answer) = self.ask("POST", &format!("{GROUP}/validatingadmissionpolicies"), &policy).await;
        assert_eq!(code, 201, "{answer}");
        let spec = json!({"policyName": name, "validationActions": ["Deny"]});
        let binding = json!({"metadata": {"name": name}, "spec": spec});
        let (code, answer) = self.ask("POST", &format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn mutating(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["matchConstraints"]["resourceRules"] = mutable_rules();
        let policy = json!({"metadata": {"name": name}, "spec": spec});
        let (code, answer) = self.ask("POST", &format!("{GROUP}/mutatingadmissionpolicies"), &policy).await;
        assert_eq!(code, 201, "{answer}");
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
        let (code, answer) = self.ask("POST", &format!("{GROUP}/mutatingadmissionpolicybindings"), &binding).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn map(&self, name: &str, data: Value) -> (u16, Value) {
        self.ask("POST", MAPS, &json!({"metadata": {"name": name}, "data": data})).await
    }
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_the_authorizer_and_the_namespace_are_seen() {
    let server = server().await;
    let spec = json!({
        "variables": [
            {"name": "size", "expression": "has(object.data) ? size(object.data) : 0"},
            {"name": "small", "expression": "variables.size < 2"},
        ],
        "matchConditions": [{"name": "not-delete", "expression": "request.operation != 'DELETE'"}],
        "validations": [
            {"expression": "variables.small", "messageExpression": "'too many: ' + string(variables.size)"},
            {"expression": "namespaceObject.metadata.name == 'default' && request.userInfo.username == 'admin'"},
            {"expression": "authorizer.requestResource.check('delete').allowed()"},
            {"expression": "!authorizer.serviceAccount('default', 'nobody').group('').resource('pods').check('get').allowed()"},
            {"expression": "!authorizer.serviceAccount('default', 'nobody').path('/metrics').check('get').allowed()"},
        ],
    });
    server.validating("p", spec).await;
    let (code, answer) = server.map("a", json!({"x": "1", "y": "2"})).await;
    let by = "ValidatingAdmissionPolicy 'p' with binding 'p' denied request";
    assert_eq!(
        (code, answer["message"].as_str().unwrap()),
        (422, &*format!("configmaps \"a\" is forbidden: {by}: too many: 2"))
    );
    assert_eq!(server.map("a", json!({"x": "1"})).await.0, 201);
    assert_eq!(server.ask("DELETE", &format!("{MAPS}/a"), &Value::Null).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_managed_fields() {
    let server = server().await;
    let expression = "object.metadata.managedFields.exists(entry, entry.manager == 'me')";
    let spec = json!({"validations": [{"expression": expression}],
        "matchConditions": [{"name": "not-delete", "expression": "request.operation != 'DELETE'"}]});
    server.validating("p", spec).await;
    assert_eq!(server.map("a", json!({"a": "a"})).await.0, 422);
    let map = json!({"metadata": {"name": "a"}, "data": {"a": "a"}});
    let (code, answer) = server.ask("POST", &format!("{MAPS}?fieldManager=me"), &map).await;
    assert_eq!(code, 201, "{answer}");
    // It also sees existing objects.
    assert_eq!(server.ask("PATCH", &format!("{MAPS}/a"), &json!({"data": {"a": "b"}})).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_violations_are_rejected_with_their_path() {
    let server = server().await;
    server.mutating("p", json!({"reinvocationPolicy": "Never", "mutations": [apply("Object{nothing: 1}")]})).await;
    let (code, answer) = server.map("a", json!({})).await;
    let why = "policy 'p' with binding 'p' denied request: error applying patch: failed to convert patch object to typed \
               object: .nothing: field not declared in schema";
    assert_eq!((code, answer["message"].as_str()), (403, Some(why)));
}

#[tokio::test(flavor = "multi_thread")]
async fn later_policies_see_earlier_mutations() {
    let server = server().await;
    // The first policy sees the second one's change, as it requests reinvocation.
    let label =
        "Object{metadata: Object.metadata{labels: {'first': has(object.metadata.annotations) ? 'seen' : 'unseen'}}}";
    let spec = json!({"reinvocationPolicy": "IfNeeded", "mutations": [apply(label)]});
    server.mutating("a", spec).await;
    let patch = "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'n': object.metadata.name}}]";
    let mutation = json!({"patchType": "JSONPatch", "jsonPatch": {"expression": patch}});
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [mutation],
        "matchConditions": [{"name": "once", "expression": "!has(object.metadata.annotations)"}]});
    server.mutating("b", spec).await;
    server.validating("c", json!({"validations": [{"expression": "request.operation == 'DELETE' || object.metadata.labels.first == 'seen'"}]})).await;
    let (code, answer) = server.map("x", json!({})).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(answer["metadata"]["labels"], json!({"first": "seen"}));
    assert_eq!(answer["metadata"]["annotations"], json!({"n": "x"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_policy_are_named_and_harm_nothing() {
    let server = server().await;
    let wrong = apply("Object{data: object.nothing}");
    let spec = json!({"failurePolicy": "Ignore", "reinvocationPolicy": "Never", "mutations": [wrong]});
    server.mutating("ignored", spec).await;
    let (code, answer) = server.map("x", json!({"a": "b"})).await;
    assert_eq!((code, &answer["data"]), (201, &json!({"a": "b"})), "{answer}");
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [apply("Object{data: object.nothing}")]});
    server.mutating("wrong", spec).await;
    let (code, answer) = server.map("y", json!({})).await;
    let message = "policy 'wrong' with binding 'wrong' denied request: expression 'Object{data: object.nothing}' resulted in error: no such key: nothing";
    assert_eq!((code, answer["reason"].as_str()), (403, Some("Invalid")), "{answer}");
    assert_eq!(answer["message"], message);
    for plural in ["mutatingadmissionpolicies/wrong", "mutatingadmissionpolicies/ignored"] {
        assert_eq!(server.ask("DELETE", &format!("{GROUP}/{plural}"), &Value::Null).await.0, 200);
    }
    let squares = "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, true))))";
    server.validating("endless", json!({"validations": [{"expression": squares}]})).await;
    let data: serde_json::Map<String, Value> = (0..60).map(|at| (format!("k{at}"), json!("v"))).collect();
    let (code, answer) = server.map("z", data.into()).await;
    let message = answer["message"].as_str().unwrap();
    assert_eq!(code, 422, "{answer}");
    assert!(message.contains("operation cancelled: actual cost limit exceeded"), "{message}");
}

fn json_patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_with_a_failed_test_change_nothing_and_none_changes_identity() {
    let server = server().await;
    let patch =
        "[JSONPatch{op: 'test', path: '/data/a', value: '1'}, JSONPatch{op: 'add', path: '/data/b', value: '2'}]";
    server.mutating("tests", json!({"reinvocationPolicy": "Never", "mutations": [json_patch(patch)]})).await;
    let (code, answer) = server.map("x", json!({"a": "0"})).await;
    assert_eq!((code, &answer["data"]), (201, &json!({"a": "0"})), "{answer}");
    let (code, answer) = server.map("y", json!({"a": "1"})).await;
    assert_eq!((code, &answer["data"]), (201, &json!({"a": "1", "b": "2"})), "{answer}");
    let mutations = [apply("Object{kind: 'Secret', apiVersion: 'v9', data: {'c': '3'}}")];
    server.mutating("kinds", json!({"reinvocationPolicy": "Never", "mutations": mutations})).await;
    let (code, answer) = server.map("z", json!({})).await;
    assert_eq!((code, &answer["kind"], &answer["apiVersion"]), (201, &json!("ConfigMap"), &json!("v1")), "{answer}");
    let owner = "Object.metadata.ownerReferences{apiVersion: 'v1', kind: 'Pod', name: 'x', uid: 'u'}";
    let mutation = apply(&format!("Object{{metadata: Object.metadata{{ownerReferences: [{owner}]}}}}"));
    server.mutating("owners", json!({"reinvocationPolicy": "Never", "mutations": [mutation]})).await;
    let (code, answer) = server.map("o", json!({})).await;
    let why = "may not mutate atomic arrays, maps or structs: .metadata.ownerReferences[0]";
    assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(why), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_patch_that_does_not_apply_is_refused_with_the_librarys_reason() {
    let server = server().await;
    for (name, operation, why) in [
        (
            "add",
            "JSONPatch{op: 'add', path: '/metadata/labels/a', value: 'b'}",
            "add operation does not apply: doc is missing path: \"/metadata/labels/a\": missing value",
        ),
        (
            "remove",
            "JSONPatch{op: 'remove', path: '/data/none'}",
            "error in remove for path: '/data/none': Unable to remove nonexistent key: none: missing value",
        ),
        ("op", "JSONPatch{op: 'change', path: '/data/a', value: 'b'}", "Unexpected kind: change"),
    ] {
        let mutation = json_patch(&format!("[{operation}]"));
        server.mutating(name, json!({"reinvocationPolicy": "Never", "mutations": [mutation]})).await;
        let (code, answer) = server.map("x", json!({"a": "0"})).await;
        let message = format!("policy '{name}' with binding '{name}' denied request: JSON Patch: {why}");
        assert_eq!(
            (code, &answer["message"], &answer["reason"]),
            (403, &json!(message), &json!("Invalid")),
            "{answer}"
        );
        for plural in ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"] {
            assert_eq!(server.ask("DELETE", &format!("{GROUP}/{plural}/{name}"), &Value::Null).await.0, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_skip_reviews_and_see_webhook_configurations() {
    let server = server().await;
    let any = json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"]}]);
    let spec = json!({"matchConstraints": {"resourceRules": any}, "validations": [{"expression": "false"}]});
    let policy = json!({"metadata": {"name": "no"}, "spec": spec});
    assert_eq!(server.ask("POST", &format!("{GROUP}/validatingadmissionpolicies"), &policy).await.0, 201);
    let binding = json!({"metadata": {"name": "no"}, "spec": {"policyName": "no", "validationActions": ["Deny"]}});
    assert_eq!(server.ask("POST", &format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.0, 201);
    let review =
        json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}, "token": "x", "user": "u"}});
    for path in [
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    ] {
        let (code, answer) = server.ask("POST", path, &review).await;
        assert_eq!(code, 201, "{path}: {answer}");
    }
    let hooks = json!({"metadata": {"name": "h"}});
    let (code, answer) = server.ask("POST", &format!("{GROUP}/validatingwebhookconfigurations"), &hooks).await;
    assert_eq!(code, 422, "{answer}");
    let mut other = policy.clone();
    other["metadata"]["name"] = json!("other");
    let (code, answer) = server.ask("POST", &format!("{GROUP}/validatingadmissionpolicies"), &other).await;
    assert_eq!(code, 201, "a locked-out user can repair the policy: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_fails_is_named_and_knows_only_those_before_it() {
    let server = server().await;
    let spec = json!({"variables": [{"name": "x", "expression": "object.data.nothing"}],
        "validations": [{"expression": "variables.x == 'a'"}]});
    server.validating("v", spec).await;
    let (code, answer) = server.map("a", json!({"a": "b"})).await;
    let why = "composited variable \"x\" fails to evaluate: no such key: nothing";
    assert!(code == 422 && answer["message"].as_str().unwrap().ends_with(why), "{answer}");
    let variables = json!([{"name": "x", "expression": "variables.y"}, {"name": "y", "expression": "1"}]);
    let spec = json!({"variables": variables, "validations": [{"expression": "true"}],
        "matchConstraints": {"resourceRules": rules()}});
    let policy = json!({"metadata": {"name": "w"}, "spec": spec});
    let (code, answer) = server.ask("POST", &format!("{GROUP}/validatingadmissionpolicies"), &policy).await;
    assert!(code == 422 && answer["message"].as_str().unwrap().contains("undefined field 'y'"), "{answer}");
}
