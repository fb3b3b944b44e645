//! The pods bound to this node: one worker per pod, driven by the pod watch.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use machinery_client::{Object, Reflector, ReflectorEvent, shared};
use tokio::task::JoinSet;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::record::{PodRecord, is_ahead};
use crate::config::{pull_secrets, sources};
use crate::latest::{Sender, latest};
use crate::pod::admit;
use crate::pod::admit::{Claim, Rejection};
use crate::pod::lifecycle::resize;
use crate::pod::shared::NodeContext;
use crate::pod::worker::{EarlierRun, LastingPod, PodInput, PodView, PodWorker, StatusTarget};
use crate::spec::containers;
use crate::spec::requests::requested;

/// Time of the workers to leave their pods to the next process: it waits meanwhile. A worker needs no I/O for it.
const HANDOVER_MAX: Duration = Duration::from_secs(1);

/// The delay before a panicked worker is restarted.
const WORKER_RETRY: Duration = Duration::from_secs(10);

mod statics;

use statics::{Manifests, StaticPods, is_mirror};

struct PodManager {
    node: Arc<NodeContext>,
    /// By uid.
    workers: BTreeMap<String, Sender<PodInput>>,
    /// Yield the uid, and the servers of a pod that was handed over.
    running: JoinSet<(String, Option<LastingPod>)>,
    /// Resizes that are not granted, with their order of arrival.
    pending_resizes: BTreeMap<String, (u64, Arc<Pod>)>,
    resize_count: u64,
    statics: StaticPods,
}

/// Runs the node's pods until it stops.
pub(super) async fn run(node: Arc<NodeContext>) {
    let reflector = Reflector::of::<Pod>(node.client.clone(), node.parts.env.clone());
    let mut events = reflector.selecting(format!("spec.nodeName={}", node.identity.name)).events();
    let stop = node.stop.clone();
    let mut manifests = statics::watch(&node);
    let statics = StaticPods::start(&node, &manifests);
    let (workers, running, pending_resizes) = (BTreeMap::new(), JoinSet::new(), BTreeMap::new());
    let mut pods = PodManager { node, workers, running, pending_resizes, resize_count: 0, statics };
    let mut first = true;
    let pod = |object: Arc<dyn Object>| shared::<Pod>(object);
    // A node without a checkpoint waits for the API.
    let mut waits_for_api = pods.checkpoint().is_enabled();
    let (env, api_wait) = (pods.node.parts.env.clone(), pods.node.api_wait);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = pods.running.join_next() => {
                if let Ok((uid, _)) = ended {
                    pods.checkpoint().remove_pod(&uid);
                    pods.workers.remove(&uid);
                    pods.pending_resizes.remove(&uid);
                    pods.retry_resizes();
                    pods.sync_static_pods();
                    pods.node.pods.remove(&uid);
                }
                continue;
            }
            Ok(()) = manifests.changed() => {
                pods.statics.wanted = manifests.borrow_and_update().clone();
                pods.sync_static_pods();
                continue;
            }
            event = events.next() => event,
            () = async { env.sleep_until(api_wait).await }, if waits_for_api => {
                waits_for_api = false;
                pods.restore();
                continue;
            }
        };
        match event {
            ReflectorEvent::Replaced(objects, _) => {
                waits_for_api = false;
                let (mirrors, own): (Vec<_>, Vec<_>) = objects.into_iter().filter_map(pod).partition(is_mirror);
                pods.replace(own, std::mem::take(&mut first), &manifests);
                pods.replace_mirrors(mirrors);
            }
            ReflectorEvent::Applied(object) => pod(object).into_iter().for_each(|pod| match is_mirror(&pod) {
                true => pods.apply_mirror(pod),
                false => pods.apply(pod, None),
            }),
            ReflectorEvent::Deleted(object) => pod(object).into_iter().for_each(|pod| match is_mirror(&pod) {
                true => pods.remove_mirror(&pod),
                false => pods.remove(pod),
            }),
            ReflectorEvent::Progress(_) => {}
            ReflectorEvent::Interrupted(error) => {
                tracing::warn!(
                    node = pods.node.identity.name,
                    error,
                    "the node's pods cannot be watched, trying again"
                );
            }
        }
    }
    pods.end().await;
}

impl PodManager {
    fn checkpoint(&self) -> &Checkpoint {
        &self.node.checkpoint
    }

    /// Ends the workers, and the guests with them unless the next process takes over. The API isn't notified, so that the next
    /// start resumes them.
    async fn end(mut self) {
        if self.node.parts.handover.has_begun() {
            self.hand_over().await;
        }
        self.running.shutdown().await;
        for container in self.node.pods.all().iter().flat_map(|view| view.snapshot().containers) {
            container.log.close();
        }
    }

    /// Ends the workers; the servers of their pods go on.
    async fn hand_over(&mut self) {
        self.workers.values().for_each(|worker| worker.set(|input| input.handed_over = true));
        let env = self.node.parts.env.clone();
        let leave = async {
            while let Some(ended) = self.running.join_next().await {
                if let Ok((uid, Some(lasting))) = ended {
                    self.node.pods.remove(&uid);
                    self.node.parts.handover.keep(lasting);
                }
            }
        };
        if env.timeout(HANDOVER_MAX, leave).await.is_err() {
            tracing::warn!(node = self.node.identity.name, pods = self.running.len(), "pods do not end in time");
        }
    }

    /// Starts the pods of the checkpoint and the static pods, as the API doesn't answer.
    fn restore(&mut self) {
        let records = self.checkpoint().take_pods();
        tracing::warn!(
            node = self.node.identity.name,
            pods = records.len(),
            "the API server does not answer: the node starts the pods of its checkpoint"
        );
        // All known addresses are reserved before a new one is allocated.
        let reserved: Vec<Option<IpAddr>> = records.iter().map(|record| self.reserve_address(&record.pod)).collect();
        for (record, ip) in records.into_iter().zip(reserved) {
            let (pod, rejected) = (Arc::new(record.pod.clone()), self.admission_failure(&record.pod));
            let pod = self.restore_allocation(record.uid(), pod);
            self.start_worker(PodInput::new(pod, StatusTarget::Pod), EarlierRun::of_checkpoint(record, ip), rejected);
        }
        self.start_static_pods_alone();
    }

    /// What an earlier run left of a pod that the API has, if its checkpoint is ahead of the API's status.
    fn earlier_run(&self, pod: &Pod, ip: Option<IpAddr>) -> EarlierRun {
        let record = self.checkpoint().take_pod(&uid_of(pod));
        let ahead = |record: &PodRecord| is_ahead(&record.status(), pod.status.as_ref());
        match record {
            Some(record) if ahead(&record) => EarlierRun::of_checkpoint(record, ip),
            Some(record) => EarlierRun { status: None, ..EarlierRun::of_checkpoint(record, ip) },
            None => EarlierRun { ip, ..EarlierRun::default() },
        }
    }

    /// Handles a complete list.
    fn replace(&mut self, listed: Vec<Arc<Pod>>, first: bool, manifests: &Manifests) {
        if first {
            let statics = manifests.borrow().keys().cloned().collect();
            self.remove_orphans(&listed, statics);
        }
        if first {
            self.retain_checkpoint(&listed);
        }
        let exists = |uid: &str| listed.iter().any(|pod| uid_of(pod) == uid) || self.statics.runs(uid);
        let gone: Vec<String> = self.workers.keys().filter(|uid| !exists(uid)).cloned().collect();
        for uid in gone {
            self.checkpoint().remove_pod(&uid);
            if let Some(worker) = self.workers.get(&uid) {
                worker.set(|input| input.removed = true);
            }
        }
        // All known addresses are reserved before a new one is allocated.
        let reserved: Vec<Option<IpAddr>> = listed.iter().map(|pod| self.reserve_address(pod)).collect();
        for (pod, ip) in listed.into_iter().zip(reserved) {
            self.apply(pod, ip);
        }
        if first {
            // The others don't exist any more.
            drop(self.checkpoint().take_pods());
        }
        self.retry_resizes();
    }

    /// The address of the pod in an earlier run.
    fn reserve_address(&self, pod: &Pod) -> Option<IpAddr> {
        if self.workers.contains_key(&uid_of(pod)) {
            return None;
        }
        let status = pod.status.as_ref()?;
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
        self.node.addresses.reserve(ip).then_some(ip)
    }

    fn apply(&mut self, pod: Arc<Pod>, ip: Option<IpAddr>) {
        let uid = uid_of(&pod);
        if self.workers.contains_key(&uid) {
            self.update(&uid, pod);
            return;
        }
        let rejected = self.admission_failure(&pod);
        let pod = self.restore_allocation(&uid, pod);
        let earlier = self.earlier_run(&pod, ip);
        self.start_worker(PodInput::new(pod, StatusTarget::Pod), earlier, rejected);
    }

    /// Removes the checkpoint's files of pods and sources that no pod of the first list needs.
    fn retain_checkpoint(&self, listed: &[Arc<Pod>]) {
        if !self.checkpoint().is_enabled() {
            return;
        }
        let uids: Vec<String> = listed.iter().map(|pod| uid_of(pod)).collect();
        let named = listed.iter().flat_map(|pod| {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            named_sources(pod).into_iter().map(move |(kind, name)| (kind, namespace.clone(), name))
        });
        self.checkpoint().retain(&uids, &named.collect::<Vec<_>>());
    }

    /// Starts a worker for a pod.
    fn start_worker(&mut self, input: PodInput, earlier: EarlierRun, rejected: Option<Rejection>) {
        let (pod, uid) = (input.pod.clone(), uid_of(&input.pod.get()));
        let (sender, receiver) = latest(input);
        let view = Arc::new(PodView::new(pod));
        self.node.pods.insert(&uid, view.clone());
        self.workers.insert(uid.clone(), sender);
        let node = self.node.clone();
        // Moved out of the task, which would otherwise hold them twice.
        let (mut earlier, mut rejected) = (Box::new(earlier), rejected);
        self.running.spawn(async move {
            loop {
                // On the heap: the size of a task is that of its largest state.
                let (context, view, receiver) = (node.clone(), view.clone(), receiver.clone());
                let worker = Box::new(PodWorker::new(context, view, receiver, std::mem::take(&mut *earlier)));
                if let Ok(lasting) = AssertUnwindSafe(worker.run(rejected.take())).catch_unwind().await {
                    return (uid, lasting);
                }
                // A pod's failure never ends the node: the pod is adopted again, as after a restart of the node.
                tracing::error!(uid, "a pod's worker panicked; it is restarted");
                node.parts.env.sleep(WORKER_RETRY).await;
            }
        });
    }

    /// The rejection of a new pod that isn't admitted.
    fn admission_failure(&self, pod: &Pod) -> Option<Rejection> {
        if pod.status.as_ref().is_some_and(|status| status.start_time.is_some()) {
            return None;
        }
        if self.node.shutdown.has_begun() {
            let message = "Pod was rejected as the node is shutting down.".into();
            return Some(Rejection { reason: "NodeShutdown", message, by_labels: false });
        }
        let facts = self.node.facts.borrow();
        admit::reject(&self.node.allocatable, &facts, &claims(self.workers.values()), pod)
    }

    /// Updates a pod that has a worker.
    fn update(&mut self, uid: &str, pod: Arc<Pod>) {
        let Some(worker) = self.workers.get(uid) else { return };
        let current = worker.read(|input| input.pod.clone()).get();
        let ended = admit::has_ended(&pod) && !worker.read(|input| input.claim.ended);
        if resize::same_pod(&pod, &current) {
            let was_pending = self.pending_resizes.remove(uid).is_some();
            worker.set(|input| {
                input.update(pod);
                input.pending_resize = None;
            });
            if ended || was_pending {
                self.retry_resizes();
            }
            return;
        }
        let order = match self.pending_resizes.get(uid) {
            // An unchanged resize keeps its position.
            Some((order, before)) if resize::same_pod(before, &pod) => *order,
            _ => {
                self.resize_count += 1;
                self.resize_count
            }
        };
        self.pending_resizes.insert(uid.to_owned(), (order, pod));
        self.try_resize(uid);
        self.retry_resizes();
    }

    /// Restores the allocated amounts of a pod that an earlier run of the agent ran, if its resize isn't granted yet.
    fn restore_allocation(&mut self, uid: &str, pod: Arc<Pod>) -> Arc<Pod> {
        let Some(allocated) = resize::allocated(&pod).filter(|allocated| !resize::same_pod(allocated, &pod)) else {
            return pod;
        };
        self.resize_count += 1;
        self.pending_resizes.insert(uid.to_owned(), (self.resize_count, pod));
        Arc::new(allocated)
    }

    /// Grants a pod's resize if it fits beside the other pods. Returns whether it does.
    fn try_resize(&mut self, uid: &str) -> bool {
        let (Some(worker), Some((_, requested_pod))) = (self.workers.get(uid), self.pending_resizes.get(uid)) else {
            return false;
        };
        let requested_pod = requested_pod.clone();
        let others = self.workers.iter().filter(|(other, _)| *other != uid).map(|(_, other)| other);
        let fits = resize::fits(&self.node.allocatable, &claims(others), &requested_pod);
        let current = worker.read(|input| input.pod.clone()).get();
        match fits {
            Ok(()) => {
                worker.set(|input| {
                    input.update(requested_pod);
                    input.pending_resize = None;
                });
                self.pending_resizes.remove(uid);
                true
            }
            Err(message) => {
                let pod = Arc::new(resize::with_allocation(&requested_pod, &current));
                let pending =
                    resize::PendingResize { requested: resize::summary(&requested_pod, Some(&message)), message };
                worker.set(|input| {
                    // The reported message stays, as the amounts of other pods change often.
                    let same = input.pending_resize.as_ref().is_some_and(|was| was.message == pending.message);
                    input.update(pod);
                    if !same {
                        input.pending_resize = Some(pending);
                    }
                });
                false
            }
        }
    }

    /// Retries the pending resizes in upstream's order, as resources may be free.
    fn retry_resizes(&mut self) {
        let mut order: Vec<_> = self
            .pending_resizes
            .iter()
            .filter_map(|(uid, (order, requested_pod))| {
                let current = self.workers.get(uid)?.read(|input| input.pod.clone()).get();
                let grows = ["cpu", "memory"]
                    .into_iter()
                    .any(|name| requested(requested_pod, name) > requested(&current, name));
                let spec = requested_pod.spec.as_ref();
                let priority = spec.and_then(|spec| spec.priority).unwrap_or(0);
                let class = requested_pod.status.as_ref().and_then(|status| status.qos_class.as_deref());
                let class = ["Guaranteed", "Burstable"].iter().position(|known| Some(*known) == class).unwrap_or(2);
                Some(((grows, Reverse(priority), class, *order), uid.clone()))
            })
            .collect();
        order.sort();
        for (_, uid) in order {
            self.try_resize(&uid);
        }
    }

    fn remove(&mut self, pod: Arc<Pod>) {
        self.checkpoint().remove_pod(&uid_of(&pod));
        if let Some(worker) = self.workers.get(&uid_of(&pod)) {
            worker.set(|input| {
                input.update(pod);
                (input.removed, input.pending_resize) = (true, None);
            });
        }
        self.retry_resizes();
    }

    /// Removes the folders of pods that don't exist any more.
    fn remove_orphans(&self, listed: &[Arc<Pod>], statics: Vec<String>) {
        // Pods of the checkpoint that are gone remove their folders themselves.
        let own = listed.iter().map(|pod| uid_of(pod)).chain(self.workers.keys().cloned());
        let known: Vec<String> = own.chain(statics).collect();
        let mut orphans = Vec::new();
        // Listed before any new pod creates its folder.
        for folder in ["pods", "logs"] {
            let Ok(entries) = std::fs::read_dir(self.node.identity.data_dir.join(folder)) else { continue };
            let unknown = |entry: &std::fs::DirEntry| known.iter().all(|uid| entry.file_name() != uid.as_str());
            orphans.extend(entries.flatten().filter(unknown).map(|entry| entry.path()));
        }
        let logs = self.node.logs.clone();
        tokio::task::spawn_blocking(move || {
            for path in orphans {
                let _ = std::fs::remove_dir_all(&path);
                logs.forget(&path);
            }
        });
    }
}

/// The claims of the pods on the node. A pod that was removed from the API (forced deletion) has none, even while its
/// folder exists: its guests have ended, and its replacement may already be bound.
fn claims<'a>(workers: impl Iterator<Item = &'a Sender<PodInput>>) -> Vec<Claim> {
    let claim = |worker: &Sender<PodInput>| worker.read(|input| (!input.removed).then(|| input.claim.clone()));
    workers.filter_map(claim).collect()
}

/// The ConfigMaps and Secrets that a pod refers to.
fn named_sources(pod: &Pod) -> Vec<(sources::SourceKind, String)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mut named = sources::named_by_volumes(volumes);
    named.extend(pull_secrets::named(pod));
    for (_, container) in containers::each(&containers::spec(pod)) {
        named.extend(sources::named_by_environment(&container));
    }
    named
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn force_deleted_pods_hold_nothing() {
        let pod = |cpu: &str, removed: bool| {
            let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            latest(PodInput { removed, ..PodInput::new(Arc::new(pod), StatusTarget::Pod) }).0
        };
        let (gone, exists) = (pod("1", true), pod("2", false));
        let claim = exists.read(|input| input.claim.clone());
        assert_eq!(claims([&gone, &exists].into_iter()), [claim]);
    }
}
