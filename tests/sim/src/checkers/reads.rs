//! Responses are true: a read returns a state between request and response, a list the state of its own revision, and
//! an acknowledged write was committed.

use std::collections::BTreeMap;

use apiserver_storage::store::Revision;
use serde_json::Value;

use crate::parsed_request::ParsedRequest;
use crate::world::World;

fn version(object: &Value) -> Option<Revision> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// Subresources whose responses are other objects than their parent.
const OF_ITS_OWN: [&str; 5] = ["scale", "binding", "token", "eviction", "log"];

/// Checks one response against the history; `begun` is the revision at which the request reached the server.
pub(crate) fn check(world: &World, parsed: &ParsedRequest, status: u16, body: &[u8], begun: Revision) {
    let Some(prefix) = &parsed.prefix else { return };
    if OF_ITS_OWN.contains(&parsed.subresource.as_str()) {
        return;
    }
    let ended = world.history.revision();
    let problem = if parsed.writes() {
        write(world, parsed, prefix, status, body, (begun, ended))
    } else if !parsed.query("resourceVersion").is_empty() {
        None
    } else if parsed.name.is_empty() {
        list(world, parsed, prefix, status, body, (begun, ended))
    } else {
        get(world, parsed, status, body, (begun, ended))
    };
    if let Some(problem) = problem {
        let ParsedRequest { method, namespace, name, .. } = parsed;
        world.record_violation(format!("{method} {prefix}{namespace}/{name} {status}: {problem} ({begun} to {ended})"));
    }
}

type Time = (Revision, Revision);

fn write(
    world: &World,
    parsed: &ParsedRequest,
    prefix: &str,
    status: u16,
    body: &[u8],
    (begun, ended): Time,
) -> Option<String> {
    if !matches!(status, 200 | 201) || parsed.method == "DELETE" {
        return None;
    }
    let object: Value = serde_json::from_slice(body).ok()?;
    let revision = version(&object)?;
    let metadata = &object["metadata"];
    let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (part("namespace"), part("name"));
    let key = if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") };
    // A write without a change returns the current object.
    let there = world.history.wrote(&key, revision) && revision > begun
        || world.history.between(&key, begun, ended).contains(&Some(revision));
    (!there).then(|| format!("acknowledged {key} at {revision}, which was not committed"))
}

fn get(world: &World, parsed: &ParsedRequest, status: u16, body: &[u8], (begun, ended): Time) -> Option<String> {
    let shown = match status {
        200 => Some(version(&serde_json::from_slice(body).ok()?)?),
        404 => None,
        _ => return None,
    };
    let possible = world.history.between(&parsed.key()?, begun, ended);
    (!possible.contains(&shown)).then(|| format!("showed {shown:?}, which is none of {possible:?}"))
}

fn list(
    world: &World,
    parsed: &ParsedRequest,
    prefix: &str,
    status: u16,
    body: &[u8],
    (begun, ended): Time,
) -> Option<String> {
    if status != 200 || !parsed.query("continue").is_empty() {
        return None;
    }
    let list: Value = serde_json::from_slice(body).ok()?;
    let revision = version(&list)?;
    if revision < begun || revision > ended {
        return Some(format!("is of {revision}, neither when it was asked for nor later"));
    }
    let selects = ["limit", "labelSelector", "fieldSelector"].iter().any(|name| !parsed.query(name).is_empty());
    if selects {
        return None;
    }
    let items = list["items"].as_array()?;
    let shown: BTreeMap<String, Option<Revision>> = items
        .iter()
        .map(|item| {
            let part = |name: &str| item["metadata"][name].as_str().unwrap_or_default();
            let slash = if part("namespace").is_empty() { "" } else { "/" };
            (format!("{prefix}{}{slash}{}", part("namespace"), part("name")), version(item))
        })
        .collect();
    let there = world.history.below(&parsed.below()?, revision);
    let there: BTreeMap<String, Option<Revision>> =
        there.into_iter().map(|(key, version)| (key.to_string(), Some(version.revision))).collect();
    (shown != there).then(|| format!("showed {shown:?} at {revision} where {there:?} was"))
}
