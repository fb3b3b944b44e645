//! Counters of the data plane: parsed requests, requests of guests, socket hops, requests without an endpoint;
//! and those of DNS.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::state::dns_metrics::DnsMetrics;

/// Counters of one data plane.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// HTTP requests parsed from a socket of a host process.
    pub requests_parsed: Counter,
    /// HTTP requests of guests: never parsed from bytes.
    pub guest_requests: Counter,
    /// Sockets crossed between a caller and an endpoint, in either direction of the process border.
    pub socket_hops: Counter,
    /// Requests that found no endpoint.
    pub no_endpoint: Counter,
    /// Of the DNS server.
    pub(crate) dns: DnsMetrics,
}

impl Metrics {
    /// Registers the counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "coracle_proxy_requests_parsed",
            "HTTP requests parsed from a socket",
            self.requests_parsed.clone(),
        );
        registry.register(
            "coracle_proxy_guest_requests",
            "HTTP requests that guests sent through the data plane",
            self.guest_requests.clone(),
        );
        registry.register(
            "coracle_socket_hops",
            "Sockets crossed between callers and endpoints",
            self.socket_hops.clone(),
        );
        registry.register(
            "coracle_proxy_no_endpoint",
            "Requests and connections that found no endpoint",
            self.no_endpoint.clone(),
        );
        self.dns.register(registry);
    }
}
