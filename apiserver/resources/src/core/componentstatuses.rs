//! ComponentStatuses: health of the API server's dependencies. Deprecated, computed on each request.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{NAME, column, name};
use crate::field::ErrorList;
use crate::read::{items, text};
use crate::{Column, Context, Row, Strategy, Verb};

/// The server sets the row's source.
pub static ROW: Row = Row {
    kind: "ComponentStatus",
    plural: "componentstatuses",
    singular: "componentstatus",
    short_names: &["cs"],
    schema: "io.k8s.api.core.v1.ComponentStatus",
    verbs: &[Verb::Get, Verb::List],
    deprecated: Some("v1 ComponentStatus is deprecated in v1.19+"),
    strategy: &ComponentStatus,
    ..Row::CLUSTER
};

struct ComponentStatus;

const COLUMNS: &[Column] = &[NAME, column("Status", "string"), column("Message", "string"), column("Error", "string")];

impl Strategy for ComponentStatus {
    fn validate(&self, _: &Context<'_>, _: &Value, _: Option<&Value>, _: &mut ErrorList) {}

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, _: Timestamp) -> Vec<Value> {
        let healthy = items(object, "conditions").iter().find(|one| text(one, "type") == "Healthy");
        let (status, message, error) = match healthy {
            Some(one) if text(one, "status") == "True" => ("Healthy", text(one, "message"), text(one, "error")),
            Some(one) => ("Unhealthy", text(one, "message"), text(one, "error")),
            None => ("Unknown", "", ""),
        };
        vec![name(object), json!(status), json!(message), json!(error)]
    }
}
