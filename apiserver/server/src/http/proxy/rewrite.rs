//! What an answer says of places on its server, for a client that reached it through a `proxy` subresource (upstream's
//! `proxy.Transport`). Pure.

use http::Uri;

/// Where a page was asked for.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The request's path up to `/proxy`.
    pub(super) prefix: String,
    /// The host that the client named.
    pub(super) asked_host: String,
    /// The host that was asked.
    pub(super) own_host: String,
}

impl Place {
    /// A reference as the client has to write it: one to the same server gets the prefix, all others stay.
    pub(super) fn rewrite(&self, reference: &str) -> String {
        let Ok(uri) = reference.parse::<Uri>() else { return reference.to_owned() };
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let own = host.is_empty() || host == self.own_host || host == self.asked_host;
        let path = uri.path();
        // A scheme without a host (`mailto:`) never parses as an absolute path.
        if !own || !path.starts_with('/') || !(reference.starts_with('/') || uri.authority().is_some()) {
            return reference.to_owned();
        }
        let kept = if host.is_empty() || host == self.own_host {
            String::new()
        } else {
            format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
        };
        let prefix = if path.starts_with(&self.prefix) { "" } else { &self.prefix };
        // `http::Uri` knows no fragments.
        let fragment = reference.split_once('#').map(|(_, fragment)| format!("#{fragment}")).unwrap_or_default();
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{kept}{prefix}{path}{query}{fragment}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_the_same_server_get_the_prefix() {
        let place = Place {
            prefix: "/api/v1/namespaces/d/services/s/proxy".into(),
            asked_host: "localhost:8001".into(),
            own_host: "10.0.0.1:80".into(),
        };
        for (reference, wanted) in [
            ("/a?b=c#d", "/api/v1/namespaces/d/services/s/proxy/a?b=c#d"),
            ("http://10.0.0.1:80/a/", "/api/v1/namespaces/d/services/s/proxy/a/"),
            ("http://localhost:8001/a", "http://localhost:8001/api/v1/namespaces/d/services/s/proxy/a"),
            ("https://example.com/a", "https://example.com/a"),
            ("a/b", "a/b"),
            ("../b", "../b"),
            ("#top", "#top"),
            ("?x=1", "?x=1"),
            ("mailto:a@example.com", "mailto:a@example.com"),
            ("", ""),
            ("/api/v1/namespaces/d/services/s/proxy/x", "/api/v1/namespaces/d/services/s/proxy/x"),
        ] {
            assert_eq!(place.rewrite(reference), wanted, "{reference}");
        }
    }
}
