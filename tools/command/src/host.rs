//! The host of a URL, and whether only this machine reaches it. Pure.

use http::Uri;

/// The host of a URL, an IPv6 address without its brackets; empty if the URL has none.
pub fn of_url(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// Whether only processes of the same machine reach a host.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_known() {
        assert_eq!(of_url(&"https://[::1]:6443".parse().unwrap()), "::1");
        for (host, is) in [("::1", true), ("127.0.0.9", true), ("localhost", true), ("10.0.0.1", false), ("a", false)] {
            assert_eq!(is_loopback(host), is, "{host}");
        }
    }
}
