//! A node's API behaviour: registers, renews its lease, reports its status and that of its pods, and removes deleted pods. The
//! pods' processes are simulated; everything else uses the real client kit.

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
use crate::clock;
use crate::cluster::Pace;
use crate::random::Random;
use crate::world::World;

/// Interval of lease renewals, and of everything else.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
const SYNC_INTERVAL: Duration = Duration::from_millis(700);
/// The same with fast failover: a quarter of a Lease of 2 s.
const HEARTBEAT_INTERVAL_FAST: Duration = Duration::from_millis(500);
const SYNC_INTERVAL_FAST: Duration = Duration::from_millis(100);

/// Annotation of a pod that never starts.
pub(crate) const BROKEN: &str = "sim.example.com/broken";

/// Capacity of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeCapacity {
    pub(crate) cpu_millis: i64,
    pub(crate) pods: u64,
}

impl NodeCapacity {
    /// So small that it is exhausted.
    pub(crate) const SMALL: Self = Self { cpu_millis: 2000, pods: 10 };
}

/// A node's state of a pod.
struct PodState {
    uid: String,
    /// Next event and its time.
    next: Option<(Duration, PodEvent)>,
    address: String,
    /// Final phase: reported without change, also after a lost response or with a lagging watch.
    final_phase: Option<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum PodEvent {
    Start,
    End,
    Stop,
}

/// One life of a node.
pub(crate) struct Node {
    name: String,
    api: ApiClient,
    /// A client with the rights of the whole process.
    program: ApiClient,
    client: Client,
    env: Env,
    world: Arc<World>,
    pace: Pace,
    capacity: NodeCapacity,
    random: Random,
    pods: Arc<Mutex<BTreeMap<ObjectKey, Arc<Pod>>>>,
    woken: Arc<Notify>,
    running: BTreeMap<ObjectKey, PodState>,
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
        (pace, capacity): (Pace, NodeCapacity),
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
            capacity,
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
            apply_event(&mut pods.lock().unwrap_or_else(PoisonError::into_inner), event);
            woken.notify_one();
            ControlFlow::Continue(())
        });
        let working = async {
            loop {
                // A failure is retried in the next round.
                if self.heartbeat().await.is_ok() {
                    self.sync_pods().await;
                }
                let _ = clock::timeout(self.sync_interval(), self.woken.notified()).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = following => {}
            () = working => {}
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        if self.pace == Pace::Fast { HEARTBEAT_INTERVAL_FAST } else { HEARTBEAT_INTERVAL }
    }

    fn sync_interval(&self) -> Duration {
        if self.pace == Pace::Fast { SYNC_INTERVAL_FAST } else { SYNC_INTERVAL }
    }

    /// Registers, and renews the lease.
    async fn heartbeat(&mut self) -> Result<(), kube::Error> {
        let now = self.env.elapsed();
        if self.renewed.is_some_and(|renewed| now < renewed + self.heartbeat_interval()) && self.block.is_some() {
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
        if unready || self.reported.is_none_or(|at| now >= at + 10 * HEARTBEAT_INTERVAL) {
            let _: Value = self.api.patch(&kind, &key, Some("status"), PatchType::Strategic, &self.status()).await?;
            self.reported = Some(now);
        }
        self.renew(&node).await?;
        self.renewed = Some(now);
        Ok(())
    }

    fn status(&self) -> Value {
        let now = time::seconds(self.env.now());
        let NodeCapacity { cpu_millis, pods } = self.capacity;
        let capacity = json!({"cpu": format!("{cpu_millis}m"), "memory": "4Gi", "pods": pods.to_string(), "ephemeral-storage": "10Gi"});
        json!({"status": {
            "capacity": capacity, "allocatable": capacity,
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now,
                 "lastTransitionTime": now},
            ],
        }})
    }

    async fn renew(&mut self, node: &Value) -> Result<(), kube::Error> {
        let kind = kind_of::<k8s_openapi::api::coordination::v1::Lease>();
        let key = ObjectKey::new("kube-node-lease", &self.name);
        let lasts = (4 * self.heartbeat_interval()).as_secs();
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
        // After a failure it is read again.
        self.lease = Some(renewed);
        Ok(())
    }

    /// Syncs each pod, and does what is due.
    async fn sync_pods(&mut self) {
        let known = self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let same = |pod: &Pod, running: &PodState| pod.metadata.uid.as_deref() == Some(&running.uid);
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
            self.sync_pod(&key, &pod).await;
        }
        self.empty_volumes().await;
    }

    async fn sync_pod(&mut self, key: &ObjectKey, pod: &Pod) {
        let now = self.env.elapsed();
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        if !self.running.contains_key(key) {
            let Some(running) = self.admit(pod, &phase) else { return };
            self.running.insert(key.clone(), running);
        }
        let Some(running) = self.running.get_mut(key) else { return };
        if pod.metadata.deletion_timestamp.is_some() && !matches!(running.next, Some((_, PodEvent::Stop))) {
            running.next = Some((now + self.random.millis(0, 3000), PodEvent::Stop));
        }
        // Other writers change the status, too: they report a silent node.
        let unready = phase == "Running"
            && running.final_phase.is_none()
            && !matches!(running.next, Some((_, PodEvent::Start | PodEvent::Stop)))
            && !ready(pod);
        if unready {
            self.report(key, pod, "Running").await;
            return;
        }
        let Some((_, next)) = running.next.filter(|(at, _)| *at <= now) else { return };
        let job =
            pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("batch.kubernetes.io/job-name"));
        let over = ended(&phase).is_some();
        if next != PodEvent::Start && running.final_phase.is_none() {
            let fails = if next == PodEvent::Stop { job } else { self.random.chance(120) };
            running.final_phase = Some(ended(&phase).unwrap_or(if fails { "Failed" } else { "Succeeded" }).to_owned());
        }
        let final_phase = running.final_phase.clone().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if next == PodEvent::Start && !over {
            let Some(mounts) = mounts::of(&self.world.history, &machinery_client::value_of(pod)) else {
                running.next = Some((now + SYNC_INTERVAL, PodEvent::Start));
                return;
            };
            let wrong = self.world.mounts.started(uid, &self.name, mounts);
            wrong.into_iter().for_each(|what| self.world.record_violation(format!("{key}: {what}")));
        }
        if next == PodEvent::Start && !over && identities::has_one(pod) {
            self.world
                .identities
                .started(key, uid, &self.name)
                .into_iter()
                .for_each(|what| self.world.record_violation(what));
        }
        // Its processes end before the node reports it: a late response doesn't prolong them.
        if next != PodEvent::Start {
            self.world.identities.ended(key, uid);
            self.world.mounts.ended(uid);
        }
        let done = match next {
            PodEvent::Start if over => true,
            PodEvent::Start => self.report(key, pod, "Running").await,
            PodEvent::End => over || self.report(key, pod, &final_phase).await,
            PodEvent::Stop => (over || self.report(key, pod, &final_phase).await) && self.remove(key, pod).await,
        };
        let Some(running) = self.running.get_mut(key).filter(|_| done) else { return };
        running.next = match next {
            PodEvent::Start if job && !over => Some((now + self.random.millis(500, 9000), PodEvent::End)),
            // Repeated until it is gone.
            PodEvent::Stop => Some((now + SYNC_INTERVAL, PodEvent::Stop)),
            _ => None,
        };
    }

    /// Deletes the content of its released volumes, and the volumes' finalizers. The trigger isn't modelled.
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
            self.world.mounts.emptied(uid).into_iter().for_each(|what| self.world.record_violation(what));
            let key = ObjectKey::cluster(metadata["name"].as_str().unwrap_or_default());
            let patch = json!({"metadata": {"uid": uid, "finalizers": left}});
            let kind = kind_of::<k8s_openapi::api::core::v1::PersistentVolume>();
            let _ = self.program.patch::<Value>(&kind, &key, None, PatchType::Merge, &patch).await;
        }
    }

    /// Adopts an unknown pod: a status reported in an earlier life stays valid.
    fn admit(&mut self, pod: &Pod, phase: &str) -> Option<PodState> {
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
        let next = (!broken).then_some((starts, PodEvent::Start));
        Some(PodState {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            next,
            address,
            final_phase: ended(phase).map(str::to_owned),
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

/// A machine's end is the end of its pods.
impl Drop for Node {
    fn drop(&mut self) {
        self.world.identities.node_ended(&self.name);
        self.world.mounts.node_ended(&self.name);
    }
}

/// The phase, if it is final.
fn ended(phase: &str) -> Option<&str> {
    Some(phase).filter(|phase| matches!(*phase, "Succeeded" | "Failed"))
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn apply_event(pods: &mut BTreeMap<ObjectKey, Arc<Pod>>, event: ReflectorEvent) {
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
