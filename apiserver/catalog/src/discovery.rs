//! Discovery documents, legacy and aggregated, derived from the catalog on first use and cached with their ETag.

use std::sync::Arc;

use bytes::Bytes;
use machinery_api::GroupVersion;
use serde_json::{Value, json};

use super::discovery_protobuf;
use super::order::InOrder;
use sha2::{Digest, Sha256, Sha512};

use apiserver_resources::{ResourceInfo, Subresource, Verb};

/// One version of a group and its resources, sorted by plural.
struct Version {
    version: Arc<str>,
    rows: Vec<Arc<ResourceInfo>>,
}

struct Group {
    name: Arc<str>,
    versions: Vec<Version>,
}

/// All discovery documents.
pub struct Discovery {
    groups: Vec<Group>,
    address: String,
    aggregated_core: Aggregated,
    aggregated_groups: Aggregated,
}

/// Aggregated discovery of `/api` or `/apis`.
pub struct Aggregated {
    /// The document as JSON.
    pub json: Bytes,
    /// The document as Kubernetes protobuf.
    pub protobuf: Bytes,
    /// The ETag, with quotes.
    pub tag: String,
}

/// The media type of aggregated discovery, echoed in the response.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The media type of its protobuf form.
pub const AGGREGATED_PROTOBUF: &str =
    "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// The media type of its YAML form.
pub const AGGREGATED_YAML: &str = "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn verbs(list: &[Verb]) -> Value {
    let mut names: Vec<&str> = list.iter().map(|v| v.as_str()).collect();
    names.sort_unstable();
    json!(names)
}

/// The verbs of a resource. Custom resources have an order of their own (upstream's
/// `customresource_discovery_controller.go`).
fn verbs_of(row: &ResourceInfo) -> Value {
    const CUSTOM: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    if row.custom.is_none() {
        return verbs(&row.verbs);
    }
    json!(CUSTOM.iter().filter(|name| row.verbs.iter().any(|verb| verb.as_str() == **name)).collect::<Vec<_>>())
}

/// Whether only subresources are served, such as metrics of `pods`. A client that took the name for a resource would prefer it to
/// the `pods` of another group.
fn is_parent_alone(row: &ResourceInfo) -> bool {
    row.verbs.is_empty()
}

fn group_version(group: &str, version: &str) -> String {
    GroupVersion { group, version }.to_string()
}

/// Upstream's groups in the order of their priorities, core first. Clients that find a kind in several groups use the
/// first.
const ORDER: [&str; 21] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];

/// The sort key of a group: groups not in [`ORDER`] are last, by name.
fn group_rank(group: &str) -> (usize, &str) {
    match ORDER.iter().position(|known| *known == group) {
        Some(at) => (at, ""),
        None => (ORDER.len(), group),
    }
}

impl Discovery {
    /// Builds the documents of all resources. `address` is the server's address for clients (`host:port`).
    #[must_use]
    pub(crate) fn new(resources: &[Arc<ResourceInfo>], address: &str) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for row in resources {
            let at = groups.iter().position(|g| g.name == row.group).unwrap_or_else(|| {
                groups.push(Group { name: row.group.clone(), versions: Vec::new() });
                groups.len() - 1
            });
            let versions = &mut groups[at].versions;
            let at = versions.iter().position(|v| v.version == row.version).unwrap_or_else(|| {
                versions.push(Version { version: row.version.clone(), rows: Vec::new() });
                versions.len() - 1
            });
            versions[at].rows.push(row.clone());
        }
        groups.sort_by(|a, b| group_rank(&a.name).cmp(&group_rank(&b.name)));
        for version in groups.iter_mut().flat_map(|g| &mut g.versions) {
            version.rows.sort_by(|a, b| a.plural.cmp(&b.plural));
        }
        let list = |core: bool| {
            let items: Vec<Value> = groups.iter().filter(|g| g.name.is_empty() == core).map(aggregated_group).collect();
            let document = json!({
                "kind": "APIGroupDiscoveryList",
                "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {},
                "items": items,
            });
            let json = Bytes::from(serde_json::to_string(&InOrder::of(&document)).unwrap_or_default() + "\n");
            let tag = format!("\"{}\"", hex::encode_upper(Sha512::digest(&json)));
            Aggregated { json, protobuf: discovery_protobuf::list(&document).into(), tag }
        };
        let (aggregated_core, aggregated_groups) = (list(true), list(false));
        Self { address: address.to_owned(), aggregated_core, aggregated_groups, groups }
    }

    /// All groups except core, in order.
    pub fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(|g| &*g.name).filter(|g| !g.is_empty())
    }

    /// Group and version of everything served, in order.
    pub fn group_versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.groups.iter().flat_map(|g| g.versions.iter().map(|v| (&*g.name, &*v.version)))
    }

    /// The aggregated document of `/api` (`core`) or `/apis`, with its ETag.
    #[must_use]
    pub fn aggregated(&self, core: bool) -> &Aggregated {
        if core { &self.aggregated_core } else { &self.aggregated_groups }
    }

    /// `/api`
    #[must_use]
    pub fn versions(&self) -> Value {
        json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address}],
        })
    }

    /// `/apis`
    #[must_use]
    pub fn groups(&self) -> Value {
        let groups: Vec<Value> = self.groups.iter().filter(|g| !g.name.is_empty()).map(group).collect();
        json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    }

    /// `/apis/GROUP`
    #[must_use]
    pub fn group(&self, name: &str) -> Option<Value> {
        let mut document = self.groups.iter().find(|g| &*g.name == name && !name.is_empty()).map(group)?;
        document["kind"] = json!("APIGroup");
        document["apiVersion"] = json!("v1");
        Some(document)
    }

    /// `/api/v1` and `/apis/GROUP/VERSION`
    #[must_use]
    pub fn resources(&self, group: &str, version: &str) -> Option<Value> {
        let found = self.groups.iter().find(|g| &*g.name == group)?.versions.iter().find(|v| &*v.version == version)?;
        let mut resources: Vec<Value> = Vec::new();
        for row in &found.rows {
            let mut entry = json!({
                "name": &*row.plural,
                "singularName": &*row.singular,
                "namespaced": row.namespaced,
                "kind": &*row.kind,
                "verbs": verbs_of(row),
            });
            if !row.short_names.is_empty() {
                entry["shortNames"] = texts(&row.short_names);
            }
            if !row.categories.is_empty() {
                entry["categories"] = texts(&row.categories);
            }
            if row.prefix.is_some() {
                entry["storageVersionHash"] = json!(storage_hash(row));
            }
            if !is_parent_alone(row) {
                resources.push(entry);
            }
            for subresource in subresources(row) {
                let mut entry = json!({
                    "name": format!("{}/{}", row.plural, subresource.name),
                    "singularName": "",
                    "namespaced": row.namespaced,
                    "kind": subresource.body.map_or(&*row.kind, |(_, _, kind)| kind),
                    "verbs": verbs(subresource.verbs),
                });
                if let Some((group, version, _)) =
                    subresource.body.filter(|(g, v, _)| (*g, *v) != (&*row.group, &*row.version))
                {
                    entry["group"] = json!(group);
                    entry["version"] = json!(version);
                }
                resources.push(entry);
            }
        }
        let mut document =
            json!({"kind": "APIResourceList", "groupVersion": group_version(group, version), "resources": resources});
        if !group.is_empty() {
            document["apiVersion"] = json!("v1");
        }
        Some(document)
    }
}

fn texts(list: &[Arc<str>]) -> Value {
    list.iter().map(|text| Value::from(&**text)).collect()
}

/// The subresources by name. In custom resources `status` comes before `scale`.
fn subresources(row: &ResourceInfo) -> Vec<&Subresource> {
    let mut sorted: Vec<&Subresource> = row.subresources.iter().collect();
    sorted.sort_by_key(|s| s.name);
    if row.custom.is_some() {
        sorted.reverse();
    }
    sorted
}

fn storage_hash(row: &ResourceInfo) -> String {
    use base64::Engine;
    let version = if row.custom.is_some() { &row.stored().version } else { &row.version };
    let digest = Sha256::digest(format!("{}/{version}/{}", row.group, row.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn group(group: &Group) -> Value {
    let version = |v: &Version| json!({"groupVersion": group_version(&group.name, &v.version), "version": &*v.version});
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": &*group.name, "versions": versions, "preferredVersion": group.versions.first().map(version)})
}

fn aggregated_group(group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| {
            let resources: Vec<Value> = v.rows.iter().map(|row| aggregated_resource(row)).collect();
            json!({"version": &*v.version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({"name": &*group.name}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(row: &ResourceInfo) -> Value {
    let kind = |body: Option<(&str, &str, &str)>| {
        // Upstream omits group and version that equal the parent's.
        let (group, version, kind) = body.unwrap_or(("", "", &*row.kind));
        if (group, version) == (&*row.group, &*row.version) {
            json!({"group": "", "version": "", "kind": kind})
        } else {
            json!({"group": group, "version": version, "kind": kind})
        }
    };
    let mut entry = json!({
        "resource": &*row.plural,
        "responseKind": kind(None),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": &*row.singular,
        "verbs": verbs_of(row),
    });
    if is_parent_alone(row) {
        // Upstream's placeholder, with an empty list for its null of verbs, which kube-rs rejects: clients skip a resource without a
        // kind.
        entry["responseKind"] = json!({"group": "", "version": "", "kind": ""});
        entry["singularResource"] = json!("");
    }
    if !row.short_names.is_empty() {
        entry["shortNames"] = texts(&row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = texts(&row.categories);
    }
    let subresources: Vec<Value> = subresources(row)
        .iter()
        .map(|s| json!({"subresource": s.name, "responseKind": kind(s.body), "verbs": verbs(s.verbs)}))
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}

/// `/version`
#[must_use]
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": VERSION,
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The served Kubernetes version.
pub const VERSION: &str = "v1.36.0+coracle";

/// The processor architecture by Go's name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
