//! Tests of the assembled server in process: behaviour that spans its stages.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod admission;
mod answers;
mod apply;
mod configured;
mod conversions;
mod costly;
mod custom;
mod evictions;
mod features;
mod pages;
mod policies;
mod quota;
mod rights;
mod tracking;
mod webhooks;
mod wire;
mod writes;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::http::kubelets::Kubelets;
use apiserver::server::{Apiserver, ChainExtensions, Config};
use apiserver::tls::{self, Acceptor, Peer};
use apiserver_auth::UserInfo;
use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::Pki;
use apiserver_auth::tls::PeerCertificate;
use apiserver_resources::allocate::ServiceNetwork;
use apiserver_storage::store::memory::MemoryStore;
use axum::body::Body;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use machinery_api::features::{Feature, Features};
use machinery_env::Env;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const WAIT: Duration = Duration::from_secs(20);

struct Server {
    server: Apiserver,
    pki: Pki,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    server_with(ChainExtensions::default()).await
}

async fn server_with(extensions: ChainExtensions) -> Server {
    server_under(Features::default(), extensions).await
}

async fn server_under(features: Features, extensions: ChainExtensions) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let pki = Pki::open_or_create(dir.path(), &env, &[]).unwrap();
    let config = Config {
        address: "127.0.0.1:6443".into(),
        signing_key: pki.service_account().clone(),
        services: ServiceNetwork {
            cidr: "10.96.0.0/12".parse().unwrap(),
            node_ports: 30000..=32767,
            loopback: Vec::new(),
        },
        toleration_seconds: 300,
        features,
        kubelets: Kubelets::new(&env, pki.ca_pem(), pki.admin()).unwrap(),
        registry: Arc::new(Mutex::new(Default::default())),
    };
    let server = Apiserver::open_with(&env, Arc::new(MemoryStore::new(env.clone())), config, extensions).await.unwrap();
    server.set_ready();
    let server = Server { server, pki, _dir: dir };
    let (code, _) = server.ask("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "default"}})).await;
    assert_eq!(code, 201);
    server
}

fn admin() -> UserInfo {
    UserInfo::component("admin", Some("system:masters"))
}

impl Server {
    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.server.service().oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.ask_as(admin(), method, path, body).await
    }

    async fn ask_as(&self, user: UserInfo, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(user);
        let response = self.send(Request::from_parts(parts, body)).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn watch(&self, path: &str) -> Watch {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let response = self.send(request).await;
        assert_eq!(response.status(), 200);
        Watch { stream: response.into_body().into_data_stream(), rest: Vec::new() }
    }
}

struct Watch {
    stream: axum::body::BodyDataStream,
    rest: Vec<u8>,
}

impl Watch {
    /// The type, name and version of the next event; `None` at the end of the watch.
    async fn next(&mut self) -> Option<(String, String, String)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
                let metadata = &event["object"]["metadata"];
                return Some((text(&event["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"])));
            }
            let chunk = Env::real().timeout(WAIT, self.stream.next()).await.expect("an event in time")?;
            self.rest.extend_from_slice(&chunk.unwrap());
        }
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn a_life_as_a_watcher_sees_it() {
    let server = server().await;
    let mut watch = server.watch(&format!("{MAPS}?watch=true")).await;
    let (code, made) = server.ask("POST", MAPS, &json!({"metadata": {"generateName": "a-"}, "data": {"k": "v"}})).await;
    assert_eq!(code, 201);
    let name = made["metadata"]["name"].as_str().unwrap().to_owned();
    let one = format!("{MAPS}/{name}");
    let (_, same) = server.ask("PATCH", &one, &json!({"data": {"k": "v"}})).await;
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "a no-op is not written");
    let (_, changed) = server.ask("PATCH", &one, &json!({"data": {"k": "w"}})).await;
    assert_ne!(changed["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let mut stale = made.clone();
    stale["data"]["k"] = json!("x");
    assert_eq!(server.ask("PUT", &one, &stale).await.0, 409);
    assert_eq!(server.ask("DELETE", &one, &Value::Null).await.0, 200);
    assert_eq!(server.ask("GET", &one, &Value::Null).await.0, 404);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(watch.next().await.unwrap());
    }
    let kinds: Vec<&str> = seen.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(kinds, ["ADDED", "MODIFIED", "DELETED"]);
    assert!(seen.iter().all(|(_, n, _)| *n == name));
    let versions: Vec<u64> = seen.iter().map(|(.., v)| v.parse().unwrap()).collect();
    assert!(versions.is_sorted_by(|a, b| a < b));
    server.server.stop();
    assert_eq!(watch.next().await, None, "the server's stop ends watches");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_of_one_moment() {
    let server = server().await;
    for i in 0..25 {
        let body = json!({"metadata": {"name": format!("m{i:02}")}});
        assert_eq!(server.ask("POST", MAPS, &body).await.0, 201);
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("{MAPS}?limit=7&continue={token}");
        let (code, page) = server.ask("GET", &path, &Value::Null).await;
        assert_eq!(code, 200);
        names.extend(page["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].clone()));
        // Changes between pages don't show.
        server.ask("DELETE", &format!("{MAPS}/m{:02}", 24 - names.len() / 7), &Value::Null).await;
        server.ask("POST", MAPS, &json!({"metadata": {"generateName": "n"}})).await;
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, (0..25).map(|i| json!(format!("m{i:02}"))).collect::<Vec<_>>());
}

/// Lists that are serialized piece by piece equal small ones, in every form.
#[tokio::test(flavor = "multi_thread")]
async fn large_lists_equal_small_ones_in_every_form() {
    let server = server().await;
    for i in 0..400 {
        let body = json!({"metadata": {"name": format!("m{i:03}")}, "data": {"k": "v".repeat(1024)}});
        assert_eq!(server.ask("POST", MAPS, &body).await.0, 201);
    }
    let ask = async |accept: &str, packed: bool| -> Vec<u8> {
        let mut request = Request::get(MAPS).header("accept", accept).body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        if packed {
            request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
        }
        let response = server.send(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers().get("content-encoding").is_some(), packed);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        if !packed {
            return bytes.to_vec();
        }
        let mut whole = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut whole).unwrap();
        whole
    };
    let names = |items: &Value, at: &str| -> Vec<String> {
        let items = items.as_array().unwrap().iter();
        items.map(|item| item.pointer(at).unwrap().as_str().unwrap().to_owned()).collect()
    };
    let expected: Vec<String> = (0..400).map(|i| format!("m{i:03}")).collect();
    for packed in [false, true] {
        let list = ask("application/json", packed).await;
        assert!(list.len() > 400 * 1024 && list.ends_with(b"]}\n"));
        let list: Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(
            (&list["kind"], names(&list["items"], "/metadata/name")),
            (&json!("ConfigMapList"), expected.clone())
        );
        let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io", packed).await;
        let table: Value = serde_json::from_slice(&table).unwrap();
        assert_eq!(names(&table["rows"], "/cells/0"), expected);
        let partial = ask("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", packed).await;
        let partial: Value = serde_json::from_slice(&partial).unwrap();
        assert_eq!(names(&partial["items"], "/metadata/name"), expected);
        let yaml = String::from_utf8(ask("application/yaml", packed).await).unwrap();
        assert!(expected.iter().all(|name| yaml.contains(&format!("name: {name}\n"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_revision_returns_410_with_a_continue_token() {
    let server = server().await;
    for i in 0..5 {
        server.ask("POST", MAPS, &json!({"metadata": {"name": format!("m{i}")}})).await;
    }
    let (_, page) = server.ask("GET", &format!("{MAPS}?limit=2"), &Value::Null).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let old = page["metadata"]["resourceVersion"].as_str().unwrap();
    server.ask("DELETE", &format!("{MAPS}/m3"), &Value::Null).await;
    let cache = server.server.cache();
    cache.store().compact(cache.revision()).await.unwrap();
    let (code, gone) = server.ask("GET", &format!("{MAPS}?limit=2&continue={token}"), &Value::Null).await;
    assert_eq!((code, gone["reason"].as_str()), (410, Some("Expired")));
    // The new token continues at the current state.
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = server.ask("GET", &format!("{MAPS}?limit=9&continue={token}"), &Value::Null).await;
    let names: Vec<&str> =
        rest["items"].as_array().unwrap().iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert_eq!((code, names), (200, vec!["m2", "m4"]));
    let path = format!("{MAPS}?resourceVersion={old}&resourceVersionMatch=Exact");
    assert_eq!(server.ask("GET", &path, &Value::Null).await.0, 410);
    let mut watch = server.watch(&format!("{MAPS}?watch=true&resourceVersion={old}")).await;
    assert_eq!(watch.next().await.unwrap().0, "ERROR");
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_with_any_name_are_listed_and_deleted_with_their_namespace() {
    let server = server().await;
    let (code, _) = server.ask("POST", "/api/v1/namespaces", &json!({"metadata": {"name": "team"}})).await;
    assert_eq!(code, 201);
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/team/rolebindings";
    let events = "/api/v1/namespaces/team/events";
    let names = ["a", "\u{10ffff}", "\u{10ffff}x", "\u{10ffff}\u{10ffff}"];
    for name in names {
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}],
        });
        assert_eq!(server.ask("POST", bindings, &binding).await.0, 201);
        let event = json!({"metadata": {"name": name}, "involvedObject": {"namespace": "team"}});
        assert_eq!(server.ask("POST", events, &event).await.0, 201);
    }
    let cluster = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    assert_eq!(server.ask("POST", cluster, &json!({"metadata": {"name": "\u{10ffff}role"}, "rules": []})).await.0, 201);
    let listed = async |path: &str| -> Vec<String> {
        let (code, list) = server.ask("GET", path, &Value::Null).await;
        assert_eq!(code, 200, "{path}: {list}");
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(cluster).await, ["\u{10ffff}role"]);
    for path in [bindings, events] {
        let mut expected = names;
        expected.sort_unstable();
        assert_eq!(listed(path).await, expected);
        // Page by page, past the last possible name.
        let mut paged = Vec::new();
        let mut token = String::new();
        loop {
            let (_, page) = server.ask("GET", &format!("{path}?limit=1&continue={token}"), &Value::Null).await;
            let name = page["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
            paged.push(name);
            let left = page["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
            assert_eq!(left as usize, names.len() - paged.len());
            match page["metadata"]["continue"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(paged, expected);
        // Deleting all objects, as at the end of a namespace, leaves nothing.
        assert_eq!(server.ask("DELETE", path, &Value::Null).await.0, 200);
        assert_eq!(listed(path).await, [""; 0]);
    }
    let review = json!({"spec": {"user": "eve", "resourceAttributes": {"namespace": "team", "verb": "create", "resource": "pods"}}});
    let (_, answer) = server.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
    assert_eq!(answer["status"]["allowed"], json!(false), "the grant went with its bindings");
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_have_only_fields_of_the_kind() {
    let server = server().await;
    for (path, replicas) in [
        ("/apis/apps/v1/namespaces/default/deployments", json!(0)),
        ("/apis/apps/v1/namespaces/default/replicasets", json!(0)),
        (MAPS, Value::Null),
    ] {
        let path = format!(
            "{path}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        );
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let mut stream = server.send(request).await.into_body().into_data_stream();
        let chunk = Env::real().timeout(WAIT, stream.next()).await.unwrap().unwrap().unwrap();
        let mark: Value = serde_json::from_slice(&chunk).unwrap();
        assert_eq!((&mark["type"], &mark["object"]["spec"]["replicas"]), (&json!("BOOKMARK"), &replicas));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_lose_no_update() {
    const WRITERS: usize = 16;
    const ROUNDS: usize = 8;
    let server = Arc::new(server().await);
    server.ask("POST", MAPS, &json!({"metadata": {"name": "n"}, "data": {"count": "0"}})).await;
    let path = format!("{MAPS}/n");
    let writers = (0..WRITERS).map(|w| {
        let (server, path) = (server.clone(), path.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                // A patch of its own key always succeeds; a counter needs a version and is retried.
                let own = json!({"data": {format!("w{w}"): round.to_string()}});
                assert_eq!(server.ask("PATCH", &path, &own).await.0, 200);
                loop {
                    let (_, mut object) = server.ask("GET", &path, &Value::Null).await;
                    let count: u64 = object["data"]["count"].as_str().unwrap().parse().unwrap();
                    object["data"]["count"] = json!((count + 1).to_string());
                    match server.ask("PUT", &path, &object).await.0 {
                        200 => break,
                        code => assert_eq!(code, 409),
                    }
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let (_, object) = server.ask("GET", &path, &Value::Null).await;
    assert_eq!(object["data"]["count"], json!((WRITERS * ROUNDS).to_string()));
    assert!((0..WRITERS).all(|w| object["data"][format!("w{w}")] == json!((ROUNDS - 1).to_string())));
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_watches_see_everything_in_one_order() {
    const WATCHES: usize = 2000;
    let server = server().await;
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(server.watch(&format!("{MAPS}?watch=true")).await);
    }
    for i in 0..5 {
        server.ask("POST", MAPS, &json!({"metadata": {"name": format!("m{i}")}})).await;
    }
    for watch in &mut watches {
        for i in 0..5 {
            let (kind, name, _) = watch.next().await.unwrap();
            assert_eq!((kind.as_str(), name), ("ADDED", format!("m{i}")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_and_owners_decide() {
    let server = server().await;
    server.ask("POST", MAPS, &json!({"metadata": {"name": "a", "finalizers": ["a.b/c"]}})).await;
    let one = format!("{MAPS}/a");
    let (code, marked) = server.ask("DELETE", &one, &json!({"propagationPolicy": "Foreground"})).await;
    assert_eq!(code, 200);
    assert_eq!(marked["metadata"]["finalizers"], json!(["a.b/c", "foregroundDeletion"]));
    assert_eq!(server.ask("DELETE", &one, &json!({"preconditions": {"uid": "other"}})).await.0, 409);
    let (code, last) = server.ask("PATCH", &one, &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!((code, last["metadata"]["finalizers"].is_null()), (200, true));
    assert_eq!(server.ask("GET", &one, &Value::Null).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_pods_node() {
    let server = server().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = server.pki.issue_serving("system:node:n", "system:nodes", &["n".into(), "127.0.0.1".into()]).unwrap();
    let certificates = Arc::new(Certificates::new(&serving).unwrap());
    let acceptor = Acceptor::new(&Env::real(), certificates, server.pki.ca_pem()).unwrap();
    let stop = CancellationToken::new();
    let kubelet = tls::serve(
        listener,
        acceptor,
        |request: Request<machinery_serve::connection::RequestBody>| async move {
            let known = request
                .extensions()
                .get::<Peer>()
                .is_some_and(|p| matches!(p.certificate, PeerCertificate::Verified(..)));
            let (code, text) = match request.uri().path() {
                "/containerLogs/default/p/a" if known => (200, format!("{}\n", request.uri().query().unwrap_or(""))),
                _ => (400, "container is waiting".to_owned()),
            };
            Response::builder().status(code).body(Body::from(text)).unwrap()
        },
        stop.clone(),
    );
    let kubelet = tokio::spawn(kubelet);
    let base = "/api/v1/namespaces/default";
    server.ask("POST", &format!("{base}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    let endpoint = json!({"kubeletEndpoint": {"Port": port}});
    let status = json!({"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": endpoint});
    server.ask("POST", "/api/v1/nodes", &json!({"metadata": {"name": "n"}, "status": status})).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [
        {"name": "a", "image": "i"}, {"name": "b", "image": "i"}
    ]}});
    let (code, made) = server.ask("POST", &format!("{base}/pods"), &pod).await;
    assert_eq!(code, 201, "{made}");
    let log = |query: &'static str| {
        let mut request = Request::get(format!("{base}/pods/p/log?{query}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let answer = server.send(request);
        async move {
            let answer = answer.await;
            let code = answer.status().as_u16();
            (code, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
        }
    };
    assert_eq!(log("container=a&tailLines=3&follow=true").await, (200, "follow=true&tailLines=3\n".into()));
    let (code, refusal) = log("container=b").await;
    assert_eq!(code, 400);
    assert!(refusal.contains("container is waiting"));
    assert_eq!(log("").await.0, 400, "which container?");
    stop.cancel();
    kubelet.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_of_one_user_hold_no_permits() {
    const SLOW: usize = 300;
    let server = Arc::new(server().await);
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}]);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    server.ask("POST", &format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "w"}, "rules": rules})).await;
    let group = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "writers"}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "w"});
    let binding = json!({"metadata": {"name": "w"}, "roleRef": role, "subjects": group});
    assert_eq!(server.ask("POST", &format!("{rbac}/clusterrolebindings"), &binding).await.0, 201);
    let post = |user: &str, body: Body| {
        let mut request = Request::post(MAPS).header("content-type", "application/json").body(body).unwrap();
        request.extensions_mut().insert(UserInfo::component(user, Some("writers")));
        let server = server.clone();
        tokio::spawn(async move { server.send(request).await.status().as_u16() })
    };
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<bytes::Bytes, std::io::Error>>();
        sender.unbounded_send(Ok("{\"metadata\":".into())).unwrap();
        slow.push((n, sender, post("slow", Body::from_stream(receiver))));
    }
    // More than the in-flight limit: the beginnings of their bodies have arrived before other requests start.
    for n in 0..20 {
        let body = json!({"metadata": {"name": format!("quick-{n}")}}).to_string();
        assert_eq!(post("quick", Body::from(body)).await.unwrap(), 201);
    }
    // All of them complete, some at once.
    for (n, sender, answer) in slow {
        sender.unbounded_send(Ok(format!("{{\"name\":\"slow-{n}\"}}}}").into())).unwrap();
        drop(sender);
        assert_eq!(answer.await.unwrap(), 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_requests_see_little_and_headers_authenticate_no_user() {
    let server = server().await;
    for (path, wanted) in [("/version", 200), ("/livez", 200), ("/readyz?verbose", 200), ("/api", 403), ("/nope", 403)]
    {
        let request = Request::get(path).header("x-remote-user", "admin").body(Body::empty()).unwrap();
        let response = server.send(request).await;
        assert_eq!(response.status().as_u16(), wanted, "{path}");
        assert!(response.headers().contains_key("audit-id"));
        assert_eq!(response.headers()["cache-control"], "no-cache, private");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_packed_and_large_bodies_refused() {
    let server = server().await;
    let (code, _) =
        server.ask("POST", MAPS, &json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(200_000)}})).await;
    assert_eq!(code, 201);
    let mut request = Request::get(MAPS).header("accept-encoding", "gzip").body(Body::empty()).unwrap();
    request.extensions_mut().insert(admin());
    let response = server.send(request).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let (code, status) = server.ask("POST", MAPS, &json!({"data": {"k": "x".repeat(3 * 1024 * 1024)}})).await;
    assert_eq!((code, status["message"].as_str()), (413, Some("Request entity too large: limit is 3145728")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_a_client_sends_is_our_failure(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
        path in "/(api/v1|apis/apps/v1|apis/rbac\\.authorization\\.k8s\\.io/v1)(/(watch|namespaces|default|pods|configmaps|services|events|a|status|scale|log|%2F|\\.\\.)){0,5}/?",
        query in "(&?(watch|limit|continue|resourceVersion|resourceVersionMatch|fieldSelector|labelSelector|dryRun|fieldValidation|timeoutSeconds|gracePeriodSeconds|propagationPolicy)=(1|-1|All|a=b|abc|%00|Exact|99999999999999999999)){0,3}",
        kind in prop::sample::select(vec!["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/merge-patch+json", "application/json-patch+json", "application/strategic-merge-patch+json", "text/plain"]),
        body in prop::sample::select(vec!["", "{}", "[]", "null", "{", "{\"metadata\":{\"name\":\"a\"}}", "{\"metadata\":7}", "{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"x\"},\"spec\":[]}", "k8s\0\u{1}\u{2}", "[{\"op\":\"add\",\"path\":\"/metadata\",\"value\":null}]", "{\"spec\":{\"containers\":[{}]},\"$patch\":\"nope\"}"]),
    ) {
        static RUNTIME: std::sync::OnceLock<(tokio::runtime::Runtime, Server)> = std::sync::OnceLock::new();
        let (runtime, server) = RUNTIME.get_or_init(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let server = runtime.block_on(server());
            (runtime, server)
        });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{path}?{query}"))
            .header("content-type", kind)
            .body(Body::from(body))
            .unwrap();
        request.extensions_mut().insert(admin());
        let response = runtime.block_on(server.send(request));
        let code = response.status().as_u16();
        // 504 is for a revision that isn't reached.
        prop_assert!(code < 500 || code == 504, "{method} {path}?{query} {body}: {code}");
    }
}
