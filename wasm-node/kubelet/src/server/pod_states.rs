//! Metrics of the pods' states: active pods, readiness, restarts and waiting containers, by the status that the node
//! reports. A finished pod has none of them, so that it raises no alert.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

use super::metrics::MetricsText;

/// An active pod with its status.
pub(super) struct ActivePod {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) status: Arc<PodStatus>,
}

/// Returns whether a pod with this status isn't finished.
pub(super) fn is_active(status: &PodStatus) -> bool {
    !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Writes the metrics of `pods`, which are active.
pub(super) fn write(text: &mut MetricsText, pods: &[ActivePod]) {
    let help =
        "The number of pods the kubelet considers active and which are being considered when admitting new pods.";
    text.head("kubelet_active_pods", "gauge", help);
    text.sample("kubelet_active_pods", &[("static", "")], pods.len());
    text.head("coracle_pod_ready", "gauge", "1 for a ready pod, 0 for one that is not ready and not finished");
    for one in pods {
        let labels = [("namespace", &*one.namespace), ("pod", &*one.pod)];
        text.sample("coracle_pod_ready", &labels, u8::from(is_ready(&one.status)));
    }
    text.head(
        "coracle_container_restarts_total",
        "counter",
        "Restarts of the containers of pods that are not finished",
    );
    for (one, container) in containers(pods) {
        let labels = [("container", &*container.name), ("namespace", &*one.namespace), ("pod", &*one.pod)];
        text.sample("coracle_container_restarts_total", &labels, container.restart_count);
    }
    text.head("coracle_container_waiting", "gauge", "1 for a container that waits, by reason");
    for (one, container) in containers(pods) {
        let Some(reason) = waiting_reason(container) else { continue };
        let labels =
            [("container", &*container.name), ("namespace", &*one.namespace), ("pod", &*one.pod), ("reason", reason)];
        text.sample("coracle_container_waiting", &labels, 1);
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Yields the containers of each pod, init containers first.
fn containers(pods: &[ActivePod]) -> impl Iterator<Item = (&ActivePod, &ContainerStatus)> {
    pods.iter().flat_map(|one| {
        let lists = [&one.status.init_container_statuses, &one.status.container_statuses];
        lists.into_iter().flatten().flatten().map(move |container| (one, container))
    })
}

fn waiting_reason(container: &ContainerStatus) -> Option<&str> {
    container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, status: Value) -> ActivePod {
        let status = Arc::new(serde_json::from_value(status).expect("a status"));
        ActivePod { namespace: "shop".to_owned(), pod: name.to_owned(), status }
    }

    fn container(name: &str, restarts: u32, state: Value) -> Value {
        json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": restarts, "state": state})
    }

    #[test]
    fn states_of_pods_are_written() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let pods = [
            pod("empty", json!({})),
            pod(
                "loop",
                json!({
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": "False"}],
                    "initContainerStatuses": [container("first", 0, json!({"terminated": {"exitCode": 0}}))],
                    "containerStatuses": [container("main", 7, waiting)],
                }),
            ),
            pod("well", json!({"conditions": [{"type": "Ready", "status": "True"}]})),
        ];
        let mut text = MetricsText::default();
        write(&mut text, &pods);
        let samples: Vec<&str> = text.text().lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                r#"kubelet_active_pods{static=""} 3"#,
                r#"coracle_pod_ready{namespace="shop",pod="empty"} 0"#,
                r#"coracle_pod_ready{namespace="shop",pod="loop"} 0"#,
                r#"coracle_pod_ready{namespace="shop",pod="well"} 1"#,
                r#"coracle_container_restarts_total{container="first",namespace="shop",pod="loop"} 0"#,
                r#"coracle_container_restarts_total{container="main",namespace="shop",pod="loop"} 7"#,
                r#"coracle_container_waiting{container="main",namespace="shop",pod="loop",reason="CrashLoopBackOff"} 1"#,
            ]
        );
    }

    #[test]
    fn finished_pods_are_not_active() {
        for (phase, active) in [("Pending", true), ("Running", true), ("Succeeded", false), ("Failed", false)] {
            assert_eq!(is_active(&pod("a", json!({"phase": phase})).status), active, "{phase}");
        }
        assert!(is_active(&PodStatus::default()));
    }
}
