//! The metric `kubernetes_feature_enabled`: the state of each feature gate, as upstream reports it.

use machinery_api::features::Features;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A registry with the state of every gate.
pub(crate) fn registry(features: &Features) -> Registry {
    let mut registry = Registry::default();
    register(&mut registry, features);
    registry
}

/// Registers the state of every gate as `kubernetes_feature_enabled`.
pub(crate) fn register(registry: &mut Registry, features: &Features) {
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
        let registry = registry(&Features::default().with(Feature::MaxUnavailableStatefulSet, true));
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
