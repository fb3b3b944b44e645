//! Components that are broken on purpose: proof that the checkers see it.

use apiserver_storage::store::Op;
use apiserver_storage::store::record::Record;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::asked::Asked;
use crate::checkers::claims::owner;
use crate::cluster::CONTROLLERS;
use crate::history::History;

/// What is broken in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Nothing.
    None,
    /// The watch cache never hears of one of the changes of pods.
    CacheMissesChange,
    /// One event of a watch of pods never reaches its client.
    WatchDropsEvent,
    /// One event of a watch of pods reaches its client twice.
    WatchDoublesEvent,
    /// The scheduler doesn't see what pods ask for.
    SchedulerSeesNoRequests,
    /// The store forgets one transaction that it has acknowledged.
    StoreForgets,
    /// A controller doesn't run.
    Without(&'static str),
    /// Users do by hand, in a rollout, what its strategy doesn't allow.
    UserMeddles,
    /// A Job's status counts one pod more than it names.
    JobsCountTwice,
    /// A Job's pods are let go, and its status names none of them.
    JobsNameNobody,
    /// A quota says that nothing is used.
    QuotasForget,
    /// The server takes no eviction off what a budget allows.
    BudgetsForget,
    /// A claim is bound to a volume that is another's.
    BinderTakesTaken,
    /// Volumes of claims, and those that are to be kept, are deleted as soon as nobody hinders it.
    VolumesGo,
    /// Users take pods of a StatefulSet away by force, as if they knew that these have ended.
    UserForces,
    /// The scheduler doesn't see where volumes are.
    SchedulerSeesNoPlaces,
    /// An autoscaler asks for more than its most.
    AutoscalerOversteps,
    /// An autoscaler doesn't know that it is to wait.
    AutoscalerIsHasty,
    /// A certificate is made of a request that was denied.
    EverybodyIsSigned,
    /// Every Service gets the pool's first address.
    PoolForgets,
    /// Who leaves something behind goes, and what is left names it still.
    OrphansForget,
}

/// What is sent instead of a request's body.
pub(crate) fn request(sabotage: Sabotage, history: &History, from: &str, asked: &Asked, body: Bytes) -> Bytes {
    let below = |prefix: &str| asked.prefix.as_deref() == Some(prefix);
    let by_controllers = from == CONTROLLERS && asked.method == "PUT";
    let is_status = by_controllers && asked.subresource == "status";
    let changed = |change: &dyn Fn(&mut Value)| {
        let Ok(mut object) = serde_json::from_slice::<Value>(&body) else { return body.clone() };
        change(&mut object);
        object.to_string().into()
    };
    match sabotage {
        Sabotage::JobsCountTwice if is_status && below("/registry/jobs/") => changed(&|job| {
            if job["status"]["uncountedTerminatedPods"]["failed"].is_array() {
                job["status"]["failed"] = json!(job["status"]["failed"].as_i64().unwrap_or(0) + 1);
            }
        }),
        Sabotage::JobsNameNobody if is_status && below("/registry/jobs/") => {
            changed(&|job| job["status"]["uncountedTerminatedPods"] = json!({}))
        }
        Sabotage::QuotasForget if below("/registry/resourcequotas/") && asked.method == "POST" => {
            changed(&|quota| quota["spec"]["hard"]["pods"] = json!("2"))
        }
        Sabotage::BinderTakesTaken if by_controllers && below("/registry/persistentvolumeclaims/") => {
            changed(&|claim| {
                let volumes = history.now("/registry/persistentvolumes/");
                let theirs = |volume: &Value| !owner(volume).is_empty() && claim["metadata"]["uid"] != owner(volume);
                let taken = volumes.iter().map(|(_, volume)| volume.value()).find(|volume| theirs(volume));
                if let Some(taken) = taken.filter(|_| claim["spec"]["volumeName"].is_string()) {
                    claim["spec"]["volumeName"] = taken["metadata"]["name"].clone();
                }
            })
        }
        Sabotage::AutoscalerOversteps if by_controllers && asked.subresource == "scale" => {
            changed(&|scale| scale["spec"]["replicas"] = json!(11))
        }
        Sabotage::AutoscalerIsHasty if below("/registry/horizontalpodautoscalers/") && asked.method == "POST" => {
            changed(&|hpa| hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = json!(0))
        }
        Sabotage::PoolForgets if from == CONTROLLERS && below("/registry/services/specs/") => changed(&|service| {
            if let Some(ip) = service.pointer_mut("/status/loadBalancer/ingress/0/ip") {
                *ip = json!("192.0.2.240");
            }
        }),
        Sabotage::OrphansForget if from == CONTROLLERS && asked.method == "PATCH" => changed(&|patch| {
            if let Some(metadata) = patch.pointer_mut("/metadata").and_then(Value::as_object_mut)
                && metadata.get("ownerReferences").is_some_and(Value::is_null)
            {
                metadata.remove("ownerReferences");
            }
        }),
        _ => body,
    }
}

/// What a broken server stores.
pub(crate) fn stored(sabotage: Sabotage, history: &History, op: &mut Op) {
    let Op::Put { key, record, .. } = op else { return };
    if sabotage == Sabotage::QuotasForget && key.starts_with("/registry/resourcequotas/") {
        let Ok(mut quota) = serde_json::from_slice::<Value>(&record.body()) else { return };
        if quota["status"]["used"]["pods"].is_string() {
            quota["status"]["used"]["pods"] = json!("0");
            *record = Record::of(&quota);
        }
        return;
    }
    if sabotage == Sabotage::EverybodyIsSigned && key.starts_with("/registry/certificatesigningrequests/") {
        let Ok(mut request) = serde_json::from_slice::<Value>(&record.body()) else { return };
        if request["status"]["conditions"][0]["type"] == "Denied" {
            request["status"]["certificate"] = json!("eA==");
            *record = Record::of(&request);
        }
        return;
    }
    if sabotage != Sabotage::BudgetsForget || !key.starts_with("/registry/poddisruptionbudgets/") {
        return;
    }
    let Some(old) = history.at(key, u64::MAX) else { return };
    let Ok(mut budget) = serde_json::from_slice::<Value>(&record.body()) else { return };
    let named = |budget: &Value| budget["status"]["disruptedPods"].as_object().map_or(0, serde_json::Map::len);
    if named(&budget) > named(old.value()) {
        budget["status"]["disruptionsAllowed"] = old.value()["status"]["disruptionsAllowed"].clone();
        *record = Record::of(&budget);
    }
}
