//! Upstream's warnings for pods and pod templates: valid, but probably unintended.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::each_container;
use super::spec::fractional_bytes;
use crate::core::addresses::canonical_ip_warning;
use crate::field::{Path, quoted};
use crate::read::{entries, get, has, int, is_zero, items, text, texts};
use crate::rules;

/// Bound on warnings about pairs, whose number is quadratic: many times what a response shows.
const WARNINGS_MAX: usize = 1000;
/// Maximum number of parent folders of a file that are compared: real paths have a tenth of it.
const PATH_PARTS_MAX: usize = 256;
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const OLD_NODE_LABELS: &[(&str, &str)] = &[
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
];
const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];
const OLD_VOLUMES: &[(&str, &str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The warning for a renamed node label.
pub(crate) fn old_node_label(key: &str) -> Option<&'static str> {
    OLD_NODE_LABELS.iter().find(|(old, _)| *old == key).map(|(_, message)| *message)
}

/// Warnings for a new Pod.
pub(super) fn pod(pod: &Value) -> Vec<String> {
    let name = crate::read::name(pod);
    let wrong = rules::dns_label(name);
    let mut warnings = Vec::new();
    if !wrong.is_empty() {
        warnings.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]", wrong.join(" ")));
    }
    of(&mut warnings, get(pod, "metadata"), get(pod, "spec"), &Path::root("metadata"), &Path::root("spec"), false);
    warnings
}

/// Warnings for a pod template at `path`.
pub(crate) fn template(warnings: &mut Vec<String>, template: &Value, path: &Path<'_>) {
    let (meta, spec) = (path.child("metadata"), path.child("spec"));
    of(warnings, get(template, "metadata"), get(template, "spec"), &meta, &spec, true);
}

fn of(warnings: &mut Vec<String>, meta: &Value, spec: &Value, meta_at: &Path<'_>, at: &Path<'_>, is_template: bool) {
    placement(warnings, spec, at);
    let notes = get(meta, "annotations");
    let notes_at = meta_at.child("annotations");
    for (key, message) in OLD_ANNOTATIONS {
        if notes.get(key).is_some() {
            warnings.push(format!("{}: {message}", notes_at.key(key)));
        }
    }
    let volumes_at = at.child("volumes");
    for (i, volume) in items(spec, "volumes").iter().enumerate() {
        for (key, shown, message) in OLD_VOLUMES {
            if has(volume, key) {
                warnings.push(format!("{}: {message}", volumes_at.index(i).child(shown)));
            }
        }
    }
    overlapping_paths(warnings, items(spec, "volumes"));
    repeated(warnings, spec, at);
    fractional_bytes(warnings, get(spec, "overhead"), &at.child("overhead"));
    if !has(get(spec, "securityContext"), "seccompProfile") && notes.get(SECCOMP_POD).is_some() {
        let message = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
        warnings.push(format!("{}: {message}", notes_at.key(SECCOMP_POD)));
    }
    let pod_profile = get(get(spec, "securityContext"), "appArmorProfile");
    each_container(spec, at, |container, path| {
        let (name, context) = (text(container, "name"), get(container, "securityContext"));
        let key = format!("{SECCOMP}{name}");
        if !has(context, "seccompProfile") && notes.get(&key).is_some() {
            let message = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
            warnings.push(format!("{}: {message}", notes_at.key(&key)));
        }
        let key = format!("{APPARMOR}{name}");
        // On a Pod the field has been set from the annotation; a template has only the annotation.
        let own = has(context, "appArmorProfile");
        let warns = if own { !is_template } else { pod_profile.is_null() };
        if notes.get(&key).is_some() && warns {
            let message = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            warnings.push(format!("{}: {message}", notes_at.key(&key)));
        }
        let resources_at = path.child("resources");
        let resources = get(container, "resources");
        // Upstream iterates by resource, then over limits and requests.
        for name in ["memory", "ephemeral-storage"] {
            for part in ["limits", "requests"] {
                let only = serde_json::json!({name: get(get(resources, part), name)});
                fractional_bytes(warnings, &only, &resources_at.child(part));
            }
        }
        hidden_variables(warnings, container, path);
    });
    ports(warnings, spec, at);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        let path = at.child("terminationGracePeriodSeconds");
        warnings.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    null_selectors(warnings, spec, at);
    let config = get(spec, "dnsConfig");
    let servers_at = at.child("dnsConfig.nameservers");
    for (i, server) in texts(config, "nameservers").enumerate() {
        warnings.extend(canonical_ip_warning(&servers_at.index(i), server));
    }
    let aliases_at = at.child("hostAliases");
    for (i, alias) in items(spec, "hostAliases").iter().enumerate() {
        warnings.extend(canonical_ip_warning(&aliases_at.index(i).child("ip"), text(alias, "ip")));
    }
}

/// Deprecated node labels in a term of a selector.
pub(crate) fn selector_term(warnings: &mut Vec<String>, term: &Value, check_values: bool, path: &Path<'_>) {
    let at = path.child("matchExpressions");
    for (i, expression) in items(term, "matchExpressions").iter().enumerate() {
        let one = at.index(i);
        let key = text(expression, "key");
        if let Some(message) = old_node_label(key) {
            warnings.push(format!("{}: {key} is {message}", one.child("key")));
        }
        if check_values {
            let values_at = one.child("values");
            for (j, value) in texts(expression, "values").enumerate() {
                for message in rules::label_value(value) {
                    warnings.push(format!("{}: {value} is invalid, {message}", values_at.index(j)));
                }
            }
        }
    }
}

fn placement(warnings: &mut Vec<String>, spec: &Value, at: &Path<'_>) {
    let selector_at = at.child("nodeSelector");
    for (key, _) in entries(spec, "nodeSelector") {
        if let Some(message) = old_node_label(key) {
            warnings.push(format!("{}: {message}", selector_at.key(key)));
        }
    }
    let affinity = get(get(spec, "affinity"), "nodeAffinity");
    let path = at.child("affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    let required = get(affinity, "requiredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in items(required, "nodeSelectorTerms").iter().enumerate() {
        selector_term(warnings, term, false, &path.index(i));
    }
    let path = at.child("affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution");
    for (i, term) in items(affinity, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        selector_term(warnings, get(term, "preference"), true, &path.index(i).child("preference"));
    }
    let path = at.child("topologySpreadConstraints");
    for (i, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let key = text(constraint, "topologyKey");
        if let Some(message) = old_node_label(key) {
            warnings.push(format!("{}: {key} is {message}", path.index(i).child("topologyKey")));
        }
        if !has(constraint, "labelSelector") {
            let path = path.index(i);
            warnings.push(format!("{}: a null labelSelector results in matching no pod", path.child("labelSelector")));
        }
    }
}

fn null_selectors(warnings: &mut Vec<String>, spec: &Value, at: &Path<'_>) {
    let affinity_at = at.child("affinity");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let part = get(get(spec, "affinity"), kind);
        let part_at = affinity_at.child(kind);
        for (list, inside) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            let list_at = part_at.child(list);
            for (i, term) in items(part, list).iter().enumerate() {
                let term = if inside.is_empty() { term } else { get(term, inside) };
                if !has(term, "labelSelector") {
                    let field = if inside.is_empty() { "labelSelector" } else { "podAffinityTerm.labelSelector" };
                    let path = list_at.index(i);
                    warnings.push(format!("{}: a null labelSelector results in matching no pod", path.child(field)));
                }
            }
        }
    }
}

fn repeated(warnings: &mut Vec<String>, spec: &Value, at: &Path<'_>) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let list_at = at.child(list);
        let mut seen = BTreeSet::new();
        for (i, item) in items(spec, list).iter().enumerate() {
            let value = text(item, key);
            if !seen.insert(value) {
                warnings.push(format!("{}: duplicate {key} {}", list_at.index(i).child(key), quoted(value)));
            }
        }
        if key == "name" {
            for (i, item) in items(spec, list).iter().enumerate() {
                if text(item, key).is_empty() {
                    warnings.push(format!("{}: invalid empty name \"\"", list_at.index(i).child(key)));
                }
            }
        }
    }
}

fn hidden_variables(warnings: &mut Vec<String>, container: &Value, path: &Path<'_>) {
    let env_at = path.child("env");
    let mut seen = BTreeSet::new();
    for (i, variable) in items(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        if has(variable, "valueFrom") || value == reference || !value.contains(&reference) {
            let at = env_at.index(i);
            let name = quoted(name);
            warnings.push(format!("{at}: hides previous definition of {name}, which may be dropped when using apply"));
        }
    }
}

/// The ports of one number and protocol, indexed by host port and address, so that a port is compared only with those
/// that it conflicts with.
#[derive(Default)]
struct HostPorts<'a> {
    /// Host port, host address and position, in order.
    all: Vec<(i64, &'a str, String)>,
    by_host: BTreeMap<(i64, &'a str), Vec<usize>>,
    /// By host port, for entries with a host address.
    with_address: BTreeMap<i64, Vec<usize>>,
}

impl<'a> HostPorts<'a> {
    fn add(&mut self, ip: &'a str, host: i64, place: String) {
        let at = self.all.len();
        self.all.push((host, ip, place));
        self.by_host.entry((host, ip)).or_default().push(at);
        if !ip.is_empty() {
            self.with_address.entry(host).or_default().push(at);
        }
    }

    /// The first `most` conflicting ports, and the kind of conflict.
    fn conflicts(&self, ip: &str, host: i64, most: usize) -> Vec<(&str, &'static str)> {
        let mut met: Vec<usize> = Vec::new();
        let mut take = |places: Option<&Vec<usize>>| met.extend(places.into_iter().flatten().take(most));
        if host == 0 {
            met.extend(0..self.all.len().min(most));
        } else {
            take(self.by_host.get(&(host, ip)));
            take(self.by_host.get(&(0, "")));
            take(self.with_address.get(&0));
            if ip.is_empty() {
                take(self.with_address.get(&host));
            } else {
                take(self.by_host.get(&(host, "")));
            }
        }
        met.sort_unstable();
        let how = |(other_host, other_ip): (i64, &str)| match (other_ip == ip && other_host == host, other_host) {
            (true, _) => "duplicate",
            (_, other) if host == 0 || other == 0 => "overlapping",
            _ => "dangerously ambiguous",
        };
        let one = |at: usize| (self.all[at].2.as_str(), how((self.all[at].0, self.all[at].1)));
        met.into_iter().take(most).map(one).collect()
    }
}

fn ports(warnings: &mut Vec<String>, spec: &Value, at: &Path<'_>) {
    let mut all: BTreeMap<(i64, &str), HostPorts<'_>> = BTreeMap::new();
    each_container(spec, at, |container, path| {
        let ports_at = path.child("ports");
        for (i, port) in items(container, "ports").iter().enumerate() {
            let here = ports_at.index(i).to_string();
            let (ip, host) = (text(port, "hostIP"), int(port, "hostPort").unwrap_or(0));
            let (number, protocol) = (int(port, "containerPort").unwrap_or(0), text(port, "protocol"));
            if !ip.is_empty() && host == 0 {
                let shown = format!(
                    "{{Name:{} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{ip}}}",
                    text(port, "name")
                );
                warnings.push(format!("{here}: hostIP set without hostPort: {shown}"));
            }
            let others = all.entry((number, protocol)).or_default();
            let max = WARNINGS_MAX.saturating_sub(warnings.len());
            for (there, what) in others.conflicts(ip, host, max) {
                warnings.push(format!("{here}: {what} port definition with {there}"));
            }
            others.add(ip, host, here);
        }
    });
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    each_container(spec, at, |container, path| {
        let ports_at = path.child("ports");
        for (i, port) in items(container, "ports").iter().enumerate() {
            let name = text(port, "name");
            if name.is_empty() {
                continue;
            }
            let here = ports_at.index(i).to_string();
            match names.get(name) {
                Some(there) => warnings.push(format!(
                    "{here}: duplicate port name {} with {there}, services and probes that select ports by name will use {there}",
                    quoted(name)
                )),
                None => {
                    names.insert(name, here);
                }
            }
        }
    });
}

/// A path in a volume and its source.
type VolumePath = (String, String);

fn format_path((path, source): &VolumePath) -> String {
    if source.is_empty() { quoted(path) } else { format!("{} ({source})", quoted(path)) }
}

/// The paths in a volume so far, ordered so that a path's children are adjacent to it.
#[derive(Default)]
struct VolumePaths {
    /// Each path with a trailing slash, with its indexes.
    ordered: BTreeMap<String, Vec<usize>>,
    all: Vec<VolumePath>,
}

impl VolumePaths {
    /// The first `most` paths that contain the new one or are below it.
    fn collisions(&self, new: &VolumePath, most: usize) -> Vec<&VolumePath> {
        if new.0.is_empty() || most == 0 {
            return Vec::new();
        }
        let whole = format!("{}/", new.0);
        let below = self.ordered.range(whole.clone()..).take_while(|(path, _)| path.starts_with(&whole));
        let mut found: Vec<usize> = below.flat_map(|(_, places)| places).copied().take(most).collect();
        for (end, _) in new.0.match_indices('/').take(PATH_PARTS_MAX) {
            let above = self.ordered.get(&whole[..=end]).into_iter().flatten();
            found.extend(above.copied().take(most));
        }
        found.sort_unstable();
        found.into_iter().take(most).map(|at| &self.all[at]).collect()
    }

    fn add(&mut self, new: VolumePath) {
        if !new.0.is_empty() {
            self.ordered.entry(format!("{}/", new.0)).or_default().push(self.all.len());
            self.all.push(new);
        }
    }
}

fn volume_paths(source: &Value, from: &str) -> Vec<VolumePath> {
    items(source, "items").iter().map(|item| (text(item, "path").to_owned(), from.to_owned())).collect()
}

fn overlapping_paths(warnings: &mut Vec<String>, volumes: &[Value]) {
    for volume in volumes {
        let name = quoted(text(volume, "name"));
        let mut warn = |what: &str, all: Vec<VolumePath>| {
            let mut before = VolumePaths::default();
            for (path, from) in all {
                let new = (path.trim_end_matches('/').to_owned(), from);
                let max = WARNINGS_MAX.saturating_sub(warnings.len());
                for old in before.collisions(&new, max) {
                    warnings.push(format!(
                        "volume {name} ({what}): overlapping paths: {} with {}",
                        format_path(&new),
                        format_path(old)
                    ));
                }
                before.add(new);
            }
        };
        for (key, kind, name_key) in
            [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
        {
            let source = get(volume, key);
            let what =
                if name_key.is_empty() { kind.into() } else { format!("{kind} {}", quoted(text(source, name_key))) };
            warn(&what, volume_paths(source, ""));
        }
        let mut all = Vec::new();
        let mut empty = 0;
        for source in items(get(volume, "projected"), "sources") {
            if is_zero(source) {
                empty += 1;
                continue;
            }
            let token = get(source, "serviceAccountToken");
            for (key, kind) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
                let part = get(source, key);
                all.extend(volume_paths(part, &format!("{kind} {}", quoted(text(part, "name")))));
            }
            all.extend(volume_paths(get(source, "downwardAPI"), "DownwardAPI"));
            if !token.is_null() {
                all.push((text(token, "path").to_owned(), "ServiceAccountToken".into()));
            }
        }
        warn("Projected", all);
        for _ in 0..empty {
            warnings.push(format!("volume {name} (Projected) has no sources provided"));
        }
    }
}
