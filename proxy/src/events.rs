//! Events that the data plane puts on Services, in upstream's form (events.k8s.io/v1).

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::listen::BindFailure;

/// Tells what a Service's user should know.
pub(crate) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self {
            recorder: Recorder::new(
                client,
                Reporter { controller: "kube-proxy".into(), instance: Some(node.to_owned()) },
            ),
        }
    }

    pub(crate) async fn unsupported(&self, service: &Service, fields: &[String]) {
        let note = format!("not acted on by the data plane yet: {}; the Service's other fields are", fields.join(", "));
        self.warn(service, "Unsupported", note).await;
    }

    pub(crate) async fn not_bound(&self, service: &Service, failure: &BindFailure) {
        let why = match failure.error.kind() {
            std::io::ErrorKind::PermissionDenied => "this user may not bind ports below 1024",
            std::io::ErrorKind::AddrInUse => "the port is taken",
            _ => "the address cannot be bound",
        };
        let note = format!(
            "cannot listen on {} for processes of the host: {why} ({}); pods reach the Service all the same, and a NodePort serves the host",
            failure.address, failure.error
        );
        self.warn(service, "FailedToListen", note).await;
    }

    async fn warn(&self, service: &Service, reason: &str, note: String) {
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            uid: service.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(note),
            action: "Sync".into(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(%error, "cannot record an event");
        }
    }
}
