//! The shell against a small API server of JSON: bindings, rejections, conditions, and events that make pods
//! schedulable.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use machinery_client::in_process;
use machinery_client::request::PatchType;
use machinery_client::{Kind, Pod};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::plugins::{Plugin, PostFilterResult, PreBindPatch, PreFilterResult, Profile, ProfileError, Reserve, plugin};
use crate::pod::PodInfo;
use crate::snapshot::Snapshot;
use crate::{Config, RunError, run};

type ApiResponse = Response<BoxBody<Bytes, Infallible>>;

#[derive(Default)]
pub(crate) struct ServerState {
    version: u64,
    /// By plural, then namespace and name.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watchers: Vec<(String, mpsc::UnboundedSender<Value>)>,
    events: Vec<Value>,
    /// Each pod whose status was written, as of the write.
    pub(crate) status_writes: Vec<Value>,
    /// The number of bindings to reject.
    refusals: u32,
    /// The number of patches of pods to reject.
    patch_refusals: u32,
    /// Whether bindings get no answer, and the number that wait for one.
    silent: bool,
    waiting: Arc<()>,
}

impl ServerState {
    fn write(&mut self, plural: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let key = format!("{}/{}", object["metadata"]["namespace"], object["metadata"]["name"]);
        let existed = self.objects.entry(plural.into()).or_default().insert(key, object.clone()).is_some();
        let kind = if existed { "MODIFIED" } else { "ADDED" };
        for (_, watcher) in self.watchers.iter().filter(|(watched, _)| watched == plural) {
            let _ = watcher.send(json!({"type": kind, "object": object}));
        }
    }

    fn remove(&mut self, plural: &str, object: &Value) {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let key = format!("{}/{}", object["metadata"]["namespace"], object["metadata"]["name"]);
        self.objects.entry(plural.into()).or_default().remove(&key);
        for (_, watcher) in self.watchers.iter().filter(|(watched, _)| watched == plural) {
            let _ = watcher.send(json!({"type": "DELETED", "object": object}));
        }
    }

    pub(crate) fn pod(&mut self, name: &str) -> &mut Value {
        self.objects.get_mut("pods").unwrap().get_mut(&format!("\"a\"/\"{name}\"")).unwrap()
    }
}

#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<ServerState>>,
    changed: watch::Sender<()>,
}

fn says(code: u16, body: &Value) -> ApiResponse {
    Response::builder().status(code).body(Full::new(Bytes::from(body.to_string())).boxed()).unwrap()
}

impl Server {
    fn answer(&self, method: &Method, uri: &str, body: &Value) -> ApiResponse {
        let mut state = self.state.lock().unwrap();
        let path = uri.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let answer = match (method, parts.as_slice()) {
            (&Method::GET, [.., plural]) if uri.contains("watch=true") => {
                let (sender, mut lines) = mpsc::unbounded_channel::<Value>();
                for object in state.objects.get(*plural).into_iter().flat_map(BTreeMap::values) {
                    sender.send(json!({"type": "ADDED", "object": object})).unwrap();
                }
                let metadata = json!({"resourceVersion": state.version.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"}});
                sender.send(json!({"type": "BOOKMARK", "object": {"metadata": metadata}})).unwrap();
                state.watchers.push(((*plural).to_owned(), sender));
                let frames = futures::stream::poll_fn(move |cx| {
                    lines.poll_recv(cx).map(|line| line.map(|l| Ok(Frame::data(Bytes::from(format!("{l}\n"))))))
                });
                Response::new(BodyExt::boxed(StreamBody::new(frames)))
            }
            (&Method::POST, [.., "pods", _, "binding"]) if state.refusals > 0 => {
                state.refusals -= 1;
                says(503, &json!({"kind": "Status", "status": "Failure", "code": 503, "message": "busy"}))
            }
            (&Method::POST, [.., "pods", name, "binding"]) => {
                assert_eq!(body["metadata"]["uid"], *name);
                let mut pod = state.pod(name).clone();
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                state.write("pods", pod);
                says(201, &json!({"kind": "Status", "status": "Success"}))
            }
            (&Method::PATCH, [.., "pods", _]) if state.patch_refusals > 0 => {
                state.patch_refusals -= 1;
                says(503, &json!({"kind": "Status", "status": "Failure", "code": 503, "message": "busy"}))
            }
            (&Method::PATCH, [.., "pods", name]) => {
                let mut pod = state.pod(name).clone();
                pod["metadata"]["annotations"] = body["metadata"]["annotations"].clone();
                state.write("pods", pod.clone());
                says(200, &pod)
            }
            (&Method::PATCH, [.., "pods", name, "status"]) => {
                let mut pod = state.pod(name).clone();
                for (key, value) in body["status"].as_object().unwrap() {
                    pod["status"][key] = value.clone();
                }
                state.status_writes.push(pod.clone());
                state.write("pods", pod.clone());
                says(200, &pod)
            }
            (&Method::DELETE, [.., "pods", name]) => {
                assert_eq!(body["preconditions"]["uid"], **name);
                let pod = state.pod(name).clone();
                state.remove("pods", &pod);
                says(200, &pod)
            }
            (&Method::POST, [.., "events"]) => {
                state.events.push(body.clone());
                says(201, body)
            }
            (_, [.., "events", _]) => says(200, body),
            (&Method::GET, [.., "pods", name]) => {
                let pods = state.objects.get("pods").into_iter().flat_map(|pods| pods.values());
                match pods.into_iter().find(|pod| pod["metadata"]["name"] == **name) {
                    Some(pod) => says(200, pod),
                    None => {
                        says(404, &json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}))
                    }
                }
            }
            (&Method::GET, [.., "leases", name]) => {
                let key = format!("\"kube-system\"/\"{name}\"");
                match state.objects.get("leases").and_then(|leases| leases.get(&key)) {
                    Some(lease) => says(200, lease),
                    None => {
                        says(404, &json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}))
                    }
                }
            }
            (_, [.., "leases"] | [.., "leases", _]) => {
                let current = state.objects.get("leases").and_then(|leases| leases.values().next());
                if current.is_some_and(|k| k["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]) {
                    says(409, &json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "Conflict"}))
                } else {
                    state.write("leases", body.clone());
                    says(200, state.objects["leases"].values().next().unwrap_or(&Value::Null))
                }
            }
            _ => panic!("nobody should ask {method} {uri}"),
        };
        drop(state);
        self.changed.send_replace(());
        answer
    }

    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    pub(crate) fn status_writes(&self) -> Vec<Value> {
        self.state.lock().unwrap().status_writes.clone()
    }

    /// Binds a pod, as another scheduler would.
    pub(crate) fn bind(&self, name: &str, node: &str) {
        let mut state = self.state.lock().unwrap();
        let mut pod = state.pod(name).clone();
        pod["spec"]["nodeName"] = node.into();
        state.write("pods", pod);
        drop(state);
        self.changed.send_replace(());
    }

    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let silent = |state: &ServerState| state.silent && head.uri.path().ends_with("/binding");
                let waiting =
                    Some(server.state.lock().unwrap()).filter(|state| silent(state)).map(|s| s.waiting.clone());
                if let Some(_until_dropped) = waiting {
                    server.changed.send_replace(());
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(server.answer(&head.method, &head.uri.to_string(), &body))
            }
        });
        in_process(&Env::real(), service, |request| request)
    }

    pub(crate) fn write(&self, plural: &str, object: Value) {
        self.state.lock().unwrap().write(plural, object);
    }

    pub(crate) async fn until(&self, what: impl Fn(&mut ServerState) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !what(&mut self.state.lock().unwrap()) {
                changed.changed().await.unwrap();
            }
        };
        Env::real().timeout(Duration::from_secs(20), wait).await.expect("it happens in time");
    }
}

pub(crate) fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
}

pub(crate) fn pod(name: &str, scheduler: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "a", "uid": name, "generation": 1},
        "spec": {"schedulerName": scheduler,
            "containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_or_get_a_condition() {
    let server = Server::new();
    server.state.lock().unwrap().refusals = 1;
    server.write("nodes", node("n1", "2"));
    for n in 0..3 {
        server.write("pods", pod(&format!("p{n}"), "default-scheduler", "1"));
    }
    server.write("pods", pod("other", "somebody-else", "1"));
    let stop = CancellationToken::new();
    let config = Config::default();
    let mut registry = prometheus_client::registry::Registry::default();
    config.metrics.register(&mut registry);
    let running = tokio::spawn(run(server.client(), Env::real(), config, stop.clone()));
    // Two fit, after a retry of the rejected binding; the third has a condition with the reason.
    let bound = |state: &mut ServerState, names: &[&str]| {
        let nodes = state.objects["pods"].values().filter(|pod| pod["spec"]["nodeName"].is_string());
        let got: Vec<String> = nodes.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        got.len() == names.len().max(2)
    };
    let waits = |state: &mut ServerState| {
        let pods: Vec<Value> = state.objects["pods"].values().cloned().collect();
        pods.iter().any(|pod| {
            let condition = &pod["status"]["conditions"][0];
            pod["spec"].get("nodeName").is_none()
                && condition["reason"] == "Unschedulable"
                && condition["observedGeneration"] == 1
                && condition["message"]
                    .as_str()
                    .is_some_and(|m| m.starts_with("0/1 nodes are available: 1 Insufficient cpu. "))
        })
    };
    server.until(|state| bound(state, &[]) && waits(state)).await;
    server
        .until(|state| {
            let has =
                |reason: &str| state.events.iter().any(|event| event["reason"] == reason && event["note"].is_string());
            has("Scheduled") && has("FailedScheduling")
        })
        .await;
    // A node that makes the pod schedulable.
    server.write("nodes", node("n2", "2"));
    server.until(|state| bound(state, &["", "", ""])).await;
    assert!(server.state.lock().unwrap().pod("other")["spec"].get("nodeName").is_none());
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"default-scheduler\"}"));
    assert!(text.contains("scheduler_pod_scheduling_duration_seconds_count"));
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// Another replica may bind as soon as the leadership is lost, so a binding in flight is aborted.
#[tokio::test]
async fn lost_leadership_aborts_bindings() {
    let server = Server::new();
    server.state.lock().unwrap().silent = true;
    server.write("nodes", node("n1", "2"));
    server.write("pods", pod("p", "default-scheduler", "1"));
    let mut config = Config::default().elected("me");
    let election = config.election.as_mut().unwrap();
    election.retry_period = Duration::from_millis(20);
    let running = tokio::spawn(run(server.client(), Env::real(), config, CancellationToken::new()));
    server.until(|state| Arc::strong_count(&state.waiting) > 1).await;
    let mut lease = server.state.lock().unwrap().objects["leases"].values().next().unwrap().clone();
    assert_eq!(lease["spec"]["holderIdentity"], "me");
    lease["spec"]["holderIdentity"] = json!("another");
    server.write("leases", lease);
    let ended = Env::real().timeout(Duration::from_secs(20), running).await.expect("it ends").unwrap();
    assert!(matches!(ended, Err(RunError::Election(_))), "{ended:?}");
    assert_eq!(Arc::strong_count(&server.state.lock().unwrap().waiting), 1, "the binding was given up");
}

/// A pod of higher priority preempts another, which gets a condition, and takes its place. A pod that was nominated for
/// the node loses its nomination.
#[tokio::test]
async fn a_pod_of_higher_priority_preempts() {
    let server = Server::new();
    server.write("nodes", node("n1", "2"));
    let ranked = |name: &str, rank: i32, cpu: &str| {
        let mut pod = pod(name, "default-scheduler", cpu);
        pod["spec"]["priority"] = rank.into();
        pod
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(server.client(), Env::real(), Config::default(), stop.clone()));
    server.write("pods", ranked("low", 0, "2"));
    server.until(|state| state.pod("low")["spec"]["nodeName"] == "n1").await;
    let mut nominated = ranked("middle", 5, "2");
    nominated["spec"]["schedulingGates"] = json!([{"name": "g"}]);
    server.write("pods", nominated);
    server.write("pods", ranked("high", 9, "1"));
    server.until(|state| state.pod("high")["spec"]["nodeName"] == "n1").await;
    {
        let mut state = server.state.lock().unwrap();
        assert!(!state.objects["pods"].contains_key("\"a\"/\"low\""));
        let condition = |state: &ServerState, name: &str, at: &str| {
            let written =
                state.status_writes.iter().find(|pod| pod["metadata"]["name"] == name).cloned().unwrap_or_default();
            written.pointer(at).cloned().unwrap_or_default()
        };
        let why = condition(&state, "low", "/status/conditions/0");
        assert_eq!((why["type"].as_str(), why["status"].as_str()), (Some("DisruptionTarget"), Some("True")));
        assert_eq!(why["reason"], "PreemptionByScheduler");
        assert_eq!(why["message"], "default-scheduler: preempting to accommodate a higher priority pod");
        assert_eq!(condition(&state, "high", "/status/nominatedNodeName"), "n1");
        let message = condition(&state, "high", "/status/conditions/0/message");
        assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu.");
        state.pod("middle")["spec"]["schedulingGates"] = json!([]);
        let middle = state.pod("middle").clone();
        state.write("pods", middle);
    }
    // It preempts pods of lower priority rather than take another pod's nomination.
    server.until(|state| state.pod("middle")["status"]["conditions"][0]["reason"] == "Unschedulable").await;
    server
        .until(|state| {
            let mut about = state.events.iter().filter(|event| event["reason"] == "Preempted");
            about
                .any(|event| event["regarding"]["name"] == "low" && event["note"] == "Preempted by pod high on node n1")
        })
        .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// The calls of [`TEST_PLUGIN`], in order.
static CALLS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Implements the extension points that no default plugin implements.
static TEST_PLUGIN: Plugin = Plugin {
    post_filter: Some(|_, _, _| PostFilterResult::Nominated {
        node: "n1".into(),
        victims: Vec::new(),
        candidates: Vec::new(),
    }),
    reserve: Some(Reserve {
        reserve: |snapshot, pod, node| {
            called("reserve", snapshot, pod, node);
            Ok(())
        },
        unreserve: |snapshot, pod, node| called("unreserve", snapshot, pod, node),
    }),
    pre_bind: Some(|_, pod, node| {
        vec![PreBindPatch {
            kind: Kind::of::<Pod>(),
            key: (*pod.key).clone(),
            subresource: None,
            patch_type: PatchType::Merge,
            patch: json!({"metadata": {"annotations": {"set-aside-on": node}}}),
        }]
    }),
    ..plugin("TestPlugin")
};

fn called(what: &str, snapshot: &mut Snapshot, pod: &PodInfo, node: &str) {
    assert!(snapshot.placed(&pod.key).is_some_and(|(_, assumed)| assumed), "the pod is assumed to be there");
    CALLS.lock().unwrap().push(format!("{what} {} {node}", pod.key.name));
}

/// Each profile decides for its own pods with its own plugins. Reservations are undone if the binding fails, `PreBind`
/// patches come before the binding, and a nominated pod gets its status.
#[tokio::test]
async fn each_profile_runs_its_own_plugins() {
    let server = Server::new();
    server.state.lock().unwrap().patch_refusals = 1;
    server.write("nodes", node("n1", "4"));
    server.write("pods", pod("plain", "default-scheduler", "1"));
    server.write("pods", pod("fits", "special", "1"));
    // The pod counts on its node, and the others must fit beside it.
    let mut large = pod("large", "special", "5");
    large["spec"]["priority"] = json!(-1);
    server.write("pods", large);
    let mut special = Profile::named("special").without("DefaultPreemption").unwrap();
    special.plugins.push((&TEST_PLUGIN, 0));
    let config = Config { profiles: vec![Profile::default(), special], ..Config::default() };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(server.client(), Env::real(), config, stop.clone()));
    let bound = |state: &mut ServerState, name: &str| state.pod(name)["spec"]["nodeName"] == "n1";
    server.until(|state| bound(state, "plain") && bound(state, "fits")).await;
    server.until(|state| state.pod("large")["status"]["nominatedNodeName"] == "n1").await;
    assert_eq!(*CALLS.lock().unwrap(), ["reserve fits n1", "unreserve fits n1", "reserve fits n1"]);
    {
        let mut state = server.state.lock().unwrap();
        assert_eq!(state.pod("fits")["metadata"]["annotations"], json!({"set-aside-on": "n1"}));
        assert!(state.pod("plain")["metadata"].get("annotations").is_none());
        let why = &state.pod("large")["status"]["conditions"][0]["message"];
        assert_eq!(why.as_str().unwrap(), "0/1 nodes are available: 1 Insufficient cpu.");
    }
    // The failed attempt of the pod whose patch was rejected is an event, too. Each event names the pod's scheduler.
    server
        .until(|state| {
            let by = |pod: &str, reason: &str| {
                let mut about = state.events.iter().filter(|e| e["regarding"]["name"] == pod && e["reason"] == reason);
                about.next().map(|event| event["reportingController"].clone())
            };
            by("plain", "Scheduled") == Some(json!("default-scheduler"))
                && by("fits", "Scheduled") == Some(json!("special"))
                && by("fits", "FailedScheduling") == Some(json!("special"))
        })
        .await;
    let why = server.state.lock().unwrap().events.iter().find(|event| event["regarding"]["name"] == "fits").cloned();
    let why = why.map(|event| event["note"].to_string()).unwrap_or_default();
    assert!(why.contains(r#"running PreBind plugin \"TestPlugin\": "#), "{why}");
    stop.cancel();
    running.await.unwrap().unwrap();
}

static CLUMSY: Plugin = Plugin {
    pre_filter: Some(|cycle| {
        let decisions = DECISIONS.fetch_add(1, Ordering::SeqCst);
        assert!(cycle.pod.key.name != "unlucky" || decisions > 0, "decision {decisions} panics");
        PreFilterResult::Skip
    }),
    ..plugin("Clumsy")
};
static DECISIONS: AtomicU32 = AtomicU32::new(0);

#[tokio::test]
async fn a_panicking_decision_is_reported_and_retried() {
    let server = Server::new();
    server.write("nodes", node("n1", "4"));
    server.write("pods", pod("unlucky", "clumsy", "1"));
    let mut profile = Profile::named("clumsy");
    profile.plugins.push((&CLUMSY, 0));
    let config = Config { profiles: vec![profile], ..Config::default() };
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(server.client(), Env::real(), config, stop.clone()));
    server.until(|state| state.pod("unlucky")["spec"]["nodeName"] == "n1").await;
    let reported = |state: &mut ServerState| {
        let mut events = state.events.iter().filter(|event| event["reason"] == "FailedScheduling");
        events.any(|event| event["note"].as_str().is_some_and(|note| note.starts_with("the scheduler panicked")))
    };
    server.until(reported).await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn duplicate_profiles_are_rejected_at_the_start() {
    let server = Server::new();
    let config = Config { profiles: vec![Profile::default(), Profile::default()], ..Config::default() };
    let ended = run(server.client(), Env::real(), config, CancellationToken::new()).await;
    assert!(matches!(ended, Err(RunError::Profile(ProfileError::Duplicate(name))) if name == "default-scheduler"));
}
