//! Rewrites the references of a proxied response for a client that reached the server through a `proxy` subresource
//! (upstream's `proxy.Transport`). Pure.

use http::Uri;

/// The place of a page: on this server, and on the proxied one.
#[derive(Debug, Clone)]
pub(super) struct ProxiedPage {
    /// The request's path up to `/proxy`.
    pub(super) prefix: String,
    /// The host that the client requested.
    pub(super) client_host: String,
    /// The host of the proxied server.
    pub(super) own_host: String,
}

impl ProxiedPage {
    /// Rewrites a reference: one to the same server gets the prefix, all others are unchanged.
    pub(super) fn rewrite(&self, reference: &str) -> String {
        let Ok(uri) = reference.parse::<Uri>() else { return reference.to_owned() };
        let host = uri.authority().map_or("", |authority| authority.as_str());
        let own = host.is_empty() || host == self.own_host || host == self.client_host;
        let path = uri.path();
        // A reference with a scheme but no host (`mailto:`) never parses as an absolute path.
        if !own || !path.starts_with('/') || !(reference.starts_with('/') || uri.authority().is_some()) {
            return reference.to_owned();
        }
        let kept = if host.is_empty() || host == self.own_host {
            String::new()
        } else {
            format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
        };
        let prefix = if path.starts_with(&self.prefix) { "" } else { &self.prefix };
        // `http::Uri` drops fragments.
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
        let page = ProxiedPage {
            prefix: "/api/v1/namespaces/d/services/s/proxy".into(),
            client_host: "localhost:8001".into(),
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
            assert_eq!(page.rewrite(reference), wanted, "{reference}");
        }
    }
}
