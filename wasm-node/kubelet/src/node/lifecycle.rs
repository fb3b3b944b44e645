//! Lifecycles of pods on a node with the simulated runtime, against a fake API server: the kubelet without its
//! heartbeat and without compilation.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use images::{Images, ImagesConfig};
use machinery_client::TlsIdentity;
use machinery_env::Env;
use machinery_serve::net::{Body, Caller, Dial, DialError, Origin, Peer, PodNetwork, Protocol};
use oci_registry::BlobStore;
use runtime_api::simulated::SimulatedRuntime;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fake_api::{FakeCluster, Watch, send_event};
use super::{
    Addresses, Capacity, Handover, Local, Measurer, NodeConfig, PodViews, SharedNodeParts, fake_api, log, register,
    share,
};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::record::NodeRecord;
use crate::pod::shared::NodeContext;
use crate::server::ServingTls;

/// The port of a server whose pod declares none.
const PORT: u16 = 80;

/// How the API server fails a status write.
#[derive(Clone, Copy)]
enum StatusFailure {
    Never,
    Refusal,
    TooLarge,
}

#[derive(Default)]
pub(super) struct Cluster {
    version: u64,
    /// Pods by name.
    pub(super) pods: BTreeMap<String, Value>,
    /// Reasons of events, in their order.
    pub(super) events: Vec<String>,
    /// Bodies of events, in the same order.
    pub(super) notes: Vec<Value>,
    watches: Vec<Watch>,
    /// Watches of unchanging lists.
    quiet_watches: Vec<Watch>,
    /// The outcome of status writes; `None` accepts them.
    statuses: Option<StatusFailure>,
    /// Other objects than pods, with the path of their list.
    objects: Vec<(String, Value)>,
    /// All written statuses, with their pod's name.
    pub(super) written: Vec<(String, Value)>,
    unavailable: bool,
    pub(super) silent: bool,
    /// The handler of all RuntimeClasses; `None` never answers a request for one.
    pub(super) runtime_class_handler: Option<&'static str>,
    /// The number of issued tokens.
    pub(super) tokens: u64,
}

impl Cluster {
    pub(super) fn put(&mut self, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = if self.pods.insert(name, pod.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        send_event(&mut self.watches, kind, &pod);
        pod
    }
}

impl FakeCluster for Cluster {
    fn initial_events(&self, path: &str) -> (&'static str, Vec<Value>, u64) {
        match is_pods(path) {
            true => ("Pod", self.pods.values().cloned().collect(), self.version),
            false => {
                let objects = self.objects.iter().filter(|(list, _)| list == path).map(|(_, object)| object.clone());
                let kind = match path.rsplit('/').next() {
                    Some("configmaps") => "ConfigMap",
                    Some("secrets") => "Secret",
                    _ => "Service",
                };
                (kind, objects.collect(), self.version)
            }
        }
    }

    fn add_watch(&mut self, path: &str, watch: Watch) {
        if is_pods(path) { &mut self.watches } else { &mut self.quiet_watches }.push(watch);
    }

    fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    fn is_silent(&self) -> bool {
        self.silent
    }

    fn describe(&self) -> String {
        format!("{:#?}", self.pods)
    }

    fn respond(&mut self, method: &Method, path: &str, body: &Value) -> Option<(u16, Value)> {
        let name = path.trim_end_matches("/status").rsplit('/').next().unwrap_or_default().to_owned();
        Some(match (method, path) {
            (&Method::PATCH, _) if path.ends_with("/status") && self.statuses.is_some() => match self.statuses? {
                StatusFailure::Never => return None,
                StatusFailure::TooLarge => {
                    (413, json!({"kind": "Status", "code": 413, "reason": "RequestEntityTooLarge"}))
                }
                StatusFailure::Refusal => (422, json!({"kind": "Status", "code": 422, "reason": "Invalid"})),
            },
            (&Method::GET, _) if path.contains("/runtimeclasses/") => match self.runtime_class_handler {
                Some(handler) => (200, json!({"metadata": {"name": name}, "handler": handler})),
                None => return None,
            },
            (&Method::POST, _) if path.ends_with("/token") => {
                self.tokens += 1;
                (201, json!({"status": {"token": format!("token-{}", self.tokens)}}))
            }
            (&Method::PATCH, _) if path.ends_with("/status") => {
                let Some(mut pod) = self.pods.get(&name).cloned() else { return Some(fake_api::not_found()) };
                if body["metadata"]["uid"].as_str().is_some_and(|uid| pod["metadata"]["uid"] != uid) {
                    return Some((409, json!({"kind": "Status", "code": 409, "reason": "Conflict"})));
                }
                // Lists replace, as the agent's patches do.
                for (field, value) in body["status"].as_object().unwrap() {
                    let keep = |entry: &&Value| entry.get("$patch").is_none();
                    pod["status"][field] = match value.as_array() {
                        // Conditions merge by type.
                        Some(list) if field == "conditions" => {
                            let there = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
                            let stays = |one: &Value| list.iter().all(|new| new["type"] != one["type"]);
                            there.into_iter().filter(stays).chain(list.iter().filter(keep).cloned()).collect()
                        }
                        Some(list) => list.iter().filter(keep).cloned().collect(),
                        None => value.clone(),
                    };
                }
                self.written.push((name, pod["status"].clone()));
                (200, self.put(pod))
            }
            (&Method::DELETE, _) => {
                let Some(pod) = self.pods.remove(&name) else { return Some(fake_api::not_found()) };
                self.version += 1;
                send_event(&mut self.watches, "DELETED", &pod);
                (200, pod)
            }
            (&Method::POST, _) if path.ends_with("/pods") => {
                let mut pod = body.clone();
                pod["metadata"]["uid"] = json!(format!("uid-{}", self.version));
                (201, self.put(pod))
            }
            (&Method::POST, _) if path.ends_with("/events") => {
                self.notes.push(body.clone());
                self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
                (201, body.clone())
            }
            _ => (200, json!({"metadata": {"resourceVersion": self.version.to_string()}, "items": []})),
        })
    }
}

fn is_pods(path: &str) -> bool {
    path == "/api/v1/pods"
}

type FakeApi = super::fake_api::FakeApi<Cluster>;

fn folder() -> Arc<tempfile::TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

struct NoDial;

#[async_trait::async_trait]
impl Dial for NoDial {
    async fn http(&self, _: &Caller, request: Request<Body>) -> Result<Response<Body>, DialError> {
        Err(DialError::NameNotFound(request.uri().to_string()))
    }
}

pub(super) struct Node {
    pub(super) api: FakeApi,
    pub(super) network: PodNetwork,
    stop: CancellationToken,
    pub(super) dir: Arc<tempfile::TempDir>,
    pub(super) shared: Arc<NodeContext>,
    tasks: Vec<JoinHandle<()>>,
}

/// The parts of a test's node that differ.
pub(super) struct Start {
    pub(super) cidr: &'static str,
    pub(super) env: Env,
    /// Runs the static pods of its folder `manifests`.
    pub(super) manifests: bool,
    /// Has a checkpoint.
    pub(super) checkpoint: bool,
    /// The API has answered before the pods start.
    pub(super) registered: bool,
}

impl Start {
    pub(super) fn new(env: Env) -> Self {
        Self { cidr: "127.66.0.0/24", env, manifests: false, checkpoint: false, registered: true }
    }
}

impl Node {
    pub(super) async fn start() -> Self {
        Self::with("127.66.0.0/24", Env::real()).await
    }

    /// With that pod CIDR.
    pub(super) async fn with(cidr: &'static str, env: Env) -> Self {
        Self::launch(Start { cidr, ..Start::new(env) }, FakeApi::default(), folder()).await
    }

    /// A node that also runs the static pods of its folder `manifests`.
    pub(super) async fn with_manifests(cidr: &'static str, env: Env) -> Self {
        Self::launch(Start { cidr, manifests: true, ..Start::new(env) }, FakeApi::default(), folder()).await
    }

    /// Kills the node's process, and starts another one on its folder.
    pub(super) async fn restart(self, start: Start) -> Self {
        // Nothing is written any more.
        self.tasks.iter().for_each(JoinHandle::abort);
        self.stop.cancel();
        let (api, dir) = (self.api.clone(), self.dir.clone());
        drop(self);
        Self::launch(start, api, dir).await
    }

    pub(super) async fn launch(start: Start, api: FakeApi, dir: Arc<tempfile::TempDir>) -> Self {
        let Start { cidr, env, manifests, checkpoint, registered } = start;
        let stop = CancellationToken::new();
        let (client, network) = (api.client(), PodNetwork::default());
        let files = dir.path().join("files");
        std::fs::create_dir_all(&files).unwrap();
        let runtime = Arc::new(SimulatedRuntime::new(env.clone()));
        let blobs = Arc::new(BlobStore::open(dir.path().join("blobs")).unwrap());
        let images = Images::open(
            runtime.clone(),
            env.clone(),
            blobs,
            ImagesConfig { file_dirs: vec![files], ..ImagesConfig::default() },
        )
        .unwrap();
        let tls = ServingTls::fixed(TlsIdentity { cert_pem: String::new(), key_pem: String::new() }, Vec::new());
        let capacity = Capacity {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            guest_memory_bytes: 1 << 30,
            ephemeral_bytes: 1 << 30,
            pods: 10,
        };
        let mut config = NodeConfig::new("n".into(), dir.path().join("node"), [127, 0, 0, 1].into(), tls, capacity);
        if manifests {
            let folder = dir.path().join("manifests");
            std::fs::create_dir_all(&folder).unwrap();
            config.static_pods = Some(folder);
        }
        let parts = SharedNodeParts {
            runtime,
            images: Arc::new(images),
            imports: |_| Ok(vec!["wasi_snapshot_preview1/sock_accept".into()]),
            network: network.clone(),
            dial: Arc::new(NoDial),
            env: env.clone(),
            node_warnings: tokio::sync::broadcast::channel(1).0,
            handover: Handover::default(),
        };
        let logs = config.data_dir.join("logs");
        let local = Local {
            logs: log::Writer::start(env.clone(), log::Budget::of_disk(0), &logs).unwrap(),
            measurer: Measurer::start(env).unwrap(),
        };
        let (addresses, pods) = (Addresses::new(cidr).unwrap(), Arc::new(PodViews::default()));
        let facts = register::facts(&config);
        let checkpoint = Checkpoint::open(checkpoint.then(|| dir.path().join("node/checkpoint")), "n");
        let (name, uid, pod_cidr) = ("n".to_owned(), "uid-n".to_owned(), cidr.to_owned());
        let (labels, taints) = (facts.labels.clone(), facts.taints.clone());
        checkpoint.set_node(NodeRecord { name, uid: uid.clone(), origin: uid, pod_cidr, labels, taints });
        let facts = (tokio::sync::watch::channel(facts).1, registered);
        let local = (local, addresses, pods, checkpoint.clone());
        let env = parts.env.clone();
        let shared = Arc::new(share(&config, parts, client, local, facts, &stop));
        let tasks = vec![
            tokio::spawn(super::pods::run(shared.clone())),
            tokio::spawn(super::services::record(shared.clone())),
            tokio::spawn(checkpoint.run(env, stop.clone())),
        ];
        Self { api, network, stop, dir, shared, tasks }
    }

    /// The image of a module with that script.
    pub(super) fn image(&self, name: &str, script: &str) -> String {
        let module = self.dir.path().join("files").join(format!("{name}.wasm"));
        std::fs::write(&module, script).unwrap();
        format!("file://{}", module.display())
    }

    /// Adds an object to the list of that path.
    pub(super) fn object(&self, list: &str, object: Value) {
        self.api.with(|cluster| cluster.objects.push((list.to_owned(), object)));
    }

    /// Stops or restarts the API server. Watches break.
    pub(super) fn set_unavailable(&self, unavailable: bool) {
        self.api.with(|cluster| {
            cluster.unavailable = unavailable;
            cluster.watches.clear();
            cluster.quiet_watches.clear();
        });
    }

    /// Binds a pod whose module has that script; `spec` overrides fields of its spec, or its status.
    pub(super) fn run(&self, name: &str, script: &str, spec: &Value) {
        let image = self.image(name, script);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": {
                "nodeName": "n", "automountServiceAccountToken": false, "serviceAccountName": "default",
                "enableServiceLinks": false, "restartPolicy": "Always",
                "containers": [{"name": "c", "image": image}],
            },
            "status": {"phase": "Pending"},
        });
        for (field, value) in spec.as_object().unwrap() {
            match field.as_str() {
                "status" => pod["status"] = value.clone(),
                _ => pod["spec"][field] = value.clone(),
            }
        }
        self.api.with(|cluster| cluster.put(pod));
    }

    /// Deletes a pod, and waits until it is gone.
    pub(super) async fn delete(&self, name: &str) {
        self.api.with(|cluster| {
            let mut pod = cluster.pods[name].clone();
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(10);
            cluster.put(pod);
        });
        self.api.until("deleted", |cluster| (!cluster.pods.contains_key(name)).then_some(())).await;
    }

    pub(super) async fn until(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
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

pub(super) fn is_ready(status: &Value) -> bool {
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
    node.delete("web").await;
    assert!(node.network.find(ip, Protocol::Tcp, PORT).is_none(), "nobody is sent to it any more");
    let reasons = node
        .api
        .until("events", |cluster| cluster.events.contains(&"Killing".to_owned()).then(|| cluster.events.clone()));
    let reasons = reasons.await;
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        assert!(reasons.iter().any(|event| event == reason), "{reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_takeover_servers_outlive_their_agent_and_commands_end() {
    let mut node = Node::start().await;
    let image = node.image("sidecar", "command");
    node.run("web", "server status=204", &json!({}));
    node.run("job", "command", &json!({}));
    let sidecar = json!({"name": "s", "image": image});
    let server = json!({"name": "c", "image": node.image("mixed", "server status=204")});
    node.run("mixed", "server status=204", &json!({"containers": [server, sidecar]}));
    let running = |status: &Value| status["phase"] == "Running";
    node.until("job", "running", running).await;
    let mut ips = Vec::new();
    for name in ["web", "mixed"] {
        let status = node.until(name, "ready", is_ready).await;
        ips.push(status["podIP"].as_str().unwrap().parse::<std::net::IpAddr>().unwrap());
    }
    let find = |ip| node.network.find(ip, Protocol::Tcp, PORT);
    let outlive = |ip| find(ip).is_some_and(|serve| serve.outlives_agent());
    assert_eq!(ips.iter().map(|ip| outlive(*ip)).collect::<Vec<_>>(), [true, false], "known before the agent ends");
    node.shared.parts.handover.begin();
    node.stop.cancel();
    for task in std::mem::take(&mut node.tasks) {
        task.await.unwrap();
    }
    assert!(find(ips[1]).is_none(), "a server with a command beside it ends");
    let origin = Origin { peer: Peer::Node, local: (ips[0], PORT).into(), via: None };
    let body: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let serve = find(ips[0]).expect("the server outlives its agent");
    assert_eq!(serve.http(&origin, Request::get("http://web/").body(body).unwrap()).await.unwrap().status(), 204);
    assert!(serve.outlives_agent());
    node.shared.parts.handover.end();
    assert!(find(ips[0]).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_events_while_its_module_is_compiled_for_long() {
    let node = Node::with("127.66.0.0/24", machinery_env::TokioClock::env(7).0).await;
    node.run("slow", "server compiles=25000", &json!({}));
    node.run("quick", "server compiles=2900", &json!({}));
    for name in ["slow", "quick"] {
        node.until(name, "ready", is_ready).await;
    }
    let of = |note: &Value| {
        let about = &note["involvedObject"];
        let about = format!("{} {}", about["name"].as_str().unwrap(), about["fieldPath"].as_str().unwrap_or_default());
        (about, note["message"].as_str().unwrap().rsplit_once(": ").unwrap().1.to_owned())
    };
    let compiling = |cluster: &Cluster| {
        let notes = cluster.notes.iter().filter(|note| note["reason"] == "Compiling").map(of);
        Some(notes.collect::<Vec<_>>()).filter(|notes| notes.len() >= 3)
    };
    let notes = node.api.until("notes", compiling).await;
    let wanted = [3, 10, 20].map(|so_far| {
        ("slow spec.containers{c}".to_owned(), format!("{so_far} s so far, of at most 120 s once it is its turn"))
    });
    assert_eq!(notes, wanted);
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

/// Pods of an earlier run restart, however the API server responds to their first status.
#[tokio::test(flavor = "multi_thread")]
async fn resumed_pods_run_also_where_the_api_takes_no_status() {
    for statuses in [StatusFailure::Refusal, StatusFailure::Never] {
        let node = Node::start().await;
        node.api.with(|cluster| cluster.statuses = Some(statuses));
        let ip = "127.66.0.7";
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let container = json!({
            "name": "c", "image": "i", "imageID": "", "restartCount": 0, "ready": true, "started": true, "state": running,
        });
        node.run(
            "web",
            "server status=204",
            &json!({"status": {
                "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [container],
            }}),
        );
        // A pod keeps its address if it is in the node's first list; a later event is a new pod.
        let addresses = [ip, "127.66.0.1"].map(|ip| ip.parse().unwrap());
        let serves = async {
            while addresses.iter().all(|ip| node.network.find(*ip, Protocol::Tcp, PORT).is_none()) {
                Env::real().sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        Env::real().timeout(std::time::Duration::from_secs(30), serves).await.expect("it runs");
    }
}

/// As a pod with thousands of containers.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_a_too_large_status_gets_an_event_and_can_be_deleted() {
    let node = Node::start().await;
    node.api.with(|cluster| cluster.statuses = Some(StatusFailure::TooLarge));
    node.run("large", "server status=204", &json!({}));
    let reported = |cluster: &Cluster| {
        let times = cluster.events.iter().filter(|event| *event == "StatusTooLarge").count();
        cluster.events.iter().any(|event| event == "Started").then_some(times)
    };
    node.api.until("told", |cluster| reported(cluster).filter(|times| *times == 1)).await;
    node.delete("large").await;
    assert_eq!(node.api.with(|cluster| reported(cluster)), Some(1), "it is told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_runtime_class_cannot_be_read_can_be_deleted() {
    let node = Node::start().await;
    node.run("odd", "server status=204", &json!({"runtimeClassName": "odd"}));
    node.delete("odd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_waits_for_an_address_gets_the_next_one_that_comes_free() {
    let node = Node::with("127.66.0.0/30", Env::real()).await;
    for name in ["a", "b"] {
        node.run(name, "server status=204", &json!({}));
        node.until(name, "ready", is_ready).await;
    }
    node.run("c", "server status=204", &json!({}));
    let reported =
        |cluster: &Cluster| cluster.events.iter().any(|event| event == "FailedCreatePodSandBox").then_some(());
    node.api.until("told that it waits", reported).await;
    node.delete("a").await;
    let status = node.until("c", "ready", is_ready).await;
    assert_eq!(status["podIP"], "127.66.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_an_event_for_each_missing_object() {
    let node = Node::with("127.66.0.0/30", Env::real()).await;
    for name in ["a", "b"] {
        node.run(name, "server status=204", &json!({}));
        node.until(name, "ready", is_ready).await;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let ports = json!([{"containerPort": 80, "hostPort": taken.local_addr().unwrap().port()}]);
    node.run(
        "c",
        "server status=204",
        &json!({"containers": [{"name": "c", "image": node.image("c", "server status=204"), "ports": ports}]}),
    );
    let reported = |cluster: &Cluster| cluster.events.iter().filter(|event| *event == "FailedCreatePodSandBox").count();
    node.api.until("told that it lacks an address", |cluster| (reported(cluster) == 1).then_some(())).await;
    node.delete("a").await;
    node.api.until("told that it lacks its host port", |cluster| (reported(cluster) == 2).then_some(())).await;
    drop(taken);
    node.until("c", "ready", is_ready).await;
    assert_eq!(node.api.with(|cluster| reported(cluster)), 2, "each is told once");
}
