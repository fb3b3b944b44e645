//! The executor against scripted servers: status writes on failure, stale caches, terminating namespaces, lost responses.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::Status;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::in_process;

/// An executor whose server rejects creates with a code and records other writes.
fn refusing(code: u16, written: &Arc<Mutex<Vec<Value>>>) -> Executor {
    let written = written.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let written = written.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let (code, answer) = if head.method == "POST" {
                let says = json!({"kind": "Status", "status": "Failure", "code": code, "message": "not allowed"});
                (code, Bytes::from(says.to_string()))
            } else {
                written.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                (200, body)
            };
            Ok::<_, Infallible>(Response::builder().status(code).body(Full::new(answer)).unwrap())
        }
    });
    let client = in_process(&Env::real(), service, |request| request);
    let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
    Executor { api: client.into(), recorder, env: Env::real() }
}

/// The failing pass itself writes the error: the next pass has no memory of it. A conflict is only retried.
#[tokio::test]
async fn failures_are_reported_in_the_same_pass() {
    for (code, reports) in [(403, 1), (409, 0)] {
        let written = Arc::default();
        let performer = refusing(code, &written);
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "x"}})).unwrap();
        let report = Action::patch(&map, json!({"data": {"why": "it says: {error}"}}));
        let tried = Action::SlowStart(vec![Action::create(&map); 3]).reporting(report, "/data/why".into());
        let (_, result) = performer.perform(vec![tried, Action::update(&map)]).await;
        assert_eq!(result.unwrap_err().code, code, "the pass fails all the same, and its rest is left");
        let expected = vec![json!({"data": {"why": "it says: not allowed"}}); reports];
        assert_eq!(*written.lock().unwrap(), expected);
    }
}

/// An owner may be deleted only when the cache has all dependents of the server.
#[tokio::test]
async fn dependents_that_only_the_server_knows_of_fail_the_pass() {
    let service = tower::service_fn(|request: Request<kube::client::Body>| {
        assert_eq!(request.uri().path(), "/api/v1/namespaces/a/configmaps");
        let item = |uid: &str, owner: &str| json!({"metadata": {"uid": uid, "ownerReferences": [{"uid": owner}]}});
        let free = json!({"metadata": {"uid": "free"}});
        let list = json!({"items": [item("known", "o"), item("new", "o"), item("others", "p"), free]});
        let body = Full::new(Bytes::from(list.to_string()));
        async move { Ok::<_, Infallible>(Response::builder().status(200).body(body).unwrap()) }
    });
    let client = in_process(&Env::real(), service, |request| request);
    let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
    let executor = Executor { api: client.into(), recorder, env: Env::real() };
    for (known, code) in [(vec!["known"], Some(409)), (vec!["known", "new"], None)] {
        let check = Action::RequireDependents {
            kind: Kind::of::<ConfigMap>(),
            namespace: "a".into(),
            owner_uid: "o".into(),
            known: known.iter().map(|uid| (*uid).to_owned()).collect(),
        };
        let (_, result) = executor.perform(vec![check]).await;
        assert_eq!(result.err().map(|failure| failure.code), code);
    }
}

/// An owner that the cache still shows, but which is gone, terminating or another one, adopts nothing.
#[tokio::test]
async fn only_a_live_owner_adopts() {
    let service = tower::service_fn(|request: Request<kube::client::Body>| {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let (code, answer) = match name.as_str() {
            "live" => (200, json!({"metadata": {"name": "live", "uid": "u"}})),
            "going" => {
                (200, json!({"metadata": {"name": "going", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}}))
            }
            "next" => (200, json!({"metadata": {"name": "next", "uid": "v"}})),
            _ => (
                404,
                json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "details": {"name": name}}),
            ),
        };
        let body = Full::new(Bytes::from(answer.to_string()));
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap()) }
    });
    let client = in_process(&Env::real(), service, |request| request);
    let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
    let executor = Executor { api: client.into(), recorder, env: Env::real() };
    for (name, code) in [("live", None), ("going", Some(409)), ("next", Some(409)), ("gone", Some(409))] {
        let (kind, key, uid) = (Kind::of::<ConfigMap>(), ObjectKey::new("a", name), Some("u".into()));
        let (_, result) = executor.perform(vec![Action::ExpectLive { kind, key, uid }]).await;
        assert_eq!(result.err().map(|failure| failure.code), code, "{name}");
    }
}

/// Each deleted pod of a set in a terminating namespace wakes the set: without the skip, a set of a few hundred
/// pods would send tens of thousands of creates that can't succeed.
#[tokio::test]
async fn only_one_error_means_a_terminating_namespace() {
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let seen = requests.clone();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
        let going = request.uri().path().contains("/namespaces/going/") && request.method() == "POST";
        let cause = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace"}]);
        let says = json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "it is being terminated",
            "details": {"causes": cause}});
        let made = json!({"metadata": {"name": "x", "resourceVersion": "7"}});
        let (code, answer) = if going { (403, says) } else { (201, made) };
        let answer = Full::new(Bytes::from(answer.to_string()));
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap()) }
    });
    let client = in_process(&Env::real(), service, |request| request);
    let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
    let executor = Executor { api: client.into(), recorder, env: Env::real() };
    let map = |namespace: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": "x"}})).unwrap()
    };
    let mut actions = vec![Action::create(&map("going")); 500];
    actions.extend([Action::create(&map("stays")), Action::update(&map("going"))]);
    let (wrote, result) = executor.perform(vec![Action::SlowStart(actions), Action::update(&map("stays"))]).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(wrote.len(), 3, "what is elsewhere or is there already is done as it was to be");
    let requests = requests.lock().unwrap();
    assert_eq!(requests.iter().filter(|request| request.starts_with("POST")).count(), 2, "{requests:?}");
}

/// A create without a response may have succeeded under an unknown name: the next pass waits until the cache shows
/// it.
#[tokio::test]
async fn a_create_without_response_waits_for_the_possible_object() {
    let generated = json!({"namespace": "a", "generateName": "web-", "labels": {"app": "web"}});
    // 503: the store committed and did not acknowledge. 0: no response.
    for (metadata, code, lists, wrote) in [
        (generated.clone(), 0, 3, vec![9]),
        (generated.clone(), 503, 3, vec![9]),
        (generated, 403, 0, vec![]),
        (json!({"namespace": "a", "name": "web", "labels": {"app": "web"}}), 0, 0, vec![]),
    ] {
        let listed = Arc::<Mutex<u32>>::default();
        let seen = listed.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let tries = (request.method() == "GET").then(|| {
                let mut listed = seen.lock().unwrap();
                assert_eq!(request.uri().query(), Some("labelSelector=app%3Dweb"));
                *listed += 1;
                *listed
            });
            async move {
                let item = |version: &str| json!({"metadata": {"name": "x", "resourceVersion": version}});
                let list = json!({"items": [item("8"), item("9"), item("7")]});
                let response = |code: u16, body: Value| {
                    Ok(Response::builder().status(code).body(Full::new(Bytes::from(body.to_string()))).unwrap())
                };
                match (tries, code) {
                    (Some(3), _) => response(200, list),
                    (None, 1..) => response(code, json!({"kind": "Status", "status": "Failure", "code": code})),
                    _ => Err(std::io::Error::other("the connection ended")),
                }
            }
        });
        let client = in_process(&Env::real(), service, |request| request);
        let recorder = Recorder::start(client.clone(), Env::real(), "test", &CancellationToken::new());
        let executor = Executor { api: client.into(), recorder, env: Env::real() };
        let map: ConfigMap = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let (pending, result) = executor.perform(vec![Action::create(&map)]).await;
        assert_eq!(result.unwrap_err().code, code);
        let expected: Vec<_> =
            wrote.into_iter().map(|version| PendingWrite::Version(Kind::of::<ConfigMap>(), version)).collect();
        assert_eq!((pending, *listed.lock().unwrap()), (expected, lists));
    }
}

#[test]
fn only_a_404_naming_the_object_means_deleted() {
    let error = |status: Value| kube::Error::Api(Box::new(serde_json::from_value::<Status>(status).unwrap()));
    let gone = error(json!({"code": 404, "reason": "NotFound", "message": "configmaps \"x\" not found",
        "details": {"name": "x", "kind": "configmaps"}}));
    let unserved = error(json!({"code": 404, "reason": "NotFound", "details": {},
        "message": "the server could not find the requested resource"}));
    let key = ObjectKey::new("a", "x");
    assert!(is_not_found_for(&gone, &key));
    assert!(!is_not_found_for(&unserved, &key) && !is_not_found_for(&gone, &ObjectKey::new("a", "y")));
}
