//! Whole lives of pods on a node whose container runtime is simulated, against an API server that the test plays: all of
//! the kubelet but the heartbeat, with no module compiled.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::BoxBody};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use machinery_client::Informer;
use machinery_client::events::Recorder;
use machinery_client::in_process;
use machinery_env::Env;
use machinery_serve::net::{Body, Caller, Dial, DialError, Origin, Peer, PodNetwork, Protocol};
use oci_registry::BlobStore;
use runtime_api::simulated::SimulatedRuntime;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Addresses, Capacity, ConfigSourceManager, Images, Measurer, NodeConfig, NodeParts, PodViews, Shared, log, pods,
};
use crate::server::ServingTls;

/// Where a server listens whose pod names no port.
const PORT: u16 = 80;

#[derive(Default)]
struct Cluster {
    version: u64,
    /// Pods by name.
    pods: BTreeMap<String, Value>,
    /// Reasons of events, in their order.
    events: Vec<String>,
    watches: Vec<mpsc::UnboundedSender<Value>>,
}

impl Cluster {
    fn show(&mut self, kind: &str, pod: &Value) {
        self.watches.retain(|watch| watch.send(json!({"type": kind, "object": pod})).is_ok());
    }

    fn put(&mut self, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = if self.pods.insert(name, pod.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.show(kind, &pod);
        pod
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default().to_owned();
        match (method, path) {
            (&Method::PATCH, _) if path.ends_with("/status") => {
                let Some(mut pod) = self.pods.get(&name).cloned() else { return (404, missing()) };
                // Whole lists, as the agent replaces them.
                for (field, value) in body["status"].as_object().unwrap() {
                    let keep = |entry: &&Value| entry.get("$patch").is_none();
                    pod["status"][field] = match value.as_array() {
                        Some(list) => list.iter().filter(keep).cloned().collect(),
                        None => value.clone(),
                    };
                }
                (200, self.put(pod))
            }
            (&Method::DELETE, _) => {
                let Some(pod) = self.pods.remove(&name) else { return (404, missing()) };
                self.version += 1;
                self.show("DELETED", &pod);
                (200, pod)
            }
            (&Method::POST, _) if path.ends_with("/events") => {
                self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
                (201, body.clone())
            }
            _ => (200, json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": []})),
        }
    }
}

fn missing() -> Value {
    json!({"kind": "Status", "code": 404, "reason": "NotFound", "status": "Failure"})
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Cluster>>);

impl Api {
    fn with<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        in_process(service, |request| request)
    }

    async fn serve(&self, request: Request<kube::client::Body>) -> Response<BoxBody<Bytes, Infallible>> {
        let (head, body) = request.into_parts();
        if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
            let of_pods = head.uri.path() == "/api/v1/pods";
            let (sender, mut lines) = mpsc::unbounded_channel();
            self.with(|cluster| {
                for pod in cluster.pods.values().filter(|_| of_pods) {
                    let _ = sender.send(json!({"type": "ADDED", "object": pod}));
                }
                let kind = if of_pods { "Pod" } else { "Service" };
                let end = json!({"kind": kind, "apiVersion": "v1", "metadata": {
                    "resourceVersion": cluster.version.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"}}});
                let _ = sender.send(json!({"type": "BOOKMARK", "object": end}));
                if of_pods {
                    cluster.watches.push(sender);
                } else {
                    // Open for as long as the test, and silent.
                    std::mem::forget(sender);
                }
            });
            let frames = futures::stream::poll_fn(move |cx| {
                lines.poll_recv(cx).map(|line| line.map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n"))))))
            });
            return Response::new(StreamBody::new(frames).boxed());
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, answer) = self.with(|cluster| cluster.answer(&head.method, head.uri.path(), &body));
        Response::builder().status(code).body(Full::new(Bytes::from(answer.to_string())).boxed()).unwrap()
    }

    async fn until<T>(&self, what: &str, wanted: impl Fn(&Cluster) -> Option<T>) -> T {
        let found = async {
            loop {
                match self.with(|cluster| wanted(cluster)) {
                    Some(found) => return found,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_| panic!("never {what}: {:#?}", self.with(|cluster| cluster.pods.clone())))
    }
}

struct NoDial;

#[async_trait::async_trait]
impl Dial for NoDial {
    async fn http(&self, _: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError> {
        Err(DialError::NameNotFound(request.uri().to_string()))
    }
}

struct Node {
    api: Api,
    network: PodNetwork,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let (api, dir, stop) = (Api::default(), tempfile::tempdir().unwrap(), CancellationToken::new());
        let (env, client, network) = (Env::real(), api.client(), PodNetwork::default());
        let files = dir.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let runtime = Arc::new(SimulatedRuntime::default());
        let blobs = Arc::new(BlobStore::open(dir.path().join("blobs")).unwrap());
        let images = Images::open(runtime.clone(), env.clone(), blobs, None, vec![files]).unwrap();
        let tls = ServingTls { certificate: Vec::new(), key: Vec::new(), client_ca: Vec::new() };
        let capacity = Capacity {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            guest_memory_bytes: 1 << 30,
            ephemeral_bytes: 1 << 30,
            pods: 10,
        };
        let config = NodeConfig::new("n".into(), dir.path().join("node"), [127, 0, 0, 1].into(), tls, capacity);
        let parts = NodeParts {
            runtime,
            images: Arc::new(images),
            network: network.clone(),
            dial: Arc::new(NoDial),
            env: env.clone(),
        };
        let services = Informer::new(client.clone(), env.clone(), &stop);
        services.watch::<Service>();
        let logs = config.data_dir.join("logs");
        let shared = Arc::new(Shared {
            recorder: Recorder::start_on(client.clone(), env.clone(), "kubelet", "n".into(), &stop),
            sources: ConfigSourceManager::new(client.clone(), env.clone(), stop.child_token()),
            services,
            addresses: Addresses::new("127.66.0.0/24").unwrap(),
            addresses_freed: Notify::new(),
            logs: log::Writer::start(env.clone(), log::Budget::of_disk(0), &logs).unwrap(),
            measurer: Measurer::start(env).unwrap(),
            allocatable: capacity.allocatable(),
            stop: stop.clone(),
            pods: Arc::new(PodViews::default()),
            config,
            parts,
            client,
        });
        tokio::spawn(pods::run(shared));
        Self { api, network, stop, dir }
    }

    /// Binds a pod whose module is that script.
    fn run(&self, name: &str, script: &str, spec: &Value) {
        let module = self.dir.path().join("files").join(format!("{name}.wasm"));
        std::fs::write(&module, script).unwrap();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {
                "nodeName": "n", "automountServiceAccountToken": false, "serviceAccountName": "default",
                "enableServiceLinks": false, "restartPolicy": "Always",
                "containers": [{"name": "c", "image": format!("file://{}", module.display())}],
            },
            "status": {"phase": "Pending"},
        });
        for (field, value) in spec.as_object().unwrap() {
            pod["spec"][field] = value.clone();
        }
        self.api.with(|cluster| cluster.put(pod));
    }

    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.api
            .until(what, |cluster| cluster.pods.get(name).map(|pod| &pod["status"]).filter(|s| wanted(s)).cloned())
            .await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_to_its_end() {
    let node = Node::start().await;
    node.run("good", "command after=20 says=hello", &json!({"restartPolicy": "Never"}));
    node.run("bad", "command exit=3 after=20", &json!({"restartPolicy": "OnFailure"}));
    let status = node.until("good", "succeeded", |status| status["phase"] == "Succeeded").await;
    let ended = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(0), &json!("Completed")), "{status}");
    assert!(ended["containerID"].as_str().unwrap().starts_with("simulated://"), "{status}");
    let log = std::fs::read_to_string(node.dir.path().join("node/logs/uid-good/c/0.log")).unwrap();
    assert!(log.ends_with(" stdout F hello\n"), "{log}");
    let again = |status: &Value| status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1);
    let status = node.until("bad", "started again", again).await;
    assert_eq!(status["phase"], "Running", "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_answers_and_drains() {
    let node = Node::start().await;
    node.run("web", "server status=204", &json!({"terminationGracePeriodSeconds": 10}));
    let status = node.until("web", "ready", is_ready).await;
    let ip = status["podIP"].as_str().unwrap().parse().unwrap();
    let serve = node.network.find(ip, Protocol::Tcp, PORT).expect("the pod's address is served");
    let origin = Origin { peer: Peer::Node, local: (ip, PORT).into(), via: None };
    let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let answer = serve.http(&origin, Request::get("http://web/").body(body).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 204);
    node.api.with(|cluster| {
        let mut pod = cluster.pods["web"].clone();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(10);
        cluster.put(pod);
    });
    node.api.until("deleted", |cluster| (!cluster.pods.contains_key("web")).then_some(())).await;
    assert!(node.network.find(ip, Protocol::Tcp, PORT).is_none(), "nobody is sent to it any more");
    let reasons = node
        .api
        .until("events", |cluster| cluster.events.contains(&"Killing".to_owned()).then(|| cluster.events.clone()));
    let reasons = reasons.await;
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        assert!(reasons.iter().any(|said| said == reason), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_does_not_start_is_not_ready() {
    let node = Node::start().await;
    node.run("broken", "server broken", &json!({}));
    node.run("nonsense", "not a module", &json!({}));
    let ready = |status: &Value| status["containerStatuses"][0]["ready"] == false && status["phase"] == "Running";
    node.until("broken", "running and not ready", ready).await;
    let waiting = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull";
    node.until("nonsense", "waiting", waiting).await;
}
