//! The destination of a request to a `proxy` subresource: the object's name with scheme and port, and the path after
//! `/proxy`. Pure.

use machinery_api::ApiError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

/// The unescaped characters of a path, as in Go's `url.URL.EscapedPath`.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@')
    .remove(b'!')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*');

/// `name`, `name:port` or `scheme:name:port` (upstream's `SplitSchemeNamePort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backend<'a> {
    /// Whether the connection uses TLS.
    pub(super) tls: bool,
    /// The object's name.
    pub(super) name: &'a str,
    /// A number or a name; may be empty.
    pub(super) port: &'a str,
}

impl<'a> Backend<'a> {
    /// Parses the name in a path; `what` is the kind of object in the error message.
    pub(super) fn parse(id: &'a str, what: &str) -> Result<Self, ApiError> {
        let mut parts = id.split(':');
        let (scheme, name, port) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(name), None, None, None) => ("", name, ""),
            (Some(name), Some(port), None, None) => ("", name, port),
            (Some(scheme), Some(name), Some(port), None) => (scheme, name, port),
            _ => ("none", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(ApiError::BadRequest(format!("invalid {what} request {id:?}")));
        }
        Ok(Self { tls: scheme == "https", name, port })
    }

    /// The port of a pod: the requested one, else the first of its containers, else the scheme's default.
    pub(super) fn pod_port(&self, pod: &Value) -> Result<u16, ApiError> {
        let number = |text: &str| match text {
            "http" => Ok(80),
            "https" => Ok(443),
            text => {
                text.parse().map_err(|_| unreachable_service(&format!("dial tcp: lookup tcp/{text}: unknown port")))
            }
        };
        if !self.port.is_empty() {
            return number(self.port);
        }
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let first = containers.filter_map(|container| container["ports"][0]["containerPort"].as_u64()).next();
        Ok(first.and_then(|port| u16::try_from(port).ok()).unwrap_or(if self.tls { 443 } else { 80 }))
    }

    /// The name of the Service's port. A number is one of the Service's own ports; a name is resolved among the
    /// endpoints.
    pub(super) fn service_port(&self, service: Option<&Value>) -> Result<Option<String>, ApiError> {
        if self.port.parse::<i64>().is_err() {
            return Ok(Some(self.port.to_owned()));
        }
        let Some(service) = service else { return Ok(None) };
        let number: i64 = self.port.parse().unwrap_or_default();
        let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let found = ports.find(|port| port["port"].as_i64() == Some(number));
        let found = found.ok_or_else(|| {
            ApiError::ServiceUnavailable(format!("no service port {number} found for service {:?}", self.name))
        })?;
        Ok(Some(found["name"].as_str().unwrap_or("").to_owned()))
    }
}

/// 503 with upstream's text for an unreachable backend.
pub(super) fn unreachable_service(why: &str) -> ApiError {
    ApiError::ServiceUnavailable(format!("error trying to reach service: {why}"))
}

/// A pod behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The pod's name.
    pub(super) pod: String,
    /// Its address.
    pub(super) ip: String,
    /// The port there.
    pub(super) port: u16,
}

/// The ready pods of a Service that have a port of this name, from its EndpointSlices.
pub(super) fn endpoints<'a>(slices: impl Iterator<Item = &'a Value>, port_name: &str) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports.find(|port| port["name"].as_str().unwrap_or("") == port_name);
        let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let to = &endpoint["targetRef"];
            let ready = endpoint["conditions"]["ready"] != Value::Bool(false);
            if let (true, Some("Pod"), Some(pod), Some(ip)) =
                (ready, to["kind"].as_str(), to["name"].as_str(), endpoint["addresses"][0].as_str())
            {
                found.push(Endpoint { pod: pod.to_owned(), ip: ip.to_owned(), port });
            }
        }
    }
    found
}

/// The request's path up to `/proxy`, and the rest, cleaned as upstream: without `..` and `//`, with its trailing
/// slash.
pub(super) fn split_path(path: &str, namespaced: bool) -> Option<(&str, String)> {
    let segments = if namespaced { 8 } else { 6 };
    // The path begins with a slash, so the first segment is empty.
    let at = path.match_indices('/').nth(segments - 1).map_or(path.len(), |(at, _)| at);
    let (before, rest) = (path.get(..at)?, path.get(at..)?);
    let decoded = percent_decode_str(rest).decode_utf8_lossy();
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let mut clean = String::new();
    for segment in &kept {
        clean.push('/');
        clean.extend(utf8_percent_encode(segment, PATH));
    }
    if decoded.ends_with('/') {
        clean.push('/');
    }
    Some((before, clean))
}

/// The part of the path that belongs to the proxied server, decoded.
pub(in crate::http) fn below(path: &str, namespaced: bool) -> String {
    let rest = split_path(path, namespaced).map(|(_, rest)| rest).unwrap_or_default();
    percent_decode_str(&rest).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_read_as_upstream_reads_them() {
        let read = |id| Backend::parse(id, "pod").map_err(|error| error.status().message);
        assert_eq!(read("a"), Ok(Backend { tls: false, name: "a", port: "" }));
        assert_eq!(read("a:80"), Ok(Backend { tls: false, name: "a", port: "80" }));
        assert_eq!(read("https:a:web"), Ok(Backend { tls: true, name: "a", port: "web" }));
        assert_eq!(read("https:a:"), Ok(Backend { tls: true, name: "a", port: "" }));
        for bad in ["", ":80", "ftp:a:80", "a:b:c:d", "::"] {
            assert_eq!(read(bad), Err(format!("invalid pod request {bad:?}")));
        }
    }

    #[test]
    fn the_port_of_a_pod_is_the_requested_or_the_first() {
        let pod = json!({"spec": {"containers": [{}, {"ports": [{"containerPort": 8080}]}]}});
        let port = |id| Backend::parse(id, "pod").unwrap().pod_port(&pod).map_err(|error| error.status().message);
        assert_eq!(port("a"), Ok(8080));
        assert_eq!(port("a:81"), Ok(81));
        assert_eq!(port("a:http"), Ok(80));
        let unknown = "error trying to reach service: dial tcp: lookup tcp/web: unknown port";
        assert_eq!(port("a:web"), Err(unknown.into()));
        let none = Backend::parse("https:a:", "pod").unwrap().pod_port(&json!({}));
        assert_eq!(none.unwrap(), 443);
    }

    #[test]
    fn a_services_port_is_found_by_number_and_its_pods_by_name() {
        let service = json!({"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 81}]}});
        let port = |id| {
            let backend = Backend::parse(id, "service").unwrap();
            backend.service_port(Some(&service)).map_err(|error| error.status().message)
        };
        assert_eq!(port("a:80"), Ok(Some("web".into())));
        assert_eq!(port("a:81"), Ok(Some(String::new())));
        assert_eq!(port("a:other"), Ok(Some("other".into())));
        assert_eq!(port("a:82"), Err("no service port 82 found for service \"a\"".into()));
        let slices = [
            json!({"ports": [{"name": "web", "port": 8080}], "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "a-1"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "a-2"}},
                {"addresses": ["10.0.0.3"]},
            ]}),
            json!({"ports": [{"name": "other", "port": 1}], "endpoints": [
                {"addresses": ["10.0.0.4"], "targetRef": {"kind": "Pod", "name": "a-4"}},
            ]}),
        ];
        let one = Endpoint { pod: "a-1".into(), ip: "10.0.0.1".into(), port: 8080 };
        assert_eq!(endpoints(slices.iter(), "web"), [one]);
        assert_eq!(endpoints(slices.iter(), ""), []);
    }

    #[test]
    fn the_rest_of_a_path_is_cleaned_and_never_leaves_its_place() {
        let root = "/api/v1/namespaces/default/pods/a:80/proxy";
        for (rest, wanted) in [
            ("", ""),
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b/", "/a/b/"),
            ("/../../x", "/x"),
            ("/a/%2e%2e/%2Fb", "/b"),
            ("/a%20b%3Fc%23", "/a%20b%3Fc%23"),
            ("/%ff", "/%EF%BF%BD"),
        ] {
            assert_eq!(split_path(&format!("{root}{rest}"), true), Some((root, wanted.to_owned())), "{rest}");
        }
        let node = "/api/v1/nodes/n/proxy/metrics";
        assert_eq!(split_path(node, false), Some(("/api/v1/nodes/n/proxy", "/metrics".to_owned())));
    }

    #[test]
    fn admission_sees_the_proxied_request() {
        for (path, namespaced, seen) in [
            ("/api/v1/namespaces/n/services/s/proxy/a%20b/", true, "/a b/"),
            ("/api/v1/namespaces/n/services/s/proxy", true, ""),
            ("/api/v1/nodes/n/proxy/metrics", false, "/metrics"),
        ] {
            assert_eq!(below(path, namespaced), seen);
        }
    }
}
