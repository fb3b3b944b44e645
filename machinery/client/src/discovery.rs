//! Discovery: the served kinds with stored objects, from the server's aggregated discovery document.

use std::collections::{BTreeMap, BTreeSet};

use http::{Request, header::ACCEPT};
use kube::Client;
use machinery_api::GroupVersion;
use serde::Deserialize;

use crate::object::Kind;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The result of discovery.
#[derive(Debug, Default, PartialEq)]
pub struct DiscoveredKinds {
    /// Kinds that can be listed, watched and deleted.
    pub kinds: BTreeSet<Kind>,
    /// Groups whose discovery failed, with the reason.
    pub failed: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct GroupDiscoveryList {
    #[serde(default)]
    items: Vec<GroupDiscovery>,
}

#[derive(Deserialize)]
struct GroupDiscovery {
    #[serde(default)]
    metadata: GroupMetadata,
    #[serde(default)]
    versions: Vec<VersionDiscovery>,
}

#[derive(Deserialize, Default)]
struct GroupMetadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct VersionDiscovery {
    version: String,
    #[serde(default)]
    freshness: String,
    #[serde(default)]
    resources: Vec<ResourceDiscovery>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceDiscovery {
    resource: String,
    #[serde(default)]
    response_kind: ResponseKind,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize, Default)]
struct ResponseKind {
    #[serde(default)]
    kind: String,
}

/// Fetches and parses the discovery document.
///
/// # Errors
/// If the server can't be reached, rejects the request, or returns another document.
pub async fn discover_kinds(client: &Client) -> Result<DiscoveredKinds, kube::Error> {
    let mut found = DiscoveredKinds::default();
    for path in ["/api", "/apis"] {
        let request = Request::get(path).header(ACCEPT, AGGREGATED).body(Vec::new()).map_err(kube::Error::HttpError)?;
        add(&mut found, client.request(request).await?);
    }
    Ok(found)
}

/// Adds each resource once, in the first version that serves it.
fn add(found: &mut DiscoveredKinds, groups: GroupDiscoveryList) {
    for group in groups.items {
        let name = group.metadata.name;
        let mut seen = BTreeSet::new();
        for version in group.versions {
            if version.freshness == "Stale" {
                let version = GroupVersion { group: &name, version: &version.version };
                found.failed.insert(name.clone(), format!("{version}: stale GroupVersion discovery: {version}"));
            }
            for served in version.resources {
                let verbs = ["list", "watch", "delete"];
                let whole = verbs.iter().all(|verb| served.verbs.iter().any(|v| v == verb));
                if whole && served.resource != "events" && seen.insert(served.resource.clone()) {
                    found.kinds.insert(Kind {
                        group: name.clone().into(),
                        version: version.version.clone().into(),
                        kind: served.response_kind.kind.into(),
                        plural: served.resource.into(),
                        namespaced: served.scope == "Namespaced",
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_hold_objects() {
        let groups = serde_json::json!({"items": [{"metadata": {"name": "apps"}, "versions": [
            {"version": "v1", "freshness": "Current", "resources": [
                {"resource": "deployments", "responseKind": {"kind": "Deployment"}, "scope": "Namespaced",
                 "verbs": ["list", "watch", "delete"]},
                {"resource": "reviews", "responseKind": {"kind": "Review"}, "scope": "Cluster", "verbs": ["create"]}]},
            {"version": "v1beta1", "freshness": "Current", "resources": [
                {"resource": "deployments", "responseKind": {"kind": "Deployment"}, "scope": "Namespaced",
                 "verbs": ["list", "watch", "delete"]}]}]}]});
        let mut found = DiscoveredKinds::default();
        add(&mut found, serde_json::from_value(groups).unwrap());
        let kinds: Vec<String> = found.kinds.iter().map(|k| k.collection_path("x")).collect();
        assert_eq!(kinds, ["/apis/apps/v1/namespaces/x/deployments"]);
        assert_eq!(*found.kinds.first().unwrap(), Kind::of::<k8s_openapi::api::apps::v1::Deployment>());
    }
}
