//! What a gateway must reject, remove and rewrite in a message's head before it forwards it to another connection (RFC
//! 9110 §7, RFC 9112 §3 and §6, RFC 9113 §8). Pure.
//!
//! The parser below (hyper) finds the end of each message; this module checks that every reader interprets the head
//! alike. An ambiguous head is rejected, never repaired: request smuggling exploits two readers that disagree about a
//! request's end or host.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, StatusCode, Uri, Version, request, response};

/// Maximum number of header fields over HTTP/1.1, where hyper counts them: impersonation needs one for each group. Clients
/// that pass on responses of pods and nodes accept as many.
pub const HEADERS_MAX: usize = 1024;

/// Connection-specific fields, whether or not `Connection` names them (RFC 9110 §7.6.1), and fields between a client
/// and its proxy (RFC 9110 §11.7): none of them is meant for a pod or a client behind this gateway.
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
];

/// Why a request's head is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// HTTP/1.1 requires exactly one `Host`.
    #[error("a request of HTTP/1.1 has exactly one Host field")]
    Hosts,
    /// The value is no `host[:port]`.
    #[error("the request's host is no valid host[:port]")]
    Host,
    /// `:authority` and `Host` name different hosts.
    #[error("the request's authority and its Host field differ")]
    Authority,
    /// The target's form or scheme is invalid for the method.
    #[error("the request's target has a form or scheme that its method doesn't have")]
    Target,
    /// CONNECT: tunnels aren't served.
    #[error("CONNECT is not served here: call the Service's address itself")]
    Connect,
    /// Values of `Content-Length` that differ or are no number.
    #[error("the request's Content-Length is not one number")]
    Length,
    /// A transfer coding other than `chunked`.
    #[error("no transfer coding but chunked is understood")]
    Coding,
}

impl Refusal {
    /// The response's status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Hosts | Self::Host | Self::Authority | Self::Target | Self::Length => StatusCode::BAD_REQUEST,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

/// The protocol to which a request of HTTP/1.1 wants to upgrade: an extension of its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantsUpgrade(pub HeaderValue);

/// Normalizes a received head for any other connection: origin form (or `*`), one `Host`, no hop-by-hop fields. `local`
/// is the host of an HTTP/1.0 request without one.
///
/// # Errors
/// See [`Refusal`].
pub fn request(head: &mut request::Parts, local: &str) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    let authority = authority(head, local)?;
    match (head.uri.path(), head.method == Method::OPTIONS) {
        ("*", true) => {}
        (path, _) if path.starts_with('/') => {}
        _ => return Err(Refusal::Target),
    }
    lengths(&mut head.headers).map_err(|()| Refusal::Length)?;
    codings(&head.headers).map_err(|()| Refusal::Coding)?;
    if head.version == Version::HTTP_11
        && let Some(upgrade) = wanted_upgrade(&head.headers)
    {
        head.extensions.insert(WantsUpgrade(upgrade));
    }
    strip_hop_by_hop(&mut head.headers);
    join_cookies(&mut head.headers);
    head.headers.insert(HOST, authority);
    if head.uri.authority().is_some() {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = Uri::try_from(path).map_err(|_| Refusal::Target)?;
    }
    Ok(())
}

/// Normalizes the head of a response; `upgrading` if the request asked for an upgrade.
///
/// # Errors
/// If the end of the response, or what follows it, is ambiguous.
pub fn response(head: &mut response::Parts, upgrading: bool) -> Result<(), &'static str> {
    if head.status.is_informational() && !(upgrading && head.status == StatusCode::SWITCHING_PROTOCOLS) {
        return Err("an answer that switches protocols, unasked");
    }
    codings(&head.headers).map_err(|()| "an answer with a transfer coding besides chunked")?;
    if head.headers.contains_key(TRANSFER_ENCODING) {
        head.headers.remove(CONTENT_LENGTH);
    }
    lengths(&mut head.headers).map_err(|()| "an answer whose Content-Length is not one number")?;
    strip_hop_by_hop(&mut head.headers);
    Ok(())
}

/// Whether a response can have a body (RFC 9110 §6.4.1).
#[must_use]
pub fn has_body(status: StatusCode, is_head: bool) -> bool {
    !is_head && !status.is_informational() && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Removes hop-by-hop fields: the known ones, and those named by `Connection`.
///
/// `TE: trailers` stays, as an end-to-end request; `Host` and `Content-Length` are never hop-by-hop.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|token| HeaderName::try_from(token).ok())
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && *name != TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    strip_framing(headers);
    if headers.contains_key(TE) {
        let trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Removes the known hop-by-hop fields from a guest's head. A guest has no connection, so the fields named by
/// `Connection` are ordinary fields.
pub fn strip_framing(headers: &mut HeaderMap) {
    // Few heads have such a field: iterating the existing names is cheaper than looking up each known one.
    if headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

/// Whether `text` is a host with or without a port (RFC 9110 §7.2, RFC 3986 §3.2.2): not empty, no user.
#[must_use]
pub fn is_host(text: &[u8]) -> bool {
    let (host_ok, port) = match text {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let literal = std::str::from_utf8(&rest[..end]).ok();
            (literal.is_some_and(|literal| literal.parse::<std::net::Ipv6Addr>().is_ok()), &rest[end + 1..])
        }
        _ => {
            let end = text.iter().position(|byte| *byte == b':').unwrap_or(text.len());
            (is_reg_name(&text[..end]), &text[end..])
        }
    };
    let port_ok = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && (digits.is_empty() || std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok()))
        }
        _ => false,
    };
    host_ok && port_ok
}

fn is_reg_name(mut text: &[u8]) -> bool {
    if text.is_empty() {
        return false;
    }
    while let [byte, rest @ ..] = text {
        text = match (byte, rest) {
            (b'%', [a, b, rest @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            (b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+', rest) => rest,
            (b',' | b';' | b'=', rest) => rest,
            (byte, rest) if byte.is_ascii_alphanumeric() => rest,
            _ => return false,
        };
    }
    true
}

/// The host of a request: the target's authority before `Host` (RFC 9112 §3.2.2).
fn authority(head: &request::Parts, local: &str) -> Result<HeaderValue, Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next().is_some());
    if more || (host.is_none() && head.version == Version::HTTP_11) {
        return Err(Refusal::Hosts);
    }
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(Refusal::Host);
    }
    let Some(authority) = head.uri.authority() else {
        return match host {
            Some(host) => Ok(host.clone()),
            None if head.version == Version::HTTP_10 => HeaderValue::try_from(local).map_err(|_| Refusal::Host),
            None => Err(Refusal::Hosts),
        };
    };
    // A bare authority is CONNECT's form of target.
    if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
        return Err(Refusal::Target);
    }
    if !is_host(authority.as_str().as_bytes()) {
        return Err(Refusal::Host);
    }
    if head.version > Version::HTTP_11
        && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
    {
        return Err(Refusal::Authority);
    }
    HeaderValue::try_from(authority.as_str()).map_err(|_| Refusal::Host)
}

/// Reduces equal `Content-Length` values to one.
fn lengths(headers: &mut HeaderMap) -> Result<(), ()> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(()) };
    let is_number = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
    let mut repeated = false;
    for other in all {
        if other != first {
            return Err(());
        }
        repeated = true;
    }
    if !is_number {
        return Err(());
    }
    if repeated {
        let first = first.clone();
        headers.insert(CONTENT_LENGTH, first);
    }
    Ok(())
}

/// Accepts one `chunked`, which the parser decodes, and nothing else.
fn codings(headers: &HeaderMap) -> Result<(), ()> {
    if !headers.contains_key(TRANSFER_ENCODING) {
        return Ok(());
    }
    let mut all = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = all.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if chunked && all.next().is_none() { Ok(()) } else { Err(()) }
}

/// Joins cookie lines: HTTP/2 may split them, HTTP/1.1 has one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(all) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// The protocol of `Connection: upgrade`. Optional offers (h2c, TLS) are ignored.
fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !headers.contains_key(UPGRADE)
        || !tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
    {
        return None;
    }
    let mut wanted = tokens(headers, &UPGRADE).filter(|token| {
        let lower = token.to_ascii_lowercase();
        !token.is_empty() && lower != "h2c" && !lower.starts_with("tls/")
    });
    let first = wanted.next().and_then(|token| HeaderValue::try_from(token).ok());
    if wanted.next().is_some() { headers.get(UPGRADE).cloned() } else { first }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn hosts_are_judged_by_their_grammar() {
        for good in ["a", "a:80", "a:", "1.2.3.4:8080", "[::1]", "[fd00::1]:80", "a-b_c.d~", "%41"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a@b", "a/b", "a:b", "a:99999", "a:80:80", "[::1", "[x]", "[::1]x", "%4", "é", "a\0",
            "a?b", "a#b", "a\\b",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn fields_named_by_connection_are_removed() {
        let mut head = head(
            "GET",
            "/",
            &[
                ("host", "a"),
                ("connection", "keep-alive, x-own"),
                ("connection", "host, content-length, TE"),
                ("x-own", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers"),
                ("proxy-connection", "close"),
                ("proxy-authorization", "Basic YTpi"),
                ("x-end", "2"),
                ("upgrade", "h2c"),
            ],
        );
        request(&mut head, "local").unwrap();
        let mut left: Vec<_> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["host: a", "te: trailers", "x-end: 2"]);
        assert!(head.extensions.get::<WantsUpgrade>().is_none(), "h2c is an offer");
    }

    #[test]
    fn an_absolute_target_names_the_host() {
        let mut absolute = head("GET", "http://real:81/a?b", &[("host", "other")]);
        request(&mut absolute, "local").unwrap();
        assert_eq!((absolute.uri.to_string().as_str(), absolute.headers[HOST].to_str().unwrap()), ("/a?b", "real:81"));
        for (method, uri) in [("GET", "ftp://a/"), ("GET", "a:80"), ("GET", "*")] {
            assert_eq!(request(&mut head(method, uri, &[("host", "a")]), "local"), Err(Refusal::Target), "{uri}");
        }
        assert_eq!(request(&mut head("GET", "http://u@a/", &[("host", "a")]), "local"), Err(Refusal::Host));
        assert_eq!(request(&mut head("OPTIONS", "*", &[("host", "a")]), "local"), Ok(()));
    }

    #[test]
    fn answers_are_judged_too() {
        let answer = |status: u16, headers: &[(&str, &str)]| {
            let mut answer = http::Response::builder().status(status);
            for (name, value) in headers {
                answer = answer.header(*name, *value);
            }
            answer.body(()).unwrap().into_parts().0
        };
        assert!(response(&mut answer(101, &[]), false).is_err());
        assert!(response(&mut answer(101, &[]), true).is_ok());
        assert!(response(&mut answer(200, &[("transfer-encoding", "gzip")]), false).is_err());
        assert!(response(&mut answer(200, &[("content-length", "1"), ("content-length", "2")]), false).is_err());
        let mut both = answer(
            200,
            &[
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
                ("connection", "x"),
                ("x", "1"),
                ("proxy-authenticate", "Basic"),
            ],
        );
        response(&mut both, false).unwrap();
        assert!(both.headers.is_empty());
    }

    proptest! {
        #[test]
        fn accepted_heads_are_unambiguous(
            names in proptest::collection::vec((0_usize..10, "[ -~]{0,12}"), 0..8), uri in "(/[a-z]{0,3}|\\*|http://[a-z@:]{1,5}/x)",
            version in 0_usize..3,
        ) {
            const NAMES: [&str; 10] = [
                "host", "connection", "content-length", "transfer-encoding", "te", "upgrade", "cookie", "keep-alive",
                "proxy-authorization", "x-own",
            ];
            let mut builder = http::Request::builder().uri(uri.as_str()).version([Version::HTTP_10, Version::HTTP_11, Version::HTTP_2][version]);
            for (name, value) in &names {
                builder = builder.header(NAMES[*name], value.as_str());
            }
            if let Ok(made) = builder.body(()) {
                let mut head = made.into_parts().0;
                if request(&mut head, "local:80").is_ok() {
                    prop_assert!(head.uri.authority().is_none());
                    prop_assert_eq!(head.headers.get_all(HOST).iter().count(), 1);
                    prop_assert!(head.headers.get_all(CONTENT_LENGTH).iter().count() <= 1);
                    prop_assert!(HOP_BY_HOP.iter().all(|name| !head.headers.contains_key(name)));
                }
            }
        }
    }
}
