//! The two resources, as metrics-server serves them.

use std::sync::Arc;

use apiserver_resources::field::FieldError;
use apiserver_resources::objects::ObjectSource;
use apiserver_resources::{Context, Deletion, ResourceInfo, SharedStrategy, Strategy, Verb};
use machinery_api::schema;
use machinery_api::{GroupVersion, GroupVersionKind};
use serde_json::{Value, json};

use super::NodeMetrics;
use super::custom;
use super::figures::API_VERSION;
use super::source::{OfNodes, OfPods};

/// Nobody writes them.
struct Figures;

impl Strategy for Figures {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

/// Those of `metrics.k8s.io` and of `custom.metrics.k8s.io`, answered by `metrics`.
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
    [
        resource(
            GroupVersion::parse(API_VERSION),
            ("pods", "PodMetrics"),
            true,
            &measured("What the containers of a pod use.", ("containers", containers)),
            Arc::new(OfPods(metrics.clone())),
        ),
        resource(
            GroupVersion::parse(API_VERSION),
            ("nodes", "NodeMetrics"),
            false,
            &measured("What a node uses.", ("usage", usage.clone())),
            Arc::new(OfNodes(metrics.clone())),
        ),
    ]
}

/// What is made and not stored. `plural` and `kind`: its names.
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
        // metrics-server's discovery names none.
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
        stands_for: None,
        indexed_fields: Arc::default(),
        indexes_labels: false,
        shows_empty: false,
        deletion: Deletion::Plain,
        ttl: None,
        deprecated: None,
        inert: None,
        strategy: SharedStrategy::Owned(Arc::new(Figures)),
        custom: None,
    }
}
