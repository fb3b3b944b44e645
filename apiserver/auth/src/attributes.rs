//! The attributes and decisions of authorizers, and the message of a Forbidden error.

use machinery_api::error::{ApiError, GroupResource};
use machinery_api::selector::go_quoted;

/// The attributes of a request for authorizers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `deletecollection` …; the lower-case method for non-resource paths.
    pub verb: &'a str,
    /// The API group; empty for core.
    pub group: &'a str,
    /// The API version; empty where it does not matter.
    pub version: &'a str,
    /// The plural name.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace, or empty. As upstream, requests for a Namespace object are in that namespace.
    pub namespace: &'a str,
    /// The object's name: of the path, or of a `metadata.name=` field selector of a list or watch (not of a
    /// deletecollection); empty for a create.
    pub name: &'a str,
    /// The whole path of a non-resource request.
    pub path: &'a str,
    /// Whether the request is for a resource.
    pub is_resource: bool,
    /// The field selector's requirements of the form `field=value`.
    pub fields: &'a [(String, String)],
    /// The label selector of a list, watch or deletecollection, as in the request; empty for none.
    pub labels: &'a str,
}

/// The result of an authorizer or of the whole chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Whether the request is allowed. `false` means no opinion.
    pub allowed: bool,
    /// The reason shown in access reviews and Forbidden errors; often empty.
    pub reason: String,
}

impl Decision {
    /// Allows the request.
    #[must_use]
    pub fn allow(reason: impl Into<String>) -> Self {
        Self { allowed: true, reason: reason.into() }
    }

    /// Returns no opinion, with an optional reason.
    #[must_use]
    pub fn no_opinion(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

/// Upstream's 403 for a request that no authorizer allowed.
#[must_use]
pub(crate) fn forbidden(user: &str, request: &Attributes<'_>, reason: &str) -> ApiError {
    let (user, verb) = (go_quoted(user), request.verb);
    let sentence = if request.is_resource {
        let resource = if request.subresource.is_empty() {
            request.resource.to_owned()
        } else {
            format!("{}/{}", request.resource, request.subresource)
        };
        let scope = if request.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {}", go_quoted(request.namespace))
        };
        let (resource, group) = (go_quoted(&resource), go_quoted(request.group));
        format!("User {user} cannot {verb} resource {resource} in API group {group} {scope}")
    } else {
        format!("User {user} cannot {verb} path {}", go_quoted(request.path))
    };
    // HTML is escaped, as upstream.
    let mut sentence = sentence.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(reason);
    }
    if request.is_resource {
        ApiError::Forbidden(GroupResource::new(request.group, request.resource), request.name.to_owned(), sentence)
    } else {
        ApiError::Forbidden(GroupResource::default(), String::new(), sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let pods = Attributes {
            verb: "get",
            resource: "pods",
            subresource: "log",
            namespace: "ns",
            name: "none",
            is_resource: true,
            ..Attributes::default()
        };
        assert_eq!(
            forbidden("jo", &pods, "").status().message,
            "pods \"none\" is forbidden: User \"jo\" cannot get resource \"pods/log\" in API group \"\" in the namespace \
             \"ns\""
        );
        let path = Attributes { verb: "get", path: "/a<b>", ..Attributes::default() };
        let status = forbidden("jo", &path, "RBAC: x").status();
        assert_eq!(status.message, "forbidden: User \"jo\" cannot get path \"/a&lt;b&gt;\": RBAC: x");
        assert_eq!(serde_json::to_value(&status).unwrap()["details"], serde_json::json!({}));
    }
}
