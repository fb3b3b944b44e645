//! The pods bound to this node: a worker for each, from the watch that names them.

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

use crate::latest::{Sender, latest};
use crate::pod::admit::{Claim, Rejection};
use crate::pod::shared::Shared;
use crate::pod::worker::{Input, PodView, Shown, Worker};
use crate::pod::{admit, resize};
use crate::spec::requests::requested;

/// Before a worker that broke a promise of its own is started anew.
const WORKER_RETRY: Duration = Duration::from_secs(10);

mod statics;

use statics::{Manifests, Statics, is_mirror};

struct Pods {
    node: Arc<Shared>,
    /// By uid.
    workers: BTreeMap<String, Sender<Input>>,
    running: JoinSet<String>,
    /// Those that wish for other amounts than they have, and the order in which they said so.
    wishes: BTreeMap<String, (u64, Arc<Pod>)>,
    wished: u64,
    statics: Statics,
}

/// Runs the node's pods until it stops.
pub(super) async fn run(node: Arc<Shared>) {
    let reflector = Reflector::of::<Pod>(node.client.clone(), node.parts.env.clone());
    let mut events = reflector.selecting(format!("spec.nodeName={}", node.identity.name)).events();
    let stop = node.stop.clone();
    let mut manifests = statics::watch(&node);
    let statics = Statics::start(&node, &manifests);
    let (workers, running, wishes) = (BTreeMap::new(), JoinSet::new(), BTreeMap::new());
    let mut pods = Pods { node, workers, running, wishes, wished: 0, statics };
    let mut first = true;
    let pod = |object: Arc<dyn Object>| shared::<Pod>(object);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = pods.running.join_next() => {
                if let Ok(uid) = ended {
                    pods.workers.remove(&uid);
                    pods.wishes.remove(&uid);
                    pods.grant();
                    pods.begin_statics();
                    pods.node.pods.remove(&uid);
                }
                continue;
            }
            Ok(()) = manifests.changed() => {
                pods.statics.wanted = manifests.borrow_and_update().clone();
                pods.begin_statics();
                continue;
            }
            event = events.next() => event,
        };
        match event {
            ReflectorEvent::Replaced(objects, _) => {
                let (mirrors, own): (Vec<_>, Vec<_>) = objects.into_iter().filter_map(pod).partition(is_mirror);
                pods.replace(own, std::mem::take(&mut first), &manifests);
                pods.replace_mirrors(mirrors);
            }
            ReflectorEvent::Applied(object) => pod(object).into_iter().for_each(|pod| match is_mirror(&pod) {
                true => pods.put_mirror(pod),
                false => pods.put(pod, None),
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
    // Guests end with their workers; the API hears nothing of it, so that they are taken up again at the next start.
    pods.running.shutdown().await;
    for container in pods.node.pods.all().iter().flat_map(|view| view.look().containers) {
        container.log.close();
    }
}

impl Pods {
    /// Takes in the complete list.
    fn replace(&mut self, listed: Vec<Arc<Pod>>, first: bool, manifests: &Manifests) {
        if first {
            let statics = manifests.borrow().keys().cloned().collect();
            self.sweep(&listed, statics);
        }
        let there = |uid: &str| listed.iter().any(|pod| uid_of(pod) == uid) || self.statics.runs(uid);
        let gone: Vec<String> = self.workers.keys().filter(|uid| !there(uid)).cloned().collect();
        for uid in gone {
            if let Some(worker) = self.workers.get(&uid) {
                worker.set(|input| input.removed = true);
            }
        }
        // Each keeps its address before any new one is given out.
        let kept: Vec<Option<IpAddr>> = listed.iter().map(|pod| self.keep_address(pod)).collect();
        for (pod, ip) in listed.into_iter().zip(kept) {
            self.put(pod, ip);
        }
        self.grant();
    }

    /// The address that a pod had in an earlier run.
    fn keep_address(&self, pod: &Pod) -> Option<IpAddr> {
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

    fn put(&mut self, pod: Arc<Pod>, ip: Option<IpAddr>) {
        let uid = uid_of(&pod);
        if self.workers.contains_key(&uid) {
            self.update(&uid, pod);
            return;
        }
        let rejected = self.reject(&pod);
        let pod = self.recall(&uid, pod);
        self.take_up(Input::new(pod, Shown::Itself), ip, rejected);
    }

    /// A pod gets a worker.
    fn take_up(&mut self, input: Input, ip: Option<IpAddr>, rejected: Option<Rejection>) {
        let (pod, uid) = (input.pod.clone(), uid_of(&input.pod.get()));
        let (sender, receiver) = latest(input);
        let view = Arc::new(PodView::new(pod));
        self.node.pods.insert(&uid, view.clone());
        self.workers.insert(uid.clone(), sender);
        let node = self.node.clone();
        // Not within: what a task takes along it would hold twice.
        let (mut ip, mut rejected) = (ip, rejected);
        self.running.spawn(async move {
            loop {
                // On the heap once: a task is as large as the largest of its states.
                let (node, view, receiver) = (node.clone(), view.clone(), receiver.clone());
                let worker = Box::new(Worker::new(node, view, receiver, ip.take(), rejected.take()));
                if AssertUnwindSafe(worker.run()).catch_unwind().await.is_ok() {
                    return uid;
                }
                // One pod's failure never ends the node: it is taken up anew, as after a restart of the node.
                tracing::error!(uid, "a pod's worker broke a promise of its own");
                tokio::time::sleep(WORKER_RETRY).await;
            }
        });
    }

    /// Why a pod that was not taken up before has no room, if so.
    fn reject(&self, pod: &Pod) -> Option<Rejection> {
        if pod.status.as_ref().is_some_and(|status| status.start_time.is_some()) {
            return None;
        }
        if self.node.shutdown.has_begun() {
            let message = "Pod was rejected as the node is shutting down.".into();
            return Some(Rejection { reason: "NodeShutdown", message, by_labels: false });
        }
        let facts = self.node.facts.borrow();
        admit::refuse(&self.node.allocatable, &facts, &claims(self.workers.values()), pod)
    }

    /// A new state of a pod that has a worker.
    fn update(&mut self, uid: &str, pod: Arc<Pod>) {
        let Some(worker) = self.workers.get(uid) else { return };
        let had = worker.read(|input| input.pod.clone()).get();
        let ended = admit::ended(&pod) && !worker.read(|input| input.claim.ended);
        if resize::same_pod(&pod, &had) {
            let wished = self.wishes.remove(uid).is_some();
            worker.set(|input| {
                input.is_now(pod);
                input.pending = None;
            });
            if ended || wished {
                self.grant();
            }
            return;
        }
        let order = match self.wishes.get(uid) {
            // The same wish keeps its place.
            Some((order, before)) if resize::same_pod(before, &pod) => *order,
            _ => {
                self.wished += 1;
                self.wished
            }
        };
        self.wishes.insert(uid.to_owned(), (order, pod));
        self.decide(uid);
        self.grant();
    }

    /// A pod that an earlier run of the agent had given other amounts than it wishes for now.
    fn recall(&mut self, uid: &str, pod: Arc<Pod>) -> Arc<Pod> {
        let Some(given) = resize::recall(&pod).filter(|given| !resize::same_pod(given, &pod)) else { return pod };
        self.wished += 1;
        self.wishes.insert(uid.to_owned(), (self.wished, pod));
        Arc::new(given)
    }

    /// Gives a pod what it wishes for, where that fits beside the others; answers whether it does.
    fn decide(&mut self, uid: &str) -> bool {
        let (Some(worker), Some((_, wished))) = (self.workers.get(uid), self.wishes.get(uid)) else { return false };
        let wished = wished.clone();
        let others = self.workers.iter().filter(|(other, _)| *other != uid).map(|(_, other)| other);
        let fits = resize::fits(&self.node.allocatable, &claims(others), &wished);
        let had = worker.read(|input| input.pod.clone()).get();
        match fits {
            Ok(()) => {
                worker.set(|input| {
                    input.is_now(wished);
                    input.pending = None;
                });
                self.wishes.remove(uid);
                true
            }
            Err(message) => {
                let pod = Arc::new(resize::given(&wished, &had));
                let pending = resize::Pending { wished: resize::summary(&wished, Some(&message)), message };
                worker.set(|input| {
                    // What was told of a wish stays, as amounts of others change all the time.
                    let same = input.pending.as_ref().is_some_and(|was| was.message == pending.message);
                    input.is_now(pod);
                    if !same {
                        input.pending = Some(pending);
                    }
                });
                false
            }
        }
    }

    /// Something may have come free: grants what waits, in upstream's order.
    fn grant(&mut self) {
        let mut order: Vec<_> = self
            .wishes
            .iter()
            .filter_map(|(uid, (order, wished))| {
                let had = self.workers.get(uid)?.read(|input| input.pod.clone()).get();
                let grows = ["cpu", "memory"].into_iter().any(|name| requested(wished, name) > requested(&had, name));
                let spec = wished.spec.as_ref();
                let priority = spec.and_then(|spec| spec.priority).unwrap_or(0);
                let class = wished.status.as_ref().and_then(|status| status.qos_class.as_deref());
                let class = ["Guaranteed", "Burstable"].iter().position(|known| Some(*known) == class).unwrap_or(2);
                Some(((grows, Reverse(priority), class, *order), uid.clone()))
            })
            .collect();
        order.sort();
        for (_, uid) in order {
            self.decide(&uid);
        }
    }

    fn remove(&mut self, pod: Arc<Pod>) {
        if let Some(worker) = self.workers.get(&uid_of(&pod)) {
            worker.set(|input| {
                input.is_now(pod);
                (input.removed, input.pending) = (true, None);
            });
        }
        self.grant();
    }

    /// Removes what pods that are no more have left on the disk.
    fn sweep(&self, listed: &[Arc<Pod>], statics: Vec<String>) {
        let known: Vec<String> = listed.iter().map(|pod| uid_of(pod)).chain(statics).collect();
        let mut left = Vec::new();
        // Looked for before any new pod makes its folder.
        for folder in ["pods", "logs"] {
            let Ok(entries) = std::fs::read_dir(self.node.identity.data_dir.join(folder)) else { continue };
            let unknown = |entry: &std::fs::DirEntry| known.iter().all(|uid| entry.file_name() != uid.as_str());
            left.extend(entries.flatten().filter(unknown).map(|entry| entry.path()));
        }
        let logs = self.node.logs.clone();
        tokio::task::spawn_blocking(move || {
            for path in left {
                let _ = std::fs::remove_dir_all(&path);
                logs.forget(&path);
            }
        });
    }
}

/// What pods hold of the node. One that the API has removed (a forced deletion) holds nothing, though its folder may
/// still be there: its guests ended when the node heard of it, and its replacement may have been bound already.
fn claims<'a>(workers: impl Iterator<Item = &'a Sender<Input>>) -> Vec<Claim> {
    let claim = |worker: &Sender<Input>| worker.read(|input| (!input.removed).then(|| input.claim.clone()));
    workers.filter_map(claim).collect()
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_removed_by_force_holds_nothing() {
        let pod = |cpu: &str, removed: bool| {
            let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            latest(Input { removed, ..Input::new(Arc::new(pod), Shown::Itself) }).0
        };
        let (gone, there) = (pod("1", true), pod("2", false));
        let claim = there.read(|input| input.claim.clone());
        assert_eq!(claims([&gone, &there].into_iter()), [claim]);
    }
}
