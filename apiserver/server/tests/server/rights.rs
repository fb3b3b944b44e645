//! Privilege escalation: users must not gain access indirectly, through policies or roles.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

impl Server {
    async fn grant(&self, user: &str, rules: Value) -> UserInfo {
        let role = json!({"metadata": {"name": user}, "rules": rules});
        assert_eq!(self.ask("POST", &format!("{RBAC}/clusterroles"), &role).await.0, 201);
        let group = "rbac.authorization.k8s.io";
        let binding = json!({"metadata": {"name": user}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}]});
        assert_eq!(self.ask("POST", &format!("{RBAC}/clusterrolebindings"), &binding).await.0, 201);
        UserInfo::component(user, None)
    }
}

fn policy(kind: &str, name: &str, params: Value) -> Value {
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let mut spec = json!({"paramKind": params, "matchConstraints": {"resourceRules": rules}});
    if kind == "validating" {
        spec["validations"] = json!([{"expression": "false", "messageExpression": "string(params.data.password)"}]);
    } else {
        let expression = "Object{data: {'seen': string(params.data.password)}}";
        spec["reinvocationPolicy"] = json!("Never");
        spec["mutations"] =
            json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn binding(kind: &str, policy: &str, params: Value) -> Value {
    let mut spec = json!({"policyName": policy, "paramRef": params});
    spec["paramRef"]["parameterNotFoundAction"] = json!("Deny");
    if kind == "validating" {
        spec["validationActions"] = json!(["Deny"]);
    }
    json!({"metadata": {"name": "b"}, "spec": spec})
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_need_read_access_to_their_parameters() {
    let server = server().await;
    let rules = json!([{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]}]);
    let author = server.grant("author", rules).await;
    let one = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"], "verbs": ["get"]});
    let own = json!({"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]});
    let reader = server.grant("reader", json!([own, one])).await;
    let secrets = json!({"apiVersion": "v1", "kind": "Secret"});
    for kind in ["validating", "mutating"] {
        let (policies, bindings) =
            (format!("{POLICIES}/{kind}admissionpolicies"), format!("{POLICIES}/{kind}admissionpolicybindings"));
        let (code, answer) =
            server.ask_as(author.clone(), "POST", &policies, &policy(kind, "p", secrets.clone())).await;
        let cause = &answer["details"]["causes"][0];
        assert_eq!((code, cause["field"].as_str()), (422, Some("spec.paramKind")), "{answer}");
        assert_eq!(
            cause["message"],
            "Forbidden: user &{author  [system:authenticated] map[]} must have \"get\" permission on all objects of the referenced paramKind \
             (kind=Secret, apiVersion=v1)"
        );
        assert_eq!(server.ask("POST", &policies, &policy(kind, "p", secrets.clone())).await.0, 201);
        let unread = [json!({"name": "s"}), json!({"name": "s", "namespace": "default"}), json!({"selector": {}})];
        for params in unread.iter().chain([&json!({"name": "other", "namespace": "default"})]) {
            let (code, answer) =
                server.ask_as(author.clone(), "POST", &bindings, &binding(kind, "p", params.clone())).await;
            assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("spec.paramRef")), "{answer}");
        }
        let (code, _) =
            server.ask_as(author.clone(), "POST", &bindings, &binding(kind, "missing", unread[0].clone())).await;
        assert_eq!(code, 422, "what its parameters are is not known yet");
        let (code, _) = server.ask_as(reader.clone(), "POST", &bindings, &binding(kind, "p", unread[2].clone())).await;
        assert_eq!(code, 422, "it may not list them");
        let (code, answer) =
            server.ask_as(reader.clone(), "POST", &bindings, &binding(kind, "p", unread[1].clone())).await;
        assert_eq!(code, 201, "{answer}");
        let change = json!({"spec": {"paramRef": {"name": "other"}}});
        assert_eq!(server.ask_as(reader.clone(), "PATCH", &format!("{bindings}/b"), &change).await.0, 422);
        let change = json!({"spec": {"failurePolicy": "Ignore"}});
        let (code, answer) = server.ask_as(author.clone(), "PATCH", &format!("{policies}/p"), &change).await;
        assert_eq!(code, 200, "its parameters stay what they were: {answer}");
        let change = json!({"spec": {"paramKind": {"kind": "ServiceAccount"}}});
        assert_eq!(server.ask_as(author.clone(), "PATCH", &format!("{policies}/p"), &change).await.0, 422);
        assert_eq!(server.ask("DELETE", &format!("{bindings}/b"), &Value::Null).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_escalate_by_name_is_that_of_the_path() {
    let server = server().await;
    let rules = json!([
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["create", "update"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["mine"], "verbs": ["escalate"]},
    ]);
    let user = server.grant("user", rules).await;
    let all = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let role = |name: &str| json!({"metadata": {"name": name}, "rules": all});
    // As for every other verb, a create in a collection has no name.
    assert_eq!(server.ask_as(user.clone(), "POST", &format!("{RBAC}/clusterroles"), &role("mine")).await.0, 403);
    let (code, answer) = server.ask_as(user.clone(), "PUT", &format!("{RBAC}/clusterroles/mine"), &role("mine")).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(server.ask_as(user, "PUT", &format!("{RBAC}/clusterroles/other"), &role("other")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_writes_nothing_that_is_about_another() {
    let server = server().await;
    let node = || UserInfo::component("system:node:n1", Some("system:nodes"));
    let (csi, slices) = ("/apis/storage.k8s.io/v1/csinodes", "/apis/resource.k8s.io/v1/resourceslices");
    let csi_node = |name: &str| json!({"metadata": {"name": name}, "spec": {"drivers": []}});
    let slice = |node: &str| {
        let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
        json!({"metadata": {"name": node}, "spec": {"driver": "d.example.com", "nodeName": node, "pool": pool}})
    };
    for (path, object) in [(csi, csi_node("n2")), (slices, slice("n2"))] {
        assert_eq!(server.ask_as(node(), "POST", path, &object).await.0, 403, "{path}");
        assert_eq!(server.ask("POST", path, &object).await.0, 201, "{path}");
        for (method, body) in
            [("GET", Value::Null), ("PATCH", json!({"metadata": {"labels": {"a": "b"}}})), ("DELETE", Value::Null)]
        {
            assert_eq!(server.ask_as(node(), method, &format!("{path}/n2"), &body).await.0, 403, "{method} {path}");
        }
        assert_eq!(server.ask_as(node(), "DELETE", path, &Value::Null).await.0, 403, "{path}");
    }
    for (path, object) in [(csi, csi_node("n1")), (slices, slice("n1"))] {
        let (code, answer) = server.ask_as(node(), "POST", path, &object).await;
        assert_eq!(code, 201, "{answer}");
        assert_eq!(server.ask_as(node(), "GET", &format!("{path}/n1"), &Value::Null).await.0, 200, "{path}");
    }
    let own = format!("{slices}?fieldSelector=spec.nodeName=n1");
    assert_eq!(server.ask_as(node(), "DELETE", &own, &Value::Null).await.0, 200);
    assert_eq!(server.ask("GET", &format!("{slices}/n2"), &Value::Null).await.0, 200, "another's stay");

    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = |common_name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let spec = json!({"signerName": "kubernetes.io/kube-apiserver-client-kubelet", "request": STANDARD.encode(pem),
            "usages": ["digital signature", "client auth"]});
        json!({"metadata": {"generateName": "r-"}, "spec": spec})
    };
    let (code, answer) = server.ask_as(node(), "POST", requests, &request("system:node:n2")).await;
    let why = "can only create a node CSR with CN=system:node:n1";
    assert!(code == 403 && answer["message"].as_str().unwrap().ends_with(why), "{answer}");
    let (code, answer) = server.ask_as(node(), "POST", requests, &request("system:node:n1")).await;
    assert_eq!(code, 201, "{answer}");
}
