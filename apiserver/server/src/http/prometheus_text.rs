//! Prometheus' text format of `/metrics`, the only one that upstream's components serve, also to clients that accept OpenMetrics: in that
//! format upstream's counters without `_total` would have other names.

use std::collections::BTreeSet;

use prometheus_client::registry::Registry;

/// Its media type, as upstream sends it.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// The metrics of a registry.
#[must_use]
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    from_open_metrics(&text)
}

/// Converts OpenMetrics to Prometheus' older text format: a counter's description has the name of its samples, units
/// occur only in names, and there is no end marker.
fn from_open_metrics(open_metrics: &str) -> String {
    let described = |line: &str| {
        line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ').map(|(name, _)| name.to_owned()))
    };
    let counters: BTreeSet<String> =
        open_metrics.lines().filter(|line| line.ends_with(" counter")).filter_map(described).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        // Counters that have no `_total` upstream.
        if let Some((name, rest)) = line.split_once("_count_total") {
            text.extend([name, "_count", rest, "\n"]);
            continue;
        }
        let words = ["# HELP ", "# TYPE "].into_iter().find_map(|word| Some((word, line.strip_prefix(word)?)));
        match words.and_then(|(word, rest)| Some((word, rest.split_once(' ')?))) {
            Some((word, (name, rest))) if counters.contains(name) && !name.ends_with("_count") => {
                text.extend([word, name, "_total ", rest, "\n"]);
            }
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn counters_have_upstreams_names() {
        let mut registry = Registry::default();
        registry.register("request", "Requests", Counter::<u64>::default());
        registry.register("rejection_count", "Rejections", Counter::<u64>::default());
        registry.register_with_unit("free", "Free", Unit::Bytes, Gauge::<i64>::default());
        let wanted = "# HELP request_total Requests.\n# TYPE request_total counter\nrequest_total 0\n\
                      # HELP rejection_count Rejections.\n# TYPE rejection_count counter\nrejection_count 0\n\
                      # HELP free_bytes Free.\n# TYPE free_bytes gauge\nfree_bytes 0\n";
        assert_eq!(encode(&registry), wanted);
    }
}
