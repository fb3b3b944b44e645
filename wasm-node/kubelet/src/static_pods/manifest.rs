//! Parses a static pod's manifest: YAML or JSON, with upstream's defaults, names and errors. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Toleration, Volume};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{HASH, SEEN, SOURCE};

/// The length of the hash that is a pod's uid.
const UID_BYTES: usize = 16;

/// The pod of a manifest on that node; `file` is the manifest's path. The error is for the node's log.
pub(crate) fn parse(text: &str, node: &str, file: &str, now: &str) -> Result<Pod, String> {
    let value: Value = machinery_api::yaml::read(text).map_err(|error| format!("no YAML or JSON: {error}"))?;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err("invalid pod: kind Pod of apiVersion v1 is wanted".into());
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| format!("invalid pod: {error}"))?;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty());
    let name = name.ok_or("invalid pod: name is needed for the pod")?;
    pod.status = None;
    // Replaces a uid in the manifest too: it may be that of another pod, and a changed manifest has to be a new pod.
    let uid = hash(&pod, node, file);
    let metadata = &mut pod.metadata;
    metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".into());
    let annotations = metadata.annotations.get_or_insert_default();
    for (key, value) in [(HASH, uid.as_str()), (SOURCE, "file"), (SEEN, now)] {
        annotations.insert(key.into(), value.into());
    }
    metadata.uid = Some(uid);
    let spec = pod.spec.as_mut().ok_or("invalid pod: spec: Required value")?;
    spec.node_name = Some(node.into());
    default(spec);
    check(pod.metadata.name.as_deref().unwrap_or_default(), pod.spec.as_ref().unwrap_or(&PodSpec::default()))?;
    Ok(pod)
}

fn hash(pod: &Pod, node: &str, file: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(serde_json::to_vec(pod).unwrap_or_default());
    hasher.update(format!("host:{node}file:{file}"));
    hex::encode(&hasher.finalize()[..UID_BYTES])
}

/// Sets the API server's defaults of the fields that this node reads.
fn default(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    let everything =
        Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let image = container.image.clone().unwrap_or_default();
        let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
        let newest = !image.contains('@') && matches!(tag, None | Some("latest"));
        container.image_pull_policy.get_or_insert_with(|| if newest { "Always" } else { "IfNotPresent" }.into());
        default_requests(container);
    }
}

/// Requests default to the limits.
fn default_requests(container: &mut Container) {
    let Some(resources) = &mut container.resources else { return };
    for (name, amount) in resources.limits.clone().unwrap_or_default() {
        resources.requests.get_or_insert_default().entry(name).or_insert(amount);
    }
}

/// Rejects pods that no node can run. The API server validates the rest with the mirror, whose rejection is logged.
fn check(name: &str, spec: &PodSpec) -> Result<(), String> {
    let label = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(plain) && part.ends_with(plain) && part.chars().all(|c| plain(c) || c == '-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("invalid pod: metadata.name: Invalid value: {name:?}"));
    }
    if spec.containers.is_empty() {
        return Err("invalid pod: spec.containers: Required value".into());
    }
    let mut names = BTreeSet::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        if !label(&container.name) || container.name.len() > 63 {
            return Err(format!("invalid pod: a container's name: Invalid value: {:?}", container.name));
        }
        if !names.insert(&container.name) {
            return Err(format!("invalid pod: a container's name: Duplicate value: {:?}", container.name));
        }
        if container.image.as_deref().unwrap_or_default().is_empty() {
            return Err(format!("invalid pod: the image of container {:?}: Required value", container.name));
        }
    }
    let label_of = |volume: &&Volume| !label(&volume.name) || volume.name.len() > 63;
    if let Some(volume) = spec.volumes.iter().flatten().find(label_of) {
        return Err(format!("invalid pod: a volume's name: Invalid value: {:?}", volume.name));
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err("invalid pod: spec.ephemeralContainers: Forbidden: cannot be set on create".into());
    }
    match referenced(spec) {
        Some(what) => Err(format!("static pods may not reference {what}")),
        None => Ok(()),
    }
}

/// The first API resource that a pod references: static pods run without the API.
fn referenced(spec: &PodSpec) -> Option<&'static str> {
    let named = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    if named(&spec.service_account_name) || named(&spec.service_account) {
        return Some("serviceaccounts");
    }
    if spec.image_pull_secrets.as_ref().is_some_and(|list| !list.is_empty()) {
        return Some("secrets");
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let from =
            container.env_from.iter().flatten().map(|from| (from.secret_ref.is_some(), from.config_map_ref.is_some()));
        let values = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
        let keys = values.map(|from| (from.secret_key_ref.is_some(), from.config_map_key_ref.is_some()));
        for (secret, map) in from.chain(keys) {
            match (secret, map) {
                (true, _) => return Some("secrets"),
                (_, true) => return Some("configmaps"),
                _ => {}
            }
        }
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("resourceclaims");
    }
    spec.volumes.iter().flatten().find_map(of_volume)
}

fn of_volume(volume: &Volume) -> Option<&'static str> {
    let projected = volume.projected.iter().flat_map(|of| of.sources.iter().flatten());
    let mut sources = projected.filter_map(|source| {
        let kinds = [
            (source.secret.is_some(), "secrets"),
            (source.config_map.is_some(), "configmaps"),
            (source.service_account_token.is_some(), "serviceaccounts"),
            (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
            (source.pod_certificate.is_some(), "podcertificaterequests"),
        ];
        kinds.into_iter().find(|(named, _)| *named).map(|(_, kind)| kind)
    });
    let kinds = [
        (volume.secret.is_some(), "secrets"),
        (volume.config_map.is_some(), "configmaps"),
        (volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some(), "persistentvolumeclaims"),
    ];
    kinds.into_iter().find(|(named, _)| *named).map(|(_, kind)| kind).or_else(|| sources.next())
}

#[cfg(test)]
mod tests {
    use machinery_env::Env;

    use super::*;

    fn read(text: &str) -> Result<Pod, String> {
        parse(text, "Node-1", "/manifests/web.yaml", "2026-01-01T00:00:00Z")
    }

    #[test]
    fn bombs_are_refused_and_cost_little() {
        let nested = |open: &str, times: usize| format!("apiVersion: v1\nkind: Pod\nspec: {}", open.repeat(times));
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..30 {
            laughs.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", ")));
        }
        let merged = format!("{laughs}apiVersion: v1\nkind: Pod\nspec: *a29");
        let long = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {}}}\nspec: {{}}", "a".repeat(1 << 20));
        for bomb in
            [nested("[", 1 << 20), nested("{a: ", 1 << 18), nested("- ", 1 << 18), nested("? ", 1 << 18), merged, long]
        {
            let began = Env::real();
            let error = parse(&bomb, "n", "f", "now").expect_err("no pod");
            assert!(began.elapsed().as_secs() < 20, "{} in {:?}", error.len(), began.elapsed());
        }
    }

    #[test]
    fn a_uid_is_the_manifests_own() {
        let of = |uid: &str, file: &str| {
            let text = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: a, uid: uid-{uid}}}, spec: {{containers: [{{name: c, image: i}}]}}}}"
            );
            parse(&text, "n", file, "now").unwrap().metadata.uid
        };
        assert!(of("x", "f") != of("x", "g") && of("x", "f") != of("y", "f") && of("x", "f") != Some("uid-x".into()));
    }

    #[test]
    fn a_manifest_is_a_pod_of_its_node() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";
        let pod = read(text).unwrap();
        let metadata = &pod.metadata;
        assert_eq!((metadata.name.as_deref(), metadata.namespace.as_deref()), (Some("web-node-1"), Some("default")));
        let annotations = metadata.annotations.as_ref().unwrap();
        assert_eq!((annotations.get(HASH), annotations[SOURCE].as_str()), (metadata.uid.as_ref(), "file"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.restart_policy.as_deref()), (Some("Node-1"), Some("Always")));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("Always"));
        assert_eq!(spec.tolerations.as_ref().map(Vec::len), Some(1));
        let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;
        assert_eq!(read(json).unwrap(), pod, "JSON is the same");
        assert_eq!(read(text).unwrap().metadata.uid, pod.metadata.uid);
        assert_ne!(read(&text.replace("image: i", "image: j")).unwrap().metadata.uid, pod.metadata.uid);
    }

    #[test]
    fn garbage_is_reported() {
        let pod = |spec: &str| format!("{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {spec}}}");
        let container = "containers: [{name: c, image: i}]";
        for (text, why) in [
            ("".to_owned(), "kind Pod"),
            ("\u{0}\u{1}".to_owned(), "no YAML or JSON"),
            ("a: [".to_owned(), "no YAML or JSON"),
            ("{apiVersion: apps/v1, kind: Deployment}".to_owned(), "kind Pod"),
            ("{apiVersion: v1, kind: Pod, spec: {containers: []}}".to_owned(), "name is needed"),
            (
                "{apiVersion: v1, kind: Pod, metadata: {name: ../x}, spec: {containers: [{name: c, image: i}]}}"
                    .to_owned(),
                "metadata.name",
            ),
            (pod("{containers: []}"), "spec.containers"),
            (pod("{containers: 5}"), "invalid pod"),
            (pod("{containers: [{name: C, image: i}]}"), "a container's name"),
            (pod("{containers: [{name: c, image: i}, {name: c, image: i}]}"), "Duplicate value"),
            (pod("{containers: [{name: c}]}"), "the image"),
            (pod(&format!("{{{container}, volumes: [{{name: ../x}}]}}")), "a volume's name"),
            (pod(&format!("{{{container}, serviceAccountName: s}}")), "may not reference serviceaccounts"),
            (pod(&format!("{{{container}, imagePullSecrets: [{{name: s}}]}}")), "may not reference secrets"),
            (
                pod(&format!("{{{container}, volumes: [{{name: v, configMap: {{name: m}}}}]}}")),
                "may not reference configmaps",
            ),
            (
                pod("{containers: [{name: c, image: i, envFrom: [{secretRef: {name: s}}]}]}"),
                "may not reference secrets",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        // A few bytes that expand to very many.
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (of, to) in "abcdefgh".chars().zip("bcdefghi".chars()) {
            bomb.push_str(&format!("{to}: &{to} [{}]\n", vec![format!("*{of}"); 9].join(", ")));
        }
        assert!(read(&bomb).is_err());
    }
}
