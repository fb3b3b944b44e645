//! Evicts pods where the node runs short of memory or disk, one at an observation, in upstream's order: what uses more than
//! it requests, then what has the lower priority, then what uses most beyond its request.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_client::EventRecord;
use tokio::sync::watch;

use super::register::{Shortage, Shortages};
use crate::pod::admit::requested;
use crate::pod::shared::{PodViews, Shared, plain};
use crate::pod::worker::PodView;
use crate::volume::usage::measure;

/// From this priority on a pod is critical, and never evicted (upstream's `system-cluster-critical`).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// One pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    uid: String,
    container: String,
    priority: i32,
    used_bytes: u64,
    requested_bytes: u64,
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
    if of.used_bytes > of.requested_bytes {
        message.push_str(&format!(
            "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
            of.container,
            quantity(of.used_bytes),
            quantity(of.requested_bytes),
        ));
    }
    message
}

/// Bytes as upstream writes them: in the largest binary unit of which they are a whole number.
fn quantity(bytes: u64) -> String {
    let mut units = ["Ei", "Pi", "Ti", "Gi", "Mi", "Ki"].into_iter().zip((1..=6).rev());
    let unit = units.find(|(_, power)| bytes != 0 && bytes.is_multiple_of(1 << (10 * power)));
    unit.map_or_else(|| bytes.to_string(), |(unit, power)| format!("{}{unit}", bytes >> (10 * power)))
}

/// Bytes of memory that the guests of a node hold.
pub(super) fn memory_used(pods: &PodViews) -> u64 {
    pods.all()
        .iter()
        .filter_map(|view| view.look().container)
        .map(|(container, _)| container.stats().memory_bytes)
        .sum()
}

fn candidates(pods: &PodViews, resource: &str, used: impl Fn(&str, &PodView) -> u64) -> Vec<Candidate> {
    let all = pods.all();
    let running = all.iter().filter_map(|view| {
        let seen = view.look();
        let spec = seen.pod.spec.as_ref().filter(|_| seen.container.is_some())?;
        let uid = seen.pod.metadata.uid.clone().filter(|_| seen.pod.metadata.deletion_timestamp.is_none())?;
        Some(Candidate {
            container: spec.containers.first()?.name.clone(),
            priority: spec.priority.unwrap_or(0),
            used_bytes: used(&uid, view),
            requested_bytes: u64::try_from(requested(&seen.pod, resource)).unwrap_or(0),
            uid,
        })
    });
    running.collect()
}

/// Bytes on the disk that a pod's volumes and logs take. Walks them.
fn disk_used(data_dir: &Path, uid: &str) -> u64 {
    let folders = ["pods", "logs"].map(|folder| measure(&data_dir.join(folder).join(plain(uid))).bytes);
    folders.into_iter().fold(0, u64::saturating_add)
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
        let memory =
            |_: &str, view: &PodView| view.look().container.map_or(0, |(container, _)| container.stats().memory_bytes);
        return Ok(first(candidates(&node.pods, resource, memory)));
    }
    let (pods, data_dir) = (node.pods.clone(), node.identity.data_dir.clone());
    let walk = move || first(candidates(&pods, resource, |uid, _| disk_used(&data_dir, uid)));
    node.measurer.run(walk).await.ok_or(Ended)
}

/// The Node as upstream's kubelet refers to it in its events.
fn about(node: &Shared) -> ObjectReference {
    let name = Some(node.identity.name.clone());
    ObjectReference { kind: Some("Node".into()), uid: name.clone(), name, ..ObjectReference::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32, used_bytes: u64, requested_bytes: u64) -> Candidate {
        Candidate { uid: uid.into(), container: "c".into(), priority, used_bytes, requested_bytes }
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
