//! The subject of a request, parsed from method and path exactly as upstream does (k8s.io/apiserver `RequestInfo`). The
//! authorizer uses it before routing checks whether the path exists.

use percent_encoding::percent_decode_str;

use apiserver_resources::query::Query;
use machinery_api::selector::FieldSelector;

/// The verb and the resource or path of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource of an API group.
    pub is_resource: bool,
    /// The decoded path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, … or the method in lower case for other paths.
    pub verb: String,
    /// `api` or `apis`.
    pub prefix: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Plural, or empty.
    pub resource: String,
    /// What follows the name.
    pub subresource: String,
    /// Name, or empty.
    pub name: String,
    /// All path segments from the resource on.
    pub parts: Vec<String>,
    /// Whether this is one of the deprecated `/watch/` paths.
    pub watch_path: bool,
    /// `fieldSelector` and `labelSelector` of a list, watch or deletecollection, for the authorizer.
    pub field_selector: String,
    /// See [`field_selector`](Self::field_selector).
    pub label_selector: String,
}

impl RequestInfo {
    /// Reads method, path and query; the path may be percent-encoded.
    #[must_use]
    pub fn read(method: &str, path: &str, query: &Query) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let mut info = Self { verb: method.to_ascii_lowercase(), path, ..Self::default() };
        let trimmed = info.path.trim_matches('/');
        let all: Vec<String> =
            if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').map(Into::into).collect() };
        let mut parts = all.as_slice();
        if parts.len() < 3 || !matches!(parts[0].as_str(), "api" | "apis") {
            return info;
        }
        info.prefix.clone_from(&parts[0]);
        if parts[0] == "apis" {
            if parts.len() < 4 {
                return info;
            }
            info.group.clone_from(&parts[1]);
            parts = &parts[1..];
        }
        info.version.clone_from(&parts[1]);
        parts = &parts[2..];
        info.is_resource = true;
        if matches!(parts[0].as_str(), "watch" | "proxy") && parts.len() >= 2 {
            info.watch_path = parts[0] == "watch";
            info.verb.clone_from(&parts[0]);
            parts = &parts[1..];
        } else {
            info.verb = match method {
                "POST" => "create",
                "GET" | "HEAD" => "get",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "",
            }
            .into();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace.clone_from(&parts[1]);
            if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        info.parts = parts.to_vec();
        info.resource.clone_from(&parts[0]);
        if let Some(name) = parts.get(1) {
            info.name.clone_from(name);
        }
        if let Some(subresource) = parts.get(2) {
            info.subresource.clone_from(subresource);
        }
        if info.name.is_empty() && info.verb == "get" {
            info.verb = if query.flag("watch") == Some(true) { "watch" } else { "list" }.into();
        }
        if info.name.is_empty() && info.verb == "delete" {
            info.verb = "deletecollection".into();
        }
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.field_selector = query.text("fieldSelector").into();
            info.label_selector = query.text("labelSelector").into();
            // A list of a single name is authorized for that name.
            if info.name.is_empty()
                && info.verb != "deletecollection"
                && let Some(name) = exact_name(&info.field_selector)
            {
                info.name = name;
            }
        }
        info
    }
}

fn exact_name(selector: &str) -> Option<String> {
    let fields = FieldSelector::parse(selector).ok()?;
    let name = fields.exact("metadata.name")?;
    // Only a valid path segment counts as a name, as upstream.
    (!name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%'])).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &str, target: &str) -> RequestInfo {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        RequestInfo::read(method, path, &Query::parse(query))
    }

    #[test]
    fn reads_upstreams_examples() {
        for (method, target, verb, group, namespace, resource, subresource, name) in [
            ("GET", "/api/v1/namespaces", "list", "", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/other", "get", "", "other", "namespaces", "", "other"),
            ("PUT", "/api/v1/namespaces/other/finalize", "update", "", "other", "namespaces", "finalize", "other"),
            ("GET", "/api/v1/namespaces/other/pods", "list", "", "other", "pods", "", ""),
            ("GET", "/api/v1/namespaces/other/pods/foo/log", "get", "", "other", "pods", "log", "foo"),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch", "", "other", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=true", "watch", "", "", "pods", "", ""),
            ("GET", "/apis/apps/v1/deployments?watch=0", "list", "apps", "", "deployments", "", ""),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection",
                "apps",
                "a",
                "deployments",
                "",
                "",
            ),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list", "", "", "pods", "", "x"),
        ] {
            let info = read(method, target);
            assert_eq!(
                (info.verb.as_str(), info.group.as_str(), info.namespace.as_str(), info.resource.as_str()),
                (verb, group, namespace, resource),
                "{target}"
            );
            assert_eq!((info.subresource.as_str(), info.name.as_str()), (subresource, name), "{target}");
            assert!(info.is_resource);
        }
        for target in ["/", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "//api/v1"] {
            assert!(!read("GET", target).is_resource, "{target}");
            assert_eq!(read("GET", target).verb, "get");
        }
    }
}
