//! The eviction manager: under pressure on memory, disk, inodes or descriptors it evicts one pod per observation. In
//! upstream's order: pods above their requests first, then by lower priority, then by usage above the request.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_api::quantity::Quantity;
use machinery_client::EventRecord;
use tokio::sync::watch;

use super::pressure::{Shortage, Signal};
use crate::pod::shared::{NodeContext, PodViews};
use crate::pod::worker::PodSnapshot;
use crate::spec::containers;
use crate::spec::requests::requested;
use crate::volume::paths::plain;
use crate::volume::usage::measure;

/// The lowest priority of critical pods, which are never evicted (upstream's `system-cluster-critical`).
pub(super) const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// The usage and the request of a container, in the resource's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ContainerUsage {
    container: String,
    used: u64,
    requested: u64,
}

/// A running pod that may be evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    uid: String,
    priority: i32,
    used: u64,
    requested: u64,
    /// The containers in upstream's message.
    containers: Vec<ContainerUsage>,
}

/// The pod to evict first.
fn select(candidates: Vec<Candidate>) -> Option<Candidate> {
    let over = |one: &Candidate| i128::from(one.used) - i128::from(one.requested);
    let evictable = candidates.into_iter().filter(|one| one.priority < CRITICAL_PRIORITY);
    evictable.max_by_key(|one| (over(one) > 0, Reverse(one.priority), over(one), Reverse(one.uid.clone())))
}

/// The eviction message (upstream's).
fn message(short: Shortage, of: &Candidate) -> String {
    let Shortage { signal, threshold, available } = short;
    let resource = signal.resource();
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        signal.amount(threshold),
        signal.amount(available),
    );
    for share in of.containers.iter().filter(|share| share.used > share.requested) {
        message.push_str(&format!(
            "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
            share.container,
            signal.amount(share.used),
            signal.amount(share.requested),
        ));
    }
    message
}

/// The memory of all guests of a node, in bytes.
pub(super) fn memory_used(pods: &PodViews) -> u64 {
    pods.all().iter().map(|view| view.snapshot().memory_bytes()).sum()
}

/// The running pods; `used` returns the usage of a pod and of its reported containers.
fn candidates(
    pods: &PodViews,
    resource: &str,
    used: impl Fn(&str, &PodSnapshot) -> (u64, Vec<(String, u64)>),
) -> Vec<Candidate> {
    let all = pods.all();
    let running = all.iter().filter_map(|view| {
        let snapshot = view.snapshot();
        let pod = snapshot.runs().then(|| snapshot.pod.get())?;
        let spec = pod.spec.as_ref()?;
        let uid = pod.metadata.uid.clone().filter(|_| pod.metadata.deletion_timestamp.is_none())?;
        let (used, each) = used(&uid, &snapshot);
        let requests = |name: &str| {
            let (_, container) = containers::each(spec).find(|(_, container)| container.name == name)?;
            let amount = Quantity::parse(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0).ok()?;
            u64::try_from(amount.value()).ok()
        };
        let share = |(container, used): (String, u64)| ContainerUsage {
            requested: requests(&container).unwrap_or(0),
            container,
            used,
        };
        Some(Candidate {
            priority: spec.priority.unwrap_or(0),
            used,
            requested: u64::try_from(requested(&pod, resource)).unwrap_or(0),
            containers: each.into_iter().map(share).collect(),
            uid,
        })
    });
    running.collect()
}

/// The memory of a pod and of its containers, in bytes.
fn memory_of(_: &str, snapshot: &PodSnapshot) -> (u64, Vec<(String, u64)>) {
    let running = snapshot.containers.iter().filter_map(|of| Some((of.name.to_string(), of.running.as_ref()?)));
    let each: Vec<_> = running.map(|(name, (container, _))| (name, container.stats().memory_bytes)).collect();
    // In-memory volumes belong to no container.
    (snapshot.memory_bytes(), each)
}

/// The disk usage of a pod's volumes and logs, and of each container's logs. Walks the folders.
fn disk_of(data_dir: &Path, uid: &str, snapshot: &PodSnapshot) -> (u64, Vec<(String, u64)>) {
    let logs = folders(data_dir, uid)[1].clone();
    let log_of = |name: &str| measure(&logs.join(plain(name))).bytes;
    let each = snapshot.containers.iter().map(|of| (of.name.to_string(), log_of(&of.name))).collect();
    (folders(data_dir, uid).iter().map(|folder| measure(folder).bytes).sum(), each)
}

/// The number of files and folders in a pod's volumes and logs. Walks the folders.
fn inodes_of(data_dir: &Path, uid: &str) -> (u64, Vec<(String, u64)>) {
    (folders(data_dir, uid).iter().map(|folder| measure(folder).entries).sum(), Vec::new())
}

/// The folders of a pod's volumes and of its logs.
fn folders(data_dir: &Path, uid: &str) -> [PathBuf; 2] {
    ["pods", "logs"].map(|folder| data_dir.join(folder).join(plain(uid)))
}

/// The open descriptors of a pod's guests.
fn descriptors_of(_: &str, snapshot: &PodSnapshot) -> (u64, Vec<(String, u64)>) {
    let running = snapshot.containers.iter().filter_map(|of| of.running.as_ref());
    (running.map(|(container, _)| container.stats().descriptors).sum(), Vec::new())
}

/// Evicts a pod for each change of `shortages`.
pub(super) async fn run(node: Arc<NodeContext>, mut shortages: watch::Receiver<Vec<Shortage>>) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            changed = shortages.changed() => if changed.is_err() {
                return;
            },
        }
        // As upstream: only the first shortage, and one pod at a time.
        let Some(short) = shortages.borrow_and_update().first().copied() else { continue };
        let resource = short.signal.resource();
        tracing::warn!(node = node.identity.name, resource, ?short, "the node is under pressure: a pod may be evicted");
        node.recorder.record(EventRecord {
            about: node_reference(&node),
            warning: true,
            reason: "EvictionThresholdMet",
            message: format!("Attempting to reclaim {resource}"),
            source: None,
        });
        match select_candidate(&node, short.signal).await {
            Ok(Some(candidate)) => {
                let view = node.pods.get(&candidate.uid);
                if !view.is_some_and(|view| view.evict(message(short, &candidate))) {
                    tracing::warn!(
                        node = node.identity.name,
                        uid = candidate.uid,
                        "an eviction could not be delivered to its pod"
                    );
                }
            }
            Ok(None) => {
                tracing::warn!(
                    node = node.identity.name,
                    resource,
                    "the node is under pressure, and no pod can be evicted"
                )
            }
            Err(MeasurerStopped) => {
                tracing::error!(node = node.identity.name, "the thread that measures volumes has ended")
            }
        }
    }
}

/// The measuring thread has ended.
struct MeasurerStopped;

/// The pod to evict for a signal. Folders are walked by the measuring thread.
async fn select_candidate(node: &Arc<NodeContext>, signal: Signal) -> Result<Option<Candidate>, MeasurerStopped> {
    let resource = signal.resource();
    let (pods, data_dir) = (node.pods.clone(), node.identity.data_dir.clone());
    match signal {
        Signal::Memory => Ok(select(candidates(&pods, resource, memory_of))),
        Signal::Descriptors => Ok(select(candidates(&pods, resource, descriptors_of))),
        Signal::Disk => {
            let walk = move || select(candidates(&pods, resource, |uid, snapshot| disk_of(&data_dir, uid, snapshot)));
            node.measurer.run(walk).await.ok_or(MeasurerStopped)
        }
        Signal::Inodes => {
            let walk = move || select(candidates(&pods, resource, |uid, _| inodes_of(&data_dir, uid)));
            node.measurer.run(walk).await.ok_or(MeasurerStopped)
        }
    }
}

/// The Node reference in events of upstream's kubelet.
pub(super) fn node_reference(node: &NodeContext) -> ObjectReference {
    let name = Some(node.identity.name.clone());
    ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..ObjectReference::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, used: u64, requested: u64) -> Candidate {
        let containers = vec![ContainerUsage { container: "c".into(), used, requested }];
        Candidate { uid: uid.into(), priority, used, requested, containers }
    }

    #[test]
    fn pods_go_in_upstreams_order() {
        let mut all = vec![
            pod("within", 0, 900, 1000),
            pod("important", 100, 900, 0),
            pod("little over", 0, 500, 400),
            pod("far over", 0, 500, 0),
            pod("critical", CRITICAL_PRIORITY, 9000, 0),
        ];
        let mut order = Vec::new();
        while let Some(candidate) = select(all.clone()) {
            all.retain(|one| one.uid != candidate.uid);
            order.push(candidate.uid);
        }
        assert_eq!(order, ["far over", "little over", "important", "within"]);
    }

    #[test]
    fn messages_of_evictions_are_upstreams() {
        let short = Shortage { signal: Signal::Memory, threshold: 100 << 20, available: 52_428 << 10 };
        assert_eq!(
            message(short, &pod("p", 0, (3 << 20) + 1, 0)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52428Ki. Container c was using \
             3145729, request is 0, has larger consumption of memory. "
        );
        assert!(message(short, &pod("p", 0, 1, 2)).ends_with("available: 52428Ki. "));
        let inodes = Shortage { signal: Signal::Inodes, threshold: 5000, available: 4999 };
        assert_eq!(
            message(inodes, &Candidate { containers: Vec::new(), ..pod("p", 0, 1, 0) }),
            "The node was low on resource: inodes. Threshold quantity: 5k, available: 4999. "
        );
    }
}
