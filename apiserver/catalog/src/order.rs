//! Key order of discovery documents and other pages about the server. It has no meaning in JSON, but people and
//! text-based scripts depend on upstream's order.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// Keys of the top level.
const DOCUMENT: &[&str] = &[
    "kind",
    "apiVersion",
    "metadata",
    "groupVersion",
    "name",
    "versions",
    // `/version`
    "major",
    "minor",
    "emulationMajor",
    "emulationMinor",
    "minCompatibilityMajor",
    "minCompatibilityMinor",
    "gitVersion",
    "gitCommit",
    "gitTreeState",
    "buildDate",
    "goVersion",
    "compiler",
    "platform",
    // `/.well-known/openid-configuration`
    "issuer",
    "jwks_uri",
    "response_types_supported",
    "subject_types_supported",
    "id_token_signing_alg_values_supported",
];
/// Keys of nested objects: each kind of entry has a subset, in this order. Other keys follow by name.
const ENTRY: &[&str] = &[
    "resource",
    "subresource",
    "responseKind",
    "scope",
    "singularResource",
    "metadata",
    "name",
    "singularName",
    "namespaced",
    "groupVersion",
    "clientCIDR",
    "group",
    "version",
    "versions",
    "preferredVersion",
    "resources",
    "freshness",
    "kind",
    "acceptedTypes",
    "verbs",
    "shortNames",
    "categories",
    "storageVersionHash",
    "subresources",
    // A key of `/openid/v1/jwks`.
    "use",
    "kty",
    "kid",
    "crv",
    "alg",
    "x",
    "y",
];

/// Serializes a discovery document in upstream's order.
pub struct InOrder<'a> {
    value: &'a Value,
    order: &'static [&'static str],
}

impl<'a> InOrder<'a> {
    /// A whole document.
    #[must_use]
    pub fn of(value: &'a Value) -> Self {
        Self { value, order: DOCUMENT }
    }

    fn entry(value: &'a Value) -> Self {
        Self { value, order: ENTRY }
    }
}

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Object(fields) => {
                let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
                let rank = |key: &str| self.order.iter().position(|known| *known == key).unwrap_or(self.order.len());
                fields.sort_by_key(|(key, _)| rank(key));
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                for (key, value) in fields {
                    map.serialize_entry(key, &InOrder::entry(value))?;
                }
                map.end()
            }
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&InOrder::entry(item))?;
                }
                list.end()
            }
            plain => plain.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        serde_json::to_string(&InOrder::of(value)).unwrap()
    }

    /// Recorded from kube-apiserver v1.36.
    #[test]
    fn documents_are_written_in_upstreams_order() {
        let entry = json!({"verbs": ["get"], "kind": "Scale", "version": "v1", "group": "autoscaling", "namespaced": true,
            "singularName": "", "name": "deployments/scale", "shortNames": ["d"], "categories": ["all"],
            "storageVersionHash": "x"});
        let list =
            json!({"apiVersion": "v1", "groupVersion": "apps/v1", "kind": "APIResourceList", "resources": [entry]});
        let expected = r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":[{"name":"deployments/scale","singularName":"","namespaced":true,"group":"autoscaling","version":"v1","kind":"Scale","verbs":["get"],"shortNames":["d"],"categories":["all"],"storageVersionHash":"x"}]}"#;
        assert_eq!(text(&list), expected);
        let version = json!({"version": "v1", "groupVersion": "apps/v1"});
        let group = json!({"versions": [version], "preferredVersion": version, "name": "apps"});
        let list = json!({"groups": [group], "apiVersion": "v1", "kind": "APIGroupList"});
        let expected = r#"{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}}]}"#;
        assert_eq!(text(&list), expected);
        let address = json!({"serverAddress": "a:1", "clientCIDR": "0.0.0.0/0"});
        let versions = json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [address]});
        let expected = r#"{"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[{"clientCIDR":"0.0.0.0/0","serverAddress":"a:1"}]}"#;
        assert_eq!(text(&versions), expected);
    }

    /// Recorded from kube-apiserver v1.36.
    #[test]
    fn pages_about_the_server_are_written_in_upstreams_order() {
        let keys = |value: &Value| -> Vec<String> {
            let text = text(value);
            let map: Vec<&str> = text.split('"').collect();
            let key = |pair: &[&str]| pair[1].starts_with(':').then(|| pair[0].to_owned());
            map.windows(2).filter_map(key).collect()
        };
        let version = "major minor emulationMajor emulationMinor minCompatibilityMajor minCompatibilityMinor gitVersion \
                       gitCommit gitTreeState buildDate goVersion compiler platform";
        assert_eq!(keys(&crate::discovery::version()).join(" "), version);
        let key = json!({"alg": "", "crv": "", "kid": "", "kty": "", "use": "", "x": "", "y": ""});
        assert_eq!(keys(&json!({"keys": [key]})).join(" "), "keys use kty kid crv alg x y");
        let subresource = json!({"verbs": [], "responseKind": {}, "subresource": "scale", "acceptedTypes": []});
        let resource = json!({"subresources": [subresource], "categories": [], "shortNames": [], "verbs": [],
            "singularResource": "", "scope": "", "responseKind": {"version": "", "kind": "", "group": ""}, "resource": ""});
        let version = json!({"freshness": "", "resources": [resource], "version": "v1"});
        let list =
            json!({"items": [{"versions": [version], "metadata": {}}], "metadata": {}, "kind": "", "apiVersion": ""});
        let aggregated = "kind apiVersion metadata items metadata versions version resources resource responseKind group \
                          version kind scope singularResource verbs shortNames categories subresources subresource \
                          responseKind acceptedTypes verbs freshness";
        assert_eq!(keys(&list).join(" "), aggregated);
    }
}
