//! Records events on Services about unsupported fields and ports that cannot be bound. Recording never blocks a route
//! update.

use k8s_openapi::api::core::v1::Service;
use kube::Client;
use machinery_client::EventRecord;
use machinery_client::events::Recorder;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::listen::BindFailure;

/// Records events on Services; never waits for the API, so that route updates don't.
pub(crate) struct Events {
    recorder: Recorder,
}

impl Events {
    pub(crate) fn start(client: Client, env: Env, node: &str, stop: &CancellationToken) -> Self {
        Self { recorder: Recorder::start_on(client, env, "kube-proxy", node.to_owned(), stop) }
    }

    pub(crate) fn unsupported(&self, service: &Service, fields: &[String]) {
        let message =
            format!("not acted on by the data plane yet: {}; the Service's other fields are", fields.join(", "));
        self.recorder.record(EventRecord::warning(service, "Unsupported", message));
    }

    pub(crate) fn without_address(&self, service: &Service, fields: &[String]) {
        let message = format!("not served: {}; the Service's other addresses are", fields.join(", "));
        self.recorder.record(EventRecord::warning(service, "NoAddress", message));
    }

    pub(crate) fn not_bound(&self, service: &Service, failure: &BindFailure) {
        let why = match failure.error.kind() {
            std::io::ErrorKind::PermissionDenied => "this user may not bind ports below 1024",
            std::io::ErrorKind::AddrInUse => "the port is taken",
            _ => "the address cannot be bound",
        };
        let message = format!(
            "cannot listen on {} for processes of the host: {why} ({}); pods reach the Service all the same, and a NodePort serves the host",
            failure.address, failure.error
        );
        self.recorder.record(EventRecord::warning(service, "FailedToListen", message));
    }
}
