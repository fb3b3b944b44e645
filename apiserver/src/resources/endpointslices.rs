//! EndpointSlice.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// EndpointSlices.
pub(super) static ROW: Row = Row {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    storage: Storage::Stored("endpointslices"),
    strategy: &EndpointSlice,
    example: r#"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: example, labels: {kubernetes.io/service-name: example}}
addressType: IPv4
endpoints: [{addresses: [10.1.2.3], conditions: {ready: true}}]
ports: [{name: http, port: 80}]
"#,
    ..Row::NAMESPACED
};

struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
