//! Evicts pods where the node runs short of memory or disk, one at an observation, in upstream's order: what uses more than
//! it requests, then what has the lower priority, then what uses most beyond its request.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_api::quantity::Quantity;
use machinery_client::EventRecord;
use tokio::sync::watch;

use super::register::{Shortage, Shortages};
use crate::pod::shared::{PodViews, Shared};
use crate::pod::worker::Seen;
use crate::spec::containers;
use crate::spec::requests::requested;
use crate::volume::paths::plain;
use crate::volume::usage::{measure, quantity};

/// From this priority on a pod is critical, and never evicted (upstream's `system-cluster-critical`).
pub(super) const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a container uses and requests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Share {
    container: String,
    used_bytes: u64,
    requested_bytes: u64,
}

/// One pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    uid: String,
    priority: i32,
    used_bytes: u64,
    requested_bytes: u64,
    containers: Vec<Share>,
}

/// The pod that goes first.
fn first(candidates: Vec<Candidate>) -> Option<Candidate> {
    let over = |one: &Candidate| i128::from(one.used_bytes) - i128::from(one.requested_bytes);
    let mortal = candidates.into_iter().filter(|one| one.priority < CRITICAL_PRIORITY);
    mortal.max_by_key(|one| (over(one) > 0, Reverse(one.priority), over(one), Reverse(one.uid.clone())))
}

/// Upstream's words.
fn message(resource: &str, short: Shortage, of: &Candidate) -> String {
    let Shortage { threshold_bytes, available_bytes } = short;
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        quantity(threshold_bytes),
        quantity(available_bytes),
    );
    for share in of.containers.iter().filter(|share| share.used_bytes > share.requested_bytes) {
        message.push_str(&format!(
            "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
            share.container,
            quantity(share.used_bytes),
            quantity(share.requested_bytes),
        ));
    }
    message
}

/// Bytes of memory that the guests of a node hold.
pub(super) fn memory_used(pods: &PodViews) -> u64 {
    pods.all().iter().map(|view| view.look().memory_bytes()).sum()
}

/// The pods that run; `used`: bytes that a pod uses, and each of its containers that run.
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
        let (used_bytes, each) = used(&uid, &seen);
        let requests = |name: &str| {
            let (_, container) = containers::each(spec).find(|(_, container)| container.name == name)?;
            let amount = Quantity::parse(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0).ok()?;
            u64::try_from(amount.value()).ok()
        };
        let share = |(container, used_bytes): (String, u64)| Share {
            requested_bytes: requests(&container).unwrap_or(0),
            container,
            used_bytes,
        };
        Some(Candidate {
            priority: spec.priority.unwrap_or(0),
            used_bytes,
            requested_bytes: u64::try_from(requested(&pod, resource)).unwrap_or(0),
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

/// Bytes on the disk that a pod's volumes and logs take, and the logs of each container. Walks them.
fn disk_of(data_dir: &Path, uid: &str, seen: &Seen) -> (u64, Vec<(String, u64)>) {
    let [pods, logs] = ["pods", "logs"].map(|folder| data_dir.join(folder).join(plain(uid)));
    let log_of = |name: &str| measure(&logs.join(plain(name))).bytes;
    let each = seen.containers.iter().map(|of| (of.name.to_string(), log_of(&of.name))).collect();
    (measure(&pods).bytes.saturating_add(measure(&logs).bytes), each)
}

/// Evicts what is to go, each time that `shortages` is told anew.
pub(super) async fn run(node: Arc<Shared>, mut shortages: watch::Receiver<Shortages>) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            changed = shortages.changed() => if changed.is_err() {
                return;
            },
        }
        let now = *shortages.borrow_and_update();
        // As upstream: memory before all other resources, and one pod at a time.
        let short = now.memory.map(|short| ("memory", short)).or(now.disk.map(|short| ("ephemeral-storage", short)));
        let Some((resource, short)) = short else { continue };
        tracing::warn!(node = node.identity.name, resource, ?short, "the node is short: a pod may be evicted");
        node.recorder.record(EventRecord {
            about: about(&node),
            warning: true,
            reason: "EvictionThresholdMet",
            message: format!("Attempting to reclaim {resource}"),
            source: None,
        });
        match look_for(&node, resource).await {
            Ok(Some(going)) => {
                let view = node.pods.get(&going.uid);
                if !view.is_some_and(|view| view.evict(message(resource, short, &going))) {
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

/// The pod that is to go for `resource`. Volumes are walked where nobody else waits.
async fn look_for(node: &Arc<Shared>, resource: &'static str) -> Result<Option<Candidate>, Ended> {
    if resource == "memory" {
        return Ok(first(candidates(&node.pods, resource, memory_of)));
    }
    let (pods, data_dir) = (node.pods.clone(), node.identity.data_dir.clone());
    let walk = move || first(candidates(&pods, resource, |uid, seen| disk_of(&data_dir, uid, seen)));
    node.measurer.run(walk).await.ok_or(Ended)
}

/// The Node as upstream's kubelet refers to it in its events.
pub(super) fn about(node: &Shared) -> ObjectReference {
    let name = Some(node.identity.name.clone());
    ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..ObjectReference::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, used_bytes: u64, requested_bytes: u64) -> Candidate {
        let containers = vec![Share { container: "c".into(), used_bytes, requested_bytes }];
        Candidate { uid: uid.into(), priority, used_bytes, requested_bytes, containers }
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
        let short = Shortage { threshold_bytes: 100 << 20, available_bytes: 52_428 << 10 };
        assert_eq!(
            message("memory", short, &pod("p", 0, (3 << 20) + 1, 0)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52428Ki. Container c was using \
             3145729, request is 0, has larger consumption of memory. "
        );
        assert!(message("memory", short, &pod("p", 0, 1, 2)).ends_with("available: 52428Ki. "));
        assert_eq!([0, 1 << 30, 1 << 60].map(quantity), ["0", "1Gi", "1Ei"]);
    }
}
