//! Event, Event.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// Events.
pub(super) static CORE: Row = Row {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    storage: Storage::Stored("events"),
    strategy: &CoreEvent,
    example: r#"apiVersion: v1
kind: Event
metadata: {name: example, namespace: default}
involvedObject: {apiVersion: v1, kind: Pod, name: web, namespace: default}
reason: Started
message: Started container web
type: Normal
source: {component: kubelet}
firstTimestamp: "2026-01-01T00:00:00Z"
lastTimestamp: "2026-01-01T00:00:00Z"
count: 1
"#,
    ..Row::NAMESPACED
};

/// Events.
pub(super) static EVENTS: Row = Row {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.events.v1.Event",
    storage: Storage::Stored("events"),
    storage_version: false,
    strategy: &NewEvent,
    example: r#"apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: example, namespace: default}
eventTime: "2026-01-01T00:00:00.000000Z"
reportingController: example.com/controller
reportingInstance: controller-1
action: Starting
reason: Started
type: Normal
note: Started container web
regarding: {apiVersion: v1, kind: Pod, name: web, namespace: default}
"#,
    ..Row::NAMESPACED
};

struct CoreEvent;

impl Strategy for CoreEvent {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

struct NewEvent;

impl Strategy for NewEvent {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}
