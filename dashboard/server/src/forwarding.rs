//! The headers of forwarded requests and responses. Pure.
//!
//! A page has the rights of the kubeconfig and no others: its own credentials, impersonation, and what proxies add about a
//! client are removed. Headers of one connection (RFC 9110, 7.6.1) aren't forwarded.

use apiserver_auth::websocket_token;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, COOKIE, FORWARDED, HOST, HeaderName, ORIGIN,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, REFERER, SEC_WEBSOCKET_PROTOCOL, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue};

use super::gate::protocols;

/// Headers of one connection.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Headers of a request that are this proxy's alone; the length follows from the body.
const OWN: [HeaderName; 8] = [
    AUTHORIZATION,
    CONTENT_LENGTH,
    COOKIE,
    FORWARDED,
    HOST,
    HeaderName::from_static("http2-settings"),
    ORIGIN,
    REFERER,
];
/// Beginnings of headers by which a request would act for another user, or describe another client.
const ACTING_FOR: [&str; 4] = ["impersonate-", "x-remote-", "x-forwarded-", "sec-fetch-"];
const WEBSOCKET: &str = "websocket";
/// Content of the API is data. A pod's page that a browser shows has no script and another origin.
const DATA_ONLY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Whether a request asks for a WebSocket, the only protocol that is passed on.
pub(crate) fn wants_websocket(headers: &HeaderMap) -> bool {
    let named = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    named(CONNECTION, "upgrade") && named(UPGRADE, WEBSOCKET)
}

/// The headers of a request as the API server gets them, before its credentials are added.
pub(crate) fn of_request(headers: &HeaderMap) -> HeaderMap {
    let mut sent = end_to_end(headers);
    let removed: Vec<HeaderName> =
        sent.keys().filter(|name| ACTING_FOR.iter().any(|start| name.as_str().starts_with(start))).cloned().collect();
    removed.iter().chain(&OWN).for_each(|name| {
        sent.remove(name);
    });
    sent.remove(SEC_WEBSOCKET_PROTOCOL);
    if wants_websocket(headers) {
        let offered: Vec<&str> = protocols(headers).filter(|one| !one.starts_with(websocket_token::PREFIX)).collect();
        if let Ok(offered) = HeaderValue::try_from(offered.join(", "))
            && !offered.is_empty()
        {
            sent.insert(SEC_WEBSOCKET_PROTOCOL, offered);
        }
        set_upgrade(&mut sent);
    }
    sent
}

/// The headers of a response as the page gets them; `is_upgrade`: the connection becomes a WebSocket.
pub(crate) fn of_response(headers: &HeaderMap, is_upgrade: bool) -> HeaderMap {
    let mut sent = end_to_end(headers);
    sent.remove(SET_COOKIE);
    if is_upgrade {
        sent.remove(CONTENT_LENGTH);
        set_upgrade(&mut sent);
    } else {
        sent.insert(CONTENT_SECURITY_POLICY, DATA_ONLY);
        sent.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    sent
}

fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// The headers without those of one connection, and without those that `Connection` names.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut sent = headers.clone();
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')).filter_map(|name| HeaderName::try_from(name.trim()).ok()) {
        sent.remove(name);
    }
    for name in HOP_BY_HOP {
        sent.remove(name);
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_request_keeps_its_content_alone() {
        let sent = of_request(&map(&[
            ("host", "127.0.0.1:7000"),
            ("accept", "application/json"),
            ("content-type", "application/merge-patch+json"),
            ("content-length", "2"),
            ("if-none-match", "x"),
            ("coracle-session", "s"),
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("origin", "http://127.0.0.1:7000"),
            ("referer", "http://127.0.0.1:7000/dashboard/"),
            ("impersonate-user", "root"),
            ("impersonate-group", "system:masters"),
            ("impersonate-extra-a", "b"),
            ("x-remote-user", "root"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("sec-fetch-site", "same-origin"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0"),
        ]));
        assert_eq!(names(&sent), ["accept", "content-type", "coracle-session", "if-none-match"]);
    }

    #[test]
    fn a_websocket_keeps_its_handshake_without_the_secret() {
        let request = map(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0,v4.channel.k8s.io",
            ),
        ]);
        assert!(wants_websocket(&request));
        let sent = of_request(&request);
        assert_eq!(sent[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io, v4.channel.k8s.io");
        assert_eq!((&sent[CONNECTION], &sent[UPGRADE]), (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap()));
        assert_eq!(sent["sec-websocket-key"], "k");
        let alone = map(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0"),
        ]);
        assert!(!of_request(&alone).contains_key(SEC_WEBSOCKET_PROTOCOL));
        assert!(!wants_websocket(&map(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")])));
        assert!(!wants_websocket(&map(&[("upgrade", "websocket")])));
    }

    #[test]
    fn a_response_is_data() {
        let answer = map(&[
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("content-security-policy", "default-src *"),
            ("set-cookie", "a=b"),
            ("connection", "close"),
            ("audit-id", "x"),
        ]);
        let sent = of_response(&answer, false);
        assert_eq!(
            names(&sent),
            ["audit-id", "content-length", "content-security-policy", "content-type", "x-content-type-options"]
        );
        assert_eq!(sent[CONTENT_SECURITY_POLICY], DATA_ONLY);
        let switch = of_response(
            &map(&[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-accept", "a"),
                ("set-cookie", "a=b"),
            ]),
            true,
        );
        assert_eq!(names(&switch), ["connection", "sec-websocket-accept", "upgrade"]);
    }
}
