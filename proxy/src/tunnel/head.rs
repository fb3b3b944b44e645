//! The heads of the tunnel's requests: a call's `Origin` in header fields of the tunnel's own. Pure.
//!
//! | field | content |
//! |---|---|
//! | `:method` | the request's; CONNECT for a stream or datagrams |
//! | `:authority` | the called address of the pod; `node` for the node itself, without the fields below |
//! | `coracle-tunnel-from` | `pod NAMESPACE NAME IP`, `host IP:PORT`, or `node` |
//! | `coracle-tunnel-via` | `NAMESPACE/SERVICE:PORT`, if a Service was called |
//! | `coracle-tunnel-kind` | `datagrams` at a CONNECT for datagrams |
//! | `coracle-tunnel-version` | `2` at a request that a server of bytes gets over HTTP/2 |
//! | `coracle-tunnel-host` | the request's own `Host`, if any |
//! | `coracle-tunnel-authority` | the authority of the request's own URI, if any |
//! | `coracle-tunnel-refused` | in a response: why the call was rejected |
//! | `coracle-tunnel-speaks` | in a response: `http` or `bytes`, what the server at the asked address understands |
//!
//! Both sides remove these fields from what a caller or a callee sends, so that only a tunnel can set them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use machinery_api::ObjectKey;
use machinery_serve::framing;
use machinery_serve::net::{CallRejected, Origin, Peer, Protocol, ServicePort};

const PREFIX: &str = "coracle-tunnel-";
const FROM: HeaderName = HeaderName::from_static("coracle-tunnel-from");
const VIA: HeaderName = HeaderName::from_static("coracle-tunnel-via");
const KIND: HeaderName = HeaderName::from_static("coracle-tunnel-kind");
const VERSION: HeaderName = HeaderName::from_static("coracle-tunnel-version");
const HTTP_2: HeaderValue = HeaderValue::from_static("2");
const SPEAKS: HeaderName = HeaderName::from_static("coracle-tunnel-speaks");
const HOST_FIELD: HeaderName = HeaderName::from_static("coracle-tunnel-host");
const AUTHORITY: HeaderName = HeaderName::from_static("coracle-tunnel-authority");
const REFUSED: HeaderName = HeaderName::from_static("coracle-tunnel-refused");
const DATAGRAMS: HeaderValue = HeaderValue::from_static("datagrams");
/// The authority of calls to the node itself. No pod has it: theirs are addresses with ports.
const NODE_AUTHORITY: &str = "node";
/// The path of the node's answer about a server, whose address follows.
const SPEAKS_PATH: &str = "/speaks/";
/// Maximum length of a name of an object (RFC 1123 subdomain).
const NAME_BYTES_MAX: usize = 253;

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    Http,
    Stream,
    Datagrams,
}

impl CallKind {
    /// The protocol of the pod's listener.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::Stream => Protocol::Tcp,
            Self::Datagrams => Protocol::Udp,
        }
    }
}

/// The caller as claimed by the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallerClaim {
    /// A pod of the peer's node.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// Its address.
        ip: IpAddr,
    },
    /// A process outside the cluster.
    Host(SocketAddr),
    /// The peer itself.
    Node,
}

/// A call as claimed by the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallHead {
    pub(super) kind: CallKind,
    pub(super) from: CallerClaim,
    pub(super) local: SocketAddr,
    pub(super) via: Option<Arc<ServicePort>>,
}

/// Why a head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the call has no valid {0}")]
pub(super) struct BadHead(&'static str);

/// Whether `text` can be the name of an object or a namespace.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
}

fn name(text: &str, what: &'static str) -> Result<Arc<str>, BadHead> {
    if is_name(text) { Ok(text.into()) } else { Err(BadHead(what)) }
}

fn value(text: &str) -> Result<HeaderValue, BadHead> {
    HeaderValue::try_from(text).map_err(|_| BadHead("header value"))
}

/// Removes the tunnel's own fields from another's head.
fn strip_own(headers: &mut HeaderMap) {
    if headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
        for name in own {
            headers.remove(name);
        }
    }
}

fn write_origin(headers: &mut HeaderMap, origin: &Origin) -> Result<(), BadHead> {
    let from = match &origin.peer {
        Peer::Pod(caller) => {
            let ip = caller.ip.ok_or(BadHead("caller address"))?;
            let (namespace, pod) = (name(&caller.namespace, "namespace")?, name(&caller.pod, "pod name")?);
            format!("pod {namespace} {pod} {ip}")
        }
        Peer::Host(address) => format!("host {address}"),
        Peer::Node => "node".to_owned(),
    };
    headers.insert(FROM, value(&from)?);
    if let Some(via) = &origin.via {
        let (namespace, service) = (&via.service.namespace, &via.service.name);
        if !is_name(namespace) || !is_name(service) {
            return Err(BadHead("Service"));
        }
        headers.insert(VIA, value(&format!("{namespace}/{service}:{}", via.port))?);
    }
    Ok(())
}

/// Rewrites the head of a request for the tunnel.
///
/// # Errors
/// If the origin or the request can't be expressed.
pub(super) fn encode_http(origin: &Origin, parts: &request::Parts) -> Result<Request<()>, BadHead> {
    let mut headers = parts.headers.clone();
    framing::strip_hop_by_hop(&mut headers);
    strip_own(&mut headers);
    if let Some(host) = headers.remove(HOST) {
        headers.insert(HOST_FIELD, host);
    }
    if let Some(authority) = parts.uri.authority() {
        headers.insert(AUTHORITY, value(authority.as_str())?);
    }
    write_origin(&mut headers, origin)?;
    if parts.version == Version::HTTP_2 {
        headers.insert(VERSION, HTTP_2);
    }
    if parts.method == Method::CONNECT {
        return Err(BadHead("method"));
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(parts.uri.scheme().cloned().unwrap_or(Scheme::HTTP));
    uri.authority = Authority::try_from(origin.local.to_string()).ok();
    uri.path_and_query = Some(parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| BadHead("target"))?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Rewrites the head of a call to the node itself.
///
/// # Errors
/// If it can't be expressed.
pub(super) fn encode_node(parts: &request::Parts) -> Result<Request<()>, BadHead> {
    let mut request = Request::new(());
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = format!("http://{NODE_AUTHORITY}{target}").parse().map_err(|_| BadHead("target"))?;
    *request.headers_mut() = parts.headers.clone();
    strip_own(request.headers_mut());
    Ok(request)
}

/// Whether a call is to the node itself.
pub(super) fn is_to_node(parts: &request::Parts) -> bool {
    parts.method != Method::CONNECT
        && parts.uri.authority().is_some_and(|authority| authority.as_str() == NODE_AUTHORITY)
}

/// The head of the question to a node what the server at `at` understands.
///
/// # Errors
/// If it can't be expressed.
pub(super) fn encode_speaks(at: SocketAddr) -> Result<Request<()>, BadHead> {
    let uri = format!("http://{NODE_AUTHORITY}{SPEAKS_PATH}{at}");
    let request = Request::get(uri).version(Version::HTTP_2);
    request.body(()).map_err(|_| BadHead("address"))
}

/// The address of such a question; `None` if the call is another one.
pub(super) fn decode_speaks(request: &Request<()>) -> Option<SocketAddr> {
    let address = request.uri().path().strip_prefix(SPEAKS_PATH)?;
    if request.method() == Method::GET { address.parse().ok() } else { None }
}

/// The answer to such a question.
pub(super) fn speaks(is_http: bool) -> Response<()> {
    let mut response = Response::new(());
    let value = HeaderValue::from_static(if is_http { "http" } else { "bytes" });
    response.headers_mut().insert(SPEAKS, value);
    response
}

/// What such an answer says; `None` if it isn't one.
pub(super) fn read_speaks(headers: &HeaderMap) -> Option<bool> {
    match headers.get(SPEAKS)?.as_bytes() {
        b"http" => Some(true),
        b"bytes" => Some(false),
        _ => None,
    }
}

/// The head of a stream or of datagrams.
///
/// # Errors
/// If the origin can't be expressed.
pub(super) fn encode_connect(origin: &Origin, kind: CallKind) -> Result<Request<()>, BadHead> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::try_from(origin.local.to_string()).map_err(|_| BadHead("address"))?;
    write_origin(request.headers_mut(), origin)?;
    if kind == CallKind::Datagrams {
        request.headers_mut().insert(KIND, DATAGRAMS);
    }
    Ok(request)
}

/// The only value of a field; `None` without it.
fn field<'a>(headers: &'a HeaderMap, name: &HeaderName, what: &'static str) -> Result<Option<&'a str>, BadHead> {
    let mut all = headers.get_all(name).iter();
    let (first, second) = (all.next(), all.next());
    match (first, second) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| BadHead(what)),
        (Some(_), Some(_)) => Err(BadHead(what)),
    }
}

fn read_from(text: &str) -> Result<CallerClaim, BadHead> {
    let mut words = text.split(' ');
    let claim = match words.next() {
        Some("pod") => {
            let mut next = || words.next().unwrap_or_default();
            let (namespace, pod) = (name(next(), "namespace")?, name(next(), "pod name")?);
            let ip = next().parse().map_err(|_| BadHead("caller address"))?;
            CallerClaim::Pod { namespace, name: pod, ip }
        }
        Some("host") => {
            let address = words.next().unwrap_or_default().parse().map_err(|_| BadHead("caller address"))?;
            CallerClaim::Host(address)
        }
        Some("node") => CallerClaim::Node,
        _ => return Err(BadHead("caller")),
    };
    if words.next().is_some() { Err(BadHead("caller")) } else { Ok(claim) }
}

fn read_via(text: &str) -> Result<Arc<ServicePort>, BadHead> {
    let bad = BadHead("Service");
    let (namespace, rest) = text.split_once('/').ok_or(bad)?;
    let (service, port) = rest.split_once(':').ok_or(bad)?;
    if !is_name(namespace) || !is_name(service) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad);
    }
    let port = port.parse().map_err(|_| bad)?;
    Ok(Arc::new(ServicePort { service: ObjectKey::new(namespace, service), port }))
}

/// Reads the head of a request from the tunnel and restores the caller's own head in `parts`.
///
/// # Errors
/// If a field is missing, invalid, or given twice.
pub(super) fn decode(parts: &mut request::Parts) -> Result<CallHead, BadHead> {
    let headers = &parts.headers;
    let from = read_from(field(headers, &FROM, "caller")?.ok_or(BadHead("caller"))?)?;
    let via = field(headers, &VIA, "Service")?.map(read_via).transpose()?;
    let called = parts.uri.authority().ok_or(BadHead("address"))?;
    let local = called.as_str().parse().map_err(|_| BadHead("address"))?;
    let kind = match (parts.method == Method::CONNECT, field(headers, &KIND, "kind")?) {
        (false, None) => CallKind::Http,
        (true, None) => CallKind::Stream,
        (true, Some("datagrams")) => CallKind::Datagrams,
        _ => return Err(BadHead("kind")),
    };
    if kind == CallKind::Http {
        restore(parts)?;
    }
    Ok(CallHead { kind, from, local, via })
}

/// Restores the caller's own version, URI and `Host`.
fn restore(parts: &mut request::Parts) -> Result<(), BadHead> {
    parts.version = match field(&parts.headers, &VERSION, "version")? {
        Some("2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let authority = match field(&parts.headers, &AUTHORITY, "authority")? {
        Some(text) => Some(Authority::try_from(text).map_err(|_| BadHead("authority"))?),
        None => None,
    };
    let mut hosts = parts.headers.get_all(HOST_FIELD).iter();
    let (host, second) = (hosts.next().cloned(), hosts.next().is_some());
    if second || host.as_ref().is_some_and(|host| !framing::is_host(host.as_bytes())) {
        return Err(BadHead("host"));
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = uri.scheme.filter(|_| authority.is_some());
    uri.authority = authority;
    if uri.path_and_query.is_none() {
        return Err(BadHead("target"));
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| BadHead("target"))?;
    strip_own(&mut parts.headers);
    framing::strip_hop_by_hop(&mut parts.headers);
    parts.headers.remove(HOST);
    if let Some(host) = host {
        parts.headers.insert(HOST, host);
    }
    Ok(())
}

/// Prepares the head of a callee's response for the tunnel.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    framing::strip_hop_by_hop(headers);
    strip_own(headers);
}

/// Why a call was rejected, on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Gone,
    Busy,
    Closed,
    Denied(Arc<str>),
}

impl<T> From<&CallRejected<T>> for Refusal {
    fn from(rejected: &CallRejected<T>) -> Self {
        match rejected {
            CallRejected::Gone(_) => Self::Gone,
            CallRejected::Busy(_) => Self::Busy,
            CallRejected::Closed => Self::Closed,
            CallRejected::Denied(policy) => Self::Denied(policy.clone()),
        }
    }
}

impl Refusal {
    /// The rejection on the calling side, with what was offered.
    pub(super) fn into_rejected<T>(self, offered: T) -> CallRejected<T> {
        match self {
            Self::Gone => CallRejected::gone(offered),
            Self::Busy => CallRejected::busy(offered),
            Self::Closed => CallRejected::Closed,
            Self::Denied(policy) => CallRejected::Denied(policy),
        }
    }

    /// The response with this refusal.
    pub(super) fn response(&self) -> Response<()> {
        let text = match self {
            Self::Gone => HeaderValue::from_static("gone"),
            Self::Busy => HeaderValue::from_static("busy"),
            Self::Closed => HeaderValue::from_static("closed"),
            Self::Denied(policy) => {
                value(&format!("denied {policy}")).unwrap_or(HeaderValue::from_static("denied policy"))
            }
        };
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(REFUSED, text);
        response
    }

    /// The refusal of a response, if it is one. One that isn't understood counts as `Closed`: nothing is retried.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(REFUSED)?;
        Some(match text.to_str().unwrap_or_default().split_once(' ') {
            Some(("denied", policy)) => Self::Denied(policy.into()),
            _ if text == "gone" => Self::Gone,
            _ if text == "busy" => Self::Busy,
            _ => Self::Closed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bolero::check;
    use machinery_serve::net::Caller;

    fn pod_origin() -> Origin {
        let ip = Some("10.244.1.7".parse().unwrap());
        let caller =
            Caller { node: "a".into(), namespace: "shop".into(), pod: "web-0".into(), ip, names: Arc::default() };
        let via = ServicePort { service: ObjectKey::new("shop", "cart"), port: 80 };
        Origin { peer: Peer::Pod(caller), local: "10.244.2.3:8080".parse().unwrap(), via: Some(Arc::new(via)) }
    }

    fn parts(request: http::request::Builder) -> request::Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn heads_survive_the_tunnel() {
        for (method, uri) in
            [("GET", "/a?b=c"), ("POST", "http://cart.shop/x"), ("OPTIONS", "*"), ("GET", "https://cart/")]
        {
            let sent = parts(
                Request::builder()
                    .method(method)
                    .uri(uri)
                    .header("host", "cart.example:81")
                    .header("x-own", "1")
                    .header("coracle-session", "s")
                    .header("coracle-tunnel-from", "host 1.2.3.4:5")
                    .header("coracle-tunnel-other", "x")
                    .header("connection", "x-hop")
                    .header("x-hop", "1"),
            );
            let mut received = encode_http(&pod_origin(), &sent).unwrap().into_parts().0;
            assert_eq!(received.uri.authority().unwrap(), "10.244.2.3:8080");
            assert!(!received.headers.contains_key(HOST));
            let head = decode(&mut received).unwrap();
            let from =
                CallerClaim::Pod { namespace: "shop".into(), name: "web-0".into(), ip: "10.244.1.7".parse().unwrap() };
            let origin = pod_origin();
            assert_eq!(head, CallHead { kind: CallKind::Http, from, local: origin.local, via: origin.via });
            assert_eq!((&received.method, &received.uri), (&sent.method, &sent.uri), "{uri}");
            let mut left: Vec<_> =
                received.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            left.sort();
            assert_eq!(left, ["coracle-session: s", "host: cart.example:81", "x-own: 1"]);
        }
    }

    #[test]
    fn streams_have_an_origin_and_a_kind() {
        for (kind, peer, claim) in [
            (CallKind::Stream, Peer::Host("[fd00::1]:99".parse().unwrap()), "host"),
            (CallKind::Datagrams, Peer::Node, "node"),
        ] {
            let origin = Origin { peer, local: "[fd00::2]:53".parse().unwrap(), via: None };
            let mut received = encode_connect(&origin, kind).unwrap().into_parts().0;
            let head = decode(&mut received).unwrap();
            assert_eq!((head.kind, head.local, head.via), (kind, origin.local, None));
            assert_eq!(matches!(head.from, CallerClaim::Node), claim == "node");
        }
    }

    #[test]
    fn invalid_heads_are_rejected() {
        let encode = |origin: Origin| encode_connect(&origin, CallKind::Stream);
        let mut nameless = pod_origin();
        let Peer::Pod(caller) = &mut nameless.peer else { unreachable!() };
        caller.pod = "".into();
        assert_eq!(encode(nameless).unwrap_err(), BadHead("pod name"));
        let mut homeless = pod_origin();
        let Peer::Pod(caller) = &mut homeless.peer else { unreachable!() };
        caller.ip = None;
        assert_eq!(encode(homeless).unwrap_err(), BadHead("caller address"));
        let base = || Request::builder().method("GET").uri("http://10.244.2.3:80/");
        for bad in [
            base(),
            base().header(FROM, "pod shop web"),
            base().header(FROM, "pod shop web 10.0.0.1 x"),
            base().header(FROM, "pod Shop web 10.0.0.1"),
            base().header(FROM, "pod  web 10.0.0.1"),
            base().header(FROM, "host 10.0.0.1"),
            base().header(FROM, "node x"),
            base().header(FROM, "root"),
            base().header(FROM, "node").header(FROM, "node"),
            base().header(FROM, "node").header(VIA, "shop/cart"),
            base().header(FROM, "node").header(VIA, "shop/cart:+80"),
            base().header(FROM, "node").header(VIA, "shop/cart:99999"),
            base().header(FROM, "node").header(KIND, "datagrams"),
            base().header(FROM, "node").header(HOST_FIELD, "a b"),
            base().header(FROM, "node").header(HOST_FIELD, "a").header(HOST_FIELD, "b"),
            base().header(FROM, "node").header(AUTHORITY, "a/b"),
            Request::builder().uri("http://web:80/").header(FROM, "node"),
            Request::builder().uri("http://10.244.2.3/").header(FROM, "node"),
            Request::builder().uri("/").header(FROM, "node"),
            Request::builder().method("CONNECT").uri("10.244.2.3:80").header(FROM, "node").header(KIND, "x"),
        ] {
            let mut head = parts(bad);
            assert!(decode(&mut head).is_err(), "{head:?}");
        }
    }

    #[test]
    fn refusals_survive_and_a_callee_cannot_make_one() {
        for refusal in [Refusal::Gone, Refusal::Busy, Refusal::Closed, Refusal::Denied("shop/only web".into())] {
            let mut response = refusal.response();
            assert_eq!(Refusal::of(response.headers()), Some(refusal));
            clean_response(response.headers_mut());
            assert_eq!(Refusal::of(response.headers()), None);
        }
        let mut other = HeaderMap::new();
        other.insert(REFUSED, HeaderValue::from_static("later"));
        assert_eq!(Refusal::of(&other), Some(Refusal::Closed));
    }

    #[test]
    fn any_head_is_decoded_or_rejected() {
        const TEXTS: [&str; 10] =
            ["pod a b 10.0.0.1", "host 1.2.3.4:5", "node", "pod ", "a/b:1", "a:80", "[::1]:80", " ", "\u{7f}", "*"];
        check!().with_type::<(u8, u8, Vec<(u8, u8)>, String)>().for_each(|(method, uri, fields, text)| {
            let methods = [Method::GET, Method::CONNECT, Method::OPTIONS];
            let uris = ["http://10.0.0.1:80/", "10.0.0.1:80", "*", "/a", "https://[::1]:443/x?y", text];
            let names = [FROM, VIA, KIND, HOST_FIELD, AUTHORITY, HOST];
            let mut request = Request::builder()
                .method(methods[usize::from(*method) % methods.len()].clone())
                .uri(uris[usize::from(*uri) % uris.len()]);
            for (name, value) in fields {
                let value = TEXTS.get(usize::from(*value) % (TEXTS.len() + 1)).copied().unwrap_or(text);
                request = request.header(names[usize::from(*name) % names.len()].clone(), value);
            }
            let Ok(request) = request.body(()) else { return };
            let mut parts = request.into_parts().0;
            if let Ok(head) = decode(&mut parts)
                && head.kind == CallKind::Http
            {
                assert!(parts.headers.keys().all(|name| !name.as_str().starts_with(PREFIX)));
                assert!(parts.headers.get_all(HOST).iter().count() <= 1);
            }
        });
    }
}
