//! The recorder against servers that are slow, temporarily unreachable, or expire events.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::json;

use super::*;
use machinery_env::TokioClock;

/// A server's events and requests.
#[derive(Clone, Default)]
struct Server {
    events: Arc<Mutex<Vec<Value>>>,
    /// Status codes of the first requests; later ones succeed.
    failures: Arc<Mutex<Vec<u16>>>,
    requests: Arc<Mutex<usize>>,
}

impl Server {
    fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let this = this.clone();
            async move {
                let (head, body) = request.into_parts();
                let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
                *this.requests.lock().unwrap() += 1;
                Env::real().sleep(Duration::from_millis(20)).await;
                if let Some(code) = this.failures.lock().unwrap().pop() {
                    return Ok(answer(code, &json!({"kind": "Status", "code": code, "reason": "x", "message": "x"})));
                }
                let mut events = this.events.lock().unwrap();
                if head.method == Method::POST {
                    events.push(body.clone());
                    return Ok::<_, Infallible>(answer(201, &body));
                }
                let named = |event: &&mut Value| head.uri.path().ends_with(event["metadata"]["name"].as_str().unwrap());
                Ok(match events.iter_mut().find(named) {
                    Some(event) => {
                        event["count"] = body["count"].clone();
                        answer(200, event)
                    }
                    None => answer(404, &json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": ""})),
                })
            }
        });
        crate::in_process(&Env::real(), service, |request| request)
    }

    fn counts(&self) -> Vec<u64> {
        self.events.lock().unwrap().iter().map(|event| event["count"].as_u64().unwrap_or(0)).collect()
    }

    async fn until(&self, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            Env::real().sleep(Duration::from_millis(100)).await;
        }
    }
}

fn answer(code: u16, body: &Value) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

fn note(uid: &str, reason: &'static str) -> EventRecord {
    let text = |text: &str| Some(text.to_owned());
    let about = ObjectReference { uid: text(uid), name: text(uid), namespace: text("a"), ..ObjectReference::default() };
    EventRecord { about, warning: false, reason, message: "m".into(), source: None }
}

/// With a queue of 1,000 and one request at a time, three events each of 500 pods that start together were lost.
#[tokio::test(start_paused = true)]
async fn the_events_of_500_pods_that_start_at_once_are_all_written() {
    let server = Server::default();
    let (env, _) = TokioClock::env(1);
    let recorder = Recorder::start(server.client(), env, "kubelet", &CancellationToken::new());
    for nth in 0..500 {
        for reason in ["Pulled", "Created", "Started"] {
            recorder.record(note(&format!("p{nth}"), reason));
        }
    }
    drop(recorder);
    server.until(|server| server.counts().len() == 1500).await;
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_and_rejections_are_not() {
    let server = Server::default();
    *server.failures.lock().unwrap() = vec![503, 429, 500];
    let (env, _) = TokioClock::env(1);
    let recorder = Recorder::start(server.client(), env, "x", &CancellationToken::new());
    recorder.record(note("p", "R"));
    server.until(|server| server.counts() == [1]).await;
    assert_eq!(*server.requests.lock().unwrap(), 4);

    *server.failures.lock().unwrap() = vec![403];
    recorder.record(note("q", "R"));
    recorder.record(note("r", "R"));
    server.until(|server| server.counts() == [1, 1]).await;
    assert_eq!(*server.requests.lock().unwrap(), 6, "the refused one was tried once");
}

#[tokio::test(start_paused = true)]
async fn an_expired_event_is_recreated_with_its_count() {
    let server = Server::default();
    let (env, _) = TokioClock::env(1);
    let recorder = Recorder::start(server.client(), env, "x", &CancellationToken::new());
    recorder.record(note("p", "R"));
    server.until(|server| server.counts() == [1]).await;
    recorder.record(note("p", "R"));
    server.until(|server| server.counts() == [2]).await;
    server.events.lock().unwrap().clear();
    recorder.record(note("p", "R"));
    server.until(|server| server.counts() == [3]).await;
}
