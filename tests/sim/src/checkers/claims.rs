//! Claims and volumes: a volume belongs to one claim as long as that needs it, and retained volumes are kept.

use serde_json::Value;

use super::invariants::ended;
use crate::history::{History, KeyChange};

const CLAIMS: &str = "/registry/persistentvolumeclaims/";
const VOLUMES: &str = "/registry/persistentvolumes/";

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The volume that a claim's own status is bound to.
pub(crate) fn bound_to(claim: &Value) -> Option<&str> {
    let done = claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"].is_string();
    claim["spec"]["volumeName"].as_str().filter(|name| done && !name.is_empty())
}

fn is_going(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// The uid of a volume's claim; empty if it has none.
pub(crate) fn owner(volume: &Value) -> &str {
    text(volume, "/spec/claimRef/uid")
}

/// The names of a pod's claims.
pub(crate) fn claims_of(pod: &Value) -> impl Iterator<Item = String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|volume| match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(name) => Some(name.to_owned()),
        None if volume["ephemeral"].is_object() => {
            Some(format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name")))
        }
        None => None,
    })
}

/// The violations of one change.
pub(crate) fn step(history: &History, step: &KeyChange) -> Vec<String> {
    let mut problems = Vec::new();
    let (old, new) = (step.old.as_deref().map(|old| old.value()), step.new.as_deref().map(|new| new.value()));
    if step.key.starts_with(CLAIMS) {
        claim(history, old, new, &mut problems);
    } else if step.key.starts_with(VOLUMES) {
        volume(history, &step.key, old, new, &mut problems);
    }
    problems.into_iter().map(|problem| format!("{} at {}: {problem}", step.key, step.revision)).collect()
}

fn claim(history: &History, old: Option<&Value>, new: Option<&Value>, problems: &mut Vec<String>) {
    let Some(claim) = new else {
        problems.extend(old.and_then(|old| used(history, old)));
        return;
    };
    if let (Some(before), now) = (old.and_then(bound_to), bound_to(claim))
        && now != Some(before)
    {
        problems.push(format!("it was bound to {before}, and is to {now:?}"));
    }
    let Some(name) = bound_to(claim).filter(|_| old.and_then(bound_to).is_none()) else { return };
    let uid = text(claim, "/metadata/uid");
    let volume = history.at(&format!("{VOLUMES}{name}"), u64::MAX);
    let theirs = volume.as_ref().map(|volume| owner(volume.value()));
    if theirs != Some(uid) {
        problems.push(format!("it is bound to {name}, which is that of {theirs:?}"));
    }
    for (other, version) in history.now(CLAIMS) {
        if version.value()["metadata"]["uid"] != uid && bound_to(version.value()) == Some(name) {
            problems.push(format!("it is bound to {name}, and so is {other}"));
        }
    }
}

/// A claim is removed only after its last pod.
fn used(history: &History, claim: &Value) -> Option<String> {
    let (namespace, name) = (text(claim, "/metadata/namespace"), text(claim, "/metadata/name"));
    let pods = history.now(&format!("/registry/pods/{namespace}/"));
    let mut users = pods.iter().filter(|(_, pod)| {
        let pod = pod.value();
        !ended(pod) && !text(pod, "/spec/nodeName").is_empty() && claims_of(pod).any(|claim| claim == name)
    });
    users.next().map(|(pod, _)| format!("it is gone, and {pod} uses it"))
}

fn volume(history: &History, key: &str, old: Option<&Value>, new: Option<&Value>, problems: &mut Vec<String>) {
    let name = key.strip_prefix(VOLUMES).unwrap_or_default();
    let known = |uid: &str| {
        let claims = history.now(CLAIMS);
        let found = claims.iter().find(|(_, claim)| !uid.is_empty() && claim.value()["metadata"]["uid"] == uid);
        found.map(|(_, claim)| claim.clone())
    };
    let has = |uid: &str| known(uid).is_some_and(|claim| bound_to(claim.value()) == Some(name));
    if let Some(old) = old {
        let uid = owner(old);
        if new.is_none_or(|new| owner(new) != uid) && has(uid) {
            problems.push(format!("it was the claim's {uid}, which has it, and is {:?}'s", new.map(owner)));
        }
        let goes = !is_going(old) && new.is_none_or(is_going);
        if goes && has(uid) {
            problems.push(format!("it goes, and the claim {uid} has it"));
        }
        if goes && old["spec"]["persistentVolumeReclaimPolicy"] == "Retain" {
            problems.push("it goes, and is to be kept".into());
        }
    }
    let Some(new) = new else { return };
    let (uid, phase) = (owner(new), &new["status"]["phase"]);
    let was = old.map(|old| &old["status"]["phase"]);
    if *phase == "Released" && was != Some(phase) && has(uid) {
        problems.push(format!("it is let go, and the claim {uid} has it"));
    }
    if *phase == "Bound" && was != Some(phase) {
        for (other, version) in history.now(VOLUMES) {
            if *other != *key && owner(version.value()) == uid && version.value()["status"]["phase"] == "Bound" {
                problems.push(format!("it is the claim's {uid}, and so is {other}"));
            }
        }
    }
}
