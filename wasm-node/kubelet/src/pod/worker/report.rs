//! A worker's status: projects it, and sends the writes that [`StatusWriter`] decides on.

use std::net::IpAddr;

use machinery_client::request::{ApiClient, PatchType};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::*;

const POD: Kind = Kind::of::<Pod>();
/// The bound of the random delay that is added to a retry, so that pods don't retry together.
const RETRY_JITTER_MILLIS: u64 = 1000;

machinery_client::read_wire! { Versioned }

/// The part of a write's response that is read: the object's version.
#[derive(Debug, Default, Deserialize)]
struct Versioned {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
}

impl Versioned {
    fn version(&self) -> u64 {
        self.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
    }
}

impl PodWorker {
    /// Projects the status, or defers this if the projection of a large pod would take too much time.
    pub(super) fn project(&mut self) {
        let began = self.elapsed();
        if self.projection.request(began) {
            self.project_now();
            self.projection.record(began, self.elapsed(), self.state.machines().len());
            self.keep_state();
        }
    }

    fn project_now(&mut self) {
        let (now, before) = (self.now(), self.writer.desired().get());
        let slots = &self.slots;
        let actual = |name: &str| {
            let slot = slots.iter().find(|slot| *slot.name == *name)?;
            slot.live.as_ref()?.created.resources.clone()
        };
        let pod_ip = self.sandbox.ip.or_else(|| last_ip(&before));
        let input = ProjectionInput {
            state: &self.state,
            pod: self.object.get(),
            rules: &self.rules,
            facts: status::Facts { host_ip: self.node.identity.internal_ip, pod_ip },
            resize: &self.resize,
            actual: &actual,
        };
        let status = self.projection.project(&input, &before, now);
        if status == *before {
            return;
        }
        if self.state.ready()
            && let Some(latency) = self.start_latency.record_ready(self.elapsed())
        {
            self.node.pods.totals.started(latency);
        }
        let status: Arc<Compressed<PodStatus>> = Arc::new(status.into());
        self.view.update(|snapshot| snapshot.status = status.clone());
        self.step_writer(StatusEvent::Projected(status));
    }

    /// Passes an event to the status writer, and performs the returned actions.
    pub(super) fn step_writer(&mut self, event: StatusEvent) {
        for action in self.writer.step(event, self.elapsed()) {
            match action {
                StatusAction::ReleaseFirstActions => self.release_first_actions(ReleaseEvent::StatusReported),
                StatusAction::RecordTooLarge => {
                    let message =
                        "The pod's status is larger than the API takes, and is not shown: use fewer containers";
                    self.record_event(true, "StatusTooLarge", message.into(), None);
                }
            }
        }
    }

    /// The request of a write.
    pub(super) fn request(&self, write: StatusWrite) -> StatusRequest {
        match write {
            StatusWrite::Patch => self.patch_status(),
            StatusWrite::Delete => self.delete_pod(),
        }
    }

    fn patch_status(&self) -> StatusRequest {
        let (requests, key) = (self.requests(), self.key());
        let mut patch = status::patch(self.pod(), &self.writer.desired().get());
        if let StatusTarget::Mirror(uid) = self.writer.target() {
            patch["metadata"]["uid"] = serde_json::json!(uid);
        }
        let pod = self.rules.pod.clone();
        Box::pin(async move {
            let response = requests.patch(&POD, &key, Some("status"), PatchType::Strategic, &patch).await;
            response
                .inspect_err(|error| tracing::debug!(pod, %error, "the status cannot be written"))
                .map(|response: Versioned| response.version())
        })
    }

    fn delete_pod(&self) -> StatusRequest {
        let (requests, key) = (self.requests(), self.key());
        let options = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.pod().metadata.uid},
        });
        let pod = self.rules.pod.clone();
        Box::pin(async move {
            let response = requests.delete(&POD, &key, &options).await;
            response
                .inspect_err(|error| tracing::debug!(pod, %error, "the pod cannot be deleted"))
                .map(|_: IgnoredAny| 0)
        })
    }

    pub(super) fn requests(&self) -> ApiClient {
        self.node.client.clone().into()
    }

    fn key(&self) -> ObjectKey {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let metadata = &self.pod().metadata;
        ObjectKey::new(text(&metadata.namespace), text(&metadata.name))
    }

    /// Handles the result of a write.
    pub(super) fn handle_write_result(&mut self, result: Result<u64, kube::Error>) {
        let outcome = match &result {
            Ok(version) => WriteOutcome::Accepted(*version),
            Err(kube::Error::Api(status)) => WriteOutcome::of_failure(status.code),
            Err(_) => WriteOutcome::Failed,
        };
        let jitter = if result.is_ok() { 0 } else { self.node.parts.env.below(RETRY_JITTER_MILLIS) };
        let newest = version_of(&self.pod().metadata);
        self.step_writer(StatusEvent::WriteEnded { outcome, newest, jitter: Duration::from_millis(jitter) });
    }
}

/// The address in a status: an ended pod keeps it.
fn last_ip(status: &PodStatus) -> Option<IpAddr> {
    status.pod_ip.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_version_is_read() {
        let answer = r#"{"kind": "Pod", "metadata": {"name": "p", "resourceVersion": "12"}, "spec": {"a": [1]}}"#;
        let version = |answer: &str| serde_json::from_str::<Versioned>(answer).unwrap().version();
        assert_eq!((version(answer), version("{}")), (12, 0));
    }
}
