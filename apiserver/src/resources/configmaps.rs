//! ConfigMap.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// ConfigMaps.
pub(super) static ROW: Row = Row {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    storage: Storage::Stored("configmaps"),
    strategy: &ConfigMap,
    example: r#"apiVersion: v1
kind: ConfigMap
metadata: {name: example}
data: {color: blue}
"#,
    ..Row::NAMESPACED
};

struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
