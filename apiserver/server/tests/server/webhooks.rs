//! Webhooks with good and bad responses: a server of their own, with a certificate authority of its own.

use std::convert::Infallible;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream;

use super::*;

/// The reviews that the hooks received.
pub(super) type Reviews = Arc<Mutex<Vec<Value>>>;

pub(super) struct Hooks {
    pub(super) address: SocketAddr,
    pub(super) ca: String,
    pub(super) reviews: Reviews,
    pub(super) pki: Pki,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn patch(operations: &Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

/// The response of the hook at a path to a review.
fn respond(path: &str, request: &Value) -> Value {
    let labels = |add: Value| patch(&json!([{"op": "add", "path": "/metadata/labels", "value": add}]));
    match path {
        "/first" => labels(json!({"first": "1"})),
        "/second" => patch(&json!([{"op": "add", "path": "/metadata/labels/second", "value": "2"}])),
        "/container" => {
            patch(&json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "added", "image": "i:1"}}]))
        }
        "/elsewhere" => patch(&json!([{"op": "replace", "path": "/metadata/namespace", "value": "kube-system"}])),
        "/broken" => patch(&json!([{"op": "remove", "path": "/nothing"}])),
        "/deny" => json!({"allowed": false, "status": {"message": "not today", "code": 403, "reason": "Forbidden"}}),
        "/warn" => json!({"allowed": true, "warnings": ["mind the gap"]}),
        "/owner" => patch(&json!([{"op": "replace", "path": "/metadata/managedFields/0/manager", "value": "hook"}])),
        "/sized" => labels(json!({"size": request["object"]["spec"]["sizes"][0].to_string()})),
        "/wrong" => json!({"allowed": true, "uid": "another"}),
        "/huge" => json!({"allowed": true, "patchType": "JSONPatch", "patch": "A".repeat(9 << 20)}),
        _ => json!({"allowed": request["object"]["metadata"]["name"] != "bad"}),
    }
}

async fn answer(request: Request<machinery_serve::connection::RequestBody>, reviews: Reviews) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let token = request.headers().get("authorization").map(|token| token.to_str().unwrap().to_owned());
    let user = match request.extensions().get::<Peer>().map(|peer| peer.certificate.clone()) {
        Some(PeerCertificate::Verified(user, _)) => Some(user.name.clone()),
        _ => None,
    };
    let review: Value = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let subject = review["request"].clone();
    reviews.lock().unwrap().push(json!({"path": path, "request": subject, "by": [token, user]}));
    match &*path {
        "/never" => futures::future::pending().await,
        "/endless" => {
            let piece = bytes::Bytes::from(vec![b' '; 1 << 16]);
            return Response::new(Body::from_stream(stream::repeat(Ok::<_, Infallible>(piece))));
        }
        "/redirect" => {
            return Response::builder()
                .status(307)
                .header("location", "https://127.0.0.1:1/")
                .body(Body::empty())
                .unwrap();
        }
        "/html" => return Response::new(Body::from("<html>")),
        "/fails" => return Response::builder().status(500).body(Body::from("on fire")).unwrap(),
        _ => {}
    }
    if review["kind"] == "ConversionReview" {
        return Response::new(Body::from(conversions::answered(&path, &review).to_string()));
    }
    let mut response = respond(&path, &subject);
    if response["uid"].is_null() {
        response["uid"] = subject["uid"].clone();
    }
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
    Response::new(Body::from(review.to_string()))
}

pub(super) async fn hooks() -> Hooks {
    let (dir, env) = (tempfile::tempdir().unwrap(), Env::real());
    let pki = Pki::open_or_create(dir.path(), &env, &["127.0.0.1".into(), "outside.default.svc".into()]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reviews, stop) = (Reviews::default(), CancellationToken::new());
    let certificates = Arc::new(Certificates::new(pki.serving()).unwrap());
    let acceptor = Acceptor::new(&env, certificates, pki.ca_pem()).unwrap();
    let (seen, until) = (reviews.clone(), stop.clone());
    let handle = move |request| answer(request, seen.clone());
    tokio::spawn(async move { tls::serve(listener, acceptor, handle, until).await });
    Hooks { address, ca: STANDARD.encode(pki.ca_pem()), reviews, pki, stop, _dir: dir }
}

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1";

impl Hooks {
    pub(super) fn hook(&self, path: &str, resource: &str) -> Value {
        let url = format!("https://{}{path}", self.address);
        json!({"name": format!("{}.example.com", path.trim_matches('/')), "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": if path == "/never" { 1 } else { 20 },
            "clientConfig": {"url": url, "caBundle": self.ca},
            "rules": [{"apiGroups": ["", "apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": [resource]}]})
    }

    fn take_reviews(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reviews = std::mem::take(&mut *self.reviews.lock().unwrap());
        reviews.iter().map(|review| (text(&review["path"]), text(&review["request"]["operation"]))).collect()
    }
}

impl Server {
    pub(super) async fn hooked(&self, kind: &str, name: &str, hooks: Vec<Value>) {
        let plural = format!("{}webhookconfigurations", kind.to_lowercase());
        let object = json!({"metadata": {"name": name}, "webhooks": hooks});
        let (code, answer) = self.ask("POST", &format!("{CONFIGURATIONS}/{plural}"), &object).await;
        assert_eq!(code, 201, "{answer}");
    }

    pub(super) async fn metrics(&self) -> String {
        let mut request = Request::get("/metrics").body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let page = self.send(request).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8_lossy(&page).into_owned()
    }

    async fn unhooked(&self, kind: &str, name: &str) {
        let plural = format!("{}webhookconfigurations", kind.to_lowercase());
        assert_eq!(self.ask("DELETE", &format!("{CONFIGURATIONS}/{plural}/{name}"), &Value::Null).await.0, 200);
    }
}

const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_change_and_reject_writes() {
    let (server, hooks) = (server().await, hooks().await);
    let mut again = hooks.hook("/second", "configmaps");
    again["reinvocationPolicy"] = json!("IfNeeded");
    let (first, warns) = (hooks.hook("/first", "configmaps"), hooks.hook("/warn", "configmaps"));
    server.hooked("Mutating", "a", vec![first, again]).await;
    server.hooked("Validating", "v", vec![warns, hooks.hook("/name", "configmaps")]).await;
    let (code, made) = server.ask("POST", CONFIGS, &named("c")).await;
    assert_eq!((code, &made["metadata"]["labels"]), (201, &json!({"first": "1", "second": "2"})));
    let mut requests = hooks.take_reviews();
    requests.sort();
    let all = [("/first", "CREATE"), ("/name", "CREATE"), ("/second", "CREATE"), ("/warn", "CREATE")];
    assert_eq!(requests, all.map(|(path, operation)| (path.to_owned(), operation.to_owned())));
    let (code, refused) = server.ask("POST", CONFIGS, &named("bad")).await;
    let why = "admission webhook \"name.example.com\" denied the request without explanation";
    assert_eq!((code, &refused["message"]), (400, &json!(why)));
    hooks.take_reviews();
    assert_eq!(server.ask("DELETE", &format!("{CONFIGS}/c"), &Value::Null).await.0, 500, "it patches what is nothing");
    server.unhooked("Mutating", "a").await;
    hooks.take_reviews();
    assert_eq!(server.ask("DELETE", &format!("{CONFIGS}/c"), &Value::Null).await.0, 200);
    let review = hooks.reviews.lock().unwrap()[0]["request"].clone();
    assert_eq!((&review["object"], &review["oldObject"]["metadata"]["name"]), (&Value::Null, &json!("c")));
    assert_eq!(review["options"]["kind"], "DeleteOptions");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_of_existing_objects_call_webhooks() {
    let (server, hooks) = (server().await, hooks().await);
    assert_eq!(server.ask("POST", CONFIGS, &named("c")).await.0, 201);
    server.hooked("Mutating", "m", vec![hooks.hook("/deny", "configmaps")]).await;
    assert_eq!(server.ask("DELETE", &format!("{CONFIGS}/missing"), &Value::Null).await.0, 404);
    assert_eq!(hooks.take_reviews(), [], "deleting an absent object calls no webhook");
    assert_eq!(server.ask("DELETE", &format!("{CONFIGS}/c"), &Value::Null).await.0, 403);
    assert_eq!(hooks.take_reviews(), [("/deny".to_owned(), "DELETE".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_of_a_webhook_are_defaulted_and_seen_by_all_plugins() {
    let (server, hooks) = (server().await, hooks().await);
    let account = named("default");
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    server.hooked("Mutating", "a", vec![hooks.hook("/container", "pods")]).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = server.ask("POST", "/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(code, 201, "{made}");
    let added = &made["spec"]["containers"][1];
    assert_eq!((&added["name"], &added["imagePullPolicy"]), (&json!("added"), &json!("IfNotPresent")));
    assert!(added["volumeMounts"][0]["mountPath"].is_string(), "the service account's token: {added}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_have_managed_fields_and_webhooks_may_change_them() {
    let (outside, hooks) = (super::apply::outside().await, hooks().await);
    outside.server.hooked("Mutating", "a", vec![hooks.hook("/owner", "configmaps")]).await;
    let map = json!({"metadata": {"name": "c"}, "data": {"a": "a"}});
    let (code, made) = outside.ask("POST", &format!("{CONFIGS}?fieldManager=me"), "application/json", &map).await;
    assert_eq!(code, 201, "{made}");
    let managers = |object: &Value| object["metadata"]["managedFields"][0]["manager"].clone();
    assert_eq!(managers(&made), "hook");
    let change = json!({"data": {"a": "b"}});
    let path = format!("{CONFIGS}/c?fieldManager=you");
    assert_eq!(outside.ask("PATCH", &path, "application/merge-patch+json", &change).await.0, 200);
    let reviews = std::mem::take(&mut *hooks.reviews.lock().unwrap());
    assert_eq!(managers(&reviews[0]["request"]["object"]), "me");
    assert_eq!(managers(&reviews[1]["request"]["oldObject"]), "hook");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_is_reviewed_as_one() {
    let (outside, hooks) = (super::apply::outside().await, hooks().await);
    let server = &outside.server;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let at = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(server.ask("POST", at, &deployment).await.0, 201);
    server.hooked("Validating", "v", vec![hooks.hook("/scale", "deployments/scale")]).await;
    let scale = json!({"spec": {"replicas": 3}});
    assert_eq!(server.ask("PATCH", &format!("{at}/d/scale"), &scale).await.0, 200);
    let review = hooks.reviews.lock().unwrap()[0]["request"].clone();
    assert_eq!((&review["kind"]["kind"], &review["object"]["spec"]["replicas"]), (&json!("Scale"), &json!(3)));
    assert_eq!((&review["subResource"], &review["oldObject"]["kind"]), (&json!("scale"), &json!("Scale")));
    let path = format!("{at}/d/scale?fieldManager=you");
    assert_eq!(server.ask("PATCH", &path, &json!({"spec": {"replicas": 4}})).await.0, 200);
    let reviews = std::mem::take(&mut *hooks.reviews.lock().unwrap());
    let managers = |object: &Value| object["metadata"]["managedFields"].as_array().unwrap().clone();
    let [new] = &*managers(&reviews[1]["request"]["object"]) else { panic!("one manager: {reviews:?}") };
    assert_eq!((&new["manager"], &new["apiVersion"]), (&json!("you"), &json!("autoscaling/v1")), "{new}");
    assert_eq!((&new["subresource"], &new["fieldsV1"]), (&json!("scale"), &json!({"f:spec": {"f:replicas": {}}})));
    assert_eq!(managers(&reviews[1]["request"]["oldObject"]).len(), 1);
    let (_, kept) = outside.ask("GET", &format!("{at}/d"), "", &Value::Null).await;
    let kept = &kept["metadata"]["managedFields"];
    let scaled: Vec<&Value> = kept.as_array().unwrap().iter().filter(|e| e["subresource"] == "scale").collect();
    assert!(scaled.len() == 1 && scaled[0]["apiVersion"] == "apps/v1" && scaled[0]["manager"] == "you", "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_that_does_not_apply_is_refused_with_the_librarys_reason() {
    let (server, hooks) = (server().await, hooks().await);
    server.hooked("Mutating", "h", vec![hooks.hook("/broken", "configmaps")]).await;
    let (code, refused) = server.ask("POST", CONFIGS, &named("c")).await;
    let why = "error in remove for path: '/nothing': Unable to remove nonexistent key: nothing: missing value";
    assert_eq!((code, &refused["message"]), (500, &json!(format!("Internal error occurred: {why}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_webhooks_are_named_and_harm_no_other_request() {
    let (server, hooks) = (Arc::new(server().await), hooks().await);
    let rows = [
        ("Mutating", "/never", "context deadline exceeded"),
        ("Mutating", "/endless", "reading the answer: length limit exceeded"),
        ("Mutating", "/huge", "reading the answer: length limit exceeded"),
        ("Mutating", "/redirect", "the webhook redirects (307 Temporary Redirect), which is not followed"),
        ("Validating", "/html", "couldn't get version/kind; json parse error: expected value at line 1 column 1"),
        ("Validating", "/fails", "an error on the server (\"on fire\") has prevented the request from succeeding"),
        ("Validating", "/wrong", "expected response.uid="),
        ("Mutating", "/broken", ""),
        ("Mutating", "/elsewhere", ""),
    ];
    for (kind, path, why) in rows {
        server.hooked(kind, "h", vec![hooks.hook(path, "configmaps")]).await;
        let asking = {
            let server = server.clone();
            tokio::spawn(async move { server.ask("POST", CONFIGS, &named("c")).await })
        };
        let (code, _) = server.ask("POST", "/api/v1/namespaces", &named(&format!("n{}", path.trim_matches('/')))).await;
        assert_eq!(code, 201, "others go on");
        let (code, refused) = asking.await.unwrap();
        let message = refused["message"].as_str().unwrap();
        let hook = format!("failed calling webhook \"{}.example.com\": ", path.trim_matches('/'));
        let is_named = why.is_empty() || (message.contains(&hook) && message.contains(why));
        assert!(code >= 400 && is_named, "{path}: {code} {message}");
        server.unhooked(kind, "h").await;
        let mut optional = hooks.hook(path, "configmaps");
        optional["failurePolicy"] = json!("Ignore");
        server.hooked(kind, "h", vec![optional]).await;
        let (code, _) = server.ask("POST", &format!("{CONFIGS}?dryRun=All"), &named("another")).await;
        assert_eq!(code == 201, !why.is_empty(), "{path}: only a call that fails is ignored");
        server.unhooked(kind, "h").await;
    }
    let dead = json!({"name": "dead.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "default", "name": "none"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]});
    server.hooked("Validating", "h", vec![dead]).await;
    let (code, refused) = server.ask("POST", CONFIGS, &named("c")).await;
    let why = "Internal error occurred: failed calling webhook \"dead.example.com\": failed to call webhook: Post \
               \"https://none.default.svc:443/?timeout=10s\": service \"none\" not found";
    assert_eq!((code, &refused["message"]), (500, &json!(why)));
    let (_, refused) = server.ask("POST", &format!("{CONFIGS}?timeout=3s"), &named("c")).await;
    assert!(refused["message"].as_str().unwrap().contains("/?timeout=3s\": "), "the request's own time: {refused}");
    let page = server.metrics().await;
    for (name, labels) in [
        (
            "rejection_count",
            "name=\"fails.example.com\",type=\"validating\",operation=\"CREATE\",error_type=\"calling_webhook_error\",rejection_code=\"500\"} 1",
        ),
        (
            "rejection_count",
            "name=\"broken.example.com\",type=\"admit\",operation=\"CREATE\",error_type=\"apiserver_internal_error\",rejection_code=\"0\"} 2",
        ),
        ("fail_open_count", "name=\"redirect.example.com\",type=\"admit\"} 1"),
        (
            "request_total",
            "name=\"never.example.com\",type=\"admit\",operation=\"CREATE\",code=\"503\",rejected=\"true\"} 1",
        ),
        (
            "admission_duration_seconds_count",
            "name=\"html.example.com\",type=\"validating\",operation=\"CREATE\",rejected=\"true\"} 1",
        ),
    ] {
        let line = format!("\napiserver_admission_webhook_{name}{{{labels}\n");
        assert!(page.contains(&line), "{line}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_behind_a_service_is_reached_by_its_name() {
    let (server, hooks) = (server().await, hooks().await);
    let services = "/api/v1/namespaces/default/services";
    for name in ["outside", "other"] {
        let spec = json!({"type": "ExternalName", "externalName": "127.0.0.1"});
        let service = json!({"metadata": {"name": name}, "spec": spec});
        assert_eq!(server.ask("POST", services, &service).await.0, 201);
    }
    for (name, why) in [("outside", "denied the request"), ("other", "tls: failed to verify certificate: x509")] {
        let mut hook = hooks.hook("/name", "configmaps");
        let service = json!({"namespace": "default", "name": name, "port": hooks.address.port(), "path": "/name"});
        hook["clientConfig"] = json!({"service": service, "caBundle": hooks.ca});
        server.hooked("Validating", "v", vec![hook]).await;
        let (_, refused) = server.ask("POST", CONFIGS, &named("bad")).await;
        assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
        server.unhooked("Validating", "v").await;
    }
}
