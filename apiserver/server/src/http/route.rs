//! Routes a path to its handler, and to upstream's three errors where there is none: plain text for paths outside every
//! API group, 404 for unknown resources of a known group, 405 for a method that the path does not allow.

use machinery_api::error::GroupResource;
use machinery_api::{ApiError, GroupVersionResource};

use std::sync::Arc;

use super::info::RequestInfo;
use apiserver_catalog::Catalog;
use apiserver_resources::field::quoted;
use apiserver_resources::{ResourceInfo, Subresource, SubresourceKind, Verb};

/// The handler of a request.
pub enum Route {
    /// A resource.
    Resource(Target),
    /// `/livez`, `/readyz`, `/healthz`, and one check of them.
    Health(String, Option<String>),
    /// `/metrics`
    Metrics,
    /// `/metrics/slis`
    Slis,
    /// `/version`
    Version,
    /// `/`
    Index,
    /// `/api`
    Core,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Resources(String, String),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiIndex,
    /// `/openapi/v3/PATH`
    OpenApi(String),
    /// `/.well-known/openid-configuration`
    Issuer,
    /// `/openid/v1/jwks`
    Keys,
    /// A file beside the API.
    File,
}

/// A resource and the verb of a request.
#[derive(Clone)]
pub struct Target {
    /// The row.
    pub row: Arc<ResourceInfo>,
    /// The subresource.
    pub subresource: Option<Subresource>,
    /// The verb of the request.
    pub verb: Verb,
    /// Whether the path names an object (`false`: the collection).
    pub is_item: bool,
}

/// Why a request has no route.
pub enum NoRoute {
    /// 404 in plain text.
    PlainNotFound,
    /// A Status.
    Error(ApiError),
}

impl From<ApiError> for NoRoute {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// 405.
#[must_use]
pub fn method_not_allowed() -> ApiError {
    let message = "the server does not allow this method on the requested resource";
    ApiError::MethodNotAllowed(GroupResource::default(), message.into())
}

/// Finds the route of a request.
pub fn find(method: &str, info: &RequestInfo, catalog: &Catalog) -> Result<Route, NoRoute> {
    let path = info.path.as_str();
    match path {
        "/" | "/index.html" => return Ok(Route::Index),
        "/metrics" => return Ok(Route::Metrics),
        "/metrics/slis" => return Ok(Route::Slis),
        "/openapi/v2" => return Ok(Route::OpenApiV2),
        "/openapi/v3" => return Ok(Route::OpenApiIndex),
        "/.well-known/openid-configuration" => return get(method, Route::Issuer),
        "/openid/v1/jwks" | "/openid/v1/jwks/" => return get(method, Route::Keys),
        _ => {}
    }
    if path.starts_with("/.well-known/openid-configuration/") {
        return Err(ApiError::NoSuchResource.into());
    }
    for root in ["/livez", "/readyz", "/healthz"] {
        match path.strip_prefix(root) {
            Some("") => return Ok(Route::Health(root.into(), None)),
            Some(rest) if rest.len() > 1 && rest.starts_with('/') => {
                return Ok(Route::Health(root.into(), Some(rest[1..].into())));
            }
            _ => {}
        }
    }
    if let Some(rest) = path.strip_prefix("/openapi/v3/") {
        return Ok(Route::OpenApi(rest.into()));
    }
    let trimmed = path.trim_end_matches('/');
    let below = |root: &str| trimmed == root || path.starts_with(&format!("{root}/"));
    if below("/version") {
        return if trimmed == "/version" { get(method, Route::Version) } else { Err(ApiError::NoSuchResource.into()) };
    }
    if below("/api") {
        return match trimmed {
            "/api" => get(method, Route::Core),
            "/api/v1" => get(method, Route::Resources(String::new(), "v1".into())),
            _ => resource(method, info, catalog),
        };
    }
    // Upstream serves these two outside its router, which is the part that checks methods.
    if trimmed == "/apis" {
        return Ok(Route::Groups);
    }
    let group = path.strip_prefix("/apis/").and_then(|rest| rest.split('/').next()).unwrap_or("");
    if !catalog.has_group(group) {
        return Err(NoRoute::PlainNotFound);
    }
    let rest = trimmed.strip_prefix("/apis/").unwrap_or("");
    match rest.split('/').collect::<Vec<_>>().as_slice() {
        [group] => Ok(Route::Group((*group).into())),
        [group, version] => {
            if catalog.has_version(group, version) {
                get(method, Route::Resources((*group).into(), (*version).into()))
            } else if catalog.is_custom(group) {
                Err(NoRoute::PlainNotFound)
            } else {
                Err(ApiError::NoSuchResource.into())
            }
        }
        _ if catalog.is_custom(group) => custom(method, info, catalog),
        _ => resource(method, info, catalog),
    }
}

fn get(method: &str, route: Route) -> Result<Route, NoRoute> {
    if method == "GET" { Ok(route) } else { Err(method_not_allowed().into()) }
}

/// 405: the resource lacks the verb.
fn not_supported(row: &ResourceInfo, verb: &str) -> ApiError {
    let named = GroupResource::new(&*row.group, &*row.plural);
    let message = format!("{verb} is not supported on resources of kind {}", quoted(&named.qualified()));
    ApiError::MethodNotAllowed(named, message)
}

/// Routes for groups of CustomResourceDefinitions; an unserved path gets the plain-text 404. Upstream routes them by
/// verb instead of path and method: HEAD is a GET, a POST to a name is one to the collection, and a write needs a name.
fn custom(method: &str, info: &RequestInfo, catalog: &Catalog) -> Result<Route, NoRoute> {
    let plural = info.parts.first().map_or("", String::as_str);
    let name = GroupVersionResource { group: &info.group, version: &info.version, resource: plural };
    let row = catalog.get(name).filter(|_| info.is_resource).ok_or(NoRoute::PlainNotFound)?;
    let across = matches!(info.verb.as_str(), "list" | "watch");
    if row.namespaced == info.namespace.is_empty() && !(row.namespaced && across) {
        return Err(NoRoute::PlainNotFound);
    }
    let named = || GroupResource::new(&*row.group, &*row.plural);
    if let Some(subresource) = info.parts.get(2)
        && (info.parts.len() > 3 || !row.subresources.iter().any(|known| known.name == subresource))
    {
        return Err(ApiError::NotFound(named(), info.parts[1].clone()).into());
    }
    match (info.parts.len(), info.verb.as_str()) {
        (1, "update" | "patch") => return Err(ApiError::BadRequest("name must be provided".into()).into()),
        (2, "create") => return serve(row, None, Verb::Create, false),
        _ => {}
    }
    let method = if method == "HEAD" { "GET" } else { method };
    resource(method, info, catalog).map_err(|error| match error {
        NoRoute::Error(ApiError::MethodNotAllowed(..)) => not_supported(row, &info.verb).into(),
        other => other,
    })
}

fn resource(method: &str, info: &RequestInfo, catalog: &Catalog) -> Result<Route, NoRoute> {
    let none = || NoRoute::Error(ApiError::NoSuchResource);
    if !info.is_resource {
        return Err(none());
    }
    let parts: Vec<&str> = info.parts.iter().map(String::as_str).collect();
    let (&plural, rest) = parts.split_first().ok_or_else(none)?;
    let name = GroupVersionResource { group: &info.group, version: &info.version, resource: plural };
    let row = catalog.get(name).ok_or_else(none)?;
    let in_namespace = info.parts.len() < path_segments(info);
    // Namespaces are cluster-wide, and their paths look like those of a namespaced resource.
    let fits = match (row.namespaced, rest.is_empty()) {
        (true, true) => in_namespace || row.verbs.contains(&Verb::List),
        (true, false) => in_namespace,
        (false, _) => !in_namespace,
    };
    if !fits {
        return Err(none());
    }
    if info.watch_path {
        if rest.len() > 1 || !row.verbs.contains(&Verb::Watch) {
            return Err(none());
        }
        let target = Target { row: row.clone(), subresource: None, verb: Verb::Watch, is_item: !rest.is_empty() };
        return if method == "GET" { Ok(Route::Resource(target)) } else { Err(method_not_allowed().into()) };
    }
    if info.verb == "proxy" {
        return Err(none());
    }
    match rest {
        [] => {
            let everywhere = row.namespaced && !in_namespace;
            let verb = match method {
                "GET" if info.verb == "watch" && row.verbs.contains(&Verb::Watch) => Verb::Watch,
                "GET" if info.verb == "watch" && row.verbs.contains(&Verb::List) => {
                    return Err(not_supported(row, "watch").into());
                }
                "GET" => Verb::List,
                "POST" if !everywhere => Verb::Create,
                "DELETE" if !everywhere => Verb::DeleteCollection,
                _ => return Err(method_not_allowed().into()),
            };
            serve(row, None, verb, false)
        }
        [_] => {
            if row.prefix.is_none() && row.source.is_none() {
                return Err(none());
            }
            serve(row, None, item_verb(method)?, true)
        }
        [_, name, more @ ..] => {
            let fits =
                |s: &&Subresource| s.name == *name && (more.is_empty() || matches!(s.what, SubresourceKind::Proxy(_)));
            let subresource = row.subresources.iter().find(fits).ok_or_else(|| match &*row.group {
                "custom.metrics.k8s.io" => {
                    let message = format!("the server could not find the metric {name} for {plural}");
                    NoRoute::Error(ApiError::NotFoundByNode(message))
                }
                _ => none(),
            })?;
            if matches!(subresource.what, SubresourceKind::Proxy(_)) {
                return serve(row, Some(subresource), proxied_verb(method)?, true);
            }
            let verb = if method == "POST" { Verb::Create } else { item_verb(method)? };
            serve(row, Some(subresource), verb, true)
        }
    }
}

/// The number of path segments after the version (and `watch`).
fn path_segments(info: &RequestInfo) -> usize {
    let before = if info.prefix == "apis" { 3 } else { 2 } + usize::from(info.watch_path || info.verb == "proxy");
    info.path.trim_matches('/').split('/').count().saturating_sub(before)
}

fn item_verb(method: &str) -> Result<Verb, NoRoute> {
    match method {
        "GET" => Ok(Verb::Get),
        "PUT" => Ok(Verb::Update),
        "PATCH" => Ok(Verb::Patch),
        "DELETE" => Ok(Verb::Delete),
        _ => Err(method_not_allowed().into()),
    }
}

/// The verb of a proxied request.
fn proxied_verb(method: &str) -> Result<Verb, NoRoute> {
    match method {
        "POST" => Ok(Verb::Create),
        "HEAD" | "OPTIONS" => Ok(Verb::Get),
        _ => item_verb(method),
    }
}

fn serve(
    row: &Arc<ResourceInfo>,
    subresource: Option<&Subresource>,
    verb: Verb,
    is_item: bool,
) -> Result<Route, NoRoute> {
    let verbs = subresource.map_or(&*row.verbs, |s| s.verbs);
    if !verbs.contains(&verb) {
        return Err(method_not_allowed().into());
    }
    debug_assert!(subresource.is_none_or(|s| s.what != SubresourceKind::Log || verb == Verb::Get));
    Ok(Route::Resource(Target { row: row.clone(), subresource: subresource.copied(), verb, is_item }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::query::Query;

    fn outcome(method: &str, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::read(method, path, &Query::parse(query));
        let catalog = Catalog::built_in("127.0.0.1:6443");
        match find(method, &info, &catalog) {
            Ok(Route::Resource(t)) => {
                format!("{} {} {}", t.verb.as_str(), t.row.plural, t.subresource.map_or("", |s| s.name))
            }
            Ok(_) => "other".into(),
            Err(NoRoute::PlainNotFound) => "text".into(),
            Err(NoRoute::Error(error)) => error.status().code.to_string(),
        }
    }

    #[test]
    fn upstreams_ways_of_saying_no() {
        for (method, target, wanted) in [
            ("GET", "/api/v1/pods", "list pods "),
            ("GET", "/api/v1/pods/a", "404"),
            ("GET", "/api/v1/namespaces/default/nodes", "404"),
            ("GET", "/api/v1/namespaces/default/namespaces", "404"),
            ("GET", "/api/v1/namespaces/default", "get namespaces "),
            ("PUT", "/api/v1/namespaces/default/finalize", "update namespaces finalize"),
            ("GET", "/api/v1/namespaces/default/finalize", "405"),
            ("DELETE", "/api/v1/namespaces", "405"),
            ("DELETE", "/api/v1/pods", "405"),
            ("POST", "/api/v1/pods", "405"),
            ("POST", "/api/v1/namespaces/default/pods/a", "405"),
            ("GET", "/api/v1/namespaces/default/pods/a/nope", "404"),
            ("GET", "/api/v1/namespaces/default/pods/a/exec", "get pods exec"),
            ("POST", "/api/v1/namespaces/default/pods/a/exec", "create pods exec"),
            ("PUT", "/api/v1/namespaces/default/pods/a/exec", "405"),
            ("GET", "/api/v1/namespaces/default/pods/a/exec/b", "404"),
            ("HEAD", "/api/v1/namespaces/default/pods/a:80/proxy", "get pods proxy"),
            ("OPTIONS", "/api/v1/namespaces/default/services/a/proxy/b/c", "get services proxy"),
            ("POST", "/api/v1/nodes/a/proxy/b/c/", "create nodes proxy"),
            ("TRACE", "/api/v1/nodes/a/proxy/b", "405"),
            ("GET", "/api/v1/proxy/nodes/a", "404"),
            ("DELETE", "/api/v1/namespaces/default/pods/a/status", "405"),
            ("GET", "/api/v1/namespaces/default/pods/a/binding", "405"),
            ("GET", "/api/v1/namespaces/default/bindings", "405"),
            ("GET", "/api/v1/watch/namespaces/default/pods/a", "watch pods "),
            ("GET", "/api/v1/watch/namespaces/default/pods/a/b", "404"),
            ("GET", "/api/v1/watch", "404"),
            ("GET", "/api/v1/watch/namespaces/default", "watch namespaces "),
            ("GET", "/apis/apps/v1/namespaces/a/deployments/b/scale", "get deployments scale"),
            ("GET", "/apis/apps/v1/namespaces/a/deployments/b/scale/c", "404"),
            ("GET", "/apis/apps/v2/deployments", "404"),
            ("GET", "/apis/apps/v1/pods", "404"),
            ("GET", "/apis/nope.example.com/v1/things", "text"),
            ("GET", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "405"),
            ("GET", "//api/v1", "text"),
            ("GET", "/api//v1", "404"),
            ("GET", "/healthz/", "text"),
            ("GET", "/version/", "other"),
            ("HEAD", "/api/v1/namespaces/default", "405"),
            ("OPTIONS", "/api/v1/namespaces/default", "405"),
            ("POST", "/version", "405"),
            ("POST", "/apis", "other"),
            ("DELETE", "/apis/apps", "other"),
            ("DELETE", "/apis/apps/v1", "405"),
        ] {
            assert_eq!(outcome(method, target), wanted, "{method} {target}");
        }
    }
}
