//! Which requests the proxy accepts. Pure.
//!
//! Any page in the user's browser can send requests to this machine's ports. So a request must name this server (a page
//! elsewhere can have a DNS name that leads here), must come from a page of this server, and must have the secret for all
//! but the dashboard's files.

use apiserver::http::static_files::is_below;
use apiserver_auth::websocket_token::WebSocketToken;
use http::header::{AUTHORIZATION, HOST, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, StatusCode};
use machinery_serve::browsers::comes_from_own_page;

use super::files::PREFIX;
use super::secret::Secret;

/// The rules of one server.
#[derive(Debug)]
pub(crate) struct Gate {
    /// `127.0.0.1:PORT` and `localhost:PORT`.
    hosts: [String; 2],
    secret: Secret,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is answered with a file of the dashboard.
    File,
    /// It is sent to the API server.
    Forward,
    Reject(StatusCode, &'static str),
}

impl Gate {
    pub(crate) fn new(port: u16, secret: Secret) -> Self {
        Self { hosts: ["127.0.0.1", "localhost"].map(|host| format!("{host}:{port}")), secret }
    }

    pub(crate) fn check(&self, path: &str, headers: &HeaderMap) -> Verdict {
        if !self.names_this_server(headers) {
            return Verdict::Reject(
                StatusCode::FORBIDDEN,
                "the Host header is another server's: open the address that coracle dashboard prints",
            );
        }
        if is_below(PREFIX, path) {
            return Verdict::File;
        }
        if !self.comes_from_this_server(headers) {
            return Verdict::Reject(StatusCode::FORBIDDEN, "requests of pages of other sites are refused");
        }
        if !self.has_secret(headers) {
            return Verdict::Reject(StatusCode::UNAUTHORIZED, "Unauthorized");
        }
        Verdict::Forward
    }

    fn names_this_server(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            (Some(host), None) => self.hosts.iter().any(|own| host.as_bytes().eq_ignore_ascii_case(own.as_bytes())),
            _ => false,
        }
    }

    /// Programs that aren't browsers send neither header.
    fn comes_from_this_server(&self, headers: &HeaderMap) -> bool {
        comes_from_own_page(headers, |origin| {
            let host = origin.strip_prefix(b"http://");
            host.is_some_and(|host| self.hosts.iter().any(|own| host == own.as_bytes()))
        })
    }

    fn has_secret(&self, headers: &HeaderMap) -> bool {
        let mut bearers = headers.get_all(AUTHORIZATION).iter();
        match (bearers.next(), bearers.next()) {
            (Some(one), None) => bearer(one.as_bytes()).is_some_and(|token| self.secret.is_token(token)),
            (None, None) => match WebSocketToken::read(protocols(headers)) {
                Some(WebSocketToken::Valid(token)) => self.secret.is_token(&token),
                Some(WebSocketToken::Malformed) | None => false,
            },
            _ => false,
        }
    }
}

/// The token of `Authorization: Bearer TOKEN`.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The subprotocols that a WebSocket's client offers.
pub(crate) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|protocol| !protocol.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;
    use machinery_env::Env;

    use super::*;

    fn check(path: &str, headers: &[(&str, &str)]) -> (Verdict, Secret) {
        let (env, _) = Env::seeded(1, jiff::Timestamp::UNIX_EPOCH);
        let secret = Secret::new(&env);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = value.replace("SECRET", secret.reveal());
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        (Gate::new(7000, secret.clone()).check(path, &map), secret)
    }

    fn code(path: &str, headers: &[(&str, &str)]) -> u16 {
        match check(path, headers).0 {
            Verdict::File => 200,
            Verdict::Forward => 0,
            Verdict::Reject(code, _) => code.as_u16(),
        }
    }

    const HOST_HERE: (&str, &str) = ("host", "127.0.0.1:7000");
    const TOKEN: (&str, &str) = ("authorization", "Bearer SECRET");

    #[test]
    fn the_secret_opens_the_api() {
        assert_eq!(code("/api/v1/pods", &[HOST_HERE, TOKEN]), 0);
        assert_eq!(code("/api/v1/pods", &[("host", "LOCALHOST:7000"), ("authorization", "bearer SECRET")]), 0);
        for wrong in [
            vec![HOST_HERE],
            vec![HOST_HERE, ("authorization", "Bearer 0123")],
            vec![HOST_HERE, ("authorization", "Basic SECRET")],
            vec![HOST_HERE, ("authorization", "SECRET")],
            vec![HOST_HERE, TOKEN, ("authorization", "Bearer other")],
            vec![HOST_HERE, ("cookie", "token=SECRET")],
        ] {
            assert_eq!(code("/api/v1/pods", &wrong), 401, "{wrong:?}");
        }
        assert_eq!(code("/", &[HOST_HERE]), 401);
        assert_eq!(code("/dashboards", &[HOST_HERE]), 401);
    }

    #[test]
    fn a_websocket_has_the_secret_in_its_subprotocols() {
        let encoded = check("/", &[]).1.as_protocol();
        for (offered, expected) in [
            (format!("v5.channel.k8s.io, {encoded}"), 0),
            ("v5.channel.k8s.io".to_owned(), 401),
            (format!("v5.channel.k8s.io, {encoded}AAAA"), 401),
            (format!("v5.channel.k8s.io, {}", &encoded[..encoded.len() - 4]), 401),
        ] {
            assert_eq!(code("/api/v1", &[HOST_HERE, ("sec-websocket-protocol", &offered)]), expected, "{offered}");
        }
    }

    #[test]
    fn files_need_no_secret_but_this_host() {
        assert_eq!(code("/dashboard/", &[HOST_HERE]), 200);
        assert_eq!(code("/dashboard", &[HOST_HERE]), 200);
        for host in ["127.0.0.1", "127.0.0.1:7001", "evil.example:7000", "127.0.0.1:7000.evil.example", ""] {
            assert_eq!(code("/dashboard/", &[("host", host)]), 403, "{host}");
            assert_eq!(code("/api", &[("host", host), TOKEN]), 403, "{host}");
        }
        assert_eq!(code("/dashboard/", &[]), 403);
        assert_eq!(code("/dashboard/", &[HOST_HERE, HOST_HERE]), 403);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let with = |name, value| code("/api", &[HOST_HERE, TOKEN, (name, value)]);
        assert_eq!(with("origin", "http://127.0.0.1:7000"), 0);
        assert_eq!(with("origin", "http://localhost:7000"), 0);
        for origin in ["null", "http://127.0.0.1:7001", "https://127.0.0.1:7000", "http://evil.example", ""] {
            assert_eq!(with("origin", origin), 403, "{origin}");
        }
        assert_eq!([with("sec-fetch-site", "same-origin"), with("sec-fetch-site", "none")], [0, 0]);
        assert_eq!([with("sec-fetch-site", "cross-site"), with("sec-fetch-site", "same-site")], [403, 403]);
    }
}
