//! Tests the write path against a remote store: acknowledgements and feed are delayed, other servers write, and clients
//! cancel at any await.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use axum::body::Body;
use futures::{FutureExt as _, StreamExt as _};
use http::Request;
use http_body_util::BodyExt as _;
use machinery_env::Env;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::server::{Apiserver, Config};
use apiserver_auth::UserInfo;
use apiserver_resources::allocate::ServiceNetwork;
use apiserver_storage::store::late::LateStore;
use apiserver_storage::store::memory::MemoryStore;
use apiserver_storage::store::{Compare, Entry, Op, Outcome, Record, Revision, Store, StoreError, Txn, prefix_end};

/// The number of yields after which background tasks count as settled.
const SETTLED_AFTER: usize = 64;
/// More awaits than any write has.
const POLLS_MAX: usize = 400;

struct Server {
    server: Apiserver,
    store: Arc<MemoryStore>,
}

async fn open(store: Arc<dyn Store>) -> Apiserver {
    let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
    let services =
        ServiceNetwork { cidr: "10.96.0.0/24".parse().unwrap(), node_ports: 30000..=30063, loopback: Vec::new() };
    let config = Config { services, ..Config::of_tests() };
    Apiserver::open(&env, store, config).await.unwrap()
}

async fn server_of_a_lagging_store() -> Server {
    let (env, _) = Env::seeded(2, "2026-01-01T00:00:00Z".parse().unwrap());
    let store = Arc::new(MemoryStore::new(env));
    let server = open(Arc::new(LateStore::new(store.clone()))).await;
    let server = Server { server, store };
    for (path, body) in [
        ("/api/v1/namespaces", json!({"metadata": {"name": "default"}})),
        (ACCOUNTS, json!({"metadata": {"name": "default"}})),
        ("/api/v1/nodes", json!({"metadata": {"name": "n"}})),
    ] {
        assert_eq!(server.ask("POST", path, body).await.0, 201, "{path}");
    }
    server
}

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

impl Server {
    fn send(&self, method: &str, path: &str, body: Value) -> Pin<Box<dyn Future<Output = (u16, Value)> + Send>> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let mut request = Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
        request.extensions_mut().insert(UserInfo::component("admin", Some("system:masters")));
        let sent = self.server.service().oneshot(request);
        Box::pin(async move {
            let response = sent.await.unwrap();
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        })
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.send(method, path, body).await
    }

    async fn code(&self, method: &str, path: &str, body: Value) -> u16 {
        self.ask(method, path, body).await.0
    }

    /// Another server writes or removes an object.
    async fn other(&self, key: &str, object: Option<Value>) -> Revision {
        let key = key.to_owned();
        let op = match object {
            Some(object) => Op::Put { key, record: Record::read(object.to_string().as_bytes(), |_| None), ttl: None },
            None => Op::Delete { key },
        };
        match self.store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap() {
            Outcome::Committed(revision) => revision,
            conflict @ Outcome::Conflict(_) => panic!("{conflict:?}"),
        }
    }

    async fn stored(&self, prefix: &str) -> BTreeMap<String, Value> {
        let range = self.store.range(prefix, &prefix_end(prefix), None, 0).await.unwrap();
        let parse = |entry: Entry| (entry.key.to_string(), serde_json::from_slice(&entry.record.body()).unwrap());
        range.entries.into_iter().map(parse).collect()
    }

    /// A cancelled write has left all of its parts or none.
    async fn check_halves(&self, name: &str, when: &str) {
        let key = format!("/registry/pods/default/{name}");
        if let Some(pod) = self.stored(&key).await.get(&key) {
            assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{when}: marked, and still there");
            let bound = pod["spec"]["nodeName"].is_string();
            assert_eq!(bound, pod["status"]["conditions"][0]["type"] == "PodScheduled", "{when}: half bound");
        }
        let key = format!("/registry/configmaps/default/{name}");
        if let Some(map) = self.stored(&key).await.get(&key) {
            let metadata = &map["metadata"];
            let ends = metadata["deletionTimestamp"].is_string();
            assert_eq!(ends, metadata["finalizers"].is_array(), "{when}: nothing holds it, and it is there");
        }
    }

    /// The Services' claims equal the reservations, and each is held once.
    async fn check_reservations(&self, when: &str) {
        let mut held = BTreeSet::new();
        for (name, service) in self.stored("/registry/services/specs/").await {
            let spec = &service["spec"];
            let ips = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let ports = spec["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_i64());
            let keys = ips
                .map(|ip| format!("/registry/ipaddresses/{ip}"))
                .chain(ports.map(|port| format!("/registry/ranges/servicenodeports/{port}")));
            for key in keys {
                assert!(held.insert(key.clone()), "{when}: {key} is given to {name} and to another one");
            }
        }
        let mut reserved: BTreeSet<String> = self.stored("/registry/ipaddresses/").await.into_keys().collect();
        reserved.extend(self.stored("/registry/ranges/servicenodeports/").await.into_keys());
        assert_eq!(held, reserved, "{when}: what is held and what is reserved");
    }
}

fn map(name: &str, data: &str) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "data": {"k": data},
    })
}

#[tokio::test]
async fn nothing_is_decided_from_a_stale_cache() {
    let server = server_of_a_lagging_store().await;
    let key = |name: &str| format!("/registry/configmaps/default/{name}");
    let one = |name: &str| format!("{MAPS}/{name}");
    let named = |name: &str, data: &str| json!({"metadata": {"name": name}, "data": {"k": data}});
    // Objects that other servers created exist.
    server.other(&key("a"), Some(map("a", "1"))).await;
    assert_eq!(server.code("GET", &one("a"), Value::Null).await, 200);
    server.other(&key("b"), Some(map("b", "1"))).await;
    let (_, list) = server.ask("GET", MAPS, Value::Null).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    server.other(&key("c"), Some(map("c", "1"))).await;
    assert_eq!(server.code("POST", &format!("{MAPS}?dryRun=All"), named("c", "2")).await, 409);
    server.other(&key("d"), Some(map("d", "1"))).await;
    assert_eq!(server.code("POST", MAPS, named("d", "2")).await, 409);
    server.other(&key("e"), Some(map("e", "1"))).await;
    assert_eq!(server.code("PATCH", &one("e"), json!({"data": {"k": "2"}})).await, 200);
    server.other(&key("f"), Some(map("f", "1"))).await;
    assert_eq!(server.code("DELETE", &one("f"), Value::Null).await, 200);
    // Objects that other servers removed don't.
    server.other(&key("a"), None).await;
    assert_eq!(server.code("GET", &one("a"), Value::Null).await, 404);
    server.other(&key("b"), None).await;
    assert_eq!(server.code("PUT", &one("b"), named("b", "2")).await, 404);
    server.other(&key("c"), None).await;
    assert_eq!(server.code("DELETE", &one("c"), Value::Null).await, 404);
    server.other(&key("d"), None).await;
    assert_eq!(server.code("POST", MAPS, named("d", "3")).await, 201);
    // Changes of other servers are seen.
    let version = server.other(&key("d"), Some(map("d", "4"))).await;
    let mut newest = named("d", "5");
    newest["metadata"]["resourceVersion"] = version.to_string().into();
    assert_eq!(server.code("PUT", &one("d"), newest).await, 200);
    server.other(&key("d"), Some(map("d", "6"))).await;
    let (_, same) = server.ask("PATCH", &one("d"), json!({"data": {"k": "5"}})).await;
    assert_eq!(same["data"]["k"], "5");
    assert_eq!(server.stored(&key("d")).await[&key("d")]["data"]["k"], "5", "no change to the cache, one to the store");
    server.other(&key("d"), Some(map("d", "7"))).await;
    let (_, shown) = server.ask("PATCH", &format!("{}?dryRun=All", one("d")), json!({"data": {"x": "y"}})).await;
    assert_eq!(shown["data"], json!({"k": "7", "x": "y"}));
    let version = server.other(&key("d"), Some(map("d", "8"))).await;
    let wanted = json!({"preconditions": {"resourceVersion": version.to_string()}});
    assert_eq!(server.code("DELETE", &one("d"), wanted).await, 200);
}

#[tokio::test]
async fn a_lagging_cache_rejects_no_request() {
    let server = server_of_a_lagging_store().await;
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "sa", "namespace": "default", "uid": "u1"}});
    let (one, key) = (format!("{ACCOUNTS}/sa"), "/registry/serviceaccounts/default/sa");
    server.other(key, Some(account.clone())).await;
    let (code, token) = server.ask("POST", &format!("{one}/token"), json!({"spec": {}})).await;
    assert_eq!(code, 201, "{token}");
    // Another server deletes the account and creates it again.
    server.other(key, None).await;
    assert_eq!(server.code("GET", &one, Value::Null).await, 404);
    server.other(key, Some(account)).await;
    let bearer = format!("Bearer {}", token["status"]["token"].as_str().unwrap());
    let request = Request::get("/apis").header("authorization", &bearer).body(Body::empty()).unwrap();
    let known = server.server.service().oneshot(request).await.unwrap().status();
    assert_eq!(known, 403, "the token holds; there are no roles here");
    server.other(key, None).await;
    assert_eq!(server.code("GET", &one, Value::Null).await, 404);
    let request = Request::get("/apis").header("authorization", &bearer).body(Body::empty()).unwrap();
    assert_eq!(server.server.service().oneshot(request).await.unwrap().status(), 401, "and does no more");

    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "c"}]}});
    server.other("/registry/pods/default/p", Some(pod)).await;
    assert_eq!(server.code("GET", &format!("{PODS}/p/log"), Value::Null).await, 204, "it is on no node yet");
    let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "late", "uid": "u"}, "status": {"phase": "Active"}});
    server.other("/registry/namespaces/late", Some(namespace)).await;
    let review =
        json!({"spec": {"user": "jo", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "late"}}});
    let reviews = "/apis/authorization.k8s.io/v1/namespaces/late/localsubjectaccessreviews";
    assert_eq!(server.code("POST", reviews, review).await, 201);

    for more in ["", "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"] {
        let name = format!("w{}", more.len());
        server.other(&format!("/registry/configmaps/default/{name}"), Some(map(&name, "1"))).await;
        let mut request = Request::get(format!("{MAPS}?watch=true{more}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(UserInfo::component("admin", Some("system:masters")));
        let response = server.server.service().oneshot(request).await.unwrap();
        let mut events = response.into_body().into_data_stream();
        let mut seen = Vec::new();
        while !seen.iter().any(|event: &Value| event["object"]["metadata"]["name"] == *name) {
            let chunk = events.next().now_or_never().unwrap_or_else(|| panic!("{more}: only {seen:?}"));
            let chunk = chunk.unwrap().unwrap();
            let lines = chunk.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            seen.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
        }
    }
}

#[tokio::test]
async fn changes_of_other_servers_are_honoured() {
    let server = server_of_a_lagging_store().await;
    let namespace = |phase: &str| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "new", "uid": "u"}, "status": {"phase": phase}});
    let key = "/registry/namespaces/new";
    let maps = "/api/v1/namespaces/new/configmaps";
    server.other(key, Some(namespace("Active"))).await;
    assert_eq!(server.code("POST", maps, json!({"metadata": {"name": "a"}})).await, 201);
    server.other(key, Some(namespace("Terminating"))).await;
    assert_eq!(
        server.code("POST", maps, json!({"metadata": {"name": "b"}})).await,
        403,
        "it ends, and this server learns it late"
    );
    server.other(key, None).await;
    assert_eq!(server.code("POST", maps, json!({"metadata": {"name": "b"}})).await, 404);
    assert_eq!(server.stored("/registry/configmaps/new/").await.len(), 1);

    let service = |ip: &str| json!({"metadata": {"name": "s"}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    let parent = json!({"spec": {"parentRef": {"resource": "services", "namespace": "x", "name": "y"}}});
    server.other("/registry/ipaddresses/10.96.0.9", Some(parent)).await;
    let (code, refused) = server.ask("POST", SERVICES, service("10.96.0.9")).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("provided IP is already allocated"), "{refused}");
}

#[tokio::test]
async fn concurrent_creates_allocate_a_whole_range_once() {
    let server = Arc::new(server_of_a_lagging_store().await);
    let made = (0..64).map(|i| {
        let server = server.clone();
        let body =
            json!({"metadata": {"name": format!("s{i}")}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        tokio::spawn(async move { server.ask("POST", SERVICES, body).await })
    });
    for made in made.collect::<Vec<_>>() {
        let (code, answer) = made.await.unwrap();
        assert_eq!(code, 201, "{answer}");
    }
    server.check_reservations("after 64 creates").await;
    let full = json!({"metadata": {"name": "x"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    assert_eq!(server.code("POST", SERVICES, full.clone()).await, 503);
    assert_eq!(server.code("PATCH", &format!("{SERVICES}/s7"), json!({"spec": {"type": "ClusterIP"}})).await, 200);
    assert_eq!(server.code("POST", SERVICES, full).await, 201);
    assert_eq!(server.code("DELETE", &format!("{SERVICES}/s8"), Value::Null).await, 200);
    server.check_reservations("after the last").await;
}

/// Runs all background tasks.
async fn settle() {
    for _ in 0..SETTLED_AFTER {
        tokio::task::yield_now().await;
    }
}

/// Polls a request `polls` times and drops it; returns whether it was answered.
async fn cancelled_after(polls: usize, mut request: Pin<Box<dyn Future<Output = (u16, Value)> + Send>>) -> bool {
    for _ in 0..polls {
        let polled = std::future::poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        if let Poll::Ready((code, answer)) = polled {
            assert!(code < 300, "{code} {answer}");
            return true;
        }
        tokio::task::yield_now().await;
    }
    drop(request);
    settle().await;
    false
}

/// A request: method, path and body.
type Sent = (&'static str, String, Value);

/// Cancelled writes: a description, the requests before it, and the write.
fn cancelled_writes(name: &str) -> Vec<(&'static str, Vec<Sent>, Sent)> {
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}});
    let pod = |name: &str| json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let binding = |name: &str| json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n"}});
    let held = |name: &str| {
        let mut map = map(name, "1");
        map["metadata"]["finalizers"] = json!(["x.dev/holds"]);
        map
    };
    let deployment = |name: &str| {
        let labels = json!({"app": name});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": template}})
    };
    let to_cluster_ip = || json!({"spec": {"type": "ClusterIP"}});
    let now = || json!({"gracePeriodSeconds": 0});
    let (one, svc) = (format!("{PODS}/{name}"), format!("{SERVICES}/{name}"));
    vec![
        ("create a Service", vec![], ("POST", SERVICES.into(), service(name))),
        ("create a Service by PUT", vec![], ("PUT", svc.clone(), service(name))),
        ("patch a Service", vec![("POST", SERVICES.into(), service(name))], ("PATCH", svc.clone(), to_cluster_ip())),
        ("delete a Service", vec![("POST", SERVICES.into(), service(name))], ("DELETE", svc, Value::Null)),
        ("create a pod", vec![], ("POST", PODS.into(), pod(name))),
        ("bind a pod", vec![("POST", PODS.into(), pod(name))], ("POST", format!("{one}/binding"), binding(name))),
        ("delete a pod at once", vec![("POST", PODS.into(), pod(name))], ("DELETE", one, now())),
        ("create a map", vec![], ("POST", MAPS.into(), map(name, "1"))),
        (
            "end a map's deletion",
            vec![("POST", MAPS.into(), held(name)), ("DELETE", format!("{MAPS}/{name}"), Value::Null)],
            ("PATCH", format!("{MAPS}/{name}"), json!({"metadata": {"finalizers": null}})),
        ),
        (
            "scale a Deployment",
            vec![("POST", DEPLOYMENTS.into(), deployment(name))],
            ("PATCH", format!("{DEPLOYMENTS}/{name}/scale"), json!({"spec": {"replicas": 3}})),
        ),
    ]
}

#[tokio::test]
async fn a_request_cancelled_at_any_await_writes_all_or_nothing() {
    let server = server_of_a_lagging_store().await;
    for case in 0..cancelled_writes("x").len() {
        let mut polls = 0;
        loop {
            let name = format!("c{case}p{polls}");
            let (what, before, (method, path, body)) = cancelled_writes(&name).swap_remove(case);
            for (method, path, body) in before {
                let (code, answer) = server.ask(method, &path, body).await;
                assert!(code < 300, "before {what}: {answer}");
            }
            let answered = cancelled_after(polls, server.send(method, &path, body)).await;
            let when = format!("{what}, dropped after {polls} polls");
            server.check_reservations(&when).await;
            server.check_halves(&name, &when).await;
            // The range is small, so that a leak shows in the next rounds.
            server.ask("DELETE", &format!("{SERVICES}/{name}"), Value::Null).await;
            server.ask("DELETE", &format!("{PODS}/{name}"), json!({"gracePeriodSeconds": 0})).await;
            if answered {
                break;
            }
            polls += 1;
            assert!(polls < POLLS_MAX, "{what} never ends");
        }
        assert!(polls > 2, "the store is awaited");
    }
}

#[tokio::test]
async fn a_service_created_through_its_status_has_no_reservations_until_updated() {
    let server = server_of_a_lagging_store().await;
    let ports = json!([{"port": 80, "nodePort": 30009}]);
    let body =
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": ports}});
    let (code, made) = server.ask("PUT", &format!("{SERVICES}/s/status"), body.clone()).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!((&made["spec"]["clusterIP"], &made["spec"]["ports"][0]["nodePort"]), (&Value::Null, &Value::Null));
    server.check_reservations("after a PUT of the status").await;
    assert!(server.stored("/registry/ipaddresses/").await.is_empty());
    let (code, given) = server.ask("PATCH", &format!("{SERVICES}/s"), json!({"spec": {"type": "ClusterIP"}})).await;
    assert_eq!(code, 200, "{given}");
    assert!(given["spec"]["clusterIP"].is_string(), "{given}");
    server.check_reservations("after a patch").await;
    let other = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "nope"}});
    assert_eq!(server.code("PUT", &format!("{PODS}/nope/status"), other).await, 404);
}

#[tokio::test]
async fn services_of_an_older_data_folder_keep_their_addresses() {
    let (env, _) = Env::seeded(3, "2026-01-01T00:00:00Z".parse().unwrap());
    let store = Arc::new(MemoryStore::new(env));
    let old = |name: &str, ip: &str, port: u16| {
        json!({"kind": "Service", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "nodePort": port}]}})
    };
    let put = |key: String, object: Value| Op::Put {
        key,
        record: Record::read(object.to_string().as_bytes(), |_| None),
        ttl: None,
    };
    // The last two had been given the same address by the bug that reservations fix.
    for (name, ip, port) in [("a", "10.96.0.7", 30001), ("z", "10.96.0.8", 30002), ("b", "10.96.0.8", 30003)] {
        let ops = vec![put(format!("/registry/services/specs/default/{name}"), old(name, ip, port))];
        store.txn(Txn { compares: Vec::new(), ops }).await.unwrap();
    }
    let absent = json!({"spec": {"parentRef": {"namespace": "default", "name": "gone"}}});
    let compares = vec![Compare { key: "/registry/ipaddresses/10.96.0.1".into(), modified: 0 }];
    let ops = vec![put("/registry/ipaddresses/10.96.0.1".into(), absent)];
    store.txn(Txn { compares, ops }).await.unwrap();
    let server = Server { server: open(store.clone()).await, store };
    let holders: Vec<(String, Value)> = server
        .stored("/registry/ipaddresses/")
        .await
        .into_iter()
        .map(|(key, claim)| (key, claim["spec"]["parentRef"]["name"].clone()))
        .collect();
    assert_eq!(
        holders,
        [
            ("/registry/ipaddresses/10.96.0.7".to_owned(), json!("a")),
            ("/registry/ipaddresses/10.96.0.8".to_owned(), json!("z")),
        ]
    );
    assert_eq!(server.stored("/registry/ranges/servicenodeports/").await.len(), 3);
    // Deleting the second one doesn't release the first one's address.
    assert_eq!(server.code("DELETE", &format!("{SERVICES}/b"), Value::Null).await, 200);
    server.check_reservations("after the second one is gone").await;
    // While there was a duplicate, each start checked again; now the marker says that the check is done.
    let marker = "/registry/coracle/reserved/services";
    assert!(server.stored(marker).await.is_empty(), "two held the same at the first start");
    drop(open(server.store.clone()).await);
    assert!(server.stored(marker).await.contains_key(marker));
    let nobodys = "/registry/ipaddresses/10.96.0.9";
    let claim = json!({"spec": {"parentRef": {"namespace": "default", "name": "gone"}}});
    server.other(nobodys, Some(claim)).await;
    let revision = server.store.revision();
    drop(open(server.store.clone()).await);
    assert_eq!(server.store.revision(), revision, "a later start reads no Service and no reservation");
}

#[test]
fn a_full_disk_returns_upstreams_error_of_a_full_etcd() {
    let full = StoreError::Full { path: "/data/store".into(), wanted: 4711, free: Some(12) };
    let status = serde_json::to_value(super::store_error(&full).status()).unwrap();
    let message = "no space left on device: /data/store has 12 bytes free, and this write needs 4711; nothing was \
                   written: free space on that disk (deleting objects needs some, too) and try again";
    let expected = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": 500,
    });
    assert_eq!(status, expected);
}
