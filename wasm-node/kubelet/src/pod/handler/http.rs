//! `httpGet` of probes and hooks: sends the request, follows redirects, evaluates the response.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{HOST, LOCATION};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, CallRejected, Origin, Peer, Protocol, Target, empty_body, open_pipe};
use reqwest::Url;
use runtime_api::NodeCall;

use super::external::{NOT_TLS, send};
use super::{HandlerRunner, ProbeOutcome, dial_text, no_port};
use crate::pod::lifecycle::check::HttpGet;
use crate::pod::lifecycle::state::ProbeResult;

/// The bound of a response body; reading it lets the guest finish its send (upstream's bound).
const BODY_BYTES_MAX: usize = 10 << 10;
/// Go's bound.
const REDIRECTS_MAX: usize = 10;

/// One request of a redirect chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hop {
    https: bool,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
    /// The `Host` header of the spec.
    host_header: Option<String>,
}

impl Hop {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }

    /// The target of a redirect. `None` ends the chain: as upstream, redirects to another host aren't followed.
    fn redirect(&self, status: u16, location: Option<&str>) -> Result<Option<Self>, String> {
        let Some(location) = location.filter(|location| !location.is_empty()) else { return Ok(None) };
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let bad = |error: &dyn std::fmt::Display| format!("failed to parse Location header {location:?}: {error}");
        let url = Url::parse(&self.url()).and_then(|url| url.join(location)).map_err(|error| bad(&error))?;
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if !host.eq_ignore_ascii_case(&self.host) || !matches!(url.scheme(), "http" | "https") {
            return Ok(None);
        }
        let relative = Url::parse(location).is_err();
        Ok(Some(Self {
            https: url.scheme() == "https",
            host: self.host.clone(),
            port: url.port_or_known_default().unwrap_or(80),
            path: url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path())),
            host_header: self.host_header.clone().filter(|_| relative),
        }))
    }
}

/// Path and query of a request from a spec's path. Characters that a URL can't contain are percent-encoded.
fn request_path(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut out = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A response, as far as it is read.
struct HttpReply {
    status: u16,
    body: String,
}

impl HandlerRunner {
    pub(super) async fn probe_http(&self, get: &HttpGet, timeout: Duration) -> ProbeOutcome {
        let Some(hop) = self.first_hop(get, get.https) else { return ProbeOutcome::errored(no_port(&get.port)) };
        let own = NodeCall::default();
        let url = hop.url();
        match self.env.timeout(timeout, self.follow(hop, get, "kube-probe/1.36", &own)).await {
            Ok(Ok(HttpReply { status: 200..=299, .. })) => ProbeOutcome::passed(),
            Ok(Ok(HttpReply { status: 300..=399, body })) => {
                ProbeOutcome::Result(ProbeResult::Warned(format!("Probe terminated redirects, Response body: {body}")))
            }
            Ok(Ok(HttpReply { status, .. })) => {
                ProbeOutcome::failed(format!("HTTP probe failed with statuscode: {status}"))
            }
            Ok(Err(error)) => ProbeOutcome::failed(error),
            Err(_) if own.waits() => ProbeOutcome::NoCapacity,
            Err(_) => ProbeOutcome::failed(format!(
                "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    /// Calls for a hook; any status is a success. A call by HTTPS falls back to HTTP if the server doesn't support TLS:
    /// returns the host then.
    pub(super) async fn call(&self, get: &HttpGet) -> Result<Option<String>, String> {
        let call = async |https| {
            let hop = self.first_hop(get, https).ok_or_else(|| no_port(&get.port))?;
            let host = hop.authority();
            self.follow(hop, get, "kube-lifecycle/1.36", &NodeCall::default()).await.map(|_| host)
        };
        match call(get.https).await {
            Ok(_) => Ok(None),
            Err(error) if get.https && error.ends_with(NOT_TLS) => {
                tracing::debug!(%error, "a hook is called without TLS");
                call(false).await.map(Some)
            }
            Err(error) => Err(error),
        }
    }

    fn first_hop(&self, get: &HttpGet, https: bool) -> Option<Hop> {
        let named = get.headers.iter().find(|(name, value)| name.eq_ignore_ascii_case("host") && !value.is_empty());
        Some(Hop {
            https,
            host: get.host.clone().unwrap_or_else(|| self.ip.to_string()),
            port: get.port.number?,
            path: request_path(&get.path),
            host_header: named.map(|(_, value)| value.clone()),
        })
    }

    async fn follow(&self, mut hop: Hop, get: &HttpGet, agent: &str, own: &NodeCall) -> Result<HttpReply, String> {
        for _ in 0..REDIRECTS_MAX {
            let url = hop.url();
            let wrong = |error: String| format!("Get {url:?}: {error}");
            let request = request(&hop, get, agent, own).map_err(|error| wrong(error.to_string()))?;
            let response = match get.host {
                None => self.send_to_pod(&hop, request).await.map_err(wrong)?,
                Some(_) => self.send_to_host(&hop, request).await.map_err(wrong)?,
            };
            let status = response.status().as_u16();
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            match hop.redirect(status, location).map_err(wrong)? {
                Some(next) => hop = next,
                None => return Ok(HttpReply { status, body: read(response).await.map_err(wrong)? }),
            }
        }
        Err(format!("Get {:?}: stopped after {REDIRECTS_MAX} redirects", hop.url()))
    }

    /// Sends the request straight to the pod.
    async fn send_to_pod(&self, hop: &Hop, request: Request<Body>) -> Result<Response<Body>, String> {
        let refused = || format!("dial tcp {}: connect: connection refused", hop.authority());
        let serve = self.network.find(self.ip, Protocol::Tcp, hop.port).ok_or_else(refused)?;
        let origin = Origin { peer: Peer::Node, local: SocketAddr::new(self.ip, hop.port), via: None };
        if !serve.speaks_http() {
            let stream = open_pipe(serve, origin).map_err(|_| refused())?;
            return send(stream, (&hop.host, hop.https), request).await;
        }
        if hop.https {
            // The listener is a guest's server, whose HTTP is terminated by the node: it has no TLS.
            return Err(NOT_TLS.to_owned());
        }
        match serve.http(&origin, request).await {
            Ok(response) => Ok(response),
            Err(busy @ CallRejected::Busy(_)) => Ok(machinery_serve::net::http::refusal(&busy)),
            Err(CallRejected::Gone(_) | CallRejected::Denied(_) | CallRejected::Closed) => Err(refused()),
        }
    }

    async fn send_to_host(&self, hop: &Hop, request: Request<Body>) -> Result<Response<Body>, String> {
        let to = Target { host: hop.host.clone(), port: hop.port };
        let stream = self.dial.stream(&self.caller, &to).await.map_err(|error| dial_text(&error))?;
        send(stream, (&hop.host, hop.https), request).await
    }
}

fn request(hop: &Hop, get: &HttpGet, agent: &str, own: &NodeCall) -> Result<Request<Body>, http::Error> {
    let mut request = Request::get(hop.url()).extension(own.clone());
    let has = |name: &str| get.headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
    for (name, value) in [("user-agent", agent), ("accept", "*/*")] {
        if !has(name) {
            request = request.header(name, value);
        }
    }
    let authority = hop.authority();
    request = request.header(HOST, hop.host_header.as_deref().unwrap_or(&authority));
    for (name, value) in &get.headers {
        // As upstream: an empty Accept or User-Agent omits the header.
        if !value.is_empty() && !name.eq_ignore_ascii_case("host") {
            request = request.header(name, value);
        }
    }
    request.body(empty_body())
}

async fn read(response: Response<Body>) -> Result<String, String> {
    let mut body = response.into_body();
    let mut read = BytesMut::new();
    while read.len() < BODY_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => {
                let data = frame.data_ref().map(|data| &data[..data.len().min(BODY_BYTES_MAX - read.len())]);
                read.extend_from_slice(data.unwrap_or_default());
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => break,
        }
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(path: &str) -> Hop {
        Hop { https: false, host: "10.0.0.1".into(), port: 80, path: path.into(), host_header: Some("h".into()) }
    }

    #[test]
    fn redirects_are_followed_to_the_same_host_only() {
        let to =
            |location| hop("/a/b?c").redirect(302, Some(location)).unwrap().map(|next| (next.url(), next.host_header));
        let same = |url: &str| Some((url.to_owned(), Some("h".to_owned())));
        assert_eq!(to("/x?y#z"), same("http://10.0.0.1:80/x?y"));
        assert_eq!(to("x"), same("http://10.0.0.1:80/a/x"));
        assert_eq!(to("http://10.0.0.1:81/x"), Some(("http://10.0.0.1:81/x".into(), None)));
        assert_eq!(to("https://10.0.0.1/x"), Some(("https://10.0.0.1:443/x".into(), None)));
        for elsewhere in ["http://10.0.0.2/x", "//10.0.0.2/", "ftp://10.0.0.1/"] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(hop("/").redirect(304, Some("/x")), Ok(None));
        assert_eq!(hop("/").redirect(302, None), Ok(None));
        assert!(hop("/").redirect(302, Some("http://[::1")).is_err());
    }

    #[test]
    fn paths_are_written_as_a_request_can_have_them() {
        for (path, written) in [("", "/"), ("x", "/x"), ("/a b?c d#e", "/a%20b?c%20d"), ("/é\"", "/%C3%A9%22")] {
            assert_eq!(request_path(path), written);
        }
    }
}
