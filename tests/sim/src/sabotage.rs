//! Components that are broken on purpose: proves that the checkers detect it.

use apiserver_storage::store::Op;
use apiserver_storage::store::record::Record;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::checkers::claims::owner;
use crate::cluster::CONTROLLERS;
use crate::history::History;
use crate::parsed_request::ParsedRequest;

/// The sabotage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Nothing.
    None,
    /// The watch cache misses one change of pods.
    CacheMissesChange,
    /// One event of a watch of pods is dropped.
    WatchDropsEvent,
    /// One event of a watch of pods is duplicated.
    WatchDoublesEvent,
    /// The scheduler ignores pods' requests.
    SchedulerSeesNoRequests,
    /// The store loses one acknowledged transaction.
    StoreForgets,
    /// A controller doesn't run.
    Without(&'static str),
    /// Users violate a rollout's strategy by hand.
    UserMeddles,
    /// A Job's status counts one pod more than it lists as uncounted.
    JobsCountTwice,
    /// A Job's pods lose their finalizer without being listed in its status.
    JobsNameNone,
    /// A quota's status reports no usage.
    QuotasForget,
    /// The server doesn't deduct evictions from a budget.
    BudgetsForget,
    /// A claim is bound to another claim's volume.
    BinderTakesTaken,
    /// Volumes that are claimed or to be retained are deleted as soon as no finalizer prevents it.
    VolumesGo,
    /// Users force-delete pods of a StatefulSet as if these had ended.
    UserForces,
    /// The scheduler ignores volumes' node affinity.
    SchedulerSeesNoPlaces,
    /// An autoscaler exceeds its maximum.
    AutoscalerOversteps,
    /// An autoscaler ignores its stabilization window.
    AutoscalerIsHasty,
    /// A denied request gets a certificate.
    EverybodyIsSigned,
    /// Every Service gets the pool's first address.
    PoolForgets,
    /// An owner with orphaned dependents is removed while these still refer to it.
    OrphansForget,
    /// The garbage collector deletes a dependent at whatever version the server has.
    CollectorIgnoresVersions,
}

/// Replaces a request's body.
pub(crate) fn replace_body(
    sabotage: Sabotage,
    history: &History,
    from: &str,
    parsed: &ParsedRequest,
    body: Bytes,
) -> Bytes {
    let below = |prefix: &str| parsed.prefix.as_deref() == Some(prefix);
    let by_controllers = from == CONTROLLERS && parsed.method == "PUT";
    let is_status = by_controllers && parsed.subresource == "status";
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
        Sabotage::JobsNameNone if is_status && below("/registry/jobs/") => {
            changed(&|job| job["status"]["uncountedTerminatedPods"] = json!({}))
        }
        Sabotage::QuotasForget if below("/registry/resourcequotas/") && parsed.method == "POST" => {
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
        Sabotage::AutoscalerOversteps if by_controllers && parsed.subresource == "scale" => {
            changed(&|scale| scale["spec"]["replicas"] = json!(11))
        }
        Sabotage::AutoscalerIsHasty if below("/registry/horizontalpodautoscalers/") && parsed.method == "POST" => {
            changed(&|hpa| hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = json!(0))
        }
        Sabotage::PoolForgets if from == CONTROLLERS && below("/registry/services/specs/") => changed(&|service| {
            if let Some(ip) = service.pointer_mut("/status/loadBalancer/ingress/0/ip") {
                *ip = json!("192.0.2.240");
            }
        }),
        Sabotage::CollectorIgnoresVersions if from == CONTROLLERS && parsed.method == "DELETE" => changed(&|options| {
            if let Some(preconditions) = options.pointer_mut("/preconditions").and_then(Value::as_object_mut) {
                preconditions.remove("resourceVersion");
            }
        }),
        Sabotage::OrphansForget if from == CONTROLLERS && parsed.method == "PATCH" => changed(&|patch| {
            if let Some(metadata) = patch.pointer_mut("/metadata").and_then(Value::as_object_mut)
                && metadata.get("ownerReferences").is_some_and(Value::is_null)
            {
                metadata.remove("ownerReferences");
            }
        }),
        _ => body,
    }
}

/// Changes what a broken server stores.
pub(crate) fn corrupt_stored(sabotage: Sabotage, history: &History, op: &mut Op) {
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
