//! What an authorizer is asked about, what it says, and the words of a refusal.

use machinery_api::error::{ApiError, Named};
use machinery_api::selector::go_quoted;

/// One request, as authorizers see it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `deletecollection` …; the method in lower case for paths that are no resource.
    pub verb: &'a str,
    /// The API group; empty for core.
    pub group: &'a str,
    /// The API version.
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// The subresource, or empty.
    pub subresource: &'a str,
    /// The namespace, or empty. As upstream, requests for a Namespace object are in that namespace.
    pub namespace: &'a str,
    /// The object's name: of the path, or of a `metadata.name=` field selector of a list or watch (not of a
    /// deletecollection); empty for a create.
    pub name: &'a str,
    /// The whole path, for what is no resource.
    pub path: &'a str,
    /// Whether this is about a resource.
    pub is_resource: bool,
    /// The field selector's requirements of the form `field=value`.
    pub fields: &'a [(String, String)],
}

/// What authorizers came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Whether the request may go on.
    pub allowed: bool,
    /// Why, as access reviews and refusals show it; often empty.
    pub reason: String,
}

impl Decision {
    /// Go on.
    #[must_use]
    pub fn allow(reason: impl Into<String>) -> Self {
        Self { allowed: true, reason: reason.into() }
    }

    /// Not by this authorizer.
    #[must_use]
    pub fn refuse(reason: impl Into<String>) -> Self {
        Self { allowed: false, reason: reason.into() }
    }
}

/// Upstream's 403 for a refused request.
#[must_use]
pub fn forbidden(user: &str, request: &Attributes<'_>, reason: &str) -> ApiError {
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
    // As upstream: nothing in it can look like HTML.
    let mut sentence = sentence.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    if !reason.is_empty() {
        sentence.push_str(": ");
        sentence.push_str(reason);
    }
    if request.is_resource {
        ApiError::Forbidden(Named::new(request.group, request.resource), request.name.to_owned(), sentence)
    } else {
        ApiError::Forbidden(Named::default(), String::new(), sentence)
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
