//! The facts that a pod's first step depends on: its rejection, confirmed by the API, its unsupported fields, and its
//! RuntimeClass. Nothing of the pod runs before they are known.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::node::v1::RuntimeClass;

use super::*;
use crate::pod::node_facts::NodeFacts;

/// The RuntimeClass handler that this node supports.
const HANDLER: &str = "wasm";
/// The timeout of the Node request before a rejection by labels.
const NODE_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl PodWorker {
    /// Gathers the facts of the first step. `rejection` is the admission failure.
    pub(super) async fn admit(&mut self, rejection: Option<Rejection>) -> Admission {
        let deleted = grace(self.pod());
        let fields = unsupported::fields(self.pod());
        let unsupported = (!fields.is_empty()).then(|| {
            let each = fields.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
            (unsupported::sentence(&fields), each)
        });
        let rejection = self.recheck_rejection(rejection).await;
        let mut admission = Admission { rejection, unsupported, deleted, removed: false };
        self.await_runtime_class(&mut admission).await;
        admission
    }

    /// Labels may have changed just before the pod was bound. As upstream, the kubelet fetches the Node before it
    /// rejects a pod for the labels in its cache.
    async fn recheck_rejection(&mut self, rejection: Option<Rejection>) -> Option<(&'static str, String)> {
        let Rejection { reason, message, by_labels } = rejection?;
        if by_labels {
            let (requests, key) = (self.requests(), ObjectKey::new("", self.node.identity.name.clone()));
            let kind = Kind::of::<Node>();
            let request = requests.get::<Node>(&kind, &key);
            if let Ok(Ok(node)) = self.node.parts.env.timeout(NODE_REQUEST_TIMEOUT, request).await
                && NodeFacts::of(&node).selected_by(self.pod())
            {
                return None;
            }
        }
        Some((reason, message))
    }

    /// Waits until the pod's RuntimeClass names the handler of this node, or the pod is being deleted.
    async fn await_runtime_class(&mut self, admission: &mut Admission) {
        if self.kept.is_restored() {
            // The earlier run has checked it.
            return;
        }
        let spec = self.pod().spec.as_ref();
        let Some(name) = spec.and_then(|spec| spec.runtime_class_name.clone()).filter(|name| name != HANDLER) else {
            return;
        };
        let classes: machinery_client::Api<RuntimeClass> = machinery_client::Api::all(self.node.client.clone());
        let (mut wait, mut last_reported) = (WRITE_RETRY_FIRST, String::new());
        loop {
            let class = tokio::select! {
                class = classes.get_opt(&name) => class,
                () = self.await_deletion(admission) => return,
            };
            let why = match class {
                Ok(Some(class)) if class.handler == HANDLER => return,
                Ok(Some(class)) => {
                    format!(
                        "no runtime for {:?} is configured: RuntimeClasses of this node have the handler {HANDLER:?}",
                        class.handler
                    )
                }
                Ok(None) => format!("runtimeclass.node.k8s.io {name:?} not found"),
                Err(error) => format!("RuntimeClass {name:?} cannot be read, trying again: {error}"),
            };
            if why != last_reported {
                let message = format!("Failed to create pod sandbox: {why}");
                self.record_event(true, "FailedCreatePodSandBox", message, None);
                last_reported = why;
            }
            tokio::select! {
                () = self.node.parts.env.sleep(wait) => {}
                () = self.await_deletion(admission) => return,
            }
            wait = (wait * 2).min(WRITE_RETRY_MAX);
        }
    }

    /// Applies API updates to a pod that has not started, until its deletion is requested or another process has it.
    async fn await_deletion(&mut self, admission: &mut Admission) {
        while !admission.ends() && !self.state.ending() {
            if self.input.changed().await.is_err() {
                return std::future::pending().await;
            }
            let PodInput { pod, removed, status_target, handed_over, .. } = self.input.read(PodInput::clone);
            if handed_over {
                return;
            }
            self.set_pod(pod);
            let version = version_of(&self.pod().metadata);
            self.step_writer(StatusEvent::Observed { target: status_target, version });
            (admission.deleted, admission.removed) = (grace(self.pod()), removed);
        }
    }
}
