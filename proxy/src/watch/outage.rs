//! A data plane that starts without an API server: it routes by its checkpoint until the first list. On a paused clock.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use machinery_client::in_process;
use machinery_env::TokioClock;
use machinery_serve::net::PodNetwork;
use serde_json::{Value, json};

use super::*;
use crate::Config;

/// An API server with unchanging lists; `None` is unavailable.
type FakeApi = Arc<Mutex<Option<(Vec<Value>, Vec<Value>)>>>;

fn respond(api: &FakeApi, request: &Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> {
    let lists = api.lock().unwrap();
    let path = request.uri().path();
    let Some((services, slices)) = &*lists else {
        let status = json!({"kind": "Status", "code": 503, "reason": "ServiceUnavailable", "status": "Failure"});
        return Response::builder().status(503).body(Full::new(Bytes::from(status.to_string())).boxed()).unwrap();
    };
    let (kind, objects) = match path.rsplit('/').next() {
        Some("services") => ("Service", &services[..]),
        Some("endpointslices") => ("EndpointSlice", &slices[..]),
        _ => ("HorizontalPodAutoscaler", &[][..]),
    };
    let end = json!({"kind": kind, "apiVersion": "v1", "metadata": {
        "resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}});
    let added = objects.iter().map(|object| json!({"type": "ADDED", "object": object}));
    let lines: Vec<_> =
        added.chain([json!({"type": "BOOKMARK", "object": end})]).map(|line| format!("{line}\n")).collect();
    let first = futures::stream::iter(lines.into_iter().map(|line| Ok(Frame::data(Bytes::from(line)))));
    let frames = futures::StreamExt::chain(first, futures::stream::pending());
    Response::new(StreamBody::new(frames).boxed())
}

fn service(name: &str, ip: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]}})
}

fn slice(name: &str, endpoint: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [endpoint]}]})
}

/// A running data plane, and whether it is synced.
struct RunningPlane {
    plane: DataPlane,
    env: Env,
    stop: CancellationToken,
    synced: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl RunningPlane {
    fn start(api: &FakeApi, checkpoint: Option<&Path>) -> Self {
        let env = TokioClock::env(7).0;
        let config = Config {
            bind: [127, 0, 0, 1].into(),
            cluster_ip_listeners: false,
            load_balancer_pool: Default::default(),
            is_pool_shared: false,
            cluster_cidrs: vec!["127.64.0.0/14".parse().unwrap()],
            cluster_ca_pem: None,
            cluster_dns: None,
            api_server: None,
            node: "n".into(),
            nodes: ["n".to_owned()].into(),
            checkpoint: checkpoint.map(Path::to_owned),
        };
        let plane = DataPlane::new(env.clone(), config, PodNetwork::default()).unwrap();
        let (api, stop, synced) = (api.clone(), CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let answer = tower::service_fn(move |request: Request<kube::client::Body>| {
            let answer = respond(&api, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let client = in_process(&env, answer, |request| request);
        let known = synced.clone();
        let synced_now = move || known.store(true, Ordering::Relaxed);
        let task = tokio::spawn(run(plane.clone(), client, stop.clone(), synced_now));
        Self { plane, env, stop, synced, task }
    }

    async fn pass(&self, seconds: u64) {
        self.env.sleep(Duration::from_secs(seconds)).await;
    }

    /// The endpoints of a Service; `None` if it is unknown.
    fn endpoints(&self, name: &str) -> Option<Vec<IpAddr>> {
        let routes = self.plane.state.routes.of(&ObjectKey::new("shop", name))?;
        Some(routes.tcp(80)?.usable().iter().map(|endpoint| endpoint.ip).collect())
    }

    fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn ip(text: &str) -> Option<Vec<IpAddr>> {
    Some(vec![text.parse().unwrap()])
}

#[tokio::test(start_paused = true)]
async fn routes_outlive_the_process_and_the_first_list_replaces_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy/routes.json");
    let api = FakeApi::default();
    *api.lock().unwrap() = Some((
        vec![service("catalog", "127.64.0.7"), service("old", "127.64.0.8")],
        vec![slice("catalog", "127.66.0.2"), slice("old", "127.66.0.3")],
    ));
    let first = RunningPlane::start(&api, Some(&path));
    first.pass(30).await;
    assert!(first.is_synced() && path.exists());
    let written = std::fs::metadata(&path).unwrap().modified().unwrap();
    first.pass(600).await;
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written, "nothing has changed");
    first.stop().await;

    *api.lock().unwrap() = None;
    let second = RunningPlane::start(&api, Some(&path));
    second.pass(4).await;
    assert!(!second.is_synced() && second.endpoints("catalog").is_none(), "the API may still answer");
    second.pass(3).await;
    assert!(second.is_synced());
    assert_eq!((second.endpoints("catalog"), second.endpoints("old")), (ip("127.66.0.2"), ip("127.66.0.3")));
    second.pass(4 * 3600).await;
    assert_eq!(second.endpoints("catalog"), ip("127.66.0.2"));
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written, "nothing is known to write");

    *api.lock().unwrap() = Some((
        vec![service("catalog", "127.64.0.7"), service("new", "127.64.0.9")],
        vec![slice("catalog", "127.66.0.4"), slice("new", "127.66.0.5")],
    ));
    second.pass(60).await;
    assert_eq!((second.endpoints("catalog"), second.endpoints("new")), (ip("127.66.0.4"), ip("127.66.0.5")));
    assert!(second.endpoints("old").is_none(), "it is gone");
    second.stop().await;

    *api.lock().unwrap() = None;
    let third = RunningPlane::start(&api, Some(&path));
    third.pass(7).await;
    assert_eq!((third.endpoints("catalog"), third.endpoints("old")), (ip("127.66.0.4"), None));
    third.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_answers_in_time_makes_the_checkpoint_needless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes.json");
    let mut body = Vec::new();
    let parse = |value: Value| serde_json::from_value(value).unwrap();
    checkpoint::encode(&(parse(service("old", "127.64.0.8")), Vec::new()), &mut body);
    checkpoint::store(&path, &body).unwrap();
    let api = FakeApi::default();
    *api.lock().unwrap() = Some((vec![service("catalog", "127.64.0.7")], vec![slice("catalog", "127.66.0.2")]));
    let running = RunningPlane::start(&api, Some(&path));
    running.pass(20).await;
    assert_eq!((running.endpoints("catalog"), running.endpoints("old")), (ip("127.66.0.2"), None));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_or_no_checkpoint_waits_for_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes.json");
    std::fs::write(&path, "x").unwrap();
    for checkpoint in [Some(&*path), None] {
        let api = FakeApi::default();
        let running = RunningPlane::start(&api, checkpoint);
        running.pass(60).await;
        assert!(!running.is_synced());
        *api.lock().unwrap() = Some((vec![service("catalog", "127.64.0.7")], vec![slice("catalog", "127.66.0.2")]));
        running.pass(60).await;
        assert!(running.is_synced());
        assert_eq!(running.endpoints("catalog"), ip("127.66.0.2"));
        running.stop().await;
    }
}
