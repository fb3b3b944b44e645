//! Test data derived from upstream's fixtures (`k8s.io/pod-security-admission` v0.36.3, `test/testdata`). Each line of
//! `testdata/fixtures.tsv` is one pod: level, versions, expected violation or `allowed`, and differences from the
//! smallest pod that the level allows, with defaults.

use serde_json::{Value, json};

use super::checks::{details, violations};
use super::pod::Pod;
use super::policy::{Level, Standard, Version, level};

const FIXTURES: &str = include_str!("testdata/fixtures.tsv");

/// The smallest pod that a version of a standard allows.
fn smallest(of: Level, minor: i64) -> Value {
    let mut container = json!({"name": "container1", "image": "registry/pause"});
    let mut spec = json!({});
    if of == Level::Restricted {
        spec["securityContext"] = json!({"runAsNonRoot": true});
        if minor >= 8 {
            container["securityContext"] = json!({"allowPrivilegeEscalation": false});
        }
        if minor >= 19 {
            spec["securityContext"]["seccompProfile"] = json!({"type": "RuntimeDefault"});
        }
        if minor >= 22 {
            container["securityContext"]["capabilities"] = json!({"drop": ["ALL"]});
        }
    }
    spec["containers"] = json!([container]);
    container["name"] = json!("initcontainer1");
    spec["initContainers"] = json!([container]);
    json!({"metadata": {}, "spec": spec})
}

/// Sets (`path=value`) or removes (`-path`) a field.
fn change(pod: &mut Value, change: &str) {
    let (path, value) = match change.strip_prefix('-') {
        Some(path) => (path, None),
        None => change.split_once('=').map(|(path, value)| (path, Some(value))).unwrap(),
    };
    let (within, path) = path.split_once(':').unwrap();
    let mut at = match within {
        "a" => &mut pod["metadata"]["annotations"],
        "c" => &mut pod["spec"]["containers"][0],
        "i" => &mut pod["spec"]["initContainers"][0],
        _ => &mut pod["spec"],
    };
    let mut fields: Vec<String> = path
        .split(':')
        .map(|field| match field {
            "sc" => "securityContext".into(),
            "caps" => "capabilities".into(),
            field => field.replace("~1", "/"),
        })
        .collect();
    let last = fields.pop().unwrap();
    for field in &fields {
        at = &mut at[field];
    }
    match value {
        Some(value) => at[&last] = serde_json::from_str(value).unwrap(),
        None => drop(at.as_object_mut().unwrap().remove(&last)),
    }
}

#[test]
fn pods_are_judged_as_upstreams_fixtures_say() {
    let mut judged = 0;
    for line in FIXTURES.lines() {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().unwrap();
        let (of, versions, verdict) = (level(cell()).unwrap(), cell(), cell());
        let (first, last) = versions.split_once('-').unwrap();
        let changes: Vec<&str> = cells.collect();
        for minor in first.parse().unwrap()..=last.parse().unwrap() {
            let mut pod = smallest(of, minor);
            changes.iter().for_each(|one| change(&mut pod, one));
            let found = details(&violations(Standard { level: of, version: Version::Minor(minor) }, Pod::of(&pod)));
            match verdict {
                "allowed" => assert_eq!(found, "", "v1.{minor} {line}: {pod}"),
                verdict => assert!(found.contains(verdict), "v1.{minor} {line}: {found:?} {pod}"),
            }
            judged += 1;
        }
    }
    assert_eq!(judged, 4102);
}
