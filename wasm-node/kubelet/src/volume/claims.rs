//! Resolves the claims of a pod's volumes. They are read from the API when the pod begins, as the Node authorizer
//! restricts a node to the objects that its pods name. The decision on the objects is free of IO.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use machinery_api::ObjectKey;
use machinery_client::claims::{self, LOCAL_DRIVER, NodeTopology};
use machinery_client::request::{ApiClient, may_succeed_later, status_code};
use machinery_client::{Kind, Typed, key_of};

use super::local::LocalVolumes;
use super::{host_path, is_of_claim};
pub use crate::spec::referred::BoundVolume;

/// The volumes of a pod's claims when they were last resolved: a claim's volume doesn't change, so that they replace the
/// API while it doesn't answer.
#[derive(Debug, Default)]
pub(crate) struct ClaimVolumes(Mutex<BTreeMap<String, BoundVolume>>);

impl ClaimVolumes {
    /// Those of a pod, with the ones that are known already; `None` if it has no claims.
    pub(crate) fn of(pod: &Pod, known: BTreeMap<String, BoundVolume>) -> Option<Arc<Self>> {
        let has_claims = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(is_of_claim);
        has_claims.then(|| Arc::new(Self(Mutex::new(known))))
    }

    pub(crate) fn all(&self) -> BTreeMap<String, BoundVolume> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn get(&self, volume: &str) -> Option<BoundVolume> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(volume).cloned()
    }

    pub(crate) fn set(&self, volume: &str, bound: BoundVolume) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(volume.to_owned(), bound);
    }
}

/// Why a claim's volume is not available yet.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Unresolved {
    /// In upstream's words.
    message: String,
    /// The API gave no answer about it.
    pub(crate) unanswered: bool,
}

/// Returns the name of the claim of a pod's volume.
#[must_use]
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)),
        (None, None) => None,
    }
}

/// Resolves a volume's claim.
///
/// # Errors
/// [`Unresolved`]
pub(crate) async fn resolve(
    api: &ApiClient,
    pod: &Pod,
    volume: &Volume,
    node: NodeTopology<'_>,
) -> Result<Option<BoundVolume>, Unresolved> {
    let Some(name) = claim_name(pod, volume) else { return Ok(None) };
    let key = ObjectKey::new(pod.metadata.namespace.clone().unwrap_or_default(), name);
    let text = |why: String| format!("error processing PVC {key}: {why}");
    let failed = |why: String| Unresolved { message: text(why), unanswered: false };
    let unread = |what: &str, (why, unanswered): (String, bool)| Unresolved {
        message: text(format!("failed to fetch {what} from API server: {why}")),
        unanswered,
    };
    let claim: PersistentVolumeClaim = get(api, &key).await.map_err(|why| unread("PVC", why))?;
    let name = bound_volume_name(pod, volume, &claim).map_err(failed)?;
    let of = ObjectKey::cluster(name);
    let persistent: PersistentVolume = get(api, &of).await.map_err(|why| unread(&format!("PV {of}"), why))?;
    source(&claim, &persistent, node).map(Some).map_err(failed)
}

/// Reads an object. An error has its text, and whether the API gave no answer.
async fn get<K: Typed>(api: &ApiClient, key: &ObjectKey) -> Result<K, (String, bool)> {
    api.get::<K>(&Kind::of::<K>(), key).await.map_err(|error| {
        let unanswered = may_succeed_later(&error);
        match status_code(&error) {
            0 => (format!("no answer: {error}"), unanswered),
            _ => (error.to_string(), unanswered),
        }
    })
}

/// Returns the volume that a claim is bound to.
fn bound_volume_name<'a>(pod: &Pod, volume: &Volume, claim: &'a PersistentVolumeClaim) -> Result<&'a str, String> {
    if volume.ephemeral.is_some()
        && let Some(why) = claims::is_not_of_pod(&pod.metadata, claim)
    {
        return Err(why);
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".into());
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let name = claims::volume_name(claim);
    if phase != Some("Bound") || name.is_empty() {
        return Err("PVC is not bound".into());
    }
    if claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block") {
        return Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", volume.name));
    }
    Ok(name)
}

/// Returns a volume's source on this node. The paths in a PersistentVolume are used only if the node's operator allows
/// them ([`host_path`]).
fn source(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node: NodeTopology<'_>,
) -> Result<BoundVolume, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let uid = claims::claim_ref(volume).and_then(|r| r.uid.as_deref());
    if uid.is_none() || uid != claim.metadata.uid.as_deref() || !claims::is_for(volume, claim) {
        let of = key_of(&claim.metadata);
        return Err(format!("PV {name} is not bound to claim {of}"));
    }
    if !claims::is_reachable(volume, node) {
        return Err(format!(
            "MountVolume.NodeAffinity check failed for volume {name:?} : no matching NodeSelectorTerms"
        ));
    }
    let spec = volume.spec.as_ref();
    if let Some(csi) = spec.and_then(|spec| spec.csi.as_ref()) {
        if csi.driver != LOCAL_DRIVER {
            return Err(format!("driver name {} not found in the list of registered CSI drivers", csi.driver));
        }
        let modes = spec.and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        return Ok(BoundVolume::Local {
            uid: volume.metadata.uid.clone().unwrap_or_default(),
            capacity: u64::try_from(claims::capacity(volume).value()).unwrap_or_default(),
            alone: modes.iter().any(|mode| mode == "ReadWriteOncePod"),
        });
    }
    let of_host = spec.and_then(|spec| spec.host_path.clone());
    let of_local = || {
        let local = spec.and_then(|spec| spec.local.as_ref())?;
        Some(HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".into()) })
    };
    match of_host.or_else(of_local) {
        Some(host) if matches!(host.type_.as_deref(), Some("DirectoryOrCreate")) => Ok(BoundVolume::Host(host)),
        // Guests can only open folders.
        Some(host) if matches!(host.type_.as_deref(), None | Some("" | "Directory")) => {
            Ok(BoundVolume::Host(HostPathVolumeSource { type_: Some("Directory".into()), ..host }))
        }
        Some(host) => Err(format!("hostPath type {} is no folder", host.type_.unwrap_or_default())),
        None => Err("no volume plugin matched".into()),
    }
}

/// Creates the volume at `folder`. Reads and writes files.
pub(crate) fn create(
    found: &BoundVolume,
    folder: &Path,
    pod: &str,
    (local, allowed): (&LocalVolumes, &[std::path::PathBuf]),
) -> Result<(), String> {
    match found {
        BoundVolume::Local { uid, capacity, alone } => {
            let data = local.acquire(pod, uid, *capacity, *alone)?;
            host_path::link_to(folder, &data).map_err(|error| error.to_string())
        }
        BoundVolume::Host(source) => host_path::link(folder, source, allowed),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn pod_volume(volume: Value) -> (Pod, Volume) {
        let pod = json!({"metadata": {"name": "p", "namespace": "a", "uid": "p-uid"}});
        (serde_json::from_value(pod).unwrap(), serde_json::from_value(volume).unwrap())
    }

    fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "a", "uid": "c-uid"},
            "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        change(&mut claim);
        serde_json::from_value(claim).unwrap()
    }

    fn volume(spec: Value) -> PersistentVolume {
        let r = json!({"name": "c", "namespace": "a", "uid": "c-uid"});
        let mut all = json!({"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "claimRef": r});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "v", "uid": "v-uid"}, "spec": all})).unwrap()
    }

    #[test]
    fn only_a_bound_claim_of_the_pods_own_counts() {
        let (pod, of) = pod_volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}));
        assert_eq!(claim_name(&pod, &of).as_deref(), Some("c"));
        assert_eq!(bound_volume_name(&pod, &of, &claim(|_| ())), Ok("v"));
        let pending = claim(|claim| claim["status"]["phase"] = "Pending".into());
        assert_eq!(bound_volume_name(&pod, &of, &pending), Err("PVC is not bound".into()));
        let going = claim(|claim| claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into());
        assert_eq!(bound_volume_name(&pod, &of, &going), Err("PVC is being deleted".into()));
        let block = claim(|claim| claim["spec"]["volumeMode"] = "Block".into());
        assert!(bound_volume_name(&pod, &of, &block).unwrap_err().contains("volumeMode Block"));
        let (pod, own) = pod_volume(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        assert_eq!(claim_name(&pod, &own).as_deref(), Some("p-v"));
        let why = "PVC a/c was not created for pod a/p (pod is not owner)";
        assert_eq!(bound_volume_name(&pod, &own, &claim(|_| ())), Err(why.into()));
    }

    #[test]
    fn no_field_of_a_volume_names_another_ones_data() {
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "n".to_owned())]);
        let node = NodeTopology { name: "n", labels: &labels };
        let of = |spec: Value| source(&claim(|_| ()), &volume(spec), node);
        let local =
            json!({"driver": "local.coracle.dev", "volumeHandle": "../../other", "volumeAttributes": {"path": "/etc"}});
        let found = BoundVolume::Local { uid: "v-uid".into(), capacity: 1 << 20, alone: false };
        assert_eq!(of(json!({"csi": local})), Ok(found));
        let other = json!({"driver": "ebs.csi.aws.com", "volumeHandle": "x"});
        assert!(of(json!({"csi": other})).unwrap_err().contains("not found in the list of registered CSI drivers"));
        let host = |kind: &str| json!({"hostPath": {"path": "/x", "type": kind}});
        for (kind, is_folder) in [("", true), ("Directory", true), ("DirectoryOrCreate", true), ("File", false)] {
            assert_eq!(of(host(kind)).is_ok(), is_folder, "{kind}");
        }
        assert!(matches!(of(json!({"local": {"path": "/x"}})), Ok(BoundVolume::Host(_))));
        assert_eq!(of(json!({"nfs": {"server": "s", "path": "/"}})), Err("no volume plugin matched".into()));
        let elsewhere = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": ["m"]}]);
        let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": elsewhere}]}});
        assert!(of(json!({"csi": local, "nodeAffinity": affinity})).unwrap_err().contains("NodeAffinity"));
        let others = json!({"name": "c", "namespace": "a", "uid": "another"});
        assert!(of(json!({"csi": local, "claimRef": others})).unwrap_err().contains("is not bound to claim a/c"));
    }
}
