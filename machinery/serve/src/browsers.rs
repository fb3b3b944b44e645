//! Requests of browsers, for a server whose credentials a browser may add by itself: a client certificate, a password that
//! its user once typed, or a local proxy's. Pure.
//!
//! Any page can let the browser send requests to any server, with the certificate that its user once chose. What such a page
//! can't do is to remove or choose the headers with which browsers name the page: `Origin` and `Sec-Fetch-Site`. Programs that
//! aren't browsers send neither.

use http::header::{CONTENT_SECURITY_POLICY, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// Set by browsers: whether the page that sends the request is of the same server (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// A browser shows such a page without scripts, forms and plugins, and as of an origin of its own.
const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");

/// What a browser says of the page that sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchSite {
    /// A page of the same server, or the user, who typed the address.
    Own,
    /// A page of another server, also of the same domain.
    Foreign,
    /// It is no browser, or one that doesn't tell.
    Unknown,
}

fn fetch_site(headers: &HeaderMap) -> FetchSite {
    let sites = || headers.get_all(FETCH_SITE).iter();
    match sites().next() {
        None => FetchSite::Unknown,
        Some(_) if sites().all(|site| site == "same-origin" || site == "none") => FetchSite::Own,
        Some(_) => FetchSite::Foreign,
    }
}

/// Whether a request is of a page of this server, by both headers, or of no browser. `is_own`: whether an origin is this server's.
#[must_use]
pub fn comes_from_own_page(headers: &HeaderMap, is_own: impl Fn(&[u8]) -> bool) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| is_own(origin.as_bytes())) && fetch_site(headers) != FetchSite::Foreign
}

/// Whether a server accepts a request that a client certificate authenticates. `kubectl proxy` passes on the headers of its
/// pages, whose origin is the proxy's: there the browser's statement that page and server are the same decides.
#[must_use]
pub fn may_use_certificate(headers: &HeaderMap, uri: &Uri) -> bool {
    let host =
        headers.get(HOST).map(HeaderValue::as_bytes).or_else(|| uri.authority().map(|of| of.as_str().as_bytes()));
    let is_own = |origin: &[u8]| {
        let of_origin = origin.strip_prefix(b"https://");
        of_origin.is_some_and(|origin| host.is_some_and(|host| host.eq_ignore_ascii_case(origin)))
    };
    fetch_site(headers) == FetchSite::Own || comes_from_own_page(headers, is_own)
}

/// Removes what a browser says of its page from a request that a server passes on with a certificate of its own: the server
/// has judged the page, and the next one knows neither the server's name nor the user's credentials.
pub fn remove_page(headers: &mut HeaderMap) {
    headers.remove(ORIGIN);
    headers.remove(FETCH_SITE);
}

/// Makes a response that isn't this server's own harmless for the origin that serves it: a browser runs no script of it there,
/// and doesn't guess its type. A policy of the response's own stays, as all policies apply.
pub fn isolate(headers: &mut HeaderMap) {
    headers.append(CONTENT_SECURITY_POLICY, SANDBOX);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let parsed = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let mut map = HeaderMap::new();
        for (name, value) in parsed {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn certificates_serve_no_page_of_another_site() {
        let may = |headers: &[(&'static str, &str)]| {
            may_use_certificate(&map(headers), &"https://10.0.0.1:6443/api".parse().unwrap())
        };
        for (headers, expected) in [
            (&[][..], true),
            (&[("host", "10.0.0.1:6443")], true),
            (&[("host", "10.0.0.1:6443"), ("origin", "https://10.0.0.1:6443")], true),
            (&[("host", "API.example"), ("origin", "https://api.example")], true),
            (&[("origin", "https://10.0.0.1:6443")], true),
            (&[("origin", "https://evil.example")], false),
            (&[("host", "10.0.0.1:6443"), ("origin", "https://evil.example")], false),
            (&[("host", "10.0.0.1:6443"), ("origin", "http://10.0.0.1:6443")], false),
            (&[("host", "10.0.0.1:6443"), ("origin", "https://10.0.0.1:6444")], false),
            (&[("host", "10.0.0.1:6443"), ("origin", "https://10.0.0.1:6443.evil.example")], false),
            (&[("origin", "null")], false),
            (&[("origin", "")], false),
            (&[("origin", "https://10.0.0.1:6443"), ("origin", "https://evil.example")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "anything")], false),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], false),
            (&[("origin", "https://10.0.0.1:6443"), ("sec-fetch-site", "cross-site")], false),
            // A page behind kubectl proxy.
            (
                &[("host", "10.0.0.1:6443"), ("origin", "http://127.0.0.1:8001"), ("sec-fetch-site", "same-origin")],
                true,
            ),
            (&[("host", "10.0.0.1:6443"), ("origin", "http://127.0.0.1:8001")], false),
        ] {
            assert_eq!(may(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_request_that_is_passed_on_has_no_page() {
        let mut headers = map(&[("origin", "https://a.example"), ("sec-fetch-site", "same-site"), ("accept", "*/*")]);
        remove_page(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*")]));
    }

    #[test]
    fn a_foreign_response_keeps_its_own_policy_beside_the_sandbox() {
        let mut headers = map(&[("content-security-policy", "default-src *"), ("x-content-type-options", "x")]);
        isolate(&mut headers);
        let policies: Vec<_> = headers.get_all(CONTENT_SECURITY_POLICY).iter().collect();
        assert_eq!(policies, ["default-src *", "sandbox"]);
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
    }
}
