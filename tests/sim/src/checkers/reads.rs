//! Answers are true: a read shows what was there at one moment between request and answer, a list all that was there at
//! its own revision, and a write that was acknowledged was committed.

use std::collections::BTreeMap;

use apiserver_storage::store::Revision;
use serde_json::Value;

use crate::asked::Asked;
use crate::world::World;

fn version(object: &Value) -> Option<Revision> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// Subresources whose answers are other objects than the one that they are of.
const OF_ITS_OWN: [&str; 5] = ["scale", "binding", "token", "eviction", "log"];

/// Holds one answer to the history; `begun` is the revision at which the request reached the server.
pub(crate) fn check(world: &World, asked: &Asked, status: u16, body: &[u8], begun: Revision) {
    let Some(prefix) = &asked.prefix else { return };
    if OF_ITS_OWN.contains(&asked.subresource.as_str()) {
        return;
    }
    let ended = world.history.revision();
    let problem = if asked.writes() {
        write(world, asked, prefix, status, body, (begun, ended))
    } else if !asked.query("resourceVersion").is_empty() {
        None
    } else if asked.name.is_empty() {
        list(world, asked, prefix, status, body, (begun, ended))
    } else {
        get(world, asked, status, body, (begun, ended))
    };
    if let Some(problem) = problem {
        let Asked { method, namespace, name, .. } = asked;
        world.violated(format!("{method} {prefix}{namespace}/{name} {status}: {problem} ({begun} to {ended})"));
    }
}

type Time = (Revision, Revision);

fn write(world: &World, asked: &Asked, prefix: &str, status: u16, body: &[u8], (begun, ended): Time) -> Option<String> {
    if !matches!(status, 200 | 201) || asked.method == "DELETE" {
        return None;
    }
    let object: Value = serde_json::from_slice(body).ok()?;
    let revision = version(&object)?;
    let metadata = &object["metadata"];
    let part = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (part("namespace"), part("name"));
    let key = if namespace.is_empty() { format!("{prefix}{name}") } else { format!("{prefix}{namespace}/{name}") };
    // What changed nothing is answered with what is there.
    let there = world.history.wrote(&key, revision) && revision > begun
        || world.history.between(&key, begun, ended).contains(&Some(revision));
    (!there).then(|| format!("acknowledged {key} at {revision}, which was not committed"))
}

fn get(world: &World, asked: &Asked, status: u16, body: &[u8], (begun, ended): Time) -> Option<String> {
    let shown = match status {
        200 => Some(version(&serde_json::from_slice(body).ok()?)?),
        404 => None,
        _ => return None,
    };
    let possible = world.history.between(&asked.key()?, begun, ended);
    (!possible.contains(&shown)).then(|| format!("showed {shown:?}, which is none of {possible:?}"))
}

fn list(world: &World, asked: &Asked, prefix: &str, status: u16, body: &[u8], (begun, ended): Time) -> Option<String> {
    if status != 200 || !asked.query("continue").is_empty() {
        return None;
    }
    let list: Value = serde_json::from_slice(body).ok()?;
    let revision = version(&list)?;
    if revision < begun || revision > ended {
        return Some(format!("is of {revision}, neither when it was asked for nor later"));
    }
    let selects = ["limit", "labelSelector", "fieldSelector"].iter().any(|name| !asked.query(name).is_empty());
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
    let there = world.history.below(&asked.below()?, revision);
    let there: BTreeMap<String, Option<Revision>> =
        there.into_iter().map(|(key, version)| (key.to_string(), Some(version.revision))).collect();
    (shown != there).then(|| format!("showed {shown:?} at {revision} where {there:?} was"))
}
