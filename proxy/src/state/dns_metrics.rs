//! Metrics of the DNS server: CoreDNS' metrics under the prefix `coracle_dns`.

use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    proto: &'static str,
    r#type: &'static str,
}

/// Label of a response.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    rcode: &'static str,
}

/// Label of a packet without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// Metrics of one DNS server.
#[derive(Debug, Clone)]
pub(crate) struct DnsMetrics {
    requests: Family<RequestLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
    seconds: Histogram,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) forwards: Counter,
    pub(crate) forward_failures: Counter,
    pub(crate) truncated: Counter,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            responses: Family::default(),
            dropped: Family::default(),
            // From 50 µs, in which an answer from the table is made, to the timeout of a forwarded query.
            seconds: Histogram::new(exponential_buckets(5e-5, 4.0, 9)),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            forwards: Counter::default(),
            forward_failures: Counter::default(),
            truncated: Counter::default(),
        }
    }
}

impl DnsMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("coracle_dns");
        registry.register("requests", "DNS requests by transport and type", self.requests.clone());
        registry.register("responses", "DNS responses by code", self.responses.clone());
        registry.register("dropped", "DNS packets without an answer by reason", self.dropped.clone());
        let help = "Time from a DNS request to its response";
        registry.register_with_unit("request_duration", help, Unit::Seconds, self.seconds.clone());
        registry.register("cache_hits", "Forwarded names answered from the cache", self.cache_hits.clone());
        registry.register("cache_misses", "Forwarded names that were not in the cache", self.cache_misses.clone());
        registry.register("forwards", "Queries sent to the host's name servers", self.forwards.clone());
        registry.register("forward_failures", "Queries that they didn't answer", self.forward_failures.clone());
        registry.register("truncated", "Answers that sent a client to TCP", self.truncated.clone());
    }

    /// Counts a request over `proto` (`udp` or `tcp`).
    pub(crate) fn request(&self, proto: &'static str, kind: Option<RecordType>) {
        self.requests.get_or_create(&RequestLabels { proto, r#type: kind_label(kind) }).inc();
    }

    pub(crate) fn response(&self, code: ResponseCode, took: Duration) {
        self.responses.get_or_create(&ResponseLabels { rcode: code_label(code) }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn drop(&self, reason: &'static str) {
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }
}

/// The usual types, as CoreDNS counts them; others together, as a client chooses them.
fn kind_label(kind: Option<RecordType>) -> &'static str {
    match kind {
        Some(RecordType::A) => "A",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::HTTPS) => "HTTPS",
        Some(RecordType::MX) => "MX",
        Some(RecordType::NS) => "NS",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::SOA) => "SOA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::TXT) => "TXT",
        _ => "other",
    }
}

fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
    }
}
