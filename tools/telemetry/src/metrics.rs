//! The metrics of a process: `kubernetes_feature_enabled`, the state of each feature gate, as upstream reports it, and
//! `coracle_otlp_dropped_total`.

use std::sync::LazyLock;

use machinery_api::features::Features;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The value of the label `signal`, and the name of the signal's thread.
pub(crate) const TRACES: &str = "traces";
pub(crate) const LOGS: &str = "logs";

/// Records that were dropped, by signal: from a full queue, or for a collector that didn't take them.
static DROPPED: LazyLock<Family<[(&'static str, &'static str); 1], Counter>> = LazyLock::new(Family::default);

pub(crate) fn dropped(signal: &'static str) -> Counter {
    DROPPED.get_or_create(&[("signal", signal)]).clone()
}

/// Registers the number of dropped records.
pub fn register_dropped(registry: &mut Registry) {
    for signal in [TRACES, LOGS] {
        dropped(signal);
    }
    let help = "Spans and log records that were not exported by OTLP, as the queue was full or the collector took none";
    registry.register("coracle_otlp_dropped", help, DROPPED.clone());
}

/// Returns a registry with the state of every gate.
pub fn feature_registry(features: &Features) -> Registry {
    let mut registry = Registry::default();
    register_features(&mut registry, features);
    registry
}

/// Registers the state of every gate as `kubernetes_feature_enabled`.
pub fn register_features(registry: &mut Registry, features: &Features) {
    let gauges = Family::<[(&'static str, &'static str); 2], Gauge>::default();
    for (gate, enabled) in features.all() {
        let labels = [("name", gate.name), ("stage", gate.stage.as_str())];
        gauges.get_or_create(&labels).set(enabled.into());
    }
    registry.register("kubernetes_feature_enabled", "Whether a feature gate is on, by name and stage", gauges);
}

#[cfg(test)]
mod tests {
    use machinery_api::features::Feature;

    use super::*;

    #[test]
    fn each_gate_is_shown() {
        let registry = feature_registry(&Features::default().with(Feature::MaxUnavailableStatefulSet, true));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            r#"kubernetes_feature_enabled{name="HPAScaleToZero",stage="ALPHA"} 1"#,
            r#"kubernetes_feature_enabled{name="MaxUnavailableStatefulSet",stage="BETA"} 1"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{page}");
        }
    }
}
