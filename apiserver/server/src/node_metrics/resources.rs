//! The resources of `metrics.k8s.io`, as metrics-server serves them.

use std::sync::Arc;

use apiserver_resources::cells::{NAME, name};
use apiserver_resources::field::ErrorList;
use apiserver_resources::objects::ObjectSource;
use apiserver_resources::{Column, Context, Deletion, ResourceInfo, SharedStrategy, Strategy, Verb};
use apiserver_schema as schema;
use apiserver_schema::types::Text;
use jiff::Timestamp;
use machinery_api::quantity::Quantity;
use machinery_api::{GroupVersion, GroupVersionKind};
use serde_json::{Value, json};

use super::NodeMetrics;
use super::custom;
use super::source::{NodeMetricsSource, PodMetricsSource};
use super::summary::API_VERSION;

/// A read-only kind without columns of its own.
struct ReadOnlyStrategy;

impl Strategy for ReadOnlyStrategy {
    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}
}

/// The same with metrics-server's columns.
struct UsageStrategy;

const COLUMNS: &[Column] =
    &[NAME, column("cpu", "quantity"), column("memory", "quantity"), column("Window", "duration")];

const fn column(name: &'static str, format: &'static str) -> Column {
    Column {
        name: Text::Borrowed(name),
        kind: Text::Borrowed("string"),
        format: Text::Borrowed(format),
        description: Text::Borrowed(""),
        priority: 0,
    }
}

impl Strategy for UsageStrategy {
    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        let used = |of: &str| {
            let own = object["usage"].get(of);
            let all = object["containers"].as_array().into_iter().flatten().map(|one| &one["usage"][of]).chain(own);
            let quantities = all.filter_map(|used| used.as_str()?.parse::<Quantity>().ok());
            quantities.reduce(|sum, one| sum.add(&one)).map(|sum| sum.to_string())
        };
        vec![name(object), json!(used("cpu")), json!(used("memory")), object["window"].clone()]
    }
}

/// The resources of `metrics.k8s.io` and `custom.metrics.k8s.io`, served from `metrics`.
pub fn resources(metrics: &Arc<NodeMetrics>) -> impl Iterator<Item = ResourceInfo> {
    usage(metrics).into_iter().chain(custom::resources(metrics))
}

fn usage(metrics: &Arc<NodeMetrics>) -> [ResourceInfo; 2] {
    let usage = json!({"type": "object", "additionalProperties": {"type": "string"},
        "description": "Cores in use, as a rate over the window, and bytes of memory."});
    let measured = |about: &str, more: (&str, Value)| {
        json!({"type": "object", "description": about, "properties": {
            "timestamp": {"type": "string", "format": "date-time", "description": "When it was measured."},
            "window": {"type": "string", "description": "The time before the timestamp over which CPU was measured."},
            more.0: more.1,
        }})
    };
    let container = json!({"type": "object", "description": "What one container uses.", "properties": {
        "name": {"type": "string", "description": "The container's name in the pod."}, "usage": usage}});
    let containers = json!({"type": "array", "items": container, "x-kubernetes-list-type": "atomic",
        "description": "What each container uses."});
    let all = [
        resource(
            GroupVersion::parse(API_VERSION),
            ("pods", "PodMetrics"),
            true,
            &measured("What the containers of a pod use.", ("containers", containers)),
            Arc::new(PodMetricsSource(metrics.clone())),
        ),
        resource(
            GroupVersion::parse(API_VERSION),
            ("nodes", "NodeMetrics"),
            false,
            &measured("What a node uses.", ("usage", usage.clone())),
            Arc::new(NodeMetricsSource(metrics.clone())),
        ),
    ];
    all.map(|one| ResourceInfo { strategy: SharedStrategy::Owned(Arc::new(UsageStrategy)), ..one })
}

/// A virtual resource: generated, not stored. `plural` and `kind` are its names.
pub(super) fn resource(
    of: GroupVersion<'_>,
    (plural, kind): (&str, &str),
    namespaced: bool,
    schema: &Value,
    source: Arc<dyn ObjectSource>,
) -> ResourceInfo {
    let (api_version, GroupVersion { group, version }) = (of.to_string(), of);
    let of = GroupVersionKind { group, version, kind };
    ResourceInfo {
        group: group.into(),
        version: version.into(),
        api_version: api_version.into(),
        kind: kind.into(),
        plural: plural.into(),
        // metrics-server's discovery has no singular name.
        singular: "".into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        schema: schema::structural(schema::built_in(), of, schema).expect("the schemas above are structural").into(),
        verbs: vec![Verb::Get, Verb::List],
        subresources: Vec::new(),
        prefix: None,
        openapi: None,
        source: Some(source),
        stored_as: None,
        review: None,
        forwards_to: None,
        indexed_fields: Arc::default(),
        indexes_labels: false,
        shows_empty: false,
        deletion: Deletion::Plain,
        ttl: None,
        deprecated: None,
        inert: None,
        strategy: SharedStrategy::Owned(Arc::new(ReadOnlyStrategy)),
        custom: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_the_usage_of_all_containers() {
        let usage = |cpu: &str, memory: &str| json!({"usage": {"cpu": cpu, "memory": memory}});
        let pod = json!({"metadata": {"name": "p"}, "window": "15s",
            "containers": [usage("1500n", "1Ki"), usage("0", "1Mi")]});
        assert_eq!(json!(UsageStrategy.cells(&pod, Timestamp::UNIX_EPOCH)), json!(["p", "1500n", "1025Ki", "15s"]));
        let node = json!({"metadata": {"name": "n"}, "window": "1m1s", "usage": {"cpu": "2", "memory": "3Mi"}});
        assert_eq!(json!(UsageStrategy.cells(&node, Timestamp::UNIX_EPOCH)), json!(["n", "2", "3Mi", "1m1s"]));
    }
}
