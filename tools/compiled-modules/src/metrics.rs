//! Metrics of the exchange of compiled modules.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Counters of this node's exchange.
#[derive(Debug, Clone, Default)]
pub struct ExchangeMetrics {
    results: Family<ResultLabel, Counter>,
}

impl ExchangeMetrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "coracle_compiled_modules",
            "Compiled modules by result: fetched from another node, sent to one, missing at all queried nodes, rejected",
            self.results.clone(),
        );
    }

    pub(crate) fn count(&self, result: &'static str) {
        self.results.get_or_create(&ResultLabel { result }).inc();
    }
}
