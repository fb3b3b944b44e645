//! Metrics of the tunnel.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label: `out` for what this node dials or calls, `in` for what others do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

/// Label: why a connection couldn't be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The direction of a connection or a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
}

impl Direction {
    fn label(self) -> DirectionLabel {
        DirectionLabel { direction: if self == Self::Out { "out" } else { "in" } }
    }
}

/// Metrics of one node's tunnel.
#[derive(Debug, Clone, Default)]
pub struct TunnelMetrics {
    connections: Family<DirectionLabel, Gauge>,
    calls: Family<DirectionLabel, Counter>,
    /// Calls whose origin the peer may not claim, and malformed ones.
    pub refused_origins: Counter,
    /// Connections of authenticated peers above their limit.
    pub refused_connections: Counter,
    dial_failures: Family<OutcomeLabel, Counter>,
}

impl TunnelMetrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("coracle_tunnel_connections", "Open connections between nodes", self.connections.clone());
        registry.register("coracle_tunnel_calls", "Requests and streams between nodes", self.calls.clone());
        registry.register(
            "coracle_tunnel_refused_origins",
            "Calls of other nodes with an origin that they may not claim",
            self.refused_origins.clone(),
        );
        registry.register(
            "coracle_tunnel_refused_connections",
            "Connections of other nodes above their limit",
            self.refused_connections.clone(),
        );
        registry.register(
            "coracle_tunnel_dial_failures",
            "Connections to other nodes that could not be made, or that died",
            self.dial_failures.clone(),
        );
    }

    /// Counts an open connection until the guard is dropped.
    pub(super) fn connection(&self, direction: Direction) -> ConnectionGuard {
        let gauge = self.connections.get_or_create_owned(&direction.label());
        gauge.inc();
        ConnectionGuard(gauge)
    }

    pub(super) fn call(&self, direction: Direction) {
        self.calls.get_or_create(&direction.label()).inc();
    }

    pub(super) fn dial_failed(&self, outcome: &'static str) {
        self.dial_failures.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// The number of open connections of a direction.
    #[cfg(test)]
    pub(super) fn open(&self, direction: Direction) -> i64 {
        self.connections.get_or_create(&direction.label()).get()
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
