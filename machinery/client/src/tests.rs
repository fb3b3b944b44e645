//! Informer and driver against a scripted server: initial lists in every form, broken streams, late watch events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::driver::{self, own_key};
use crate::in_process;
use crate::metrics::Metrics;
use crate::{
    Action, BackOff, Context, Controller, Informer, Input, Kind, ObjectCache, Plan, Reflector, ReflectorEvent,
};
use machinery_api::ObjectKey;
use machinery_env::{Env, TokioClock};

type CannedResponse = Box<dyn FnOnce(&Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> + Send>;

/// Answers requests in order; a request that isn't in the script hangs.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<(String, CannedResponse)>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn on(
        &self,
        part: &str,
        answer: impl FnOnce(&Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> + Send + 'static,
    ) {
        self.answers.lock().unwrap().push_back((part.to_owned(), Box::new(answer)));
    }

    /// A complete response.
    fn says(&self, part: &str, code: u16, body: &Value) {
        let text = body.to_string();
        self.on(part, move |_| Response::builder().status(code).body(Full::new(Bytes::from(text)).boxed()).unwrap());
    }

    /// A stream fed by the test; it ends with the sender.
    fn streams(&self, part: &str) -> mpsc::UnboundedSender<Value> {
        let (sender, mut lines) = mpsc::unbounded_channel::<Value>();
        self.on(part, move |_| {
            let frames = futures::stream::poll_fn(move |cx| {
                lines.poll_recv(cx).map(|line| line.map(|l| Ok(Frame::data(Bytes::from(format!("{l}\n"))))))
            });
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        });
        sender
    }

    fn client(&self) -> kube::Client {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let script = script.clone();
            async move {
                let wanted = format!("{} {}", request.method(), request.uri());
                script.requests.lock().unwrap().push(wanted.clone());
                let answer = {
                    let mut answers = script.answers.lock().unwrap();
                    let at = answers.iter().position(|(part, _)| part.split('*').all(|p| wanted.contains(p)));
                    at.and_then(|at| answers.remove(at))
                };
                match answer {
                    Some((_, answer)) => Ok::<_, Infallible>(answer(&request)),
                    None => std::future::pending().await,
                }
            }
        });
        in_process(&Env::real(), service, |request| request)
    }
}

fn object(name: &str, version: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "a", "uid": name,
        "resourceVersion": version.to_string()}})
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: u64, ends: bool) -> Value {
    let annotations = if ends { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
    event(
        "BOOKMARK",
        &json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

fn names(view: &ObjectCache) -> Vec<String> {
    view.all::<ConfigMap>().filter_map(|c| c.metadata.name.clone()).collect()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    Env::real().timeout(Duration::from_secs(20), what).await.expect("it happens in time")
}

#[tokio::test]
async fn a_streamed_first_state_appears_at_once_and_changes_follow() {
    let script = Script::default();
    let stream = script.streams("configmaps?watch=true*sendInitialEvents=true");
    let informer = Informer::new(script.client(), Env::real(), &CancellationToken::new());
    informer.watch::<ConfigMap>();
    stream.send(event("ADDED", &object("x", 3))).unwrap();
    stream.send(event("ADDED", &object("y", 4))).unwrap();
    assert!(informer.read(|view| names(view).is_empty()), "not before it is complete");
    stream.send(bookmark(7, true)).unwrap();
    within(informer.synced()).await;
    assert_eq!(informer.read(names), ["x", "y"]);
    assert_eq!(informer.read(|view| view.seen(&Kind::of::<ConfigMap>())), Some(7));
    stream.send(event("DELETED", &object("x", 8))).unwrap();
    stream.send(event("ADDED", &object("z", 9))).unwrap();
    within(informer.until(|view| names(view) == ["y", "z"])).await;
}

#[tokio::test]
async fn where_nothing_is_streamed_pages_are_listed() {
    let script = Script::default();
    let invalid = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 422,
        "reason": "Invalid", "message": "sendInitialEvents is forbidden"});
    script.says("sendInitialEvents=true", 422, &invalid);
    script.says("continue=more%2B", 200, &json!({"metadata": {"resourceVersion": "6"}, "items": [object("y", 4)]}));
    script.says(
        "limit=",
        200,
        &json!({"metadata": {"resourceVersion": "5", "continue": "more+"}, "items": [object("x", 3)]}),
    );
    let stream = script.streams("watch=true*resourceVersion=6");
    let informer = Informer::new(script.client(), Env::real(), &CancellationToken::new());
    informer.watch::<ConfigMap>();
    within(informer.synced()).await;
    assert_eq!(informer.read(names), ["x", "y"]);
    stream.send(event("MODIFIED", &object("y", 8))).unwrap();
    within(informer.until(|view| view.seen(&Kind::of::<ConfigMap>()) == Some(8))).await;
}

#[tokio::test]
async fn an_expired_watch_relists_and_drops_deleted_objects() {
    let script = Script::default();
    let first = script.streams("sendInitialEvents=true");
    let informer = Informer::new(script.client(), Env::real(), &CancellationToken::new());
    informer.watch::<ConfigMap>();
    first.send(event("ADDED", &object("x", 3))).unwrap();
    first.send(bookmark(7, true)).unwrap();
    within(informer.synced()).await;
    let second = script.streams("sendInitialEvents=true");
    second.send(event("ADDED", &object("y", 20))).unwrap();
    second.send(bookmark(21, true)).unwrap();
    let expired = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    first.send(event("ERROR", &expired)).unwrap();
    within(informer.until(|view| names(view) == ["y"])).await;
}

/// A starting server answers 404 for kinds that it doesn't serve yet: cached objects must not be dropped, and an
/// unknown kind must not count as empty.
#[tokio::test(start_paused = true)]
async fn a_404_of_a_kind_is_not_one_of_its_objects() {
    let script = Script::default();
    let unserved = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
        "reason": "NotFound", "message": "the server could not find the requested resource", "details": {}});
    script.says("configmaps", 404, &unserved);
    let first = script.streams("configmaps?watch=true*sendInitialEvents=true");
    let (env, _) = TokioClock::env(1);
    let informer = Informer::new(script.client(), env, &CancellationToken::new());
    informer.watch::<ConfigMap>();
    let synced = |view: &ObjectCache| view.synced(&Kind::of::<ConfigMap>());
    let until_requests = |n: usize| {
        let script = script.clone();
        async move {
            while script.requests.lock().unwrap().len() < n {
                Env::real().sleep(Duration::from_millis(100)).await;
            }
        }
    };
    within(until_requests(2)).await;
    assert!(!informer.read(synced), "nothing is known");
    first.send(event("ADDED", &object("x", 3))).unwrap();
    first.send(bookmark(7, true)).unwrap();
    within(informer.synced()).await;
    script.says("configmaps", 404, &unserved);
    drop(first);
    within(until_requests(4)).await;
    assert_eq!(informer.read(names), ["x"]);
}

#[tokio::test]
async fn a_reflector_sends_its_selectors() {
    let script = Script::default();
    let stream = script.streams("/namespaces/a/configmaps?*fieldSelector=metadata.name%3Dx");
    let reflector = Reflector::of::<ConfigMap>(script.client(), Env::real()).within("a").selecting("metadata.name=x");
    stream.send(event("ADDED", &object("x", 3))).unwrap();
    stream.send(bookmark(7, true)).unwrap();
    stream.send(event("DELETED", &object("x", 8))).unwrap();
    let mut seen = Vec::new();
    let run = reflector.run(|event| {
        let last = matches!(event, ReflectorEvent::Deleted(_));
        seen.push(event);
        if last { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    within(run).await;
    assert!(matches!(seen.as_slice(), [ReflectorEvent::Replaced(objects, 7), _] if objects.len() == 1), "{seen:?}");
}

static PASSES: AtomicUsize = AtomicUsize::new(0);

static COPIER: Controller<()> = Controller {
    name: "copier",
    account: "",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ConfigMap>(own_key), Input::of::<Secret>(own_key)],
    reconcile: copy,
};

/// Creates a Secret of the same name if it is missing.
fn copy(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, ()>) -> Plan {
    if view.get::<ConfigMap>(key).is_none() || view.get::<Secret>(key).is_some() {
        return Plan::nothing();
    }
    PASSES.fetch_add(1, Ordering::SeqCst);
    let metadata = json!({"name": key.name, "namespace": key.namespace});
    let secret: Secret = serde_json::from_value(json!({"metadata": metadata})).unwrap();
    vec![Action::create(&secret)].into()
}

#[tokio::test]
async fn a_key_waits_until_the_cache_shows_its_writes() {
    let script = Script::default();
    let maps = script.streams("configmaps?watch=true");
    let secrets = script.streams("secrets?watch=true");
    let secret = |version: u64| {
        let mut object = object("x", version);
        object["kind"] = json!("Secret");
        object["metadata"]["uid"] = json!("s");
        object
    };
    script.says("POST *secrets", 201, &secret(10));
    let client = script.client();
    let stop = CancellationToken::new();
    let informer = Informer::new(client.clone(), Env::real(), &stop);
    let parts = driver::DriverDeps {
        clients: Arc::new(move |_| client.clone()),
        informer: informer.clone(),
        env: Env::real(),
        metrics: Metrics::default(),
        workers: Default::default(),
        settings: Arc::new(()),
    };
    let running = tokio::spawn(driver::run([&COPIER], parts, stop.clone()));
    maps.send(event("ADDED", &object("x", 3))).unwrap();
    maps.send(bookmark(7, true)).unwrap();
    secrets.send(bookmark(7, true)).unwrap();
    let posted = || script.requests.lock().unwrap().iter().filter(|a| a.starts_with("POST")).count();
    within(async {
        while posted() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The object changes, but the cache lacks the created secret: no second one is created.
    for version in 11..20 {
        maps.send(event("MODIFIED", &object("x", version))).unwrap();
        within(informer.until(|view| view.seen(&Kind::of::<ConfigMap>()) == Some(version))).await;
    }
    assert_eq!((posted(), PASSES.load(Ordering::SeqCst)), (1, 1));
    secrets.send(event("ADDED", &secret(10))).unwrap();
    within(informer.until(|view| view.all::<Secret>().count() == 1)).await;
    maps.send(event("MODIFIED", &object("x", 30))).unwrap();
    within(informer.until(|view| view.seen(&Kind::of::<ConfigMap>()) == Some(30))).await;
    stop.cancel();
    within(running).await.unwrap();
    assert_eq!(PASSES.load(Ordering::SeqCst), 1);
}

static POLLER: Controller<()> = Controller {
    name: "poller",
    account: "poller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<ConfigMap>(own_key),
        Input::polled::<Secret>(Duration::from_secs(15), |_, change| vec![(*change.key).clone()]),
    ],
    reconcile: |view, key, context| {
        let known = view.get::<Secret>(key).is_some();
        let age = view.replaced_at(&Kind::of::<Secret>()).map(|at| context.elapsed.saturating_sub(at));
        POLLED.lock().unwrap().push((key.name.clone(), known, age));
        Plan::nothing()
    },
};
static POLLED: Mutex<Vec<(String, bool, Option<Duration>)>> = Mutex::new(Vec::new());

#[tokio::test(start_paused = true)]
async fn unwatchable_kinds_are_polled() {
    let script = Script::default();
    let maps = script.streams("configmaps?watch=true");
    let secret = |version: u64| {
        let metadata = json!({"name": "m", "namespace": "a", "uid": "u", "resourceVersion": version.to_string()});
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata})
    };
    let list = |version: u64| json!({"metadata": {"resourceVersion": "0"}, "items": [secret(version)]});
    script.says("GET *secrets?limit", 404, &json!({"kind": "Status", "code": 404, "message": "not served"}));
    script.says("GET *secrets?limit", 200, &list(1));
    script.says("GET *secrets?limit", 200, &list(2));
    let client = script.client();
    let stop = CancellationToken::new();
    let (env, _) = TokioClock::env(3);
    let informer = Informer::new(client.clone(), env.clone(), &stop);
    let parts = driver::DriverDeps {
        clients: Arc::new(move |_| client.clone()),
        informer: informer.clone(),
        env: env.clone(),
        metrics: Metrics::default(),
        workers: Default::default(),
        settings: Arc::new(()),
    };
    let running = tokio::spawn(driver::run([&POLLER], parts, stop.clone()));
    maps.send(event("ADDED", &object("x", 3))).unwrap();
    maps.send(bookmark(7, true)).unwrap();
    let seen = async |name: &str, times: usize| {
        while POLLED.lock().unwrap().iter().filter(|(n, ..)| n == name).count() < times {
            Env::real().sleep(Duration::from_millis(10)).await;
        }
    };
    seen("x", 1).await;
    assert_eq!(POLLED.lock().unwrap()[0], ("x".to_owned(), false, None), "controllers start without what is polled");
    seen("m", 2).await;
    assert!(env.elapsed() >= Duration::from_secs(30), "an interval between two polls");
    assert!(POLLED.lock().unwrap().iter().filter(|(n, ..)| n == "m").all(|(_, known, age)| *known && age.is_some()));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "pods are watched as")]
async fn a_kind_is_watched_as_one_type() {
    let stop = CancellationToken::new();
    let informer = Informer::new(Script::default().client(), Env::real(), &stop);
    informer.watch::<crate::Pod>();
    informer.watch::<k8s_openapi::api::core::v1::Pod>();
}

static CLUMSY: Controller<()> = Controller {
    name: "clumsy-controller",
    account: "clumsy",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ConfigMap>(|_, change| {
        assert!(change.key.name != "unmappable", "a change that can't be mapped");
        vec![(*change.key).clone()]
    })],
    reconcile: |_, key, context| {
        let mut tried = TRIED.lock().unwrap();
        tried.push((key.name.clone(), context.elapsed));
        let tries = tried.iter().filter(|(name, _)| *name == key.name).count();
        drop(tried);
        assert!(key.name != "x" || tries > 3, "try {tries} panics");
        Plan::nothing()
    },
};
static TRIED: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

#[tokio::test(start_paused = true)]
async fn a_panicking_decision_is_retried_counted_and_reported() {
    let script = Script::default();
    let maps = script.streams("configmaps?watch=true");
    let (client, stop, env) = (script.client(), CancellationToken::new(), TokioClock::env(1).0);
    let informer = Informer::new(client.clone(), env.clone(), &stop);
    let metrics = Metrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let parts = driver::DriverDeps {
        clients: Arc::new(move |_| client.clone()),
        informer: informer.clone(),
        env,
        metrics,
        workers: Default::default(),
        settings: Arc::new(()),
    };
    let running = tokio::spawn(driver::run([&CLUMSY], parts, stop.clone()));
    for object in [object("unmappable", 3), object("x", 4), object("y", 5)] {
        maps.send(event("ADDED", &object)).unwrap();
    }
    maps.send(bookmark(7, true)).unwrap();
    let tries = |name: &str| {
        let tried = TRIED.lock().unwrap();
        tried.iter().filter(|(tried, _)| tried == name).map(|(_, at)| *at).collect::<Vec<_>>()
    };
    let posted =
        || script.requests.lock().unwrap().iter().any(|request| request.contains("POST /api/v1/namespaces/a/events"));
    within(async {
        while tries("x").len() < 4 || tries("y").is_empty() || !posted() {
            Env::real().sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    // 5, 10 and 20 ms of back-off, each late by a millisecond or two of the clock.
    let x = tries("x");
    let waits: Vec<_> = x.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
    assert!(waits.iter().zip([5, 10, 20]).all(|(wait, least)| (least..least + 5).contains(wait)), "{waits:?}");
    // The change whose mapping panicked has ended neither the watch nor the driver.
    maps.send(event("ADDED", &object("z", 9))).unwrap();
    within(async {
        while tries("z").is_empty() {
            Env::real().sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(tries("x").len(), 4, "it has succeeded");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    // One more: the change whose mapping panicked.
    assert!(text.contains("coracle_controller_panics_total{controller=\"clumsy-controller\"} 4"), "{text}");
    stop.cancel();
    within(running).await.unwrap();
}
