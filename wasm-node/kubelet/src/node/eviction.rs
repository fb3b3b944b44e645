//! Evicts pods where the node runs short of memory, disk, inodes or descriptors, one at an observation, in upstream's order: what uses more than
//! it requests, then what has the lower priority, then what uses most beyond its request.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_api::quantity::Quantity;
use machinery_client::EventRecord;
use tokio::sync::watch;

use super::pressure::{Shortage, Signal};
use crate::pod::shared::{PodViews, Shared};
use crate::pod::worker::Seen;
use crate::spec::containers;
use crate::spec::requests::requested;
use crate::volume::paths::plain;
use crate::volume::usage::measure;

/// From this priority on a pod is critical, and never evicted (upstream's `system-cluster-critical`).
pub(super) const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a container uses and requests, in the unit of the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    container: String,
    used: u64,
    requested: u64,
}

/// One pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    uid: String,
    priority: i32,
    used: u64,
    requested: u64,
    /// Those that upstream's message tells of.
    containers: Vec<Share>,
}

/// The pod that goes first.
fn first(candidates: Vec<Candidate>) -> Option<Candidate> {
    let over = |one: &Candidate| i128::from(one.used) - i128::from(one.requested);
    let mortal = candidates.into_iter().filter(|one| one.priority < CRITICAL_PRIORITY);
    mortal.max_by_key(|one| (over(one) > 0, Reverse(one.priority), over(one), Reverse(one.uid.clone())))
}

/// Upstream's words.
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

/// Bytes of memory that the guests of a node hold.
pub(super) fn memory_used(pods: &PodViews) -> u64 {
    pods.all().iter().map(|view| view.look().memory_bytes()).sum()
}

/// The pods that run; `used`: what a pod uses, and each of its containers that are told of.
fn candidates(
    pods: &PodViews,
    resource: &str,
    used: impl Fn(&str, &Seen) -> (u64, Vec<(String, u64)>),
) -> Vec<Candidate> {
    let all = pods.all();
    let running = all.iter().filter_map(|view| {
        let seen = view.look();
        let pod = seen.runs().then(|| seen.pod.get())?;
        let spec = pod.spec.as_ref()?;
        let uid = pod.metadata.uid.clone().filter(|_| pod.metadata.deletion_timestamp.is_none())?;
        let (used, each) = used(&uid, &seen);
        let requests = |name: &str| {
            let (_, container) = containers::each(spec).find(|(_, container)| container.name == name)?;
            let amount = Quantity::parse(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0).ok()?;
            u64::try_from(amount.value()).ok()
        };
        let share =
            |(container, used): (String, u64)| Share { requested: requests(&container).unwrap_or(0), container, used };
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

/// Bytes of memory of a pod's containers.
fn memory_of(_: &str, seen: &Seen) -> (u64, Vec<(String, u64)>) {
    let running = seen.containers.iter().filter_map(|of| Some((of.name.to_string(), of.running.as_ref()?)));
    let each: Vec<_> = running.map(|(name, (container, _))| (name, container.stats().memory_bytes)).collect();
    // Its volumes in memory are no container's.
    (seen.memory_bytes(), each)
}

/// What a pod's volumes and logs take on the disk, and the logs of each container. Walks them.
fn disk_of(data_dir: &Path, uid: &str, seen: &Seen) -> (u64, Vec<(String, u64)>) {
    let logs = folders(data_dir, uid)[1].clone();
    let log_of = |name: &str| measure(&logs.join(plain(name))).bytes;
    let each = seen.containers.iter().map(|of| (of.name.to_string(), log_of(&of.name))).collect();
    (folders(data_dir, uid).iter().map(|folder| measure(folder).bytes).sum(), each)
}

/// Files and folders of a pod's volumes and logs. Walks them.
fn inodes_of(data_dir: &Path, uid: &str) -> (u64, Vec<(String, u64)>) {
    (folders(data_dir, uid).iter().map(|folder| measure(folder).entries).sum(), Vec::new())
}

/// Where a pod's volumes lie, and its logs.
fn folders(data_dir: &Path, uid: &str) -> [PathBuf; 2] {
    ["pods", "logs"].map(|folder| data_dir.join(folder).join(plain(uid)))
}

/// What a pod's guests have open.
fn descriptors_of(_: &str, seen: &Seen) -> (u64, Vec<(String, u64)>) {
    let running = seen.containers.iter().filter_map(|of| of.running.as_ref());
    (running.map(|(container, _)| container.stats().descriptors).sum(), Vec::new())
}

/// Evicts what is to go, each time that `shortages` is told anew.
pub(super) async fn run(node: Arc<Shared>, mut shortages: watch::Receiver<Vec<Shortage>>) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            changed = shortages.changed() => if changed.is_err() {
                return;
            },
        }
        // As upstream: the first of what is short, and one pod at a time.
        let Some(short) = shortages.borrow_and_update().first().copied() else { continue };
        let resource = short.signal.resource();
        tracing::warn!(node = node.identity.name, resource, ?short, "the node is short: a pod may be evicted");
        node.recorder.record(EventRecord {
            about: about(&node),
            warning: true,
            reason: "EvictionThresholdMet",
            message: format!("Attempting to reclaim {resource}"),
            source: None,
        });
        match look_for(&node, short.signal).await {
            Ok(Some(going)) => {
                let view = node.pods.get(&going.uid);
                if !view.is_some_and(|view| view.evict(message(short, &going))) {
                    tracing::warn!(node = node.identity.name, uid = going.uid, "a pod to be evicted does not listen");
                }
            }
            Ok(None) => {
                tracing::warn!(node = node.identity.name, resource, "the node is short, and has no pod to evict")
            }
            Err(Ended) => tracing::error!(node = node.identity.name, "the thread that measures volumes has ended"),
        }
    }
}

/// The thread that measures volumes has ended.
struct Ended;

/// The pod that is to go for what `signal` tells of. Volumes are walked where nobody else waits.
async fn look_for(node: &Arc<Shared>, signal: Signal) -> Result<Option<Candidate>, Ended> {
    let resource = signal.resource();
    let (pods, data_dir) = (node.pods.clone(), node.identity.data_dir.clone());
    match signal {
        Signal::Memory => Ok(first(candidates(&pods, resource, memory_of))),
        Signal::Descriptors => Ok(first(candidates(&pods, resource, descriptors_of))),
        Signal::Disk => {
            let walk = move || first(candidates(&pods, resource, |uid, seen| disk_of(&data_dir, uid, seen)));
            node.measurer.run(walk).await.ok_or(Ended)
        }
        Signal::Inodes => {
            let walk = move || first(candidates(&pods, resource, |uid, _| inodes_of(&data_dir, uid)));
            node.measurer.run(walk).await.ok_or(Ended)
        }
    }
}

/// The Node as upstream's kubelet refers to it in its events.
pub(super) fn about(node: &Shared) -> ObjectReference {
    let name = Some(node.identity.name.clone());
    ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..ObjectReference::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, used: u64, requested: u64) -> Candidate {
        let containers = vec![Share { container: "c".into(), used, requested }];
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
        while let Some(going) = first(all.clone()) {
            all.retain(|one| one.uid != going.uid);
            order.push(going.uid);
        }
        assert_eq!(order, ["far over", "little over", "important", "within"]);
    }

    #[test]
    fn what_is_said_of_it() {
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
