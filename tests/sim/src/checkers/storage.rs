//! Claims and volumes after convergence.

use serde_json::Value;

use super::claims::{bound_to, claims_of, owner};
use super::convergence::Objects;
use super::invariants::ended;
use crate::history::History;

/// Unmet expectations.
pub(super) fn unmet(history: &History, problems: &mut Vec<String>) {
    let of = |prefix: &str| Objects::of(history, prefix);
    let (claims, volumes, pods) = (of("persistentvolumeclaims"), of("persistentvolumes"), of("pods"));
    let namespace = |object: &Value| object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let used = |claim: &Value| {
        let name = claim["metadata"]["name"].as_str().unwrap_or_default();
        let here = pods.iter().filter(|(_, pod)| namespace(pod) == namespace(claim) && !ended(pod));
        here.into_iter().any(|(_, pod)| claims_of(pod).any(|claim| claim == name))
    };
    let is_going = |object: &Value| !object["metadata"]["deletionTimestamp"].is_null();
    for (key, claim) in claims.iter() {
        if is_going(claim) && !used(claim) {
            problems.push(format!("{key} is not gone"));
        }
        let (bound, phase) = (bound_to(claim), claim["status"]["phase"].as_str().unwrap_or_default());
        let waits = match claim["spec"]["storageClassName"].as_str() {
            // There may be too few volumes.
            Some("made") => {
                !volumes.iter().any(|(_, v)| v["spec"]["storageClassName"] == "made" && owner(v).is_empty())
            }
            Some("soon") => false,
            _ => !used(claim),
        };
        if !is_going(claim) && phase != if bound.is_some() { "Bound" } else { "Pending" } || (bound.is_none() && !waits)
        {
            problems.push(format!("{key} is {phase}, and bound to {bound:?}"));
        }
        let volume = volumes.iter().find(|(_, volume)| volume["metadata"]["name"].as_str() == bound);
        if bound.is_some() && !volume.is_some_and(|(_, volume)| claim["metadata"]["uid"] == owner(volume)) {
            problems.push(format!("{key} is bound to {bound:?}, which isn't its own"));
        }
    }
    for (key, volume) in volumes.iter() {
        let (uid, name) = (owner(volume), volume["metadata"]["name"].as_str());
        let claim = claims.iter().find(|(_, claim)| !uid.is_empty() && claim["metadata"]["uid"] == uid);
        let had = claim.is_some_and(|(_, claim)| bound_to(claim) == name);
        let wanted = if uid.is_empty() {
            "Available"
        } else if had {
            "Bound"
        } else {
            "Released"
        };
        let goes =
            is_going(volume) || (wanted == "Released" && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete");
        if goes || volume["status"]["phase"] != wanted {
            problems.push(format!("{key} is {}, and to be {wanted}, or gone", volume["status"]["phase"]));
        }
    }
    for (key, set) in of("statefulsets").iter() {
        if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] != "Delete" {
            continue;
        }
        let (name, replicas) = (&set["metadata"]["name"], set["spec"]["replicas"].as_u64().unwrap_or(0));
        let own = format!("data-{}-", name.as_str().unwrap_or_default());
        let more = claims.iter().filter(|(_, claim)| namespace(claim) == namespace(set)).find(|(_, claim)| {
            let ordinal =
                claim["metadata"]["name"].as_str().and_then(|name| name.strip_prefix(&own)?.parse::<u64>().ok());
            ordinal.is_some_and(|ordinal| ordinal >= replicas)
        });
        problems.extend(more.map(|(claim, _)| format!("{key} has {replicas} pods, and {claim} is there")));
    }
}
