//! A node as the API sees it: it registers, renews its lease, reports its status and that of its pods, and ends those that
//! are deleted. What runs in its pods is made up; all else goes through the real client kit.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use machinery_api::{ObjectKey, time};
use machinery_client::request::{ApiClient, PatchType, status_code};
use machinery_client::{Kind, Object, Pod, Reflector, ReflectorEvent, claims, key_of};
use machinery_env::Env;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::checkers::{identities, mounts};
use crate::cluster::Pace;
use crate::random::Random;
use crate::world::World;

/// How often a node renews its lease, and looks after everything else.
const BEAT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(700);
/// The same with fast failover: a quarter of a Lease of 2 s.
const BEAT_FAST: Duration = Duration::from_millis(500);
const LOOK_FAST: Duration = Duration::from_millis(100);

/// The annotation of a pod that never starts.
pub(crate) const BROKEN: &str = "sim.example.com/broken";

/// What a node has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) cpu_millis: i64,
    pub(crate) pods: u64,
}

impl Room {
    /// So little that its end is met.
    pub(crate) const SMALL: Self = Self { cpu_millis: 2000, pods: 10 };
}

/// What a node has of a pod.
struct Running {
    uid: String,
    /// What happens next, and when.
    next: Option<(Duration, Next)>,
    address: String,
    /// How it ended: said once and no other way, also where nobody answered or the watch is behind.
    verdict: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Next {
    Start,
    End,
    Stop,
}

/// One life of a node.
pub(crate) struct Node {
    name: String,
    api: ApiClient,
    /// The rights of the program that it is a part of.
    program: ApiClient,
    client: Client,
    env: Env,
    world: Arc<World>,
    pace: Pace,
    room: Room,
    random: Random,
    pods: Arc<Mutex<BTreeMap<ObjectKey, Arc<Pod>>>>,
    woken: Arc<Notify>,
    running: BTreeMap<ObjectKey, Running>,
    block: Option<String>,
    addresses: u64,
    renewed: Option<Duration>,
    reported: Option<Duration>,
    lease: Option<Value>,
}

fn kind_of<K: machinery_client::Typed>() -> Kind
where
    K::Scope: machinery_client::Scope,
{
    Kind::of::<K>()
}

impl Node {
    pub(crate) fn new(
        name: &str,
        (client, program): (Client, Client),
        world: &Arc<World>,
        (pace, room): (Pace, Room),
        random: Random,
    ) -> Self {
        Self {
            name: name.to_owned(),
            api: client.clone().into(),
            program: program.into(),
            client,
            env: world.env.clone(),
            world: world.clone(),
            pace,
            room,
            random,
            pods: Arc::default(),
            woken: Arc::default(),
            running: BTreeMap::new(),
            block: None,
            addresses: 1,
            renewed: None,
            reported: None,
            lease: None,
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let reflector = Reflector::of::<Pod>(self.client.clone(), self.env.clone())
            .selecting(format!("spec.nodeName={}", self.name));
        let (pods, woken) = (self.pods.clone(), self.woken.clone());
        let following = reflector.run(move |event| {
            take(&mut pods.lock().unwrap_or_else(PoisonError::into_inner), event);
            woken.notify_one();
            ControlFlow::Continue(())
        });
        let working = async {
            loop {
                // What failed is tried again with the next look.
                if self.beat().await.is_ok() {
                    self.look().await;
                }
                let _ = tokio::time::timeout(self.look_every(), self.woken.notified()).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = following => {}
            () = working => {}
        }
    }

    fn beat_every(&self) -> Duration {
        if self.pace == Pace::Fast { BEAT_FAST } else { BEAT }
    }

    fn look_every(&self) -> Duration {
        if self.pace == Pace::Fast { LOOK_FAST } else { LOOK }
    }

    /// Registers, and renews what says that the node lives.
    async fn beat(&mut self) -> Result<(), kube::Error> {
        let now = self.env.elapsed();
        if self.renewed.is_some_and(|renewed| now < renewed + self.beat_every()) && self.block.is_some() {
            return Ok(());
        }
        let kind = kind_of::<k8s_openapi::api::core::v1::Node>();
        let key = ObjectKey::new("", &self.name);
        let node: Value = match self.api.get(&kind, &key).await {
            Err(error) if status_code(&error) == 404 => {
                self.reported = None;
                let node = json!({"apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}});
                self.api.create(&kind, "", &node).await?
            }
            node => node?,
        };
        self.block = node["spec"]["podCIDR"].as_str().map(str::to_owned);
        let unready = !node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        if unready || self.reported.is_none_or(|at| now >= at + 10 * BEAT) {
            let _: Value = self.api.patch(&kind, &key, Some("status"), PatchType::Strategic, &self.status()).await?;
            self.reported = Some(now);
        }
        self.renew(&node).await?;
        self.renewed = Some(now);
        Ok(())
    }

    fn status(&self) -> Value {
        let now = time::seconds(self.env.now());
        let Room { cpu_millis, pods } = self.room;
        let room = json!({"cpu": format!("{cpu_millis}m"), "memory": "4Gi", "pods": pods.to_string(), "ephemeral-storage": "10Gi"});
        json!({"status": {
            "capacity": room, "allocatable": room,
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now,
                 "lastTransitionTime": now},
            ],
        }})
    }

    async fn renew(&mut self, node: &Value) -> Result<(), kube::Error> {
        let kind = kind_of::<k8s_openapi::api::coordination::v1::Lease>();
        let key = ObjectKey::new("kube-node-lease", &self.name);
        let lasts = (4 * self.beat_every()).as_secs();
        let spec = json!({"holderIdentity": self.name, "leaseDurationSeconds": lasts, "renewTime": time::micros(self.env.now())});
        let known = match self.lease.take() {
            Some(lease) => Ok(lease),
            None => self.api.get(&kind, &key).await,
        };
        let renewed = match known {
            Err(error) if status_code(&error) == 404 => {
                let uid = &node["metadata"]["uid"];
                let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": uid}]);
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                    "metadata": {"name": self.name, "namespace": key.namespace, "ownerReferences": owner}});
                self.api.create(&kind, &key.namespace, &lease).await?
            }
            lease => {
                let mut lease: Value = lease?;
                lease["spec"] = spec;
                self.api.update(&kind, &key, None, &lease).await?
            }
        };
        // Where that failed, it is read again.
        self.lease = Some(renewed);
        Ok(())
    }

    /// Looks at each pod, and does what is due.
    async fn look(&mut self) {
        let known = self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let same = |pod: &Pod, running: &Running| pod.metadata.uid.as_deref() == Some(&running.uid);
        let world = self.world.clone();
        self.running.retain(|key, running| {
            let stays = known.get(key).is_some_and(|pod| same(pod, running));
            if !stays {
                world.identities.ended(key, &running.uid);
                world.mounts.ended(&running.uid);
            }
            stays
        });
        for (key, pod) in known {
            self.look_at(&key, &pod).await;
        }
        self.empty_volumes().await;
    }

    async fn look_at(&mut self, key: &ObjectKey, pod: &Pod) {
        let now = self.env.elapsed();
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if !self.running.contains_key(key) {
            let Some(running) = self.admit(pod, &phase) else { return };
            self.running.insert(key.clone(), running);
        }
        let Some(running) = self.running.get_mut(key) else { return };
        if pod.metadata.deletion_timestamp.is_some() && !matches!(running.next, Some((_, Next::Stop))) {
            running.next = Some((now + self.random.millis(0, 3000), Next::Stop));
        }
        // Others write into the status, too: that the node was silent.
        let unready = phase == "Running"
            && running.verdict.is_none()
            && !matches!(running.next, Some((_, Next::Start | Next::Stop)))
            && !ready(pod);
        if unready {
            self.report(key, pod, "Running").await;
            return;
        }
        let Some((_, next)) = running.next.filter(|(at, _)| *at <= now) else { return };
        let job =
            pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("batch.kubernetes.io/job-name"));
        let over = ended(&phase).is_some();
        if next != Next::Start && running.verdict.is_none() {
            let fails = if next == Next::Stop { job } else { self.random.chance(120) };
            running.verdict = Some(ended(&phase).unwrap_or(if fails { "Failed" } else { "Succeeded" }).to_owned());
        }
        let verdict = running.verdict.clone().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if next == Next::Start && !over {
            let Some(mounts) = mounts::of(&self.world.history, &machinery_client::value_of(pod)) else {
                running.next = Some((now + LOOK, Next::Start));
                return;
            };
            let wrong = self.world.mounts.started(uid, &self.name, mounts);
            wrong.into_iter().for_each(|what| self.world.violated(format!("{key}: {what}")));
        }
        if next == Next::Start && !over && identities::has_one(pod) {
            self.world.identities.started(key, uid, &self.name).into_iter().for_each(|what| self.world.violated(what));
        }
        let done = match next {
            Next::Start if over => true,
            Next::Start => self.report(key, pod, "Running").await,
            Next::End => over || self.report(key, pod, &verdict).await,
            Next::Stop => (over || self.report(key, pod, &verdict).await) && self.remove(key, pod).await,
        };
        if matches!(next, Next::Stop | Next::End) {
            self.world.identities.ended(key, uid);
            self.world.mounts.ended(uid);
        }
        let Some(running) = self.running.get_mut(key).filter(|_| done) else { return };
        running.next = match next {
            Next::Start if job && !over => Some((now + self.random.millis(500, 9000), Next::End)),
            // Asked again until it is gone.
            Next::Stop => Some((now + LOOK, Next::Stop)),
            _ => None,
        };
    }

    /// Removes what lies in volumes of its own that go, and lets them go. How it hears of them isn't modelled.
    async fn empty_volumes(&self) {
        for (_, volume) in self.world.history.now("/registry/persistentvolumes/") {
            let volume = volume.value();
            let metadata = &volume["metadata"];
            let ours = mounts::node_of(volume) == Some(&self.name) && !metadata["deletionTimestamp"].is_null();
            let held = metadata["finalizers"].as_array().cloned().unwrap_or_default();
            let left: Vec<&Value> = held.iter().filter(|name| *name != claims::DELETION_PROTECTION).collect();
            if !ours || left.len() == held.len() || volume["status"]["phase"] == "Bound" {
                continue;
            }
            let uid = metadata["uid"].as_str().unwrap_or_default();
            self.world.mounts.emptied(uid).into_iter().for_each(|what| self.world.violated(what));
            let key = ObjectKey::cluster(metadata["name"].as_str().unwrap_or_default());
            let patch = json!({"metadata": {"uid": uid, "finalizers": left}});
            let kind = kind_of::<k8s_openapi::api::core::v1::PersistentVolume>();
            let _ = self.program.patch::<Value>(&kind, &key, None, PatchType::Merge, &patch).await;
        }
    }

    /// A pod that wasn't known: what was told of it in an earlier life holds.
    fn admit(&mut self, pod: &Pod, phase: &str) -> Option<Running> {
        let block = self.block.clone()?;
        let known = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let taken = |address: &String| {
            let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            let of_others = pods.values().filter(|other| other.metadata.uid != pod.metadata.uid);
            let mut known = of_others.filter_map(|other| other.status.as_ref()?.pod_ip.clone());
            known.any(|other| other == *address) || self.running.values().any(|other| other.address == *address)
        };
        let mut address = known.unwrap_or_default();
        while address.is_empty() || address.ends_with(".0") || (phase != "Running" && taken(&address)) {
            self.addresses = self.addresses % 250 + 1;
            let net = block.rsplit_once('.').map_or("", |(net, _)| net);
            address = format!("{net}.{}", self.addresses);
        }
        let now = self.env.elapsed();
        let starts_within = if self.pace == Pace::Fast { 300 } else { 2500 };
        let starts = now + self.random.millis(50, starts_within);
        let broken = pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(BROKEN));
        let next = (!broken).then_some((starts, Next::Start));
        Some(Running {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            next,
            address,
            verdict: ended(phase).map(str::to_owned),
        })
    }

    async fn report(&self, key: &ObjectKey, pod: &Pod, phase: &str) -> bool {
        let now = time::seconds(self.env.now());
        let ready = if phase == "Running" { "True" } else { "False" };
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
        let state = match phase {
            "Running" => json!({"running": {"startedAt": now}}),
            _ => {
                json!({"running": null, "terminated": {"exitCode": i32::from(phase == "Failed"), "finishedAt": now, "startedAt": now}})
            }
        };
        let address = self.running.get(key).map(|running| running.address.clone()).unwrap_or_default();
        let status = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
            "phase": phase, "podIP": address, "podIPs": [{"$patch": "replace"}, {"ip": address}], "hostIP": "192.0.2.1",
            "startTime": now,
            "conditions": [condition("Initialized", "True"), condition("ContainersReady", ready), condition("Ready", ready)],
            "containerStatuses": [{"name": "main", "ready": phase == "Running", "restartCount": 0, "image": "example/app:1",
                "imageID": "", "state": state}],
        }});
        let kind = kind_of::<Pod>();
        let answer: Result<Value, _> = self.api.patch(&kind, key, Some("status"), PatchType::Strategic, &status).await;
        answer.is_ok()
    }

    async fn remove(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod.metadata.uid}});
        self.api.delete::<Value>(&kind_of::<Pod>(), key, &options).await.is_ok()
    }
}

/// What runs on a machine ends with it.
impl Drop for Node {
    fn drop(&mut self) {
        self.world.identities.node_ended(&self.name);
        self.world.mounts.node_ended(&self.name);
    }
}

/// The phase, if it is a last one.
fn ended(phase: &str) -> Option<&str> {
    Some(phase).filter(|phase| matches!(*phase, "Succeeded" | "Failed"))
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn take(pods: &mut BTreeMap<ObjectKey, Arc<Pod>>, event: ReflectorEvent) {
    let typed = |object: Arc<dyn Object>| {
        let object: Arc<dyn std::any::Any + Send + Sync> = object;
        object.downcast::<Pod>().ok()
    };
    match event {
        ReflectorEvent::Replaced(objects, _) => {
            *pods = objects.into_iter().filter_map(typed).map(|pod| (key_of(&pod.metadata), pod)).collect();
        }
        ReflectorEvent::Applied(object) => {
            if let Some(pod) = typed(object) {
                pods.insert(key_of(&pod.metadata), pod);
            }
        }
        ReflectorEvent::Deleted(object) => drop(pods.remove(&key_of(object.metadata()))),
        ReflectorEvent::Progress(_) | ReflectorEvent::Interrupted(_) => {}
    }
}
