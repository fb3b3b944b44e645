//! The provisioner of local volumes: removes the content of a volume that is being deleted, before its object is
//! removed, and expands volumes. One task serves all nodes of a process. A process of one node acts as the node, which reads
//! only the volumes on it and the claims that are bound to them, each by its name (docs/decisions/0129-node-rights.md).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use machinery_api::ObjectKey;
use machinery_api::quantity::Quantity;
use machinery_client::claims::{self, DELETION_PROTECTION, LOCAL_DRIVER, NodeTopology};
use machinery_client::informer::Listener;
use machinery_client::request::{ApiClient, BackOff, status_code};
use machinery_client::{Change, Informer, Kind, ObjectCache};
use machinery_env::Env;
use serde::de::IgnoredAny;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::local::LocalVolumes;

/// The wait of a failed operation for its retry, at first and at most: a pod may still end, and a claim's expansion may take
/// its controller any time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// The next operation for a volume.
#[derive(Debug, Clone, PartialEq)]
enum VolumeOperation {
    /// Sets the volume's capacity, and updates the status of the claim that it is bound to.
    Grow { node: String, uid: String, capacity: u64, claim: Option<(ObjectKey, Box<PersistentVolume>)> },
    /// Removes the data, then the volume's finalizer.
    Remove { node: String, uid: String, left: Box<PersistentVolume> },
}

/// The nodes of this process, by name.
pub type LocalVolumesByNode = BTreeMap<String, Arc<LocalVolumes>>;

#[derive(Default)]
struct DirtyVolumes {
    keys: Mutex<BTreeSet<ObjectKey>>,
    changed: Notify,
}

impl DirtyVolumes {
    fn add(&self, name: &str) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(ObjectKey::cluster(name));
        self.changed.notify_one();
    }
}

/// The volumes with a failed operation. Pure, but for the jitter.
#[derive(Default)]
struct Retries(BTreeMap<ObjectKey, (Duration, BackOff)>);

impl Retries {
    fn due(&self, now: Duration) -> BTreeSet<ObjectKey> {
        self.0.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| key.clone()).collect()
    }

    fn failed(&mut self, key: ObjectKey, env: &Env) {
        let (at, waits) = self.0.entry(key).or_insert_with(|| (Duration::ZERO, BackOff::new(RETRY_FIRST, RETRY_MAX)));
        *at = env.elapsed() + waits.next(env);
    }

    /// The volume changed, or has no operation any more.
    fn forget(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    fn next_in(&self, now: Duration) -> Option<Duration> {
        self.0.values().map(|(at, _)| at.saturating_sub(now)).min()
    }
}

/// Reconciles these nodes' volumes with the cluster's objects until `stop`.
pub async fn run(
    informer: Arc<Informer>,
    client: ApiClient,
    nodes: LocalVolumesByNode,
    env: Env,
    stop: CancellationToken,
) {
    informer.watch::<PersistentVolume>();
    informer.watch::<Node>();
    let marks = Arc::new(DirtyVolumes::default());
    let listener: Arc<Listener> = {
        let (marks, names) = (marks.clone(), nodes.keys().cloned().collect());
        Arc::new(move |view: &ObjectCache, change: &Change| {
            volumes_of(view, change, &names).into_iter().for_each(|name| marks.add(name));
        })
    };
    informer.listen(&listener);
    let mut retries = Retries::default();
    loop {
        let changed = std::mem::take(&mut *marks.keys.lock().unwrap_or_else(PoisonError::into_inner));
        changed.iter().for_each(|key| retries.forget(key));
        let mut keys = retries.due(env.elapsed());
        keys.extend(changed);
        for key in keys {
            let step = informer.read(|view| next_operation(view, &key, &nodes));
            let done = match step {
                Some(step) => perform(&client, &key, &nodes, step).await,
                None => Ok(()),
            };
            match done {
                Ok(()) => retries.forget(&key),
                Err(why) => {
                    tracing::debug!(volume = %key, why, "a volume operation failed, retrying");
                    retries.failed(key, &env);
                }
            }
        }
        let next = retries.next_in(env.elapsed());
        tokio::select! {
            () = stop.cancelled() => return,
            () = marks.changed.notified() => {}
            () = env.sleep(next.unwrap_or_default()), if next.is_some() => {}
        }
    }
}

/// Returns the volumes affected by a change. A node's volumes are identified by its labels. Lists of volumes and of
/// nodes arrive in any order: a node's arrival requeues volumes that came first.
fn volumes_of<'a>(view: &'a ObjectCache, change: &'a Change, nodes: &BTreeSet<String>) -> Vec<&'a str> {
    if change.kind == Kind::of::<PersistentVolume>() {
        return vec![&change.key.name];
    }
    let labels = |node: Option<&'a Node>| node.map(|node| &node.metadata.labels);
    let same = labels(change.before()) == labels(change.after());
    if same || !nodes.contains(&*change.key.name) {
        return Vec::new();
    }
    view.all::<PersistentVolume>().filter_map(|volume| volume.metadata.name.as_deref()).collect()
}

/// Returns the next operation for a volume. Pure.
fn next_operation(view: &ObjectCache, key: &ObjectKey, nodes: &LocalVolumesByNode) -> Option<VolumeOperation> {
    let volume = view.get::<PersistentVolume>(key)?;
    let spec = volume.spec.as_ref()?;
    if spec.csi.as_ref()?.driver != LOCAL_DRIVER {
        return None;
    }
    let empty = BTreeMap::new();
    let is_there = |name: &&String| {
        let labels = view.get::<Node>(&ObjectKey::cluster(&***name)).map(|node| node.metadata.labels.as_ref());
        let place = |labels| NodeTopology { name, labels };
        labels.is_some_and(|labels| claims::is_reachable(volume, place(labels.unwrap_or(&empty))))
    };
    let node = nodes.keys().find(is_there)?.clone();
    let uid = volume.metadata.uid.clone()?;
    let (phase, policy) =
        (volume.status.as_ref().and_then(|status| status.phase.as_deref()), &spec.persistent_volume_reclaim_policy);
    if volume.metadata.deletion_timestamp.is_some() {
        let mut left = Box::new(volume.clone());
        let held = left.metadata.finalizers.get_or_insert_default();
        let before = held.len();
        held.retain(|name| name != DELETION_PROTECTION);
        let over = held.len() < before && phase != Some("Bound") && policy.as_deref() == Some("Delete");
        return over.then_some(VolumeOperation::Remove { node, uid, left });
    }
    let bytes = claims::capacity(volume);
    let bound = claims::claim_ref(volume).filter(|_| phase == Some("Bound"));
    let claim =
        bound.map(|r| ObjectKey::new(r.namespace.clone().unwrap_or_default(), r.name.clone().unwrap_or_default()));
    let claim = claim.map(|key| (key, Box::new(volume.clone())));
    Some(VolumeOperation::Grow { node, uid, capacity: u64::try_from(bytes.value()).unwrap_or_default(), claim })
}

/// What a claim's status says about the capacity of its volume.
#[derive(Debug, PartialEq)]
enum Expansion {
    /// The claim has the capacity of its volume, or isn't the volume's.
    Done,
    /// The cluster has yet to let the node finish the expansion.
    Pending,
    /// The claim with the status of the finished expansion.
    Finish(Box<PersistentVolumeClaim>),
}

/// Returns what is left of an expansion. Pure.
fn expansion(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Expansion {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    let (Some(capacity), true) = (capacity, claims::is_for(volume, claim)) else { return Expansion::Done };
    let mut claim = Box::new(claim.clone());
    let Some(status) = claim.status.as_mut() else { return Expansion::Pending };
    let step = status.allocated_resource_statuses.as_mut().and_then(|steps| steps.remove("storage"));
    if step.as_deref() != Some("NodeResizePending") {
        let reported = status.capacity.as_ref().and_then(|capacity| Quantity::parse(&capacity.get("storage")?.0).ok());
        let is_behind = reported.is_none_or(|reported| reported < claims::capacity(volume));
        return if is_behind { Expansion::Pending } else { Expansion::Done };
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|of| !["Resizing", "FileSystemResizePending"].contains(&&*of.type_));
    status.capacity.get_or_insert_default().insert("storage".to_owned(), capacity.clone());
    Expansion::Finish(claim)
}

async fn perform(
    client: &ApiClient,
    key: &ObjectKey,
    nodes: &LocalVolumesByNode,
    step: VolumeOperation,
) -> Result<(), String> {
    match step {
        VolumeOperation::Grow { node, uid, capacity, claim } => {
            if let Some(volumes) = nodes.get(&node) {
                volumes.grow(&uid, capacity);
            }
            let Some((key, volume)) = claim else { return Ok(()) };
            let kind = Kind::of::<PersistentVolumeClaim>();
            let found = match client.get::<PersistentVolumeClaim>(&kind, &key).await {
                Err(error) if status_code(&error) == 404 => return Ok(()),
                found => found.map_err(|error| error.to_string())?,
            };
            match expansion(&found, &volume) {
                Expansion::Done => Ok(()),
                Expansion::Pending => Err("the claim's expansion is not at the node yet".to_owned()),
                Expansion::Finish(claim) => {
                    let expanded = client.update::<IgnoredAny>(&kind, &key, Some("status"), &*claim).await;
                    expanded.map(drop).map_err(|error| error.to_string())
                }
            }
        }
        VolumeOperation::Remove { node, uid, left } => {
            let Some(volumes) = nodes.get(&node).cloned() else { return Ok(()) };
            let of = uid.clone();
            let removed = tokio::task::spawn_blocking(move || volumes.remove(&of)).await;
            removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            let updated = client.update::<IgnoredAny>(&Kind::of::<PersistentVolume>(), key, None, &*left).await;
            updated.map(drop).map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use machinery_client::object::decode;
    use serde_json::{Value, json};

    use super::*;

    fn view(volume: Value) -> ObjectCache {
        let mut view = ObjectCache::default();
        let node = json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}}});
        view.put(&Kind::of::<Node>(), decode::<Node>(&node.to_string()).unwrap());
        view.put(&Kind::of::<PersistentVolume>(), decode::<PersistentVolume>(&volume.to_string()).unwrap());
        view
    }

    fn volume(node: &str, change: impl FnOnce(&mut Value)) -> Value {
        let of = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
        let mut volume = json!({
            "metadata": {"name": "v", "uid": "u", "finalizers": ["a/b", DELETION_PROTECTION]},
            "spec": {"csi": {"driver": LOCAL_DRIVER, "volumeHandle": "v"}, "capacity": {"storage": "2Ki"},
                "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"name": "c", "namespace": "a", "uid": "c"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": of}]}}},
            "status": {"phase": "Bound"},
        });
        change(&mut volume);
        volume
    }

    fn decide(volume: Value) -> Option<VolumeOperation> {
        let nodes = LocalVolumesByNode::from([(
            "n".to_owned(),
            Arc::new(LocalVolumes::new("/nowhere".as_ref(), machinery_env::Env::real())),
        )]);
        next_operation(&view(volume), &ObjectKey::cluster("v"), &nodes)
    }

    fn claim(uid: &str, capacity: &str, statuses: Value) -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"name": "c", "namespace": "a", "uid": uid, "resourceVersion": "3"},
            "status": {"capacity": {"storage": capacity}, "allocatedResourceStatuses": statuses,
                "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}});
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn an_operation_that_stays_pending_is_tried_less_and_less() {
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let (mut retries, key) = (Retries::default(), ObjectKey::cluster("v"));
        retries.failed(key.clone(), &env);
        let mut tries = 0;
        for _ in 0..3600 {
            clock.advance(Duration::from_secs(1));
            if !retries.due(env.elapsed()).is_empty() {
                tries += 1;
                retries.failed(key.clone(), &env);
            }
            assert!(retries.next_in(env.elapsed()).unwrap() <= RETRY_MAX * 3 / 2);
        }
        assert!((40..70).contains(&tries), "{tries} in an hour");
        retries.forget(&key);
        assert_eq!(retries.next_in(env.elapsed()), None);
        retries.failed(key, &env);
        assert!(retries.next_in(env.elapsed()).unwrap() <= RETRY_FIRST * 3 / 2, "a change is quick again");
    }

    #[test]
    fn only_released_volumes_of_this_node_are_removed() {
        let going = |phase: &'static str, policy: &'static str| {
            move |volume: &mut Value| {
                volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
                volume["status"]["phase"] = phase.into();
                volume["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
            }
        };
        let Some(VolumeOperation::Remove { node, uid, left }) = decide(volume("n", going("Released", "Delete"))) else {
            panic!("it stays")
        };
        assert_eq!((&*node, &*uid, left.metadata.finalizers), ("n", "u", Some(vec!["a/b".to_owned()])));
        assert_eq!(decide(volume("m", going("Released", "Delete"))), None, "another node's");
        assert_eq!(decide(volume("n", going("Bound", "Delete"))), None);
        assert_eq!(decide(volume("n", going("Released", "Retain"))), None);
        let other = volume("n", |volume| volume["spec"]["csi"]["driver"] = "d".into());
        assert_eq!(decide(other), None);
    }

    #[test]
    fn a_volume_that_was_heard_of_first_is_looked_at_again_with_its_node() {
        let view = view(volume("n", |_| ()));
        let node = |name: &str, label: &str| -> Arc<dyn machinery_client::Object> {
            let node = json!({"metadata": {"name": name, "labels": {"l": label}}});
            decode::<Node>(&node.to_string()).unwrap()
        };
        let marked = |name: &str, old: Option<&str>| {
            let key = Arc::new(ObjectKey::cluster(name));
            let (old, new) = (old.map(|label| node(name, label)), Some(node(name, "b")));
            let change = Change { kind: Kind::of::<Node>(), key, old, new };
            volumes_of(&view, &change, &["n".to_owned()].into()).len()
        };
        assert_eq!((marked("n", None), marked("n", Some("a"))), (1, 1));
        assert_eq!((marked("n", Some("b")), marked("m", None)), (0, 0), "nothing new, or another process's node");
    }

    #[test]
    fn the_claim_of_a_bound_volume_gets_its_capacity() {
        let Some(VolumeOperation::Grow { capacity: 2048, claim: Some((key, bound)), .. }) = decide(volume("n", |_| ()))
        else {
            panic!("the volume is bound")
        };
        assert_eq!(key, ObjectKey::new("a", "c"));
        let Expansion::Finish(expanded) =
            expansion(&claim("c", "1Ki", json!({"storage": "NodeResizePending"})), &bound)
        else {
            panic!("the node finishes it")
        };
        let status = expanded.status.unwrap();
        assert_eq!(
            (json!(status.capacity), json!(status.conditions), json!(status.allocated_resource_statuses)),
            (json!({"storage": "2Ki"}), json!([]), json!({}))
        );
        let left = |uid: &str, capacity: &str, statuses: Value| expansion(&claim(uid, capacity, statuses), &bound);
        assert_eq!(left("c", "1Ki", Value::Null), Expansion::Pending);
        assert_eq!(left("c", "1Ki", json!({"storage": "ControllerResizeInProgress"})), Expansion::Pending);
        assert_eq!(left("c", "2048", Value::Null), Expansion::Done);
        assert_eq!(left("later", "1Ki", json!({"storage": "NodeResizePending"})), Expansion::Done, "another claim");
        let Some(VolumeOperation::Grow { claim: None, .. }) =
            decide(volume("n", |volume| volume["status"]["phase"] = "Available".into()))
        else {
            panic!("it is bound to no claim")
        };
    }
}
