//! Defaults of pods and pod templates, applied after decoding and before admission.

use serde_json::{Value, json};

use crate::read::{default_to, default_zero_to, flag, get, has, int, is_zero, items, items_mut, object_mut, put, text};

/// Fields of a volume that are sources.
const VOLUME_SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// Permission bits of files in volumes (0644).
const FILE_MODE: i64 = 0o644;
const REPOSITORY_BYTES_MAX: usize = 255;
const TOKEN_SECONDS: i64 = 3600;
const GRACE_SECONDS: i64 = 30;

/// Sets a Pod's defaults.
pub(crate) fn pod(object: &mut Value) {
    old_annotations(object);
    super::update::normalize_ips(object);
    let spec = object_mut(object, "spec");
    pod_spec(spec);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        put(spec, "terminationGracePeriodSeconds", json!(1));
    }
    let host_network = flag(spec, "hostNetwork");
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in items_mut(container, "ports") {
                    if is_zero(get(port, "hostPort")) {
                        let number = get(port, "containerPort").clone();
                        put(port, "hostPort", number);
                    }
                }
            }
        }
    }
    super::resources::default_pod_level(spec);
    default_to(spec, "enableServiceLinks", true);
}

/// Drops annotations of init containers from early releases.
pub(crate) fn old_annotations(object: &mut Value) {
    const OLD: [&str; 4] = [
        "pod.beta.kubernetes.io/init-containers",
        "pod.alpha.kubernetes.io/init-containers",
        "pod.beta.kubernetes.io/init-container-statuses",
        "pod.alpha.kubernetes.io/init-container-statuses",
    ];
    let Some(notes) = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")) else { return };
    for key in OLD {
        put(notes, key, Value::Null);
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = get(get(container, "resources"), "limits").as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let resources = object_mut(container, "resources");
    let requests = object_mut(resources, "requests");
    for (name, value) in limits {
        default_to(requests, &name, value);
    }
}

/// Sets the defaults of a Pod's or a template's spec.
pub(crate) fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    default_zero_to(spec, "dnsPolicy", "ClusterFirst");
    default_zero_to(spec, "restartPolicy", "Always");
    default_to(spec, "securityContext", json!({}));
    default_to(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    default_zero_to(spec, "schedulerName", "default-scheduler");
    let old_name = text(spec, "serviceAccount").to_owned();
    if !old_name.is_empty() {
        default_zero_to(spec, "serviceAccountName", old_name);
    }
    let name = text(spec, "serviceAccountName").to_owned();
    if !name.is_empty() {
        put(spec, "serviceAccount", json!(name));
    }
    for volume in items_mut(spec, "volumes") {
        volume_source(volume);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            fill_container(container);
        }
    }
}

fn fill_container(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    let policy = pull_policy(text(container, "image"));
    default_zero_to(container, "imagePullPolicy", policy);
    default_zero_to(container, "terminationMessagePath", "/dev/termination-log");
    default_zero_to(container, "terminationMessagePolicy", "File");
    default_to(container, "resources", json!({}));
    for port in items_mut(container, "ports") {
        default_zero_to(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        let Some(from) = variable.get_mut("valueFrom") else { continue };
        field_ref(from);
        divisor(from);
        if let Some(file) = from.get_mut("fileKeyRef") {
            default_to(file, "optional", false);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|p| p.is_object()) else { continue };
        for (key, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            default_zero_to(probe, key, value);
        }
        handler(probe);
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
            handler(hook);
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(http) = handler.get_mut("httpGet").filter(|h| h.is_object()) {
        default_zero_to(http, "path", "/");
        default_zero_to(http, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|h| h.is_object()) {
        default_to(grpc, "service", "");
    }
}

fn field_ref(source: &mut Value) {
    if let Some(reference) = source.get_mut("fieldRef").filter(|r| r.is_object()) {
        default_zero_to(reference, "apiVersion", "v1");
    }
}

/// Go's encoder always writes a divisor: an absent one is the quantity 0.
fn divisor(source: &mut Value) {
    if let Some(reference) = source.get_mut("resourceFieldRef").filter(|r| r.is_object()) {
        default_to(reference, "divisor", "0");
    }
}

/// `Always` for the tag `latest` and for no tag, `IfNotPresent` for any other tag and for digests.
fn pull_policy(image: &str) -> &'static str {
    match image_tag(image) {
        Some("latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// The tag of an image reference: `latest` without tag and digest, `None` with a digest only or if the reference
/// doesn't parse.
fn image_tag(image: &str) -> Option<&str> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    let (path, tag) = match last.rsplit_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    if !is_repository(path) {
        return None;
    }
    if let Some(digest) = digest {
        let (algorithm, hex) = digest.split_once(':')?;
        if algorithm.is_empty() || hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
    }
    match tag {
        Some(tag) => {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let mut bytes = tag.bytes();
            let ok = bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-');
            (ok && tag.len() <= 128).then_some(tag)
        }
        None if digest.is_some() => None,
        None => Some("latest"),
    }
}

/// Whether a reference's repository parses (distribution/reference): a domain, then lower-case path components.
fn is_repository(name: &str) -> bool {
    // A text with the form of an image ID is no name.
    if name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return false;
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    let first = parts[0];
    let domain = parts.len() > 1
        && (first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()));
    if domain {
        let (host, port) = first.split_once(':').unwrap_or((first, "0"));
        let host_ok = host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
        if !host_ok || port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return false;
        }
        parts.remove(0);
    }
    // Single-component names are below `library/` in the default registry.
    let library = if !domain && parts.len() == 1 { "library/".len() } else { 0 };
    if library + parts.join("/").len() > REPOSITORY_BYTES_MAX {
        return false;
    }
    parts.iter().all(|part| is_path_component(part))
}

/// Lower-case letters and digits, separated by a dot, one or two underscores, or dashes.
fn is_path_component(part: &str) -> bool {
    let is_word = |b: char| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = part.split(is_word).filter(|between| !between.is_empty());
    part.starts_with(is_word)
        && part.ends_with(is_word)
        && separators
            .into_iter()
            .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

fn volume_source(volume: &mut Value) {
    if !volume.is_object() {
        return;
    }
    if !VOLUME_SOURCES.iter().any(|source| has(volume, source)) {
        put(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            default_to(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(api) = volume.get_mut("downwardAPI") {
        downward_items(api);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
                default_to(token, "expirationSeconds", TOKEN_SECONDS);
            }
            if let Some(api) = source.get_mut("downwardAPI") {
                downward_items(api);
            }
        }
    }
    if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
        let policy = pull_policy(text(image, "reference"));
        default_zero_to(image, "pullPolicy", policy);
    }
    disk(volume);
    if let Some(template) = volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate"))
        && let Some(spec) = template.get_mut("spec").filter(|s| s.is_object())
    {
        default_to(spec, "volumeMode", "Filesystem");
    }
}

/// Defaults of sources that persistent volumes share.
pub(crate) fn disk(volume: &mut Value) {
    if let Some(path) = volume.get_mut("hostPath").filter(|p| p.is_object()) {
        default_to(path, "type", "");
    }
    if let Some(iscsi) = volume.get_mut("iscsi").filter(|i| i.is_object()) {
        default_zero_to(iscsi, "iscsiInterface", "default");
    }
    if let Some(rbd) = volume.get_mut("rbd").filter(|r| r.is_object()) {
        default_zero_to(rbd, "pool", "rbd");
        default_zero_to(rbd, "user", "admin");
        default_zero_to(rbd, "keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = volume.get_mut("azureDisk").filter(|d| d.is_object()) {
        default_to(disk, "cachingMode", "ReadWrite");
        default_to(disk, "kind", "Shared");
        default_to(disk, "fsType", "ext4");
        default_to(disk, "readOnly", false);
    }
    if let Some(scale) = volume.get_mut("scaleIO").filter(|s| s.is_object()) {
        default_zero_to(scale, "storageMode", "ThinProvisioned");
        default_zero_to(scale, "fsType", "xfs");
    }
}

fn downward_items(api: &mut Value) {
    for item in items_mut(api, "items") {
        field_ref(item);
        divisor(item);
    }
}

/// Drops fields of features that upstream v1.36 disables, unless the old spec has them.
pub(crate) fn drop_disabled(spec: &mut Value, old: Option<&Value>) {
    if !spec.is_object() {
        return;
    }
    let old = old.unwrap_or(&crate::read::NULL);
    if !has(old, "schedulingGroup") {
        put(spec, "schedulingGroup", Value::Null);
    }
    let stops = |spec: &Value| {
        ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|list| items(spec, list).iter().any(|c| has(get(c, "lifecycle"), "stopSignal")))
    };
    if !stops(old) {
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for container in items_mut(spec, list) {
                let Some(lifecycle) = container.get_mut("lifecycle").filter(|l| has(l, "stopSignal")) else { continue };
                put(lifecycle, "stopSignal", Value::Null);
                if is_zero(lifecycle) {
                    put(container, "lifecycle", Value::Null);
                }
            }
        }
    }
    for key in ["clusterTrustBundle", "podCertificate"] {
        let uses = |spec: &Value| {
            items(spec, "volumes").iter().any(|v| items(get(v, "projected"), "sources").iter().any(|s| has(s, key)))
        };
        if uses(old) {
            continue;
        }
        for volume in items_mut(spec, "volumes") {
            let Some(projected) = volume.get_mut("projected") else { continue };
            for source in items_mut(projected, "sources") {
                put(source, key, Value::Null);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("web", "Always"),
            ("web:latest", "Always"),
            ("web:v1", "IfNotPresent"),
            ("registry.local:5000/web", "Always"),
            ("registry.local:5000/web:1", "IfNotPresent"),
            ("a/b@sha256:0123456789012345678901234567890123456789012345678901234567890123", "IfNotPresent"),
            ("web:latest@sha256:0123456789012345678901234567890123456789012345678901234567890123", "Always"),
            ("Not A Name", "IfNotPresent"),
            ("", "IfNotPresent"),
            ("a..b", "IfNotPresent"),
            ("a.-b", "IfNotPresent"),
            ("a___b/c", "IfNotPresent"),
            ("a.b_c__d--e", "Always"),
            (&"0a".repeat(32), "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
